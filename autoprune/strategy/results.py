"""What a study knows of a candidate that was moved inside the budget before it was evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.strategy.budget import project
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: Loss in nats of a candidate's evaluation; nan while it is pending, inf if it failed, ``None`` if
#: nobody has asked for it.
Losses = Callable[[Candidate], float | None]

_Params = tuple[float | bool, ...]


class Results:
    """Finds the evaluation of a candidate in a study by the parameters it was projected to."""

    def __init__(self, problem: Problem, *, fill: bool = True) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            fill: Whether the sampler has its proposals widened where that costs no latency.
        """
        self.problem = problem
        self.fill = fill
        # Follows from the problem alone, so it may be lost at any time.
        self._params: dict[Candidate, _Params] = {}

    def losses(self, study: Study, trial: FrozenTrial) -> Losses:
        """Return what all other trials of the study say.

        Args:
            study: The study; of trials with the same parameters the first complete one counts,
                else a pending one. Rough losses of evaluations that were stopped early count too.
            trial: The trial to leave out.
        """
        known = self._known(study, trial)
        return lambda candidate: known.get(self.params(candidate))

    def params(self, candidate: Candidate) -> _Params:
        """Return the parameters under which a proposed candidate is evaluated."""
        if candidate not in self._params:
            projected = project(self.problem, candidate, fill=self.fill)
            self._params[candidate] = tuple(self.problem.space.params(projected).values())
        return self._params[candidate]

    def _known(self, study: Study, trial: FrozenTrial) -> dict[_Params, float]:
        names = list(self.problem.space.distributions())
        complete: dict[_Params, float] = {}
        others: dict[_Params, float] = {}
        for other in study.get_trials(deepcopy=False):
            if other.number == trial.number or not all(name in other.params for name in names):
                continue
            key = tuple(other.params[name] for name in names)
            if other.state == TrialState.COMPLETE:
                complete.setdefault(key, other.values[0])
            elif not other.state.is_finished():
                others[key] = math.nan
            else:
                others.setdefault(key, math.inf)
        return others | complete
