"""ABCPruner's artificial bee colony."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.memory import remember, remembered
from autoprune.strategy.population import Population, evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import at_position, positions_at, random_at, target_ms

_SOURCE = "abc:source"
_SCOUT = "abc:scout"


@dataclasses.dataclass(frozen=True)
class Source:
    """A place that bees visit.

    Attributes:
        index: The best candidate found there, its index in the population; ``None`` while no
            evaluation of the source is complete.
        tries: Evaluations since that were no better.
    """

    index: int | None = None
    tries: int = 0


class BeeColony(CandidateSampler):
    """Employed bees, onlookers and a scout around a few sources [Lin2020abcpruner].

    In a cycle every source is visited by its employed bee, then as many onlookers choose sources
    by their quality. A visit moves the source in a few random coordinates towards or away from
    another one, and what is better takes its place. The most visited source, if that was often
    enough in vain, is left: its employed bee's next visit is a scout's, to a random place.

    What we changed: places are ratios as parts of the largest and whether blocks are dropped, not
    tenths of the channels; every visit is scaled to the budget, where the paper's code knows none;
    quality is the loss on search images, where it is the accuracy on test images; and every
    coordinate can be moved, where the last never is. Without a budget every trial aims at another
    latency, and sources are compared by how good they are for theirs.

    A visit is known by a note in the study. Failed evaluations count as visits in vain.

    References:
        [Lin2020abcpruner] Lin, Ji, Zhang, Zhang, Wu, Tian. Channel Pruning via Automatic Structure
        Search. IJCAI 2020.
    """

    def __init__(
        self, problem: Problem, *, seed: int, sources: int = 10, limit: int = 5, changes: int = 2
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            sources: How many sources there are; as many trials are random.
            limit: Visits in vain after which a source may be left.
            changes: Coordinates that a visit changes.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if min(sources, limit, changes) < 1:
            raise SettingsError(
                "sampler 'abc': expected sources, limit and changes >= 1, got "
                f"{sources}, {limit} and {changes}"
            )
        self.sources = sources
        self.limit = limit
        self.changes = changes

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the place of the next visit."""
        visits = remembered(study, trial, _SOURCE)
        population = evaluated(self.problem, study)
        sources = self.colony(visits, population)
        source = self._turn(len(visits), sources, population, rng)
        scouts = sources[source].index is None or self._is_left(sources, source, len(visits))
        remember(study, trial, _SOURCE, source)
        remember(study, trial, _SCOUT, scouts)
        limit = target_ms(self.problem, trial.number)
        others = [s.index for i, s in enumerate(sources) if s.index is not None and i != source]
        here = sources[source].index
        if scouts or here is None or not others:
            return random_at(self.problem, rng, limit)
        return self._visit(population, here, int(rng.choice(others)), limit, rng)

    def colony(self, visits: Sequence[FrozenTrial], population: Population) -> list[Source]:
        """Return the sources after all visits that have ended.

        Args:
            visits: The colony's trials, by number.
            population: What is complete.
        """
        where = {trial.number: index for index, trial in enumerate(population.trials)}
        sources = [Source()] * self.sources
        for visit in visits:
            if not visit.state.is_finished():
                continue
            place = visit.system_attrs[_SOURCE]
            source, index = sources[place], where.get(visit.number)
            arrives = visit.system_attrs[_SCOUT] or source.index is None
            if index is not None and (arrives or _better(population, index, source.index)):
                sources[place] = Source(index)
            else:
                sources[place] = dataclasses.replace(source, tries=source.tries + 1)
        return sources

    def _turn(
        self,
        visits: int,
        sources: Sequence[Source],
        population: Population,
        rng: np.random.Generator,
    ) -> int:
        """Return the source that is visited next."""
        place = (visits - self.sources) % (2 * self.sources)
        known = [i for i, source in enumerate(sources) if source.index is not None]
        if visits < self.sources or place < self.sources or not known:
            return place % self.sources
        scores = np.array([population.score[sources[i].index] for i in known])
        # Scores are logarithms of losses; quality is relative to the best source.
        chance = 0.9 * np.exp(scores.min() - scores) + 0.1
        return int(rng.choice(known, p=chance / chance.sum()))

    def _is_left(self, sources: Sequence[Source], source: int, visits: int) -> bool:
        """Return whether a visit to a source is a scout's."""
        tries = [s.tries for s in sources]
        employed = (visits - self.sources) % (2 * self.sources) < self.sources
        return employed and tries[source] >= self.limit and tries.index(max(tries)) == source

    def _visit(
        self,
        population: Population,
        here: int,
        other: int,
        limit_ms: float,
        rng: np.random.Generator,
    ) -> Candidate:
        space = self.problem.space
        rows = np.array([here, other])
        dropped = population.dropped[rows]
        parts = positions_at(self.problem, population.ratios[rows], dropped, limit_ms)
        points = np.concatenate([parts, dropped.astype(float)], axis=1)
        searched = space.smallest_widths < space.sizes
        places = np.flatnonzero(np.concatenate([searched, np.array(space.droppable, bool)]))
        if not len(places):
            return population.candidate(here)
        chosen = rng.choice(places, size=min(self.changes, len(places)), replace=False)
        step = rng.uniform(-1.0, 1.0, len(chosen))
        moved = points[0].copy()
        moved[chosen] += step * (points[0, chosen] - points[1, chosen])
        groups = len(space.dimensions)
        return at_position(self.problem, moved[:groups], moved[groups:] >= 0.5, limit_ms)


def _better(population: Population, index: int, than: int | None) -> bool:
    """Return whether a candidate is better than a source's; one with a rough loss never is."""
    if than is None:
        return True
    return not population.rough[index] and bool(population.score[index] < population.score[than])


@SAMPLERS.register("abc")
def abc(
    problem: Problem, *, seed: int, sources: int = 10, limit: int = 5, changes: int = 2
) -> BaseSampler:
    """Return :class:`BeeColony`.

    Args:
        problem: What is searched.
        seed: At least 0.
        sources: How many sources there are; as many trials are random.
        limit: Visits in vain after which a source may be left.
        changes: Coordinates that a visit changes.

    Raises:
        SettingsError: A number is out of its range.
    """
    return BeeColony(problem, seed=seed, sources=sources, limit=limit, changes=changes)
