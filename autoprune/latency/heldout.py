"""What a fit is worth: errors on networks, or channel counts, it has not seen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares
from scipy.stats import rankdata

from autoprune.latency.fitting import Fit, Settings, fit
from autoprune.latency.grid import GridCorrection
from autoprune.latency.learned import LearnedCorrection, train
from autoprune.latency.profile import HeldOut
from autoprune.latency.roofline import Correction
from autoprune.latency.samples import EXACT, Samples

#: Up to as many groups are held out one by one; more are dealt to :data:`FOLDS` folds.
MOST_SINGLE = 60
FOLDS = 10
#: Folds of the comparison of kinds inside and outside.
_INNER, _OUTER = 4, 5

KINDS = ("roofline", "learned", "table")

_Values: TypeAlias = Float[np.ndarray, " samples"]

#: Something fitted that predicts the milliseconds of samples.
Model: TypeAlias = Callable[[Samples], _Values]


class Corrected:
    """A roofline, with a correction where there is one."""

    def __init__(self, fitted: Fit, correction: Correction | None = None) -> None:
        """Store the parts.

        Args:
            fitted: The roofline.
            correction: What measured kernels add to it.
        """
        self.fitted, self.correction = fitted, correction

    def __call__(self, samples: Samples) -> _Values:
        """Return milliseconds per sample."""
        kernel_ms = self.fitted.kernel_ms(samples)
        if self.correction is not None:
            kernel_ms = kernel_ms * np.exp(self.correction.log_factor(samples.shapes))
        kernels = np.bincount(samples.sample, kernel_ms, len(samples))
        total: _Values = kernels + self.fitted.constants(samples)
        return total


def fit_kind(kind: str, samples: Samples, settings: Settings) -> Corrected:
    """Return a fitted predictor of one of :data:`KINDS`."""
    fitted = fit(samples, settings)
    match kind:
        case "learned":
            return Corrected(fitted, LearnedCorrection(train(samples, fitted), settings.processors))
        case "table":
            return Corrected(fitted, GridCorrection(samples, fitted))
        case _:
            return Corrected(fitted)


def kinds_for(samples: Samples) -> tuple[str, ...]:
    """Return the kinds that measurements allow: a table needs single kernels."""
    return KINDS if (~samples.whole).any() else KINDS[:2]


def choose_kind(samples: Samples, settings: Settings, groups: Sequence[Hashable]) -> str:
    """Return the kind with the lowest cross-validated error; the plainer where they tie."""
    held = held_out_with(samples, groups)
    errors = {}
    for kind in kinds_for(samples):
        make = functools.partial(_make, kind, settings)
        predicted = held_out(samples, groups, make, folds=_INNER)
        errors[kind] = float(np.mean(np.abs(predicted / samples.latency_ms - 1)[held]))
    # What is not clearly better is not worth its weight.
    return min(errors, key=lambda kind: errors[kind] * (1.0 if kind == "roofline" else 1.02))


def _make(kind: str, settings: Settings, samples: Samples) -> Model:
    return fit_kind(kind, samples, settings)


def held_out(
    samples: Samples,
    groups: Sequence[Hashable],
    make: Callable[[Samples], Model],
    *,
    folds: int | None = None,
) -> _Values:
    """Return for each sample the prediction of a model that has not seen its group.

    Where networks and kernels are mixed, kernels are never held out and predicted as seen.

    Args:
        samples: All samples.
        groups: For each sample what it is held out with.
        make: Fits a model.
        folds: Number of folds; by default one per group up to :data:`MOST_SINGLE`.
    """
    predictions = np.full(len(samples), np.nan)
    held = held_out_with(samples, groups)
    for outside in splits(groups, held, folds):
        inside = ~outside
        predictions[inside] = make(samples.take(outside))(samples.take(inside))
    if np.isnan(predictions).any():
        seen = np.isnan(predictions)
        predictions[seen] = make(samples)(samples.take(seen))
    return predictions


def nested(samples: Samples, groups: Sequence[Hashable], settings: Settings) -> _Values:
    """Return held-out predictions where every fold chooses its kind from the other folds alone."""

    def make(part: Samples) -> Model:
        kind = choose_kind(part, settings, part.groups)
        return fit_kind(kind, part, settings)

    return held_out(samples, groups, make, folds=_OUTER)


def held_out_with(samples: Samples, groups: Sequence[Hashable]) -> Bool[np.ndarray, " samples"]:
    """Return which samples are held out at all: networks, or kernels where there are few of them.

    Args:
        samples: All samples.
        groups: For each sample what it is held out with.
    """
    networks = {group for group, whole in zip(groups, samples.whole, strict=True) if whole}
    enough = len(networks) >= _INNER or samples.whole.all()
    return samples.whole if enough else ~samples.whole


def splits(
    groups: Sequence[Hashable], held: Bool[np.ndarray, " samples"], folds: int | None = None
) -> Iterator[Bool[np.ndarray, " samples"]]:
    """Yield which samples each fold is fitted on.

    Args:
        groups: For each sample what it is held out with.
        held: Which samples are held out at all.
        folds: Number of folds; by default one per group up to :data:`MOST_SINGLE`.
    """
    distinct = list(dict.fromkeys(g for g, mine in zip(groups, held, strict=True) if mine))
    if folds is None:
        folds = len(distinct) if len(distinct) <= MOST_SINGLE else FOLDS
    folds = min(folds, len(distinct))
    order = np.random.default_rng(0).permutation(len(distinct)).tolist()
    fold: Mapping[Hashable, int] = {distinct[i]: place % folds for place, i in enumerate(order)}
    mine = np.array([fold.get(g, -1) if h else -1 for g, h in zip(groups, held, strict=True)])
    for number in range(folds):
        yield mine != number


class _MacsOnly:
    """A time per sample and one per multiply-accumulate."""

    def __init__(self, samples: Samples) -> None:
        work, measured = self._macs(samples), samples.latency_ms
        slope = max(float(np.median(measured / (work + 1e-9))), 1e-9) / 2

        def error(parameters: Float[np.ndarray, " 2"]) -> _Values:
            constant, per_mac = np.exp(parameters)
            off: _Values = np.log(constant + per_mac * work) - np.log(measured)
            return off

        start = np.log([measured.min() / 2, slope])
        found = least_squares(error, start, loss="soft_l1", f_scale=0.1)
        self.constant, self.slope = np.exp(found.x)

    def __call__(self, samples: Samples) -> _Values:
        predicted: _Values = self.constant + self.slope * self._macs(samples)
        return predicted

    @staticmethod
    def _macs(samples: Samples) -> _Values:
        per_kernel, _ = samples.shapes.work(EXACT, 1)
        total: _Values = np.bincount(samples.sample, per_kernel * 1e-6, len(samples))
        return total


def flops_only(samples: Samples) -> Model:
    """Return the usual proxy, fitted: a time per sample and one per multiply-accumulate."""
    return _MacsOnly(samples)


def held_out_error(predicted: _Values, measured: _Values) -> HeldOut:
    """Return the error of predictions against measurements, rounded to four digits.

    Where all predictions, or all measurements, are equal, nothing is ranked: a correlation of 0.
    """
    errors = np.abs(predicted / measured - 1)
    ranked = bool(np.ptp(predicted) and np.ptp(measured))
    rank = np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1] if ranked else 0.0
    within = {f"within_{p}": round(float(np.mean(errors <= p / 100)), 4) for p in (5, 10, 20)}
    return HeldOut(mape=short(float(errors.mean())), spearman=round(float(rank), 4), **within)


def short(value: float) -> float:
    """Return ``value`` rounded to four significant digits."""
    return float(f"{value:.4g}")
