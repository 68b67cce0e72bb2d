"""Whole-network measurements to a device profile with its held-out error.

The roofline's few parameters are fitted by robust least squares in log space. Every kernel family
has its own, drawn towards the average of all families, so that families which hardly occur in the
measurements do not run away; with that a handful of networks is enough.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.stats import rankdata

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.profile import (
    BYTES_PER_ELEMENT,
    SPLIT,
    VERSION,
    DeviceProfile,
    HeldOut,
    checked_profile,
)
from autoprune.latency.roofline import KernelWork, Roofline
from autoprune.latency.tables import Measurement, Names, Origin, family_of

#: Fewer different networks cannot tell overhead, computing and moving data apart.
MINIMUM_NETWORKS = 8

#: Relative error from which a measurement counts as an outlier (soft L1).
_TOLERANCE = 0.1
#: Prior standard deviations in log space: of the average over families, and of the constants.
_BASE_SPREAD, _CONSTANT_SPREAD = 3.0, 4.0
#: Kinds of parameters per family: overhead, peak, bandwidth.
_KINDS = 3
_LOWEST = np.log(np.array([1e-7, 1e-3, 1e-3]))
_HIGHEST = np.log(np.array([1e2, 1e7, 1e6]))
#: Starting points of the fit: the average overhead, in log space, relative to the first guess.
_STARTS = (0.0, 1.5, -3.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is decided before the fit.

    Attributes:
        alignment: Channels are padded to a multiple of this.
        bytes_per_element: Bytes of one tensor element.
        overlap: Whether computing and moving data overlap within a kernel.
        family_spread: Prior standard deviation of a family's parameters around the average, in log
            space and relative to a measurement error of 10 %. The default is one value for all
            devices, chosen for low held-out errors on six Jetson boards together.
    """

    alignment: int
    bytes_per_element: int
    overlap: Literal["none", "full"] = "none"
    family_spread: float = 0.7


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fitted parameters.

    Attributes:
        rooflines: Parameters by kernel family.
        constants_ms: Milliseconds per network beyond its kernels, by origin.
    """

    rooflines: dict[str, Roofline]
    constants_ms: dict[Origin, float]


@dataclasses.dataclass(frozen=True)
class Target:
    """What the profile will say about the device; see :class:`DeviceProfile`."""

    name: str
    device: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int = 1
    alignment: int = 1
    overlap: Literal["none", "full"] = "none"
    capabilities: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def fit(measurements: Sequence[Measurement], settings: Settings) -> Fit:
    """Return the parameters that explain the measurements best; the same every time.

    Args:
        measurements: Whole networks with their kernels.
        settings: What is decided before the fit.
    """
    return _Problem(measurements, settings).solve(measurements)


def predict(measurements: Sequence[Measurement], fitted: Fit, settings: Settings) -> list[float]:
    """Return the milliseconds a fit gives for networks, with the constants of their origins."""
    problem = _Problem(measurements, settings)
    predicted, _ = problem.latency(problem.pack(fitted))
    return [float(value) for value in predicted]


def held_out_predictions(
    measurements: Sequence[Measurement], settings: Settings, groups: Sequence[Hashable]
) -> Float[np.ndarray, " measurements"]:
    """Return for each measurement the prediction of a fit without its group.

    Args:
        measurements: Whole networks with their kernels.
        settings: What is decided before the fits.
        groups: For each measurement what it is held out with.
    """
    problem = _Problem(measurements, settings)
    predictions = np.full(len(measurements), math.nan)
    for group in dict.fromkeys(groups):
        outside = [g != group for g in groups]
        rest = [m for m, kept in zip(measurements, outside, strict=True) if kept]
        predicted, _ = problem.latency(problem.pack(fit(rest, settings)))
        inside = ~np.array(outside)
        predictions[inside] = predicted[inside]
    return predictions


def held_out_error(
    predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"]
) -> HeldOut:
    """Return the error of predictions against measurements, rounded to four digits."""
    errors = np.abs(predicted / measured - 1)
    rank = np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1]
    within = {f"within_{p}": round(float(np.mean(errors <= p / 100)), 4) for p in (5, 10, 20)}
    return HeldOut(mape=_short(float(errors.mean())), spearman=round(float(rank), 4), **within)


def calibrate(
    measurements: Sequence[Measurement],
    target: Target,
    *,
    names: Names,
    left_out: Mapping[str, str],
    date: datetime.date,
) -> DeviceProfile:
    """Return a device profile fitted on whole-network measurements.

    The held-out error is that of fits without the network in question; networks that fuse to
    identical kernels (vgg16 and vgg16_bn, one network from two origins) are held out together.

    Args:
        measurements: What was measured.
        target: What the profile says about the device.
        names: Commit and licence of every origin.
        left_out: Rows that were not used, with the reason.
        date: Day of the fit.

    Raises:
        ProfileError: Too few networks, an origin without commit or licence, or a target that no
            profile can state.
        UnknownNameError: The precision is unknown.
    """
    if target.precision not in BYTES_PER_ELEMENT:
        raise UnknownNameError("precision", target.precision, BYTES_PER_ELEMENT)
    settings = Settings(
        alignment=target.alignment,
        bytes_per_element=BYTES_PER_ELEMENT[target.precision],
        overlap=target.overlap,
    )
    groups = [measurement.kernels.signature for measurement in measurements]
    count = len(set(groups))
    _refuse(measurements, count, names)
    measured = np.array([measurement.latency_ms for measurement in measurements])
    predicted = _rounded(held_out_predictions(measurements, settings, groups))
    fitted = fit(measurements, settings)
    content = {
        **{k: v for k, v in dataclasses.asdict(target).items() if k != "overlap"},
        "version": VERSION,
        "predictor": _predictor(fitted, target.overlap),
        "provenance": {
            "sources": _sources(measurements, fitted, names),
            "date": date,
            "sample_count": count,
            "split": SPLIT,
            "held_out": held_out_error(predicted, measured),
            "unseen_family": _unseen_family(measurements, measured, settings),
            "measured_families": _present(measurements),
            "predictions": [
                {
                    "network": measurement.network,
                    "source": measurement.origin.repository,
                    "measured_ms": measurement.latency_ms,
                    "predicted_ms": float(value),
                }
                for measurement, value in zip(measurements, predicted, strict=True)
            ],
            "left_out": dict(left_out),
        },
    }
    return checked_profile(content, repr(target.name))


class _Problem:
    """Measurements as sums of kernel work per network and family, ready for the solver.

    A parameter vector holds, in log space, the average overhead, peak and bandwidth; then each
    family's deviations from them (all overheads, all peaks, all bandwidths); then the constants of
    the origins.
    """

    def __init__(self, measurements: Sequence[Measurement], settings: Settings) -> None:
        self.settings = settings
        self.origins = list(dict.fromkeys(m.origin for m in measurements))
        self.count = len(measurements)
        self.log_ms = np.log([m.latency_ms for m in measurements])
        self.origin = np.array([self.origins.index(m.origin) for m in measurements], np.intp)
        parts = [_work(m, settings) for m in measurements]
        self.network = np.repeat(np.arange(self.count), [part.shape[1] for part in parts])
        rows = np.concatenate(parts, axis=1)
        self.family = rows[0].astype(np.intp)
        #: Kernels, 10^6 multiply-accumulates and 10^6 bytes per row.
        self.work: Float[np.ndarray, "3 rows"] = rows[1:]
        self.size = _KINDS * (1 + len(FAMILIES)) + len(self.origins)

    def pack(self, fitted: Fit) -> Float[np.ndarray, " parameters"]:
        """Return a fit as a parameter vector of this problem (with its average at zero)."""
        limits = [fitted.rooflines[family] for family in FAMILIES]
        values = [
            [limit.overhead_ms for limit in limits],
            [limit.peak_gmacs_per_s for limit in limits],
            [limit.bandwidth_gb_s for limit in limits],
        ]
        known = fitted.constants_ms
        # An origin the fit has not seen is taken to be as lean as the leanest it has.
        constants = [known.get(origin, min(known.values())) for origin in self.origins]
        return np.concatenate([np.zeros(_KINDS), np.log(values).ravel(), np.log(constants)])

    def latency(
        self, parameters: Float[np.ndarray, " parameters"]
    ) -> tuple[Float[np.ndarray, " networks"], Float[np.ndarray, "networks parameters"]]:
        """Return milliseconds per network and their derivatives by the parameters."""
        average = parameters[:_KINDS, None]
        deviation = parameters[_KINDS : _KINDS * (1 + len(FAMILIES))].reshape(_KINDS, -1)
        limits = np.exp(average + deviation)[:, self.family]
        overhead, computing, moving = (
            self.work[0] * limits[0],
            self.work[1] / limits[1],
            self.work[2] / limits[2],
        )
        if self.settings.overlap == "full":
            computing, moving = (
                np.where(computing >= moving, computing, 0.0),
                np.where(computing >= moving, 0.0, moving),
            )
        by_family = np.stack(
            [self._by_family(part) for part in (overhead, -computing, -moving)], axis=1
        )
        constants = np.zeros((self.count, len(self.origins)))
        constants[np.arange(self.count), self.origin] = np.exp(parameters[-len(self.origins) :])[
            self.origin
        ]
        jacobian = np.concatenate(
            [by_family.sum(axis=2), by_family.reshape(self.count, -1), constants], axis=1
        )
        signs = np.array([1.0, -1.0, -1.0])
        total = by_family.sum(axis=2) @ signs + constants.sum(axis=1)
        return total, jacobian

    def solve(self, measurements: Sequence[Measurement]) -> Fit:
        """Return the best fit over several starts."""
        centre, spread, low, high = self._priors()

        def residuals(parameters: Float[np.ndarray, " p"]) -> Float[np.ndarray, " r"]:
            total, _ = self.latency(parameters)
            data = (np.log(total) - self.log_ms) / _TOLERANCE
            return np.concatenate([data, (parameters - centre) / spread])

        def jacobian(parameters: Float[np.ndarray, " p"]) -> Float[np.ndarray, "r p"]:
            total, by_parameter = self.latency(parameters)
            return np.concatenate([by_parameter / total[:, None] / _TOLERANCE, np.diag(1 / spread)])

        results = []
        for shift in _STARTS:
            start = centre.copy()
            start[0] += shift
            results.append(
                least_squares(
                    residuals,
                    np.clip(start, low, high),
                    jac=jacobian,
                    bounds=(low, high),
                    # The stub asks for a keyword that SciPy passes to its own losses only.
                    loss=self._loss,  # type: ignore[arg-type]
                    max_nfev=300,
                )
            )
        best = min(results, key=lambda result: float(result.cost)).x
        return self._unpack(np.asarray(best))

    def _loss(self, squares: Float[np.ndarray, " r"]) -> Float[np.ndarray, "3 r"]:
        """Return soft L1 for the measurements and squares for the priors, with derivatives."""
        rho = np.stack([squares, np.ones_like(squares), np.zeros_like(squares)])
        root = np.sqrt(1 + squares[: self.count])
        rho[:, : self.count] = [2 * (root - 1), 1 / root, -0.5 / root**3]
        return rho

    def _priors(self) -> tuple[Float[np.ndarray, " p"], ...]:
        """Return the parameters' prior means and spreads, and their bounds."""
        families, origins = len(FAMILIES), len(self.origins)
        kernels, macs, moved = (np.bincount(self.network, part, self.count) for part in self.work)
        latency = np.exp(self.log_ms)
        guess = np.log(
            [
                float((latency / kernels).min()) / 3,
                float((macs / latency).max()) * 2,
                float((moved / latency).max()) * 2,
            ]
        )
        centre = np.concatenate(
            [guess, np.zeros(_KINDS * families), np.full(origins, np.log(latency.min() / 20))]
        )
        spread = np.concatenate(
            [
                np.full(_KINDS, _BASE_SPREAD),
                np.full(_KINDS * families, self.settings.family_spread),
                np.full(origins, _CONSTANT_SPREAD),
            ]
        )
        room = np.full(_KINDS * families, 4.0)
        low = np.concatenate([_LOWEST, -room, np.full(origins, np.log(1e-4))])
        high = np.concatenate([_HIGHEST, room, np.full(origins, np.log(1e4))])
        return np.clip(centre, low, high), spread, low, high

    def _unpack(self, parameters: Float[np.ndarray, " parameters"]) -> Fit:
        average = parameters[:_KINDS, None]
        deviation = parameters[_KINDS : _KINDS * (1 + len(FAMILIES))].reshape(_KINDS, -1)
        limits = np.exp(average + deviation)
        rooflines = {
            family: Roofline(
                overhead_ms=float(limits[0, i]),
                peak_gmacs_per_s=float(limits[1, i]),
                bandwidth_gb_s=float(limits[2, i]),
            )
            for i, family in enumerate(FAMILIES)
        }
        constants = np.exp(parameters[-len(self.origins) :])
        return Fit(rooflines, dict(zip(self.origins, map(float, constants), strict=True)))

    def _by_family(
        self, part: Float[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "networks families"]:
        cell = self.network * len(FAMILIES) + self.family
        total = np.bincount(cell, part, self.count * len(FAMILIES))
        return total.reshape(self.count, len(FAMILIES))


def _work(measurement: Measurement, settings: Settings) -> Float[np.ndarray, "4 rows"]:
    """Return family, kernels, 10^6 MACs and 10^6 bytes of a network's kernels.

    Without overlap only sums per family matter; with it, kernels of equal work are one row.
    """
    table = measurement.kernels
    work = KernelWork(
        table, alignment=settings.alignment, bytes_per_element=settings.bytes_per_element
    )
    macs, moved = work.dense(np.array([table.group_sizes], np.int64).reshape(1, -1))
    family = np.array([FAMILIES.index(kernel.family) for kernel in table.kernels])
    keys = np.stack([family, macs, moved])
    if settings.overlap == "none":
        keys = keys[:1]
    _, row = np.unique(keys, axis=1, return_inverse=True)
    row = row.ravel()
    sums = [np.bincount(row, part) for part in (np.ones(len(row)), macs * 1e-6, moved * 1e-6)]
    return np.stack([np.bincount(row, family) / sums[0], *sums])


def _refuse(measurements: Sequence[Measurement], count: int, names: Names) -> None:
    """Raise for measurements no honest profile can be made from, naming every fault."""
    repositories = dict.fromkeys(m.origin.repository for m in measurements)
    faults = [
        f"no {what} for {repository}; give it under sources in a --names file"
        for repository in repositories
        for what, known in (("commit", names.commits), ("licence", names.licences))
        if repository not in known
    ]
    if count < MINIMUM_NETWORKS:
        faults.append(
            f"{count} different networks with a layer list, at least {MINIMUM_NETWORKS} are "
            "needed; add tables or layer lists"
        )
    if faults:
        raise ProfileError("cannot calibrate:\n  " + "\n  ".join(faults))


def _unseen_family(
    measurements: Sequence[Measurement],
    measured: Float[np.ndarray, " n"],
    settings: Settings,
) -> HeldOut | None:
    families = [family_of(measurement.network) for measurement in measurements]
    if len(set(families)) < 2:
        return None
    predicted = _rounded(held_out_predictions(measurements, settings, families))
    return held_out_error(predicted, measured)


def _predictor(fitted: Fit, overlap: str) -> dict[str, object]:
    return {
        "kind": "roofline",
        "overlap": overlap,
        # The leanest way of measuring is closest to the device's own time.
        "constant_ms": _short(min(fitted.constants_ms.values())),
        "families": {
            family: {key: _short(value) for key, value in dataclasses.asdict(limit).items()}
            for family, limit in fitted.rooflines.items()
        },
    }


def _sources(
    measurements: Sequence[Measurement], fitted: Fit, names: Names
) -> list[dict[str, object]]:
    return [
        {
            "repository": origin.repository,
            "commit": names.commits[origin.repository],
            "licence": names.licences[origin.repository],
            "file": origin.file,
            "runtime": origin.runtime,
            "fusion": origin.fusion,
            "measurements": sum(m.origin == origin for m in measurements),
            "constant_ms": _short(constant),
        }
        for origin, constant in fitted.constants_ms.items()
    ]


def _present(measurements: Iterable[Measurement]) -> list[str]:
    present = {kernel.family for m in measurements for kernel in m.kernels.kernels}
    return [family for family in FAMILIES if family in present]


def _rounded(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.array([_short(float(value)) for value in values])


def _short(value: float) -> float:
    """Return ``value`` rounded to four significant digits."""
    return float(f"{value:.4g}")
