"""Gradient-boosted corrections of a roofline, one model per kernel family.

The models learn the logarithm of measured over roofline latency. Where a sample is a network, only
the sum over its kernels was measured: its error is handed to the kernels in proportion to their
share of the time, which makes every boosting step decrease the error of the sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from autoprune.errors import ProfileError
from autoprune.latency.fitting import Fit
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.samples import Samples, Shapes

if TYPE_CHECKING:
    import lightgbm as lgb

#: Dimensions that a hull bounds, and that the models see as logarithms.
HULL = (
    *("cin", "cout", "groups", "taps", "stride", "inputs", "outputs", "batch"),
    *("macs", "bytes", "tensors"),
)
#: A kernel is known up to this factor beyond the measured range of each dimension; in taps and
#: stride not at all. One that only computes or moves less than any measured one takes about as long
#: as the least of those, where a roofline fitted to large kernels is far off.
MARGIN = 2.0
_STRICT = ("taps", "stride")
_UNBOUNDED_BELOW = ("macs", "bytes")
#: Tile heights and widths of matrix units: what a partly filled tile, or a partly filled wave of
#: tiles over all processors, wastes shows in the time.
_TILES = (
    *((256, 128), (128, 256), (128, 128), (64, 256), (64, 128), (128, 64), (64, 64)),
    *((128, 32), (64, 32), (32, 32)),
)
_REMAINDERS = (8, 16, 32, 64)
#: Lines of a model's text that predicting does not need, and digits of those numbers it does. Sizes
#: of trees would have to be counted again, and are only a help for reading in parallel.
_UNREAD = frozenset(
    {
        *("tree_sizes", "split_gain", "leaf_weight", "leaf_count"),
        *("internal_value", "internal_weight", "internal_count"),
    }
)
_DIGITS = {"threshold": 6, "leaf_value": 4}
#: Errors beyond this many medians count as this many, so that a wrong row does not bend a tree.
_CLIP = 4.0


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

    rounds: int = 140
    leaves: int = 31
    rate: float = 0.2
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
            low = 0.0 if name in _UNBOUNDED_BELOW else self.low[name] / margin
            high = self.high[name] * margin
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

    def __init__(self, models: Mapping[str, Model], processors: int = 1) -> None:
        """Read the models' trees.

        Args:
            models: Model by kernel family.
            processors: Multiprocessors of the device the models were trained with.

        Raises:
            ProfileError: A text is none of LightGBM's.
        """
        # Importing LightGBM takes a second, which a bare roofline need not wait for.
        import lightgbm as lgb

        self.models, self.processors = dict(models), processors
        try:
            self._trees = {
                FAMILIES.index(family): (lgb.Booster(model_str=model.text), model.hull)
                for family, model in models.items()
            }
        except lgb.basic.LightGBMError as error:
            raise ProfileError(f"unreadable trees ({error}); calibrate again") from None

    def log_factor(self, shapes: Shapes) -> Float[np.ndarray, " kernels"]:
        """Return the logarithm of measured over roofline latency, per kernel.

        Raises:
            ProfileError: The models were trained on other features.
        """
        factor = np.zeros(len(shapes))
        for family, (booster, hull) in self._trees.items():
            rows = np.flatnonzero(shapes.family == family)
            rows = rows[hull.contains(dimensions(shapes.take(rows)))]
            if len(rows):
                seen = features(shapes.take(rows), self.processors)
                if booster.feature_name() != list(seen):
                    raise ProfileError(
                        f"the {FAMILIES[family]} trees were trained on other features, by another "
                        "version of autoprune; calibrate again"
                    )
                factor[rows] = np.asarray(booster.predict(np.column_stack([*seen.values()])))
        return factor


def dimensions(shapes: Shapes) -> dict[str, Float[np.ndarray, " kernels"]]:
    """Return the dimensions of :data:`HULL`, bytes counted as elements."""
    depthwise = shapes["groups"] == shapes["cin"]
    product = np.where(depthwise, shapes["cout"], shapes["cin"] * shapes["cout"] / shapes["groups"])
    moved = shapes["reads"] * shapes["cin"] + shapes["writes"] * shapes["cout"]
    known = {name: shapes[name] for name in HULL if name not in ("macs", "bytes", "tensors")}
    # A depthwise kernel has no groups beside its channels, whatever their number.
    return known | {
        "groups": np.where(depthwise, 1.0, shapes["groups"]),
        "macs": shapes["macs"] * product,
        "bytes": moved + shapes["weights"] * product,
        "tensors": shapes["writes"] / (shapes["outputs"] * shapes["batch"]),
    }


def features(shapes: Shapes, processors: int = 1) -> Mapping[str, Float[np.ndarray, " kernels"]]:
    """Return what the models see of kernels, by name.

    Args:
        shapes: The kernels.
        processors: Multiprocessors of the device, each of which computes one tile at a time.
    """
    dims = dimensions(shapes)
    rows = dims["outputs"] * dims["batch"]
    depth = dims["cin"] / dims["groups"] * dims["taps"]
    moved, macs = np.maximum(dims["bytes"], 1.0), np.maximum(dims["macs"], 1.0)
    sizes = {name: dims[name] for name in ("cin", "cout", "groups", "inputs", "outputs", "batch")}
    sizes |= {"rows": rows, "depth": depth, "bytes": moved, "macs": macs}
    sizes |= {"intensity": macs / moved, "rows_cout": rows * dims["cout"]}
    sizes |= {"depth_cout": depth * dims["cout"], "read": shapes["reads"] * shapes["cin"]}
    sizes |= {"cin_per_cout": dims["cin"] / dims["cout"]}
    wasted: dict[str, Float[np.ndarray, " kernels"]] = {}
    for height, width in _TILES:
        tile = f"{height}x{width}"
        tiles = np.ceil(rows / height) * np.ceil(dims["cout"] / width)
        waves = np.ceil(tiles / processors)
        wasted |= {f"tiles_{tile}": tiles, f"waves_{tile}": waves}
        wasted |= {f"idle_{tile}": waves * processors / tiles}
        wasted |= {f"padding_{tile}": tiles * height * width / (rows * dims["cout"])}
    logarithms = {name: np.log2(values) for name, values in (sizes | wasted).items()}
    plain = {name: dims[name] for name in ("taps", "stride", "tensors")}
    remainders = {f"{c}_mod_{m}": dims[c] % m for c in ("cin", "cout") for m in _REMAINDERS}
    return logarithms | plain | remainders


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
    """Return settings for as many rows as there are.

    Three times as many trees predict unseen channel counts of the published tables hardly better
    (10.3 % instead of 10.7 % on a V100 in half precision), and their text grows by megabytes.
    """
    rows = len(np.unique(samples.shapes.values, axis=0))
    if rows < 1000:
        return Training(rounds=200, leaves=7, rate=0.05, least_rows=20)
    # Fewer measurements than this must not be outgrown by the trees that were fitted to them.
    return Training(rounds=70, rate=0.3) if len(samples) < 5000 else Training()


def compact(text: str) -> str:
    """Return a model's text without what only training and plots read, numbers shortened.

    A third of the size; predictions differ by about one in ten thousand.

    Args:
        text: LightGBM's own text of a model.
    """
    lines = []
    for line in text.split("end of trees")[0].splitlines():
        key, _, values = line.partition("=")
        if key in _UNREAD:
            continue
        if key in _DIGITS:
            short = (f"{float(value):.{_DIGITS[key]}g}" for value in values.split())
            line = f"{key}={' '.join(short)}"
        lines.append(line)
    return "\n".join([*lines, "end of trees", ""])


class _Boosting:
    """The models while they grow, each on the kernels of its family."""

    def __init__(self, samples: Samples, fitted: Fit, training: Training) -> None:
        import lightgbm as lgb

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
            named = features(samples.shapes.take(rows), fitted.settings.processors)
            seen = np.column_stack([*named.values()])
            if len(rows) >= 2 * training.least_rows and np.ptp(seen, axis=0).any():
                data = lgb.Dataset(
                    seen,
                    np.zeros(len(rows)),
                    feature_name=list(named),
                    # LightGBM refuses to grow a tree on data of which its filter leaves nothing.
                    params={"verbose": -1, "feature_pre_filter": False, "min_data_in_bin": 1},
                )
                self.boosters[family] = lgb.Booster(parameters, data), rows

    def step(self) -> None:
        """Add a tree to every model."""
        for booster, rows in self.boosters.values():

            def gradient(
                scores: np.ndarray, _: object, rows: np.ndarray = rows
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
            made[family] = Model(compact(booster.model_to_string()), Hull(low, high))
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
        error = np.log(total) - self.log_ms
        most = max(_CLIP * float(np.median(np.abs(error))), 1e-3)
        error = np.clip(error, -most, most)
        sample = self.samples.sample[rows]
        share = kernel_ms[rows] / total[sample]
        return error[sample] * share, share + 1e-9
