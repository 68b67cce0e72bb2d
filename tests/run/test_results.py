import dataclasses
import json

import pandas as pd
import pytest

from autoprune.errors import RunError
from autoprune.execution.driver import Record
from autoprune.report.data import (
    ChosenNetwork,
    FinetunedFacts,
    GroupWidth,
    RunFacts,
)
from autoprune.run.results import (
    chosen_record,
    front_records,
    read_results,
    report_data,
    result_from,
    unmet,
    write_results,
)
from autoprune.strategy.goals import Goals
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem
from autoprune.testing.profiles import made_up_facts


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
    profile = made_up_facts(
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


def test_reads_what_was_fine_tuned_since(data, tmp_path):
    write_results(data, tmp_path)
    (tmp_path / "finetuned").mkdir()
    table = tmp_path / "finetuned" / "finetuned.csv"
    table.write_text("trial,finetuned_accuracy,finetuned_test_accuracy\n3,0.9,0.8\n5,0.7,\n")
    read = read_results(tmp_path)
    assert read.finetuned == {
        3: FinetunedFacts(accuracy=0.9, test_accuracy=0.8),
        5: FinetunedFacts(accuracy=0.7, test_accuracy=None),
    }
    table.write_text("trial\n3\n")
    with pytest.raises(RunError, match=r"finetuned\.csv is damaged .*; delete it"):
        read_results(tmp_path)


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


def test_an_accuracy_decides_the_front_and_the_pick(records):
    goals = Goals(min_accuracy=0.7)
    assert [r.number for r in front_records(records, goals)] == [2, 1, 0]
    assert chosen_record(records, goals).number == 2  # the fastest that is accurate enough
    within = dataclasses.replace(goals, budget_ms=10.0)
    assert chosen_record(records, within).number == 1
    assert unmet(records, within) == ""
    much = dataclasses.replace(within, min_accuracy=0.95)
    assert chosen_record(records, much) is None
    assert "reaches the accuracy of 95.0%" in unmet(records, much)
    assert "the best of 5, trial 1, has 90.0%" in unmet(records, much)
    assert "no evaluation within the limits" in unmet(records, Goals(budget_ms=1.0))


def test_limits_decide_what_is_on_the_front(records):
    few = [
        dataclasses.replace(r, evaluation=dataclasses.replace(r.evaluation, params=10 - r.number))
        for r in records
    ]
    goals = Goals(limits={"params": 8.0})
    assert [r.number for r in front_records(few, goals)] == [6, 2]


def test_a_front_of_several_costs_keeps_what_is_best_in_none(records):
    costs = {1: 3.0, 2: 5.0, 3: 2.0, 4: 5.0, 6: 9.0, 0: 4.0}
    several = [
        dataclasses.replace(
            r, evaluation=dataclasses.replace(r.evaluation, costs={"memory": costs[r.number]})
        )
        for r in records
        if r.number in costs
    ]
    goals = Goals(costs=("latency", "memory"))
    # 3 is beaten by 2 in accuracy and latency, but takes the least memory.
    assert [r.number for r in front_records(several, goals)] == [6, 2, 3, 1, 0]


def test_tables_and_results_have_the_costs_of_the_search(records, data, tmp_path):
    several = [
        dataclasses.replace(
            r, evaluation=dataclasses.replace(r.evaluation, costs={"memory": 1.0 + r.number})
        )
        for r in records
    ]
    made = report_data(
        several,
        model_name="net",
        profile=data.profile,
        goals=Goals(costs=("latency", "memory"), budget_ms=10.0),
        dense=several[0],
        chosen=data.chosen,
        run=data.run,
        test_accuracy={},
    )
    write_results(made, tmp_path)
    again = read_results(tmp_path)
    assert again.costs == ("latency", "memory")
    assert again.extra == ("memory_mb",)
    assert again.dense.extra == {"memory_mb": 1.0}
    result = result_from(again, tmp_path, "done")
    assert result.front["memory_mb"].tolist() == [1.0 + n for n in result.front["trial"]]
    table = pd.read_csv(tmp_path / "front.csv")
    assert table["memory_mb"].tolist() == result.front["memory_mb"].tolist()
    assert json.loads((tmp_path / "front.json").read_text())["dense"]["memory_mb"] == 1.0
    assert "Memory" in (tmp_path / "report.html").read_text()
