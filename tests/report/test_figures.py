from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoprune.report import figures
from autoprune.report.data import GroupWidth, trial_table


def corners(points):
    return np.array([pair.split(",") for pair in points.split()], float)


def trial(number, accuracy, latency_ms, *, on_front=False):
    return {
        "number": number,
        "accuracy": accuracy,
        "latency_ms": latency_ms,
        "loss": 1.0,
        "macs": 1,
        "params": 1,
        "status": "complete",
        "on_front": on_front,
    }


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.83, 0.97), (3.0, 3.0001), (0.0, 123456.0), (0.2, 19.0)]
)
def test_ticks_are_few_round_and_inside(low, high):
    ticks = figures.round_ticks(low, high)

    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(mantissa - round_step) for round_step in (1, 2, 5)) < 1e-3


def test_an_axis_places_and_labels_values():
    axis = figures.Axis.covering(0.6, 1.0, percent=True, upright=True)

    assert axis.at(0.6) == 100
    assert axis.at(1.0) == 0
    assert [tick.label for tick in axis.labels] == ["60 %", "70 %", "80 %", "90 %", "100 %"]


def test_an_axis_of_one_value_is_not_empty():
    axis = figures.Axis.covering(5.0, 5.0)

    assert axis.low < 5.0 < axis.high
    assert axis.at(5.0) == 50


def test_the_line_is_the_best_accuracy_reached_at_each_latency(data):
    figure = figures.front_figure(data)
    line = corners(figure.line)
    front = data.front[["latency_ms", "accuracy"]].to_numpy(float)

    for latency in np.linspace(4.0, 15.9, 50):
        best = max(accuracy for ms, accuracy in front if ms <= latency)
        at = line[line[:, 0] <= figure.x.at(latency) + 1e-9][-1]
        assert at[1] == pytest.approx(figure.y.at(best), abs=0.01)


def test_the_band_spans_the_error_of_the_latency(data):
    figure = figures.front_figure(data)
    band = corners(figure.band)
    fastest = data.front.iloc[0]
    level = band[np.isclose(band[:, 1], figure.y.at(fastest["accuracy"]), atol=0.01)]

    assert level[:, 0].min() == pytest.approx(figure.x.at(0.9 * fastest["latency_ms"]), abs=0.01)
    assert np.isclose(level[:, 0], figure.x.at(1.1 * fastest["latency_ms"]), atol=0.01).any()


def test_every_mark_says_its_values(data):
    figure = figures.front_figure(data)

    assert len(figure.front) == 3
    assert [mark.chosen for mark in figure.front] == [False, True, False]
    assert figure.front[1].title.replace("\N{NO-BREAK SPACE}", " ") == (
        "trial 2: 90.00 %, 8.00 ms ± 10 %, 1.00 M MACs, 2.00 k parameters"
    )
    assert figure.budget == figure.x.at(10.0)


def test_networks_far_below_the_front_are_counted_not_drawn(data, rows):
    rows = [*rows, trial(9, 0.1, 3.0)]
    data = dataclasses.replace(
        data, trials=trial_table(rows), hypervolume=(*data.hypervolume, 0.66)
    )
    figure = figures.front_figure(data)

    assert figure.below == 1
    assert len(figure.dominated) == 1
    assert all(0 <= mark.y <= 100 for mark in (*figure.front, *figure.dominated, figure.dense))


def test_thousands_of_dominated_trials_are_thinned_and_the_rest_counted(data):
    count = figures.MAX_DOMINATED + 700
    rows = [trial(i, 0.86 + 1e-5 * i, 6.0) for i in range(count)]
    rows.append(trial(count, 0.9, 5.0, on_front=True))
    data = dataclasses.replace(
        data, trials=trial_table(rows), hypervolume=(0.5,) * len(rows), chosen=None
    )
    figure = figures.front_figure(data)

    assert len(figure.dominated) == figures.MAX_DOMINATED
    assert figure.left_out == 700
    assert len({mark.title for mark in figure.dominated}) == figures.MAX_DOMINATED


def test_a_budget_far_to_the_right_is_not_drawn(data):
    figure = figures.front_figure(dataclasses.replace(data, budget_ms=500.0))

    assert figure.budget is None
    assert figure.x.high < 30


def test_the_figure_of_an_empty_run_shows_the_dense_network(empty):
    figure = figures.front_figure(empty)

    assert figure.line == ""
    assert 0 <= figure.dense.x <= 100
    assert 0 <= figure.dense.y <= 100
    assert figures.hypervolume_figure(empty) is None


def test_hypervolume_marks_are_the_trials_that_raised_it(data):
    figure = figures.hypervolume_figure(data)

    assert [mark.title.split(":")[0] for mark in figure.marks] == [
        "trial 0, 1 finished",
        "trial 2, 3 finished",
        "trial 4, 5 finished",
    ]
    assert all(tick == round(tick) for tick in figure.x.ticks)


def test_bars_are_as_high_as_what_is_kept():
    bars = figures.width_bars([GroupWidth("a", 16, 64), GroupWidth("b", 64, 64)])

    assert [bar.height for bar in bars] == [25, 100]
    assert bars[0].x + bars[0].width < bars[1].x
    assert bars[0].title == "a: keeps 16 of 64"
