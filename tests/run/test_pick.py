import dataclasses

import pytest

from autoprune.errors import RunError
from autoprune.report.data import (
    ChosenNetwork,
    NetworkFacts,
    ReportData,
    RunFacts,
    trial_table,
)
from autoprune.run.pick import picked_trials
from autoprune.testing.profiles import made_up_facts

#: number, accuracy, latency in ms, status, on the front
TRIALS = [
    (0, 0.99, 20.0, "complete", False),
    (1, 0.90, 9.0, "complete", True),
    (2, 0.70, 5.0, "complete", True),
    (3, 0.60, 6.0, "complete", False),
    (4, None, None, "failed", False),
    (6, 0.20, 2.0, "complete", True),
]


@pytest.fixture
def data():
    rows = [
        {
            **{"number": number, "accuracy": accuracy, "latency_ms": latency_ms, "loss": 1.0},
            **{"macs": 10, "params": 10, "status": status, "on_front": on_front},
            "reason": "ValueError: no" if status == "failed" else "",
        }
        for number, accuracy, latency_ms, status, on_front in TRIALS
    ]
    return ReportData(
        model_name="net",
        profile=made_up_facts(),
        budget_ms=10.0,
        dense=NetworkFacts(accuracy=0.99, loss=0.1, latency_ms=20.0, macs=10, params=10),
        trials=trial_table(rows),
        hypervolume=(0.0,) * len(rows),
        chosen=ChosenNetwork(trial=1, widths=()),
        run=RunFacts(settings={}, versions={}, seed=0),
    )


def test_picks_name_networks_of_the_run(data):
    assert picked_trials(data) == (1,)
    assert picked_trials(data, "budget") == (1,)
    # farthest above the line from (2 ms, 0.20) to (9 ms, 0.90): trial 2, by 0.29 of the extent
    assert picked_trials(data, "knee") == (2,)
    assert picked_trials(data, "all") == (6, 2, 1)  # fastest first
    assert picked_trials(data, "3") == (3,)  # any that was scored, on the front or not


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ("best", r"no network is called 'best'; pick budget\|knee\|ID\|all; the front is 1, 2, 6"),
        ("-1", "no network is called"),
        ("5", "no trial 5"),
        ("4", r"trial 4 gave no network \(failed: ValueError: no\)"),
    ],
)
def test_what_is_no_network_is_refused_with_the_ones_there_are(data, pick, message):
    with pytest.raises(RunError, match=message):
        picked_trials(data, pick)


def test_budget_needs_one(data):
    with pytest.raises(RunError, match="no budget"):
        picked_trials(dataclasses.replace(data, budget_ms=None), "budget")


def test_search_without_a_network_has_none_to_pick(data):
    empty = dataclasses.replace(
        data, trials=data.trials.assign(on_front=False), chosen=None, budget_ms=1.0
    )
    for pick in (None, "budget", "knee", "all"):
        with pytest.raises(RunError, match="found no network"):
            picked_trials(empty, pick)
