"""Gradient-boosted corrections of a roofline, one model per kernel family.

The models learn the logarithm of measured over roofline latency. Where a sample is a network, only
the sum over its kernels was measured: its error is handed to the kernels in proportion to their
share of the time, which makes every boosting step decrease the error of the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import lightgbm as lgb
import numpy as np
from jaxtyping import Bool, Float

from autoprune.latency.fitting import Fit
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.samples import Samples, Shapes

#: Dimensions that a hull bounds, and that the models see as logarithms.
HULL = (
    *("cin", "cout", "groups", "taps", "stride", "inputs", "outputs", "batch"),
    *("macs", "bytes", "tensors"),
)
#: A kernel is known up to this factor beyond the measured range of each dimension; in taps and
#: stride not at all.
MARGIN = 2.0
_STRICT = ("taps", "stride")
#: Tile heights and widths of matrix units: what a partly filled tile wastes shows in the time.
_TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (128, 32), (32, 32))
_REMAINDERS = (8, 16, 32, 64, 128, 256)
#: Errors beyond this, in log space, count as this: one wrong row must not bend a tree.
_CLIP = 0.7


@dataclasses.dataclass(frozen=True)
class Training:
    """How the trees grow.

    Attributes:
        rounds: Trees per family.
        leaves: Leaves per tree.
        rate: Learning rate.
        least_rows: Kernels per leaf, at least.
        seed: Of the features each tree may use.
    """

    rounds: int = 400
    leaves: int = 31
    rate: float = 0.06
    least_rows: int = 10
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Hull:
    """The range of kernels that were measured.

    Attributes:
        low: Least value of each dimension in :data:`HULL`.
        high: Greatest value.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]

    def contains(self, columns: Mapping[str, Float[np.ndarray, " n"]]) -> Bool[np.ndarray, " n"]:
        """Return whether kernels are known: every dimension within the range and its margin."""
        inside: Bool[np.ndarray, " n"] = np.ones(len(next(iter(columns.values()))), bool)
        for name in HULL:
            margin = 1.0 if name in _STRICT else MARGIN
            low, high = self.low[name] / margin, self.high[name] * margin
            inside &= (columns[name] >= low * (1 - 1e-9)) & (columns[name] <= high * (1 + 1e-9))
        return inside


@dataclasses.dataclass(frozen=True)
class Model:
    """The correction of one kernel family.

    Attributes:
        text: LightGBM's own text of the trees.
        hull: Where it may be used.
    """

    text: str
    hull: Hull


class LearnedCorrection:
    """Corrections by models; 0 for other families and outside a model's hull."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        """Read the models' trees.

        Args:
            models: Model by kernel family.
        """
        self._models = {
            FAMILIES.index(family): (lgb.Booster(model_str=model.text), model.hull)
            for family, model in models.items()
        }

    def log_factor(self, shapes: Shapes) -> Float[np.ndarray, " kernels"]:
        """Return the logarithm of measured over roofline latency, per kernel."""
        factor = np.zeros(len(shapes))
        for family, (booster, hull) in self._models.items():
            rows = np.flatnonzero(shapes.family == family)
            rows = rows[hull.contains(dimensions(shapes.take(rows)))]
            if len(rows):
                factor[rows] = np.asarray(booster.predict(features(shapes.take(rows))))
        return factor


def dimensions(shapes: Shapes) -> dict[str, Float[np.ndarray, " kernels"]]:
    """Return the dimensions of :data:`HULL`, bytes counted as elements."""
    depthwise = shapes["groups"] == shapes["cin"]
    product = np.where(
        depthwise, shapes["cout"], shapes["cin"] * shapes["cout"] / shapes["groups"]
    )
    moved = shapes["reads"] * shapes["cin"] + shapes["writes"] * shapes["cout"]
    known = {name: shapes[name] for name in HULL if name not in ("macs", "bytes", "tensors")}
    # A depthwise kernel has no groups beside its channels, whatever their number.
    return known | {
        "groups": np.where(depthwise, 1.0, shapes["groups"]),
        "macs": shapes["macs"] * product,
        "bytes": moved + shapes["weights"] * product,
        "tensors": shapes["writes"] / (shapes["outputs"] * shapes["batch"]),
    }


def features(shapes: Shapes) -> Float[np.ndarray, "kernels features"]:
    """Return what the models see of kernels."""
    dims = dimensions(shapes)
    columns = [np.log2(np.maximum(dims[name], 2.0**-20)) for name in HULL]
    rows = dims["outputs"] * dims["batch"]
    depth = dims["cin"] / dims["groups"] * dims["taps"]
    moved = np.maximum(dims["bytes"], 1.0)
    columns += [
        np.log2(rows),
        np.log2(depth),
        np.log2(np.maximum(dims["macs"], 1.0) / moved),
        np.log2(shapes["reads"] * shapes["cin"]),
        np.log2(shapes["writes"] * shapes["cout"]),
        np.log2(depth * dims["cout"]),
        np.log2(dims["cin"] / dims["cout"]),
        np.sqrt(dims["outputs"]),
    ]
    for side in ("cin", "cout"):
        for multiple in _REMAINDERS:
            columns.append(np.ceil(dims[side] / multiple) * multiple / dims[side])
        columns += [dims[side] % multiple for multiple in _REMAINDERS[:4]]
    for height, width in _TILES:
        tiles = np.ceil(rows / height) * np.ceil(dims["cout"] / width)
        columns += [np.log2(tiles), np.log2(tiles * height * width / (rows * dims["cout"]))]
    return np.column_stack(columns)


def train(samples: Samples, fitted: Fit, training: Training | None = None) -> dict[str, Model]:
    """Return one model per kernel family that occurs; the same every time.

    Args:
        samples: Measured networks and kernels.
        fitted: The roofline fitted to them.
        training: How the trees grow; by default chosen by the number of kernels.
    """
    training = training or default_training(samples)
    boosting = _Boosting(samples, fitted, training)
    for _ in range(training.rounds):
        boosting.step()
    return boosting.models()


def default_training(samples: Samples) -> Training:
    """Return settings for as many rows as there are."""
    rows = len(np.unique(samples.shapes.values, axis=0))
    if rows < 1000:
        return Training(rounds=200, leaves=7, rate=0.05, least_rows=20)
    if rows < 10_000:
        return Training()
    return Training(rounds=500, leaves=63, rate=0.05, least_rows=20)


class _Boosting:
    """The models while they grow, each on the kernels of its family."""

    def __init__(self, samples: Samples, fitted: Fit, training: Training) -> None:
        self.samples, self.training = samples, training
        self.base_ms = fitted.kernel_ms(samples)
        self.constant_ms = fitted.constants(samples)
        self.log_ms = np.log(samples.latency_ms)
        self.score = np.zeros(len(samples.shapes))
        parameters: dict[str, Any] = {
            "objective": "none",
            "num_leaves": training.leaves,
            "learning_rate": training.rate,
            "min_data_in_leaf": training.least_rows,
            "min_sum_hessian_in_leaf": 1e-3,
            "lambda_l2": 1.0,
            "feature_fraction": 0.8,
            "seed": training.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        self.boosters: dict[str, tuple[lgb.Booster, np.ndarray]] = {}
        for index, family in enumerate(FAMILIES):
            rows = np.flatnonzero(samples.shapes.family == index)
            if len(rows) >= 2 * training.least_rows:
                seen = features(samples.shapes.take(rows))
                data = lgb.Dataset(seen, np.zeros(len(rows)), params={"verbose": -1})
                self.boosters[family] = lgb.Booster(parameters, data), rows

    def step(self) -> None:
        """Add a tree to every model."""
        for booster, rows in self.boosters.values():

            def gradient(
                scores: np.ndarray, _: lgb.Dataset, rows: np.ndarray = rows
            ) -> tuple[np.ndarray, np.ndarray]:
                self.score[rows] = scores
                return self._gradient(rows)

            booster.update(fobj=gradient)

    def models(self) -> dict[str, Model]:
        """Return the finished models."""
        made = {}
        for family, (booster, rows) in self.boosters.items():
            dims = dimensions(self.samples.shapes.take(rows))
            low = {name: float(dims[name].min()) for name in HULL}
            high = {name: float(dims[name].max()) for name in HULL}
            made[family] = Model(booster.model_to_string(), Hull(low, high))
        return made

    def _gradient(
        self, rows: np.ndarray
    ) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Return derivatives of half the squared log error, and a bound on the second ones.

        The shares of a sample's kernels add up to at most one, so that weighting each by its share
        bounds the curvature of the sum from above.
        """
        kernel_ms = self.base_ms * np.exp(self.score)
        total = np.bincount(self.samples.sample, kernel_ms, len(self.samples)) + self.constant_ms
        error = np.clip(np.log(total) - self.log_ms, -_CLIP, _CLIP)
        sample = self.samples.sample[rows]
        share = kernel_ms[rows] / total[sample]
        return error[sample] * share, share + 1e-9
