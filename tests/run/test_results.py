import dataclasses
import json

import pandas as pd
import pytest

from autoprune.errors import RunError
from autoprune.execution.driver import Record
from autoprune.report.data import ChosenNetwork, GroupWidth, ProfileFacts, RunFacts
from autoprune.run.results import (
    chosen_record,
    front_records,
    read_results,
    report_data,
    result_from,
    write_results,
)
from autoprune.strategy.goals import Goals
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


def record(number, accuracy, latency_ms, **facts):
    problem = analytic_problem()
    known = AnalyticEvaluator(problem)(problem.space.dense())
    scores = dataclasses.replace(known, accuracy=accuracy, loss=1 - accuracy, latency_ms=latency_ms)
    return Record(number=number, evaluation=scores, hypervolume=0.1 * number, **facts)


@pytest.fixture
def records():
    problem = analytic_problem()
    failed = AnalyticEvaluator(problem).failed(problem.space.dense(), "ValueError: no")
    return [
        record(0, 0.99, 20.0, dense=True),
        record(1, 0.90, 9.0),
        record(2, 0.70, 5.0),
        record(3, 0.60, 6.0),  # beaten by 2
        record(4, 0.70, 5.0, duplicate_of=2),
        Record(number=5, evaluation=failed, hypervolume=0.4),
        record(6, 0.20, 2.0),
    ]


@pytest.fixture
def data(records):
    profile = ProfileFacts(
        name="board",
        device="a board",
        runtime="tensorrt 8",
        precision="fp16",
        batch=64,
        error=0.1,
        error_text="held out",
        provenance=("somewhere",),
    )
    return report_data(
        records,
        model_name="net",
        profile=profile,
        goals=Goals(budget_ms=10.0),
        dense=records[0],
        chosen=ChosenNetwork(trial=1, widths=(GroupWidth("conv1", 3, 8),), removed_blocks=("b",)),
        run=RunFacts(settings={"seed": 3}, versions={"autoprune": "0"}, seed=3),
        test_accuracy={0: 0.98, 1: 0.88},
    )


def test_front_holds_what_nobody_beats_within_the_budget(records):
    assert [r.number for r in front_records(records, Goals(budget_ms=10.0))] == [6, 2, 1]
    assert [r.number for r in front_records(records, Goals(budget_ms=None))] == [6, 2, 1, 0]
    assert front_records(records, Goals(budget_ms=1.0)) == []


def test_chosen_is_the_best_under_the_budget_or_the_knee(records):
    assert chosen_record(records, Goals(budget_ms=10.0)).number == 1
    assert chosen_record(records, Goals(budget_ms=5.0)).number == 2  # and not its copy
    # above the line from (2 ms, 0.20) to (20 ms, 0.99): trial 1 by 0.497, trial 2 by 0.466
    assert chosen_record(records, Goals(budget_ms=None)).number == 1
    assert chosen_record(records, Goals(budget_ms=1.0)) is None


def test_trials_that_gave_no_new_network_say_why(data):
    rows = data.trials.set_index("number")
    assert rows.loc[0, "reason"] == "the unpruned network"
    assert rows.loc[4, "reason"] == "same network as trial 2"
    assert (rows.loc[5, "status"], rows.loc[5, "reason"]) == ("failed", "ValueError: no")
    assert list(rows.index[rows["on_front"]]) == [1, 2, 6]


def test_result_has_front_best_and_dense(data, tmp_path):
    result = result_from(data, tmp_path, "done")
    assert list(result.front["trial"]) == [6, 2, 1]
    assert (result.best.trial, result.best.test_accuracy) == (1, 0.88)
    assert (result.dense.accuracy, result.dense.test_accuracy) == (0.99, 0.98)
    assert result.hypervolume == pytest.approx(0.6)
    assert (result.trials, result.failures) == (7, {"ValueError: no": 1})


def test_reads_what_it_wrote(data, tmp_path):
    write_results(data, tmp_path)
    read = read_results(tmp_path)

    for field in dataclasses.fields(data):
        ours, theirs = getattr(data, field.name), getattr(read, field.name)
        if field.name == "trials":
            pd.testing.assert_frame_equal(ours, theirs)
        else:
            assert ours == theirs


def test_damaged_or_foreign_results_are_refused(data, tmp_path):
    with pytest.raises(RunError, match="has no results yet"):
        read_results(tmp_path)
    write_results(data, tmp_path)
    file = tmp_path / "report.json"
    good = json.loads(file.read_text())
    for wrong, message in [
        ({"version": 9}, "version 9; this autoprune reads autoprune-report version 1"),
        ({"profile": {"name": 3}}, "are damaged"),
        ({"chosen": {"trial": 5, "widths": []}}, "chosen trial 5 is not a complete trial"),
    ]:
        file.write_text(json.dumps(good | wrong))
        with pytest.raises(RunError, match=message):
            read_results(tmp_path)
    file.write_text("[]")
    with pytest.raises(RunError, match="are damaged"):
        read_results(tmp_path)
