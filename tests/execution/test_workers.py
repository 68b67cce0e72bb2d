import os

import pytest

from autoprune.execution import workers


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("max 100000\n", 1_000_000), ("150000 100000\n", 1), ("400000 100000\n", 4), ("", 1_000_000)],
)
def test_quota_of_a_control_group(tmp_path, content, cpus):
    (tmp_path / "cpu.max").write_text(content)
    assert workers._quota(tmp_path / "cpu.max") == cpus


def test_hyper_threads_of_a_core_count_once(monkeypatch):
    siblings = {0: "0,4", 4: "0,4", 1: "1,5"}
    monkeypatch.setattr(workers, "_usable_cpus", lambda: set(siblings))
    monkeypatch.setattr(workers, "_siblings", siblings.get)
    monkeypatch.setattr(workers, "_quota", lambda file: 100)
    assert workers.worker_count() == 2


def test_there_is_at_least_one_worker_and_no_more_than_cpus():
    assert 1 <= workers.worker_count() <= (os.cpu_count() or 1)
