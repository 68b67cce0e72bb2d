import pytest

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.run.settings import RunSettings


def test_defaults_fill_what_is_left_out(board):
    settings = RunSettings.checked({"device": board, "budget_ms": 10})
    assert (settings.model, settings.data, settings.trials) == ("digits", "digits", 100)
    assert settings.budget_ms == 10.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "tpa"}, "no sampler named 'tpa'; did you mean 'tpe'"),
        ({"criterion": "l3"}, "no criterion named 'l3'; did you mean 'l2'"),
        ({"realise": "merged"}, "no realisation named 'merged'; did you mean 'merge'"),
        ({"space": "defalt"}, "no search space named 'defalt'; did you mean 'default'"),
        ({"device": "no_such_board"}, "no device profile named 'no_such_board'"),
    ],
)
def test_unknown_name_offers_the_nearest(board, change, message):
    with pytest.raises(UnknownNameError, match=message):
        RunSettings.checked({"device": board, **change})


def test_all_faults_come_at_once(board):
    wrong = {
        "device": board,
        "sampler": "tpa",
        "trials": 0,
        "budget_ms": float("inf"),
        "executor": "slurm",
        "colour": "red",
    }
    with pytest.raises(SettingsError) as raised:
        RunSettings.checked(wrong)

    message = str(raised.value)
    assert "5 settings are wrong" in message
    for part in ("sampler named 'tpa'", "trials:", "budget_ms:", "executor:", "colour:"):
        assert part in message


def test_device_must_be_given():
    with pytest.raises(SettingsError, match="device: missing; `autoprune devices` lists"):
        RunSettings.checked({})


def test_limits_may_change_and_nothing_else(board):
    settings = RunSettings.checked({"device": board, "trials": 5})
    changed = settings.with_limits({"trials": 9, "workers": 2})

    assert (changed.trials, changed.workers, changed.device) == (9, 2, board)
    with pytest.raises(SettingsError, match=r"only trials, time_limit and workers.*not sampler"):
        settings.with_limits({"sampler": "random"})
    with pytest.raises(SettingsError, match="trials: should be greater than or equal to 1, got 0"):
        settings.with_limits({"trials": 0})
