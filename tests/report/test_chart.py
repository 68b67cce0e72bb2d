from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from autoprune.report import text
from autoprune.report.chart import (
    EXTENT,
    Axis,
    axis,
    band,
    cloud,
    error_axis,
    percent_label,
    polyline,
    staircase,
)

X, Y = Axis("x", 0.0, 10.0), Axis("y", 0.0, 1.0)


def corners(path):
    """Walk an SVG path of M, L, H and V, and return where it has been."""
    x = y = 0
    walked = []
    for command, numbers in re.findall(r"([MLHV])([-\d ]+)", path):
        values = [int(number) for number in numbers.split()]
        if command in "ML":
            x, y = values
        elif command == "H":
            (x,) = values
        else:
            (y,) = values
        walked.append((x, y))
    return walked


@pytest.mark.parametrize(("low", "high"), [(0.0, 17.9), (0.83, 0.94), (-3.0, 4000.0), (1e-5, 7e-5)])
def test_ticks_are_round_numbers_where_they_say(low, high):
    made = axis("cost", low, high)

    assert 3 <= len(made.ticks) <= 11
    for tick in made.ticks:
        value = float(tick.label.replace(",", ""))
        assert -1e-6 <= tick.at <= 100 + 1e-6
        assert tick.at == pytest.approx(100 * (value - low) / (high - low), abs=0.1)
        assert made.at(value) == pytest.approx(tick.at, abs=0.1)


def test_an_axis_without_extent_gets_one():
    assert axis("cost", 3.0, 3.0).high > 3.0
    assert axis("cost", 0.0, 0.0).high > 0.0


def test_fractions_are_written_as_percentages():
    labels = [tick.label for tick in axis("accuracy", 0.85, 0.95, label=percent_label).ticks]

    assert [label.replace(text.NO_BREAK, " ") for label in labels] == [
        *("86 %", "88 %", "90 %", "92 %", "94 %"),
    ]


def test_an_axis_of_errors_gives_each_factor_the_same_room():
    made = error_axis("accuracy", 0.2, 0.998, floor=1e-12)

    halves = [made.at(1 - error) for error in (0.4, 0.2, 0.1, 0.05, 0.025)]
    assert np.allclose(np.diff(halves), np.diff(halves)[0])
    assert made.at(0.2) == pytest.approx(0.0)
    assert made.at(0.998) == pytest.approx(100.0)
    shown = [float(tick.label.partition(text.NO_BREAK)[0]) / 100 for tick in made.ticks]
    assert shown == sorted(shown)
    assert {0.5, 0.9, 0.99} <= set(shown)
    assert [made.at(value) for value in shown] == pytest.approx([t.at for t in made.ticks])
    assert math.isfinite(error_axis("accuracy", 0.5, 1.0, floor=0.01).at(1.0))


def test_a_staircase_keeps_a_value_until_the_next_point():
    points = [(1.0, 0.25), (4.0, 0.5), (6.0, 1.0)]
    walked = corners(staircase(X, Y, points))

    # The best value at each position, by walking along the path, against its definition.
    for x in np.linspace(1.05, 9.95, 50):
        best = max(py for px, py in points if px <= x)
        spans = itertools.pairwise(walked)
        (height,) = {
            y for (left, y), (right, other) in spans if y == other and left <= 1000 * x <= right
        }
        assert height == EXTENT * (1 - best)
    assert walked[-1][0] == EXTENT
    assert staircase(X, Y, []) == ""


def test_a_band_holds_what_lies_within_the_error_of_the_staircase():
    points = [(2.0, 0.2), (5.0, 0.8)]
    walked = corners(band(X, Y, points, 0.1))

    assert {x for x, _ in walked} == {1800, 2200, 4500, 5500, EXTENT}
    assert {y for _, y in walked} == {8000, 2000}


def test_a_cloud_has_every_point_in_order():
    points = np.array([[0.0, 0.0], [5.0, 0.25], [10.0, 1.0]])

    assert cloud(X, Y, points) == "M0 10000h0M5000 7500h0M10000 0h0"


def test_a_polyline_goes_through_its_points():
    assert corners(polyline(X, Y, [(0.0, 0.0), (10.0, 1.0)])) == [(0, EXTENT), (EXTENT, 0)]
