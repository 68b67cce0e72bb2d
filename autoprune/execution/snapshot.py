"""The trials of a study that only this process changes, read again only where it changed them."""

from __future__ import annotations

from collections.abc import Container, Iterable

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

#: What a trial that has not ended is.
_OPEN = frozenset({TrialState.RUNNING, TrialState.WAITING})


class Snapshot:
    """All trials of one study, kept up to date by being told which were changed.

    A storage makes its list of trials anew for everybody who asks, which takes longer the more
    there are; a sampler, and Optuna itself, ask several times per proposal.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        """Read all trials.

        Args:
            storage: Where they are.
            study_id: Of the study.
        """
        self._storage = storage
        self._trials = storage.get_all_trials(study_id, deepcopy=False)
        self._places = {trial._trial_id: place for place, trial in enumerate(self._trials)}
        self._open = {t._trial_id for t in self._trials if t.state in _OPEN}

    def __len__(self) -> int:
        return len(self._trials)

    def read(self, changed: Iterable[int]) -> None:
        """Read trials again, and those that are new.

        Args:
            changed: Identities of all trials that were made or changed since.
        """
        for trial_id in sorted(changed):
            trial = self._storage.get_trial(trial_id)
            place = self._places.setdefault(trial_id, len(self._trials))
            self._trials[place : place + 1] = [trial]
            (self._open.add if trial.state in _OPEN else self._open.discard)(trial_id)

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Return the trials in some states by number; the list is the caller's.

        Args:
            states: ``None`` for all.
        """
        if states is None:
            return list(self._trials)
        if not any(state in states for state in TrialState if state not in _OPEN):
            places = sorted(self._places[trial_id] for trial_id in self._open)
            return [t for t in (self._trials[place] for place in places) if t.state in states]
        return [trial for trial in self._trials if trial.state in states]
