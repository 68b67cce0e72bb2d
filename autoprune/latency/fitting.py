"""Measured samples to roofline parameters, by robust least squares in log space.

Every kernel family has its own overhead, peak and bandwidth, drawn towards the average of all
families, so that families which hardly occur in the measurements do not run away; with that a
handful of networks is enough. Single kernels determine their family alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares

from autoprune.latency.kernels import FAMILIES
from autoprune.latency.roofline import Roofline
from autoprune.latency.samples import UNPADDED, Origin, Samples

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
#: Single kernels that a fit looks at; three parameters per family need no more.
_MOST_KERNELS = 4000
#: Multiples tried for channels, the relative gain a coarser one must bring, and rows looked at.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
_GAIN = 0.02
_MOST_TRIED = 1500


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is decided before the fit.

    Attributes:
        alignment: Channels are padded to a multiple of this; ``None`` finds what input and what
            output channels are padded to per family from single kernels, and pads nothing
            elsewhere.
        bytes_per_element: Bytes of one tensor element.
        overlap: Whether computing and moving data overlap within a kernel.
        processors: Multiprocessors of a GPU; what is learned then sees how many waves of tiles a
            kernel takes.
        family_spread: Prior standard deviation of a family's parameters around the average, in log
            space and relative to a measurement error of 10 %. The default is one value for all
            devices, chosen for low held-out errors on six Jetson boards together.
    """

    alignment: int | None
    bytes_per_element: int
    overlap: Literal["none", "full"] = "none"
    processors: int = 1
    family_spread: float = 0.7


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fitted parameters.

    Attributes:
        rooflines: Parameters by kernel family.
        constants_ms: Milliseconds per network beyond its kernels, by origin of networks.
        settings: What was decided before.
    """

    rooflines: dict[str, Roofline]
    constants_ms: dict[Origin, float]
    settings: Settings

    @property
    def paddings(self) -> Float[np.ndarray, "families 2"]:
        """Multiples of input and output channels, in the order of :data:`FAMILIES`."""
        return np.array([self.rooflines[family].paddings for family in FAMILIES], float)

    def constants(self, samples: Samples) -> Float[np.ndarray, " samples"]:
        """Return the milliseconds of each sample beyond its kernels.

        An origin the fit has not seen is taken to be as lean as the leanest it has.
        """
        least = min(self.constants_ms.values(), default=0.0)
        known = np.array([self.constants_ms.get(origin, least) for origin in samples.origins])
        if not len(known):
            return np.zeros(len(samples))
        constants: Float[np.ndarray, " samples"] = np.where(
            samples.whole, known[samples.origin], 0.0
        )
        return constants

    def kernel_ms(self, samples: Samples) -> Float[np.ndarray, " kernels"]:
        """Return milliseconds per kernel."""
        shapes = samples.shapes
        macs, moved = shapes.work(self.paddings, self.settings.bytes_per_element)
        limits = [self.rooflines[family] for family in FAMILIES]
        values = np.array([[r.overhead_ms, r.peak_gmacs_per_s, r.bandwidth_gb_s] for r in limits])
        overhead, peak, bandwidth = values[shapes.family].T
        computing, moving = macs * 1e-6 / peak, moved * 1e-6 / bandwidth
        busy = computing + moving
        if self.settings.overlap == "full":
            busy = np.maximum(computing, moving)
        total: Float[np.ndarray, " kernels"] = overhead + busy
        return total


def fit(samples: Samples, settings: Settings) -> Fit:
    """Return the parameters that explain the measurements best; the same every time.

    Args:
        samples: Measured networks and kernels.
        settings: What is decided before the fit.
    """
    thinned = _thinned(samples, _MOST_KERNELS)
    paddings = np.full((len(FAMILIES), 2), float(settings.alignment or 1))
    if settings.alignment is None:
        paddings = _paddings(thinned, settings)
    return _Problem(thinned, settings, paddings).solve()


def predict(samples: Samples, fitted: Fit) -> Float[np.ndarray, " samples"]:
    """Return the milliseconds a fit gives, with the constants of the networks' origins."""
    kernel_ms = fitted.kernel_ms(samples)
    total: Float[np.ndarray, " samples"] = np.bincount(
        samples.sample, kernel_ms, len(samples)
    ) + fitted.constants(samples)
    return total


class _Problem:
    """Samples as sums of kernel work per family, ready for the solver.

    A parameter vector holds, in log space, the average overhead, peak and bandwidth; then each
    family's deviations from them (all overheads, all peaks, all bandwidths); then the constants of
    the origins.
    """

    def __init__(
        self, samples: Samples, settings: Settings, paddings: Float[np.ndarray, "families 2"]
    ) -> None:
        self.settings, self.paddings, self.samples = settings, paddings, samples
        used = np.unique(samples.origin[samples.whole])
        self.origins = [samples.origins[i] for i in used]
        self.count = len(samples)
        self.log_ms = np.log(samples.latency_ms)
        # Single kernels have no constant; they take part with a weight of zero.
        self.origin = np.searchsorted(used, np.where(samples.whole, samples.origin, used[:1].sum()))
        macs, moved = samples.shapes.work(paddings, settings.bytes_per_element)
        rows = np.stack([samples.sample, samples.shapes.family, macs * 1e-6, moved * 1e-6])
        # Without overlap only sums per family matter; with it, kernels of equal work are one row.
        keys = rows[:2] if settings.overlap == "none" else rows
        _, first, row = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        row = row.ravel()
        self.sample, self.family = rows[:2, first].astype(np.intp)
        #: Kernels, 10^6 multiply-accumulates and 10^6 bytes per row.
        self.work: Float[np.ndarray, "3 rows"] = np.stack(
            [np.bincount(row, part) for part in (np.ones(len(row)), *rows[2:])]
        )
        self.size = _KINDS * (1 + len(FAMILIES)) + len(self.origins)

    def latency(
        self, parameters: Float[np.ndarray, " parameters"]
    ) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, "samples parameters"]]:
        """Return milliseconds per sample and their derivatives by the parameters."""
        limits = self._limits(parameters)[:, self.family]
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
        if self.origins:
            values = np.exp(parameters[-len(self.origins) :])[self.origin]
            constants[np.arange(self.count), self.origin] = values * self.samples.whole
        jacobian = np.concatenate(
            [by_family.sum(axis=2), by_family.reshape(self.count, -1), constants], axis=1
        )
        signs = np.array([1.0, -1.0, -1.0])
        total = by_family.sum(axis=2) @ signs + constants.sum(axis=1)
        return total, jacobian

    def solve(self, starts: Sequence[float] = _STARTS) -> Fit:
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
        for shift in starts:
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
        best = min(results, key=lambda result: float(result.cost))
        #: Half the robust sum of squares of the best fit.
        self.cost = float(best.cost)
        return self._unpack(np.asarray(best.x))

    def _limits(self, parameters: Float[np.ndarray, " p"]) -> Float[np.ndarray, "kinds families"]:
        deviation = parameters[_KINDS : _KINDS * (1 + len(FAMILIES))].reshape(_KINDS, -1)
        limits: Float[np.ndarray, "kinds families"] = np.exp(parameters[:_KINDS, None] + deviation)
        return limits

    def _loss(self, squares: Float[np.ndarray, " r"]) -> Float[np.ndarray, "3 r"]:
        """Return soft L1 for the measurements and squares for the priors, with derivatives."""
        rho = np.stack([squares, np.ones_like(squares), np.zeros_like(squares)])
        root = np.sqrt(1 + squares[: self.count])
        rho[:, : self.count] = [2 * (root - 1), 1 / root, -0.5 / root**3]
        return rho

    def _priors(self) -> tuple[Float[np.ndarray, " p"], ...]:
        """Return the parameters' prior means and spreads, and their bounds."""
        families, origins = len(FAMILIES), len(self.origins)
        kernels, macs, moved = (np.bincount(self.sample, part, self.count) for part in self.work)
        latency = np.exp(self.log_ms)
        guess = np.log(
            [
                float((latency / kernels).min()) / 3,
                max(float((macs / latency).max()) * 2, 1e-3),
                float((moved / latency).max()) * 2,
            ]
        )
        whole = latency[self.samples.whole]
        constant = np.log(whole.min() / 20) if origins else 0.0
        centre = np.concatenate([guess, np.zeros(_KINDS * families), np.full(origins, constant)])
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
        limits = self._limits(parameters)
        rooflines = {
            family: Roofline(
                overhead_ms=float(limits[0, i]),
                peak_gmacs_per_s=float(limits[1, i]),
                bandwidth_gb_s=float(limits[2, i]),
                alignment=int(self.paddings[i, 0]),
                tile=int(self.paddings[i, 1]),
            )
            for i, family in enumerate(FAMILIES)
        }
        constants = np.exp(parameters[len(parameters) - len(self.origins) :])
        known = dict(zip(self.origins, map(float, constants), strict=True))
        return Fit(rooflines, known, self.settings)

    def _by_family(self, part: Float[np.ndarray, " rows"]) -> Float[np.ndarray, "samples families"]:
        cell = self.sample * len(FAMILIES) + self.family
        total = np.bincount(cell, part, self.count * len(FAMILIES))
        return total.reshape(self.count, len(FAMILIES))


def _thinned(samples: Samples, most: int) -> Samples:
    """Return the samples with at most so many single kernels, drawn at random."""
    single = np.flatnonzero(~samples.whole)
    if len(single) <= most:
        return samples
    kept = samples.whole.copy()
    kept[np.random.default_rng(0).choice(single, most, replace=False)] = True
    return samples.take(kept)


def _paddings(samples: Samples, settings: Settings) -> Float[np.ndarray, "families 2"]:
    """Return what explains the single kernels of each family best: multiples of both channels."""
    found = np.ones((len(FAMILIES), 2))
    single = samples.take(~samples.whole)
    for index, name in enumerate(FAMILIES):
        mine: Bool[np.ndarray, " samples"] = np.zeros(len(single), bool)
        mine[single.sample] = single.shapes.family == index
        if name in UNPADDED or mine.sum() < 3 * _KINDS:
            continue
        part = _thinned(single.take(mine), _MOST_TRIED)
        best = np.inf
        # Output channels first: they are what tiles are counted in.
        for side in (1, 0):
            for multiple in _MULTIPLES:
                trial = found.copy()
                trial[index, side] = multiple
                problem = _Problem(part, settings, trial)
                problem.solve(starts=_STARTS[:1])
                if problem.cost < (1 - _GAIN) * best:
                    best, found = problem.cost, trial
    return found
