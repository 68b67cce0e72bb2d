"""Real searches of a tiny network in terminals of all kinds."""

import io
import re

import pytest
from rich.console import Console

from autoprune.cli.live import LiveScreen
from autoprune.cli.main import main
from autoprune.run import Run, RunSettings

QUICK = ("--executor", "inline", "--trials", "5", "--calibration-samples", "16", "-o", "run")


pytestmark = pytest.mark.usefixtures("no_onnx_export")


def searched(own, board, *arguments):
    return main(["search", *own, "--device", board, *QUICK, *arguments])


def frames(shown, corners="╭╰"):
    """Return what the screen showed each time it was drawn, top border to bottom border."""
    return [part.partition(corners[1])[0] for part in shown.text.split(corners[0])[1:]]


def test_front_best_and_pace_are_on_the_live_screen(terminal, own, board):
    with terminal() as shown:
        assert searched(own, board, "--budget-ms", "0.2") == 0
    last = frames(shown)[-1]
    for label in (
        "searched     5/5",
        "best  ",
        "hypervolume",
        "pace",
        "latest       trial 5",
        "sampler",
    ):
        assert f"│ {label}" in last
    assert "own.py:net on made_up, at most 0.2 ms" in last
    for mark in "●★◆┊":
        assert mark in last.partition("evaluated")[0]
    # The screen is gone when the search has ended; what stays is the last screen.
    assert "what next" in shown.text[shown.text.rindex("╰") :]


def test_narrow_and_low_terminals_show_no_plot(terminal, own, board):
    with terminal(columns=38, rows=12) as shown:
        assert searched(own, board) == 0
    last = frames(shown)[-1]
    assert "searched" in last
    assert "unpruned" not in last.partition("best ")[0]
    assert max(map(len, last.splitlines())) <= 38


def test_a_terminal_without_unicode_shows_the_nearest_letters(terminal, own, board):
    with terminal(encoding="ascii") as shown:
        assert searched(own, board, "--budget-ms", "0.2") == 0
    assert shown.raw.isascii()
    for text in ("| searched", "o front", "~10 %"):
        assert text in shown.text


def test_no_colour_where_none_is_wanted(terminal, own, board, monkeypatch):
    with terminal() as shown:
        monkeypatch.setenv("NO_COLOR", "1")
        assert searched(own, board) == 0
    colours = re.findall(r"\x1b\[([0-9;]*)m", shown.raw.decode())
    assert colours, "bold is no colour"
    assert all(int(part or 0) < 30 for colour in colours for part in colour.split(";"))


def test_a_dumb_terminal_gets_plain_lines(terminal, own, board, monkeypatch):
    with terminal() as shown:
        monkeypatch.setenv("TERM", "dumb")
        assert searched(own, board) == 0
    assert "5/5 trials, best" in shown.text
    assert "╭" not in shown.text


def test_plain_can_be_asked_for_in_a_terminal(terminal, own, board):
    with terminal() as shown:
        assert searched(own, board, "--progress", "plain") == 0
    assert "5/5 trials, best" in shown.text
    assert "╭" not in shown.text


# --- the screen itself --------------------------------------------------------------------------


@pytest.fixture
def recorded(own, board, tmp_path):
    """A screen and all that it heard of a real search."""
    settings = {"model": own[0], "data": own[2], "device": board, "executor": "inline"}
    run = Run.create(
        RunSettings.checked(settings | {"trials": 4, "calibration_samples": 16}),
        output=tmp_path / "run",
        say=print,
    )
    heard = []
    run.execute(listeners=[heard.append], say=print)
    return run, heard


def drawn(screen, **size):
    out = io.StringIO()
    options = {"width": 100, "height": 30, "highlight": False} | size
    Console(file=out, **options).print(screen)
    return out.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_a_screen_that_comes_late_shows_what_was_before(recorded):
    run, heard = recorded
    whole, late = (LiveScreen(run, clock=lambda: 0.0) for _ in range(2))
    for standing in heard:
        whole(standing)
    late(heard[-1])  # as where a run goes on
    assert drawn(whole) == drawn(late)


def test_before_the_first_evaluation_it_says_what_goes_on(recorded):
    run, _ = recorded
    text = drawn(LiveScreen(run))
    assert "0/4" in text
    assert "scoring the unpruned network" in text


def test_hearing_of_an_evaluation_draws_nothing(recorded, monkeypatch):
    run, heard = recorded
    screen = LiveScreen(run)
    monkeypatch.setattr("autoprune.cli.live.Chart", None)
    monkeypatch.setattr("autoprune.cli.live.pareto_mask", None)
    for standing in heard:
        screen(standing)


def test_plot_is_as_high_as_there_is_room(recorded):
    run, heard = recorded
    screen = LiveScreen(run)
    for standing in heard:
        screen(standing)
    heights = [drawn(screen, height=rows).count("┤") for rows in (12, 20, 24, 30, 80)]
    assert heights[0] == 0
    assert heights == sorted(heights)
    for rows in (20, 24, 30):
        assert len(drawn(screen, height=rows).splitlines()) < rows
