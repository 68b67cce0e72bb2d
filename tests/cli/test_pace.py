import pytest

from autoprune.cli.pace import WINDOW, Pace


def noted(ended, *, running=0, now=None):
    """Return a pace that has noted evaluations that ended at those seconds."""
    clock = iter([*ended, *([now] * 2 if now is not None else [])])
    pace = Pace(clock=lambda: next(clock))
    for _ in ended:
        pace.note(running=running)
    return pace


def test_start_up_does_not_count():
    # Two minutes until the first has ended, then one a second.
    pace = noted([120.0, 121.0, 122.0, 123.0], now=123.0)
    assert pace.per_second == 1.0
    assert pace.seconds_left(50) == 50.0


def test_nothing_is_known_of_the_first_wave():
    assert noted([30.0]).per_second is None
    # Four side by side end at almost the same time: that says nothing of how long one takes.
    assert noted([30.0, 30.01, 30.02, 30.03], running=3).per_second is None
    waves = noted([30.0, 30.0, 30.0, 30.0, 40.0, 40.0, 40.0, 40.0], running=3)
    assert waves.per_second == pytest.approx(4 / 10)


def test_time_left_goes_on_with_the_clock_and_ends_with_the_limit():
    ended = [10.0, 12.0, 14.0]
    assert noted(ended, now=14.0).seconds_left(10) == 20.0
    assert noted(ended, now=19.0).seconds_left(10) == 15.0
    assert noted(ended, now=14.0).seconds_left(10, most=6.0) == 6.0
    assert noted(ended, now=99.0).seconds_left(10) == 0.0


def test_only_the_latest_count():
    slow = [10.0 * n for n in range(WINDOW)]
    fast = [slow[-1] + 0.5 * n for n in range(1, WINDOW + 1)]
    assert noted(slow + fast).per_second == pytest.approx(2.0, rel=0.02)
