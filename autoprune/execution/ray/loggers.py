"""Tune's loggers by name: every evaluation in TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ray import tune

#: What MLflow calls the experiment, and Weights & Biases the project.
_PROJECT = "autoprune"


def make_loggers(names: Iterable[str], folder: Path) -> list[tune.Callback]:
    """Return Tune's callbacks of these names.

    Args:
        names: In :data:`autoprune.execution.cluster.LOGGERS`, each installed.
        folder: Where MLflow's file store lies unless ``MLFLOW_TRACKING_URI`` names another.
    """
    makers: dict[str, Callable[[Path], tune.Callback]] = {
        "tensorboard": _tensorboard,
        "mlflow": _mlflow,
        "wandb": _wandb,
    }
    return [makers[name](folder) for name in names]


def _tensorboard(folder: Path) -> tune.Callback:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()


def _mlflow(folder: Path) -> tune.Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        uri = (folder / "mlruns").absolute().as_uri()
        # MLflow reads and writes folders only where it is asked to.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=_PROJECT)


def _wandb(folder: Path) -> tune.Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=os.environ.get("WANDB_PROJECT", _PROJECT))
