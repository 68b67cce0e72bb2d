import optuna
import pytest
from optuna.trial import TrialState

from autoprune.strategy.memory import remember, remembered
from autoprune.testing.samplers import quiet_optuna


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def test_values_are_there_in_a_loaded_study(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="s", directions=["minimize"] * 2)
    for value in ([1.5, 2.0], None, 3):
        asked = study.ask()
        if value is not None:
            remember(study, study.trials[-1], "x:key", value)
        study.tell(asked, state=TrialState.FAIL)
    study.ask()
    loaded = optuna.load_study(storage=storage, study_name="s")
    found = remembered(loaded, loaded.trials[-1], "x:key")
    assert [(t.number, t.system_attrs["x:key"]) for t in found] == [(0, [1.5, 2.0]), (2, 3)]
    # Only what was there before.
    assert [t.number for t in remembered(loaded, loaded.trials[2], "x:key")] == [0]
    assert remembered(loaded, loaded.trials[-1], "y:key") == []
