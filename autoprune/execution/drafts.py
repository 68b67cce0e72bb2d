"""A storage into which new trials come whole: a study holds no trial without its candidate."""

from __future__ import annotations

import datetime
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from autoprune.execution.snapshot import Snapshot

#: Identifies the trial that is being proposed; storages count from 0.
_DRAFT_ID = -1


@runtime_checkable
class TakesMany(Protocol):
    """A storage that takes all attributes of a trial at once."""

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes."""


class Drafts(BaseStorage):
    """Passes everything on to a storage, but keeps a new trial to itself until it is complete.

    Optuna creates a trial first and then stores its parameters one by one. Here the trial and all
    that a sampler notes about it are written by :meth:`publish` in one operation: a process that is
    killed leaves no half trial, no other driver sees one, and a journal grows by one line instead
    of one per parameter. One trial at a time is drafted; nothing here is thread-safe.

    Attributes:
        kept: Where trials are kept.
        hidden: User attribute of trials that are left out of all trials.
    """

    def __init__(
        self, kept: BaseStorage, *, alone: bool = False, hidden: str | None = None
    ) -> None:
        """Store parameters.

        Args:
            kept: Where trials are kept.
            alone: Whether nobody else changes the trials, so that they need not be read again.
            hidden: Trials with a user attribute of that name are not among all trials, whose
                scores samplers compare.
        """
        self.hidden = hidden
        self.kept = kept
        self.alone = alone
        self._draft: FrozenTrial | None = None
        self._snapshots: dict[int, Snapshot] = {}
        self._changed: set[int] = set()

    def publish(self, study_id: int, trial: FrozenTrial | None = None) -> tuple[int, int]:
        """Write the drafted trial, and return its id and its number.

        Args:
            study_id: Of the study.
            trial: Written instead.

        Returns:
            The number is another than the draft's where other processes were faster.
        """
        template = trial or self._draft
        assert template is not None, "nothing was drafted"
        self._draft = None
        trial_id = self.kept.create_new_trial(study_id, template)
        self._changed.add(trial_id)
        return trial_id, self.kept.get_trial_number_from_id(trial_id)

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set user attributes of a trial, at once where the storage can."""
        if self.drafted(trial_id) or not isinstance(self.kept, TakesMany):
            for key, value in attributes.items():
                self.set_trial_user_attr(trial_id, key, value)
        else:
            self._changed.add(trial_id)
            self.kept.set_trial_user_attrs(trial_id, attributes)

    def drafted(self, trial_id: int) -> bool:
        """Return whether this is the drafted trial."""
        return self._drafted(trial_id) is not None

    # --- the draft --------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Draft a trial, or pass on one that is complete."""
        if template_trial is not None:
            trial_id = self.kept.create_new_trial(study_id, template_trial)
            self._changed.add(trial_id)
            return trial_id
        self._draft = FrozenTrial(
            number=self._count(study_id),
            state=TrialState.RUNNING,
            value=None,
            values=None,
            datetime_start=datetime.datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=_DRAFT_ID,
        )
        return _DRAFT_ID

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return the draft or a trial."""
        return self._drafted(trial_id) or self.kept.get_trial(trial_id)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return all trials, the draft last."""
        if self.alone and not deepcopy:
            trials = self._snapshot(study_id).trials(states)
        else:
            trials = self.kept.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        if self.hidden is not None:
            trials = [trial for trial in trials if self.hidden not in trial.user_attrs]
        if self._draft is None or not (states is None or self._draft.state in states):
            return trials
        return [*trials, self._draft]

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: int | float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter."""
        draft = self._drafted(trial_id)
        if draft is None:
            self._changed.add(trial_id)
            self.kept.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        draft.params[param_name] = distribution.to_external_repr(param_value_internal)
        draft.distributions[param_name] = distribution

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute."""
        draft = self._drafted(trial_id)
        if draft is None:
            self._changed.add(trial_id)
            self.kept.set_trial_user_attr(trial_id, key, value)
        else:
            draft.user_attrs[key] = value

    def set_trial_system_attr(
        self, trial_id: int, key: str, value: Mapping[str, Any] | Any
    ) -> None:
        """Set a system attribute."""
        draft = self._drafted(trial_id)
        if draft is None:
            self._changed.add(trial_id)
            self.kept.set_trial_system_attr(trial_id, key, value)
        else:
            draft.system_attrs[key] = value

    def _drafted(self, trial_id: int) -> FrozenTrial | None:
        return self._draft if trial_id == _DRAFT_ID else None

    def _snapshot(self, study_id: int) -> Snapshot:
        """Return the trials as they are, of a storage that holds this study alone."""
        if study_id not in self._snapshots:
            self._snapshots[study_id] = Snapshot(self.kept, study_id)
        else:
            self._snapshots[study_id].read(self._changed)
        self._changed.clear()
        return self._snapshots[study_id]

    def _count(self, study_id: int) -> int:
        return len(self._snapshot(study_id)) if self.alone else self.kept.get_n_trials(study_id)

    # --- passed on --------------------------------------------------------------------------

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Pass on."""
        return self.kept.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Pass on."""
        self.kept.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Pass on."""
        self.kept.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Pass on."""
        self.kept.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Pass on."""
        return self.kept.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Pass on."""
        return self.kept.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Pass on."""
        return self.kept.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Pass on."""
        return self.kept.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Pass on."""
        return self.kept.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Pass on."""
        return self.kept.get_all_studies()

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Pass on."""
        return self.kept.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Pass on."""
        self._changed.add(trial_id)
        return self.kept.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Pass on."""
        self._changed.add(trial_id)
        self.kept.set_trial_intermediate_value(trial_id, step, intermediate_value)

    def remove_session(self) -> None:
        """Pass on."""
        self.kept.remove_session()
