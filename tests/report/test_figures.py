from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoprune.report import figures, text
from autoprune.report.data import DamageCurve, trial_table


def marks(chart, kind):
    return [mark for mark in chart.marks if mark.kind == kind]


def where(chart, mark):
    """Return what a mark of a linear chart stands for."""
    x, y = chart.x, chart.y
    return (x.low + mark.x / 100 * (x.high - x.low), y.low + mark.y / 100 * (y.high - y.low))


def test_the_front_chart_holds_every_complete_trial_once_and_the_unpruned_network(data):
    chart = figures.front(data)
    (chosen,), (dense,) = marks(chart, "chosen"), marks(chart, "dense")

    assert [mark.trial for mark in chart.choices] == [0, 2, 4]
    for mark, (latency_ms, accuracy) in zip(
        chart.choices, [(4.0, 0.8), (8.0, 0.9), (12.0, 0.92)], strict=True
    ):
        assert where(chart, mark) == pytest.approx((latency_ms, accuracy))
    assert chosen.trial == data.chosen.trial
    assert where(chart, dense) == pytest.approx((16.0, 0.93))
    assert [said.replace(text.NO_BREAK, " ") for said in chart.said] == [
        "trial 1: 70.0 %, 5.00 ms",
    ]
    assert chart.lines[0].path.count("M") == 1


def test_what_is_judged_by_its_latency_carries_the_error_of_the_profile(data):
    chart = figures.front(data)

    for mark in (*chart.choices, *marks(chart, "dense")):
        low, high = mark.error
        assert (low, high) == pytest.approx((0.9 * mark.x, 1.1 * mark.x))
    assert {line.kind for line in chart.lines if line.path} == {"dominated", "band", "front"}


def test_every_mark_says_what_it_is(data):
    said = [mark.label.replace(text.NO_BREAK, " ") for mark in figures.front(data).marks]

    assert said == [
        "unpruned network: 93.00 %, 16.0 ms",
        "uniform pruning: 75.00 %, 8.50 ms",
        "trial 0: 80.00 %, 4.00 ms",
        "trial 2: 90.00 %, 8.00 ms",
        "trial 4: 92.00 %, 12.0 ms",
    ]


def test_the_budget_is_a_line_and_can_be_missing(data):
    (line,) = figures.front(data).rules

    assert line.at == pytest.approx(figures.front(data).x.at(10.0))
    assert not figures.front(dataclasses.replace(data, budget_ms=None)).rules
    far = figures.front(dataclasses.replace(data, budget_ms=500.0))
    assert far.x.high < 30
    assert not far.rules


def test_networks_far_below_the_front_do_not_squeeze_it(data, rows):
    far = rows[0] | {"number": 9, "accuracy": 0.1, "on_front": False}
    table = trial_table([*rows, far])
    more = dataclasses.replace(data, trials=table, hypervolume=(*data.hypervolume, 0.66))

    chart = figures.front(more)
    assert chart.y == figures.front(data).y
    assert 0.1 < chart.y.low < 0.7 < 0.93 < chart.y.high
    assert not any("trial 9" in said for said in chart.said)


def test_errors_of_different_orders_go_by_their_logarithm(data):
    table = data.trials.assign(accuracy=[0.5, 0.4, 0.99, np.nan, 0.998])
    dense = dataclasses.replace(data.dense, accuracy=0.997, samples=2000)
    chart = figures.front(dataclasses.replace(data, trials=table, dense=dense))

    assert chart.y.floor is not None
    assert figures.front(data).y.floor is None
    heights = [mark.y for mark in chart.choices]
    assert heights[0] < 10
    assert 50 < heights[1] < heights[2] < 100


def test_a_run_without_trials_shows_the_unpruned_network(empty):
    chart = figures.front(empty)

    assert [mark.kind for mark in chart.marks] == ["dense"]
    assert chart.y.holds(empty.dense.accuracy)
    assert chart.lines[0].path == chart.lines[2].path == ""


def test_the_chosen_network_can_be_selected_though_another_is_on_the_front(data):
    aside = data.trials.assign(on_front=data.trials["number"].isin([0, 4]))
    rows = figures.selectable(dataclasses.replace(data, trials=aside))

    assert [row["number"] for row in rows] == [0, 2, 4]


def test_the_hypervolume_rises_where_it_rose(data):
    chart = figures.hypervolume(data)
    search, uniform = chart.lines

    def unit(finished, value):
        down = round(10_000 - 100 * chart.y.at(value))
        return f"{round(100 * chart.x.at(finished))}", f"{down}"

    assert search.path.startswith("M{} {}".format(*unit(1, 0.6)))
    assert [search.path.count(letter) for letter in "MHV"] == [1, 3, 2]
    assert "H{}V{}".format(*unit(3, 0.65)) in search.path
    assert "H{}V{}".format(*unit(5, 0.66)) in search.path
    assert "H{}V{}".format(*unit(2, 0.42)) in uniform.path
    assert len(figures.hypervolume(dataclasses.replace(data, uniform=None)).lines) == 1


def test_damage_curves_share_one_scale_by_the_square_root(data):
    paths = figures.damage_paths(data.damage)

    assert paths == {
        "conv1": "M0 10000L5000 5000L7500 0",
        "layer1.0.conv1": "M0 10000L2500 7500",
    }


def test_damage_between_and_beyond_the_points():
    curve = DamageCurve("conv", (0.0, 0.5), (0.0, 1.0))

    assert figures.damage_at(curve, 0.25) == 0.5
    assert np.isnan(figures.damage_at(curve, 0.75))


def test_front_along_another_cost(data):
    table = data.trials.assign(memory_mb=[3.0, 4.0, 5.0, np.nan, 6.0])
    dense = dataclasses.replace(data.dense, extra={"memory_mb": 9.0})
    several = dataclasses.replace(
        data, trials=table, dense=dense, costs=("latency", "memory"), uniform=None
    )
    chart = figures.front(several, "memory_mb")

    assert chart.x.title == "memory, MB"
    assert [where(chart, mark)[0] for mark in chart.choices] == pytest.approx([3.0, 5.0, 6.0])
    assert where(chart, marks(chart, "dense")[0])[0] == pytest.approx(9.0)
    # One of several costs is no staircase, and neither error nor budget are megabytes.
    assert not any(line.path for line in chart.lines[1:])
    assert not chart.rules
    assert all(mark.error is None for mark in chart.marks)


def test_large_counts_are_drawn_in_their_unit(data):
    several = dataclasses.replace(data, costs=("latency", "macs"), uniform=None)
    chart = figures.front(several, "macs")

    assert chart.x.title == "MACs, M"
    assert where(chart, marks(chart, "dense")[0])[0] == pytest.approx(4.0)
