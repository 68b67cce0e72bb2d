import subprocess
import sys

import pytest

import autoprune
from autoprune.cli.main import main
from autoprune.errors import UnknownNameError


def test_help_lists_verbs_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for verb in ("search", "inspect", "devices", "calibrate", "report"):
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


def test_help_and_import_load_neither_torch_nor_ray():
    program = (
        "import sys, autoprune\n"
        "from autoprune.cli.main import main\n"
        "main(['search', '--help'])\n"
        "print([name for name in ('torch', 'ray', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
