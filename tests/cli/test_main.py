import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

import autoprune
from autoprune.cli.main import app, main
from autoprune.errors import UnknownNameError


def test_help_lists_verbs_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for verb in ("search", "init", "inspect", "devices", "calibrate", "report", "doctor"):
        assert verb in out
    for code in ("0 done", "2 bad input", "130 stopped by Ctrl-C", "143 stopped by SIGTERM"):
        assert code in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"autoprune {autoprune.__version__}\n"


def test_error_is_one_line_and_exit_code_two(capsys):
    assert main(["devices", "no[such]board"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no device profile named 'no[such]board'")
    assert err.count("\n") == 1


def test_debug_shows_where_it_came_from():
    with pytest.raises(UnknownNameError):
        main(["--debug", "devices", "no_such_board"])


def test_wrong_option_is_exit_code_two(capsys):
    assert main(["search", "--budget", "10"]) == 2
    assert "--budget-ms" in capsys.readouterr().err


def verbs(command, *before):
    """Yield every verb of the command line with its words."""
    for name, entry in command.commands.items():
        yield (*before, name), entry
        if hasattr(entry, "commands"):
            yield from verbs(entry, *before, name)


VERBS = dict(verbs(get_command(app)))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_shows_examples_and_each_is_one_that_is_understood(words):
    name = " ".join(words)
    lines = VERBS[words].help.replace("\\\n", "").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("autoprune ")]
    assert examples
    for example in examples:
        assert example.startswith(f"autoprune {name}")
        arguments = shlex.split(example)[1 + len(words) :]
        VERBS[words].make_context(name, arguments)  # raises for options that it does not have


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_examples_are_shown_as_lines_of_their_own(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words, "--help"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    written = [line.strip() for line in VERBS[words].help.splitlines()]
    for line in written:
        if line.startswith("autoprune "):
            assert line in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_shells(shell, capsys, monkeypatch):
    # What the shell is, is read from the processes above this one.
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert main(["--show-completion"]) == 0
    assert "_AUTOPRUNE_COMPLETE" in capsys.readouterr().out


def test_completion_knows_verbs_and_options(monkeypatch, capsys):
    monkeypatch.setenv("_AUTOPRUNE_COMPLETE", "complete_bash")
    for words, expected in (
        ("autoprune fi", "finetune"),
        ("autoprune search --budg", "--budget-ms"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        main([])
        assert capsys.readouterr().out.split() == [expected]


def test_help_and_import_load_neither_torch_nor_ray():
    program = (
        "import sys, autoprune\n"
        "from autoprune.cli.main import main\n"
        "main(['search', '--help'])\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
