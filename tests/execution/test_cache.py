import dataclasses
import json
import subprocess
import sys

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from autoprune.errors import RunError, TaskError
from autoprune.evaluation import Evaluator
from autoprune.execution import inline
from autoprune.execution.cache import CachedEvaluator, EvaluationCache, context_of, digest
from autoprune.execution.driver import Limits, StudyDriver, read_records
from autoprune.network.trace import trace
from autoprune.pruning.verify import verified
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import Candidate, build_space
from autoprune.tasks.base import Score
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.testing.evaluators import LinearLatency
from autoprune.testing.tasks import TeacherTask

SCORES = (Score(1.0, 0.5, 256, 0.1), Score(1.5, 0.25, 300, 0.125))


def samples(count, seed):
    rng = np.random.default_rng(seed)
    pixels, labels = rng.normal(size=(count, 3, 4, 4)), rng.integers(0, 3, count)
    return ArraySamples(pixels, labels, mean=(0.0,) * 3, std=(1.0,) * 3)


def task_of(*, search=1):
    return ClassificationTask(
        "toy", 3, training=samples(32, 0), search=samples(300, search), test=samples(8, 2)
    )


def evaluator_for(task=None, *, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(48, 3)).eval()
    task = task or task_of()
    traced = verified(trace(model, task.example_inputs()))
    space = build_space(
        traced.groups, traced.blocks, SpaceSettings(version=1, multiple=1), alignment=1
    )
    scores = {group.name: np.arange(group.size, dtype=float) for group in traced.groups}
    return Evaluator(
        traced,
        task,
        problem=Problem(space, LinearLatency()),
        scores=scores,
        calibration_samples=16,
    )


def cached(folder, evaluator):
    context = context_of(evaluator, calibration_samples=16, realise="statistics")
    return CachedEvaluator(evaluator, EvaluationCache(folder, context))


class Counting:
    """An evaluator that counts the networks it builds."""

    def __init__(self, evaluator, monkeypatch):
        self.built, build = 0, evaluator.build

        def counted(candidate):
            self.built += 1
            return build(candidate)

        monkeypatch.setattr(evaluator, "build", counted)


def test_other_processes_and_later_ones_find_what_was_added(tmp_path):
    here, there = (EvaluationCache(tmp_path, {"a": "b"}) for _ in range(2))
    assert there.find("net") == ()
    here.add("net", SCORES)
    assert there.find("net") == here.find("net") == SCORES
    assert EvaluationCache(tmp_path, {"a": "b"}).find("net") == SCORES
    assert EvaluationCache(tmp_path, {"a": "c"}).find("net") == ()


def test_file_says_what_it_is_and_is_lines_of_json(tmp_path):
    cache = EvaluationCache(tmp_path, {"model": "abc"})
    EvaluationCache(tmp_path, {"model": "abc"}).add("net", SCORES)
    header, line = map(json.loads, cache.path.read_text().splitlines())
    assert header == {"format": "autoprune-cache", "version": 1, "context": {"model": "abc"}}
    assert line == {"plan": "net", "rungs": [[1.0, 0.5, 256, 0.1], [1.5, 0.25, 300, 0.125]]}


def test_half_a_line_is_passed_over_whoever_finds_it(tmp_path):
    cache = EvaluationCache(tmp_path, {})
    cache.add("one", SCORES)
    with cache.path.open("ab") as file:
        file.write(b'{"plan": "two", "rungs": [[1.0, 0')  # its process was killed
    assert cache.find("two") == ()
    cache.add("three", SCORES)
    fresh = EvaluationCache(tmp_path, {})
    for reader in (cache, fresh):
        assert [reader.find(key) for key in ("one", "two", "three")] == [SCORES, (), SCORES]


def test_what_another_process_is_writing_is_read_once_it_is_whole(tmp_path):
    cache = EvaluationCache(tmp_path, {})
    line = json.dumps({"plan": "net", "rungs": [dataclasses.astuple(s) for s in SCORES]}).encode()
    with cache.path.open("ab") as file:
        file.write(line[:30])
        file.flush()
        assert cache.find("net") == ()
        file.write(line[30:] + b"\n")
    assert cache.find("net") == SCORES


def test_scores_on_more_samples_win(tmp_path):
    cache = EvaluationCache(tmp_path, {})
    cache.add("net", SCORES)
    cache.add("net", SCORES[:1])
    assert cache.find("net") == SCORES


@pytest.mark.slow
def test_processes_that_append_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys; from autoprune.execution.cache import EvaluationCache as C; "
        "from autoprune.tasks.base import Score; c = C(sys.argv[1], {}); "
        "[c.add(f'{sys.argv[2]}/{i}', [Score(i / 7, 0.5, 300, 0.1)] * 9) for i in range(200)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    cache = EvaluationCache(tmp_path, {})
    assert len(cache.path.read_text().splitlines()) == 601
    for name in "abc":
        for i in range(200):
            assert cache.find(f"{name}/{i}")[0].loss == i / 7


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write the cache .*; give another --cache"):
        EvaluationCache(tmp_path / "file" / "cache", {})


def test_known_network_is_not_built_again_and_says_so(tmp_path, monkeypatch):
    candidate = Candidate((0.5,))
    first = cached(tmp_path, evaluator_for())(candidate)
    again = cached(tmp_path, evaluator_for())
    counter = Counting(again.evaluator, monkeypatch)
    second = again(candidate)
    assert (first.cached, second.cached, counter.built) == (False, True, 0)
    assert dataclasses.replace(second, cached=False, seconds=first.seconds) == first
    assert not again(Candidate((0.25,))).cached


@pytest.mark.parametrize("other", [{"seed": 1}, {"task": task_of(search=9)}])
def test_other_weights_or_data_are_other_scores(tmp_path, other):
    cached(tmp_path, evaluator_for())(Candidate((0.5,)))
    assert not cached(tmp_path, evaluator_for(**other))(Candidate((0.5,))).cached


def test_network_is_stopped_where_it_would_have_been(tmp_path, monkeypatch):
    evaluator, candidate = evaluator_for(), Candidate((0.5,))
    whole = evaluator(candidate)
    low = tuple(dataclasses.replace(rung, loss=rung.loss - 9.0) for rung in whole.rungs)
    scorer = cached(tmp_path, evaluator)

    stopped = scorer(candidate, low)
    counter = Counting(evaluator, monkeypatch)
    known = scorer(candidate, low)
    assert (stopped.status, known.status, known.rungs) == ("screened", "screened", stopped.rungs)
    assert counter.built == 0
    # Without that bar it would have gone on, so half a result is none.
    found = scorer(candidate)
    assert (counter.built, found.cached, found.rungs) == (1, False, whole.rungs)
    assert (scorer(candidate).rungs, counter.built) == (whole.rungs, 1)
    known_to_stop = scorer(candidate, low)
    assert (known_to_stop.status, known_to_stop.rungs) == ("screened", whole.rungs[:1])


def test_failures_are_not_kept(tmp_path, monkeypatch):
    scorer, candidate = cached(tmp_path, evaluator_for()), Candidate((0.5,))
    with monkeypatch.context() as broken:
        broken.setattr(scorer.evaluator, "build", lambda candidate: 1 / 0)
        assert scorer(candidate).reason == "ZeroDivisionError: division by zero"
    assert scorer(candidate).status == "complete"


def test_study_is_the_same_and_says_what_was_known(tmp_path):
    def records():
        evaluator = evaluator_for()
        sampler = build_sampler("random", evaluator.problem, seed=0)
        study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        driver = StudyDriver(study, evaluator.problem, limits=Limits(4))
        inline.run(driver, cached(tmp_path, evaluator))
        assert driver.records == read_records(study, evaluator.problem.space)
        return [record.evaluation for record in driver.records]

    first, second = records(), records()
    assert [e.cached for e in first] == [False] * 4
    assert [e.cached for e in second] == [True] * 4
    assert [(e.loss, e.status, e.rungs) for e in first] == [
        (e.loss, e.status, e.rungs) for e in second
    ]


def test_task_must_score_sample_by_sample():
    task = TeacherTask(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), shape=(2, 3, 4, 4))
    evaluator = evaluator_for(task)
    with pytest.raises(TaskError, match="a cache needs a task that scores sample by sample"):
        context_of(evaluator, calibration_samples=4)


def test_digest_tells_values_shapes_types_and_texts_apart():
    tensors = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.ones(4)]
    tensors += [torch.zeros(4, dtype=torch.bfloat16), torch.tensor(0.0)]
    found = {digest([tensor]) for tensor in tensors} | {digest([torch.zeros(4)], "text")}
    assert len(found) == len(tensors) + 1
    assert digest([torch.zeros(4)]) == digest([torch.zeros(8)[::2]])
