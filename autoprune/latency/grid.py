"""Interpolation between measured kernels.

What is interpolated, linearly in the logarithm of the dimensions, is the logarithm of measured over
roofline latency; on a measured kernel the prediction is the measurement. Beyond the measured range
the roofline is scaled as at the nearest measured kernel. A kernel of a form (taps, stride, groups,
added tensors) that was never measured is left to the roofline.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from autoprune.latency.fitting import Fit
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.samples import COLUMNS, Samples, Shapes

#: Dimensions between whose values is interpolated.
_AXES = ("cin", "cout", "outputs", "batch")
#: Columns of the text form.
_TEXT = ("family", *COLUMNS, "latency_ms")


class GridCorrection:
    """Corrections from the measured kernels of one profile."""

    def __init__(self, samples: Samples, fitted: Fit) -> None:
        """Sort the kernels by form; kernels measured several times count with their median.

        Args:
            samples: Single kernels.
            fitted: The roofline that predicts between them.
        """
        self.samples = single = samples.take(~samples.whole)
        residual = np.log(single.latency_ms / fitted.kernel_ms(single))
        form, axes = _form(single.shapes), _axes(single.shapes)
        self._forms: dict[bytes, _Form] = {}
        for code, rows in _by_form(form).items():
            self._forms[code] = _Form(axes[rows], residual[rows])

    def log_factor(self, shapes: Shapes) -> Float[np.ndarray, " kernels"]:
        """Return the logarithm of measured over roofline latency; 0 for forms never measured."""
        factor = np.zeros(len(shapes))
        axes = _axes(shapes)
        for code, rows in _by_form(_form(shapes)).items():
            if code in self._forms:
                factor[rows] = self._forms[code](axes[rows])
        return factor


def kernels_to_text(samples: Samples) -> str:
    """Return single kernels as CSV, for a file beside a profile."""
    single = samples.take(~samples.whole)
    frame = pd.DataFrame(single.shapes.values, columns=list(COLUMNS))
    frame.insert(0, "family", [FAMILIES[index] for index in single.shapes.family])
    frame["latency_ms"] = single.latency_ms
    return frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def kernels_from_text(text: str) -> Samples:
    """Return the single kernels of :func:`kernels_to_text`.

    Raises:
        ValueError: The text is of another form.
    """
    frame = pd.read_csv(io.StringIO(text))
    if tuple(frame.columns) != _TEXT or not set(frame["family"]) <= set(FAMILIES):
        raise ValueError(f"expected the columns {', '.join(_TEXT)}")
    family = np.array([FAMILIES.index(name) for name in frame["family"]], np.intp)
    count = len(frame)
    return Samples(
        Shapes(family, frame[list(COLUMNS)].to_numpy(float)),
        np.arange(count),
        frame["latency_ms"].to_numpy(float),
        np.zeros(count, np.intp),
        (),
        np.zeros(count, bool),
        tuple(str(i) for i in range(count)),
        tuple(range(count)),
    )


class _Form:
    """The measured kernels that differ in their axes alone."""

    def __init__(
        self, axes: Float[np.ndarray, "n axes"], residual: Float[np.ndarray, " n"]
    ) -> None:
        points, point = np.unique(axes, axis=0, return_inverse=True)
        medians = pd.Series(residual).groupby(point.ravel()).median()
        self.values: Float[np.ndarray, " points"] = medians.to_numpy(float)
        self.ticks = [np.unique(column) for column in points.T]
        places = [np.searchsorted(t, c) for t, c in zip(self.ticks, points.T, strict=True)]
        code = self._code(places)
        order = np.argsort(code)
        self.codes, self.code_rows = code[order], order
        self.tree = cKDTree(points)

    def __call__(self, axes: Float[np.ndarray, "n axes"]) -> Float[np.ndarray, " n"]:
        """Return interpolated residuals."""
        below, weight = zip(
            *(self._between(t, c) for t, c in zip(self.ticks, axes.T, strict=True)), strict=True
        )
        total, sum_of_weights = np.zeros(len(axes)), np.zeros(len(axes))
        for corner in itertools.product((0, 1), repeat=len(self.ticks)):
            places = [
                np.minimum(b + up, len(t) - 1)
                for b, up, t in zip(below, corner, self.ticks, strict=True)
            ]
            share = np.prod(
                [w if up else 1 - w for w, up in zip(weight, corner, strict=True)], axis=0
            )
            value, known = self._look_up(places)
            total += np.where(known, share * value, 0.0)
            sum_of_weights += np.where(known, share, 0.0)
        blank = sum_of_weights < 1e-9
        result = total / np.where(blank, 1.0, sum_of_weights)
        if blank.any():
            result[blank] = self.values[self.tree.query(axes[blank])[1]]
        return result

    @staticmethod
    def _between(
        ticks: Float[np.ndarray, " t"], column: Float[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the tick below each value and how far it is to the next, within the range."""
        clipped = np.clip(column, ticks[0], ticks[-1])
        below = np.clip(np.searchsorted(ticks, clipped, side="right") - 1, 0, len(ticks) - 1)
        above = np.minimum(below + 1, len(ticks) - 1)
        gap = ticks[above] - ticks[below]
        return below, np.where(gap > 0, (clipped - ticks[below]) / np.where(gap > 0, gap, 1), 0.0)

    def _code(self, places: list[Int[np.ndarray, " n"]]) -> Int[np.ndarray, " n"]:
        code: Int[np.ndarray, " n"] = np.zeros(len(places[0]), np.int64)
        for place, ticks in zip(places, self.ticks, strict=True):
            code = code * len(ticks) + place
        return code

    def _look_up(
        self, places: list[Int[np.ndarray, " n"]]
    ) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
        code = self._code(places)
        place = np.minimum(np.searchsorted(self.codes, code), len(self.codes) - 1)
        return self.values[self.code_rows[place]], self.codes[place] == code


def _axes(shapes: Shapes) -> Float[np.ndarray, "kernels axes"]:
    columns: Float[np.ndarray, "kernels axes"] = np.log2(
        np.column_stack([shapes[name] for name in _AXES])
    )
    # Where output channels follow from input channels, they are one dimension.
    columns[_is_single(shapes), 0] = 0.0
    return columns


def _form(shapes: Shapes) -> Float[np.ndarray, "kernels parts"]:
    """Return what two kernels must share to be compared."""
    positions = shapes["outputs"] * shapes["batch"]
    single = _is_single(shapes)
    return np.column_stack(
        [
            shapes.family,
            shapes["taps"],
            shapes["stride"],
            np.where(single, 0, shapes["groups"]),
            np.round(shapes["writes"] / positions, 3),
            single,
        ]
    )


def _is_single(shapes: Shapes) -> Bool[np.ndarray, " kernels"]:
    plain = np.isin(shapes.family, [FAMILIES.index(f) for f in ("pool", "pointwise", "copy")])
    single: Bool[np.ndarray, " kernels"] = (plain & (shapes["cin"] == shapes["cout"])) | (
        (shapes["groups"] > 1) & (shapes["groups"] == shapes["cin"])
    )
    return single


def _by_form(form: Float[np.ndarray, "kernels parts"]) -> Mapping[bytes, np.ndarray]:
    """Return the rows of each form."""
    if not len(form):
        return {}
    distinct, member = np.unique(form, axis=0, return_inverse=True)
    order = np.argsort(member.ravel(), kind="stable")
    bounds = np.searchsorted(member.ravel()[order], np.arange(len(distinct) + 1))
    return {distinct[i].tobytes(): order[bounds[i] : bounds[i + 1]] for i in range(len(distinct))}
