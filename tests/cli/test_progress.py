import io

import pytest
from rich.console import Console

from autoprune.cli.progress import PlainLines, described
from autoprune.execution.driver import Progress, Record
from autoprune.strategy.space import Candidate
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


def standing(done, *, total=100, seconds=10.0, best=None, running=0):
    problem = analytic_problem()
    evaluation = AnalyticEvaluator(problem)(
        problem.space.snap(Candidate((0.5, 0.0, 0.0), (False,)))
    )
    record = Record(number=done, evaluation=evaluation, hypervolume=0.5)
    return Progress(
        record=record,
        done=done,
        total=total,
        fresh=done,
        seconds=seconds,
        best=None if best is None else Record(number=best, evaluation=evaluation),
        running=running,
    )


def lines_of(standings, times, *, time_limit=None):
    out = io.StringIO()
    now = [0.0]
    lines = PlainLines(Console(file=out, width=200), time_limit=time_limit, clock=lambda: now[0])
    for one, time in zip(standings, times, strict=True):
        now[0] = time
        lines(one)
    return out.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()


def test_plain_lines_tell_better_networks_at_once_and_otherwise_now_and_then():
    standings = [
        standing(1),
        standing(2),  # nothing new, too early
        standing(3, best=3),  # better
        standing(4, best=3),
        standing(5, best=3),  # five seconds later
        standing(6, best=3),
        standing(100, best=3),  # the last
    ]
    lines = lines_of(standings, [0.0, 1.0, 2.0, 3.0, 7.0, 8.0, 9.0])

    assert [line.split()[0] for line in lines] == ["1/100", "3/100", "5/100", "100/100"]
    assert "no network meets the limits yet" in lines[0]
    assert "best 77.9" in lines[1]  # exp(-0.25)


def test_description_has_best_and_hypervolume():
    text = described(standing(20, best=3)).replace("\N{NO-BREAK SPACE}", " ")
    assert text == "20/100 trials, best 77.9 % at 3.50 ms, hypervolume 0.500"


def test_slow_start_is_not_taken_for_the_pace():
    # The first ends after two and a half minutes, each later one after half a second.
    lines = lines_of([standing(1), standing(2, best=2)], [150.0, 150.5])
    assert lines[0].endswith("hypervolume 0.500")
    assert lines[1].endswith("2.0 trials/s, 0:49 left")


@pytest.mark.parametrize(("limit", "left"), [(None, "0:49"), (20.0, "0:10"), (5.0, "0:00")])
def test_time_left_is_that_of_the_limit_where_it_is_shorter(limit, left):
    lines = lines_of([standing(1), standing(2, best=2)], [150.0, 150.5], time_limit=limit)
    assert lines[1].endswith(f"{left} left")
