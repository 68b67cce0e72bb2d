import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from autoprune.execution.snapshot import Snapshot

STATES = [None, (TrialState.WAITING,), (TrialState.RUNNING,), (TrialState.COMPLETE,), ()]


@pytest.mark.parametrize("seed", range(3))
def test_a_study_that_is_told_its_changes_is_what_the_storage_says(seed):
    rng = np.random.default_rng(seed)
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"x": 0.5})
    snapshot = Snapshot(storage, study._study_id)
    running, changed = [], set()
    for _ in range(40):
        if running and rng.random() < 0.5:
            trial = running.pop(int(rng.integers(len(running))))
            trial.set_user_attr("noted", float(rng.random()))
            study.tell(trial, float(rng.random()))
        else:
            trial = study.ask()
            running.append(trial)
        changed.add(trial._trial_id)
        if rng.random() < 0.6:
            snapshot.read(changed)
            changed.clear()
            for states in STATES:
                expected = study.get_trials(deepcopy=False, states=states)
                assert snapshot.trials(states) == expected
            assert len(snapshot) == len(study.get_trials())


def test_lists_are_the_callers_own():
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    study.ask()
    snapshot = Snapshot(storage, study._study_id)
    snapshot.trials(None).clear()
    assert len(snapshot.trials(None)) == 1
