import math
import shlex

import pytest
from scipy.stats import beta

from autoprune.cli.main import app, main
from autoprune.cli.outcome import interval

QUICK = ("--executor", "inline", "--sampler", "random", "--trials", "3", "-o", "run")


pytestmark = pytest.mark.usefixtures("no_onnx_export")


@pytest.fixture
def last_screen(own, board, capsys):
    def search(*arguments):
        code = main(["search", *own, "--device", board, *QUICK, *arguments])
        return code, capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")

    return search


def test_it_says_what_was_found_how_sure_and_what_to_do_next(last_screen):
    code, out = last_screen()
    assert code == 0
    found, _, rest = out.partition("how sure")
    sure, _, following = rest.partition("what next")
    assert "latency on made_up, ±10 %" in found
    assert "on the front; all 3 trials are done" in found
    words = " ".join(sure.split())
    assert "ms, predicted: mean error on networks that were held out" in words
    assert "(95 %), from 64 samples of the search split" in words
    assert "autoprune export run --format onnx" in following
    assert "autoprune verify run --kit kit" in following  # the board is not this machine
    assert "autoprune finetune" not in following  # the task gives no batches to train on


def test_every_command_that_it_offers_is_one(last_screen):
    from typer.main import get_command

    _, out = last_screen()
    commands = [
        line[line.index("autoprune ") :] for line in out.splitlines() if "autoprune " in line
    ]
    assert len(commands) >= 3
    for command in commands:
        verb, *arguments = shlex.split(command)[1:]
        known = get_command(app).commands[verb]
        known.make_context(verb, arguments)  # raises for options that it does not have


def test_where_nothing_was_found_it_says_why_and_goes_on(last_screen):
    code, out = last_screen("--min-accuracy", "1.0", "--budget-ms", "0.15")
    assert code == 1
    assert out.startswith("no network was found: no network within the limits reaches")
    assert "how sure" not in out
    assert "autoprune search --resume run --trials 6" in out


@pytest.mark.parametrize(("right", "samples"), [(90, 100), (63, 64), (5, 359), (500, 1000)])
def test_interval_is_close_to_the_exact_one(right, samples):
    # Clopper and Pearson's, which is a little too wide.
    exact = beta.ppf([0.025, 0.975], [right, right + 1], [samples - right + 1, samples - right])
    found = interval(right / samples, samples)
    assert found == pytest.approx(exact, abs=0.5 / samples + 0.004)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_interval_at_the_ends(share):
    low, high = interval(share, 50)
    assert 0.0 <= low < high <= 1.0
    assert math.isclose(high - low, 1.96**2 / (50 + 1.96**2))
