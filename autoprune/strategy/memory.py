"""What a sampler has to remember of its own proposals, kept with the trials in the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial


def remember(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Store a value with a trial that is being proposed.

    It is a system attribute, as those in which Optuna's samplers store generations; so it is there
    when a run is resumed, whatever the storage.

    Args:
        study: The study.
        trial: Its new trial.
        key: Name of the value, starting with the sampler's.
        value: Anything JSON can hold.
    """
    # Optuna has no public way; its own samplers, and those of OptunaHub, do the same.
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def remembered(study: Study, trial: FrozenTrial, key: str) -> Sequence[FrozenTrial]:
    """Return the trials before one that have a value of that name, by number.

    Args:
        study: Trials of any state.
        trial: Only trials with smaller numbers are returned.
        key: Name of the value.
    """
    found = [
        other
        for other in study.get_trials(deepcopy=False)
        if other.number < trial.number and key in other.system_attrs
    ]
    return sorted(found, key=lambda other: other.number)
