import io

from rich.console import Console

from autoprune.cli.progress import PlainLines, described, remaining
from autoprune.execution.driver import Progress, Record
from autoprune.strategy.space import Candidate
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


def standing(done, *, total=100, seconds=10.0, best=None, fresh=None):
    problem = analytic_problem()
    evaluation = AnalyticEvaluator(problem)(
        problem.space.snap(Candidate((0.5, 0.0, 0.0), (False,)))
    )
    record = Record(number=done, evaluation=evaluation, hypervolume=0.5)
    return Progress(
        record=record,
        done=done,
        total=total,
        fresh=done if fresh is None else fresh,
        seconds=seconds,
        best=None if best is None else Record(number=best, evaluation=evaluation),
    )


def lines_of(standings, times):
    out = io.StringIO()
    clock = iter(times)
    lines = PlainLines(Console(file=out, width=200), time_limit=None, clock=lambda: next(clock))
    for one in standings:
        lines(one)
    return out.getvalue().splitlines()


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
    assert "nothing under the budget yet" in lines[0]
    assert "best 77.9" in lines[1]  # exp(-0.25)


def test_description_has_best_hypervolume_and_rate():
    text = described(standing(20, best=3, seconds=8.0)).replace("\N{NO-BREAK SPACE}", " ")
    assert text == "best 77.9 % at 3.50 ms, hypervolume 0.500, 2.5 trials/s"


def test_time_left_follows_the_rate_of_this_session_and_the_limit():
    resumed = standing(60, fresh=10, seconds=20.0)  # half a trial per second, 40 to go
    assert remaining(resumed, None) == "1:20 left"
    assert remaining(resumed, 50.0) == "0:30 left"
