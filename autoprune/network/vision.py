"""Architectures of torchvision and timm; the only file that imports them. Nothing is downloaded."""

from __future__ import annotations

import difflib
import inspect
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError, UnknownNameError

#: Operators that torchvision's Python code describes even where its compiled part does not load.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

#: Declarations live as long as their library object.
_declared: list[torch.library.Library] = []

_INSTALL = 'pip install "autoprune[vision]"'


def torchvision_names() -> list[str]:
    """Return the names of torchvision's models, sorted.

    They are classifiers, segmentation, detection, video and optical flow. The quantised copies are
    left out: their weights are no floating-point numbers, which is all that is pruned.

    Raises:
        ModelError: torchvision is missing or does not fit this torch.
    """
    models = load_torchvision().models
    rooms = (models, models.segmentation, models.detection, models.video, models.optical_flow)
    return sorted(name for room in rooms for name in models.list_models(module=room))


def timm_names() -> list[str]:
    """Return the names of timm's architectures, sorted.

    Raises:
        ModelError: timm is missing.
    """
    return sorted(_timm().list_models())


def build_torchvision(name: str, **kwargs: Any) -> nn.Module:
    """Return torchvision's model ``name`` with random weights.

    A classifier takes images, ``[batch, 3, height, width]``; a detector a list of images, ``[3,
    height, width]`` each; a video model clips, ``[batch, 3, frames, height, width]``; optical flow
    two batches of images.

    Args:
        name: One of :func:`torchvision_names`.
        **kwargs: Passed to torchvision, e.g. ``num_classes``.

    Raises:
        UnknownNameError: There is no such model.
        ModelError: torchvision is missing, or refuses the arguments.
    """
    _refuse_weights("torchvision", name, kwargs)
    names = torchvision_names()
    if name not in names:
        raise UnknownNameError("torchvision model", name, names)
    if name in ("googlenet", "inception_v3"):
        # Their own initialisation samples every weight from scipy's truncated normal: minutes.
        kwargs.setdefault("init_weights", False)
    models = load_torchvision().models
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        # Left to itself, a detector downloads the backbone it is trained from.
        kwargs["weights_backbone"] = None
    try:
        model: nn.Module = models.get_model(name, weights=None, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"torchvision cannot build {name} with {kwargs}: {error}") from error
    return model


def build_timm(name: str, **kwargs: Any) -> nn.Module:
    """Return timm's architecture ``name`` with random weights.

    Args:
        name: One of :func:`timm_names`; a pretrained tag (``resnet18.a1_in1k``) may follow.
        **kwargs: Passed to timm, e.g. ``num_classes``.

    Raises:
        UnknownNameError: There is no such architecture; the nearest are listed.
        ModelError: timm is missing, or refuses the arguments.
    """
    _refuse_weights("timm", name, kwargs)
    timm = _timm()
    if not timm.is_model(name):
        # More than a thousand names are no help; the nearest are.
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.3)
        raise UnknownNameError("timm model", name, near)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"timm cannot build {name} with {kwargs}: {error}") from error
    return model


def _refuse_weights(package: str, name: str, kwargs: dict[str, Any]) -> None:
    """Raise for arguments that would fetch or unpickle weights."""
    wrong = [
        key
        for key in kwargs
        if key in ("weights", "weights_backbone", "checkpoint_path") or key.startswith("pretrained")
    ]
    if wrong:
        raise ModelError(
            f"{package}:{name} takes no {', '.join(wrong)}: nothing is downloaded while a model is "
            "built; save the weights to a file once and pass that with --weights"
        )


def load_torchvision() -> ModuleType:
    """Return torchvision, with the operators declared that it expects from its compiled part.

    The compiled part does not load beside a torch of another build (a CUDA wheel beside a
    CPU-only torch), and the import then fails although only detectors use it. Where it loads, it
    declares the operators itself and a second declaration would be an error, so ours come only
    after the import has failed for want of them.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise ModelError(f"torchvision is not installed ({error}); {_INSTALL}") from error
    except RuntimeError as error:
        if not _declare_missing():
            raise ModelError(
                f"torchvision does not load beside torch {torch.__version__}: {error}; {_INSTALL}"
            ) from error
        import torchvision
    module: ModuleType = torchvision
    return module


def _declare_missing() -> list[str]:
    """Declare the operators of :data:`_SCHEMAS` that nobody has; return their names."""
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _declared.append(library)
    return missing


def _timm() -> ModuleType:
    """Return timm, which imports torchvision."""
    load_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError(f"timm is not installed ({error}); {_INSTALL}") from error
    module: ModuleType = timm
    return module
