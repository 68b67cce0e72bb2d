from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from autoprune.report import figures
from autoprune.report.data import GroupWidth, KernelTime, trial_table

MARKUP = '<a href="https://example.org">x</a></script>'


def named(figure, start):
    (trace,) = [trace for trace in figure.data if trace.name.startswith(start)]
    return trace


def points(trace):
    return np.stack([trace.x, trace.y], axis=1)


def test_the_front_figure_holds_every_complete_trial_once_and_the_dense_network(data):
    figure = figures.front(data)
    columns = ["latency_ms", "accuracy"]
    dominated = data.complete[~data.complete["on_front"]]
    chosen = data.complete[data.complete["number"] == data.chosen.trial]

    assert np.array_equal(points(named(figure, "Pareto front")), data.front[columns])
    assert np.array_equal(points(named(figure, "dominated")), dominated[columns])
    assert np.array_equal(points(named(figure, "chosen")), chosen[columns])
    assert points(named(figure, "dense")).tolist() == [[16.0, 0.93]]


def test_what_is_judged_by_its_latency_carries_the_error_of_the_profile(data):
    figure = figures.front(data)

    for name in ("Pareto front", "chosen", "dense"):
        bars = named(figure, name).error_x
        assert (bars.type, bars.value) == ("percent", 100 * data.profile.error)


def test_every_point_says_all_its_values(data):
    figure = figures.front(data)
    said = named(figure, "chosen").hovertext[0].replace("\N{NO-BREAK SPACE}", " ")

    assert said.split("<br>") == [
        "trial 2",
        "accuracy 90.00 %",
        "test accuracy 89.00 %",
        "latency 8.00 ms ± 10 %",
        "loss 0.100",
        "1.00 M MACs, 2.00 k parameters",
        "evaluated in 1.50 s",
    ]
    assert [said.split("<br>")[0] for said in named(figure, "Pareto front").hovertext] == [
        "trial 0",
        "trial 2",
        "trial 4",
    ]


def test_the_budget_is_a_line_and_can_be_missing(data):
    (line,) = figures.front(data).layout.shapes

    assert (line.x0, line.x1) == (10.0, 10.0)
    assert not figures.front(dataclasses.replace(data, budget_ms=None)).layout.shapes
    far = figures.front(dataclasses.replace(data, budget_ms=500.0))
    assert far.layout.xaxis.autorangeoptions.clipmax < 30


def test_networks_far_below_the_front_do_not_squeeze_it(data, rows):
    far = rows[0] | {"number": 9, "accuracy": 0.1, "on_front": False}
    table = trial_table([*rows, far])
    more = dataclasses.replace(data, trials=table, hypervolume=(*data.hypervolume, 0.66))

    low, high = figures.front(more).layout.yaxis.range
    assert (low, high) == figures.front(data).layout.yaxis.range
    assert 0.1 < low < 0.7 < 0.93 < high
    assert 0.1 in named(figures.front(more), "dominated").y


def test_a_run_without_trials_shows_the_dense_network(empty):
    figure = figures.front(empty)

    assert [len(trace.x) for trace in figure.data] == [0, 0, 1]
    low, high = figure.layout.yaxis.range
    assert low < empty.dense.accuracy < high


def test_the_hypervolume_is_drawn_over_finished_trials(data):
    (line,) = figures.hypervolume(data).data

    assert list(line.x) == [1, 2, 3, 4, 5]
    assert tuple(line.y) == data.hypervolume


def test_width_bars_are_as_long_as_what_is_kept():
    figure = figures.widths([GroupWidth("a", 16, 64), GroupWidth("b" * 40, 64, 64)])

    assert list(named(figure, "chosen").x) == [0.25, 1.0]
    assert list(named(figure, "dense").x) == [1.0, 1.0]
    assert list(named(figure, "dense").text) == ["16 / 64", "64 / 64"]
    short = figure.layout.yaxis.ticktext
    assert short[0] == "a"
    assert len(short[1]) < 40
    assert named(figure, "chosen").hovertext[1].startswith("b" * 40)


def test_kernels_are_sorted_and_the_others_summed_up(data):
    figure = figures.latency(data.chosen.kernels)

    assert list(named(figure, "dense").x) == [*range(15, 3, -1), 1.0 + 2.0 + 3.0]
    assert list(named(figure, "chosen").x) == [*np.arange(7, 1, -0.5), 0.0 + 0.5 + 1.0]
    assert figure.layout.yaxis.ticktext[0] == "conv14"
    assert figure.layout.yaxis.ticktext[-1] == "3 other kernels"


def test_kernels_of_the_same_name_stay_apart():
    kernel = KernelTime(name="conv", kind="conv", dense_ms=2.0, chosen_ms=0.0)
    figure = figures.latency([kernel, kernel])

    assert list(named(figure, "dense").y) == [0, 1]
    assert list(named(figure, "chosen").text) == ["gone", "gone"]


@pytest.mark.parametrize("kind", ["widths", "latency"])
def test_names_are_shown_as_they_are(kind):
    if kind == "widths":
        figure = figures.widths([GroupWidth(MARKUP, 1, 2)])
    else:
        kernel = KernelTime(name=MARKUP, kind=MARKUP, dense_ms=1.0, chosen_ms=1.0)
        figure = figures.latency([kernel])

    content = figure.to_json(engine="json")
    assert "<" not in content
    shown = figure.layout.yaxis.ticktext + figure.data[0].hovertext
    # Plotly's own line breaks are the only markup left.
    assert not any("<" in text.replace("<br>", "") for text in shown)
    assert "&lt;a href=" in json.loads(content)["data"][0]["hovertext"][0]


def test_front_along_another_cost(data):
    table = data.trials.assign(memory_mb=[3.0, 4.0, 5.0, np.nan, 6.0])
    dense = dataclasses.replace(data.dense, extra={"memory_mb": 9.0})
    several = dataclasses.replace(data, trials=table, dense=dense, costs=("latency", "memory"))
    figure = figures.front(several, "memory_mb")
    drawn = {trace.name: trace for trace in figure.data}
    assert figure.layout.xaxis.title.text == "memory, MB"
    assert list(drawn["Pareto front"].x) == [3.0, 5.0, 6.0]
    assert drawn["Pareto front"].mode == "markers"  # one of several costs is no staircase
    assert list(drawn["dense network"].x) == [9.0]
    assert not figure.layout.shapes  # the budget is one of milliseconds
    assert not drawn["Pareto front"].error_x.visible
