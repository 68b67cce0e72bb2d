"""LeGR: an evolved affine map per group makes one global ranking of all units."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Float
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.budget import Points, first_within, project, widen
from autoprune.strategy.memory import remember, remembered
from autoprune.strategy.population import evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import target_ms

_GENES = "legr:genes"


class Legr(CandidateSampler):
    """Ranks all units of a network by ``alpha * score + kappa`` of their group [Chin2020legr].

    All units below one threshold go, and the threshold is the lowest that meets the budget. What is
    searched are alpha and kappa of every group, by regularised evolution [Real2019aging]: the
    winner of a tournament among the youngest candidates gets a child with a few changed genes.

    The scores are the problem's, which for the paper are squared norms of filters; where a problem
    has none, they are what each unit adds to the square of the ratio. What we changed: a block has
    an affine map as well, of the score of the strongest unit inside it, and goes when that would;
    the threshold meets a latency; no network is trained before it is scored; and without a budget
    every trial aims at another latency, its genes compared by how good they are for theirs: in the
    paper too the genes learned for one budget serve others.

    Genes are kept as a note in the study.

    References:
        [Chin2020legr] Chin, Ding, Zhang, Marculescu. Towards Efficient Model Compression via
        Learned Global Ranking. CVPR 2020.
        [Real2019aging] Real, Aggarwal, Huang, Le. Regularized Evolution for Image Classifier
        Architecture Search. AAAI 2019.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        startup_trials: int = 16,
        population_size: int = 64,
        tournament: int = 16,
        mutated: float = 0.1,
        anneal: int = 500,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            startup_trials: Candidates with random genes before there are children.
            population_size: Youngest candidates that may be parents.
            tournament: How many of them are drawn, the best being the parent.
            mutated: Share of the groups and blocks whose genes a child changes.
            anneal: Trials over which changes of alpha shrink, to a tenth.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if min(startup_trials, population_size, tournament, anneal) < 1 or not 0 < mutated <= 1:
            raise SettingsError(
                "sampler 'legr': expected startup_trials, population_size, tournament and anneal "
                f">= 1 and 0 < mutated <= 1, got {startup_trials}, {population_size}, "
                f"{tournament}, {anneal} and {mutated}"
            )
        self.startup_trials = startup_trials
        self.population_size = population_size
        self.tournament = tournament
        self.mutated = mutated
        self.anneal = anneal

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the candidate of new genes."""
        genes = self._genes(study, trial, rng)
        remember(study, trial, _GENES, genes.tolist())
        return self.ranked(genes, target_ms(self.problem, trial.number))

    def ranked(self, genes: Float[np.ndarray, "2 places"], limit_ms: float) -> Candidate:
        """Return the candidate without the units and blocks that a global ranking puts last.

        Args:
            genes: Logarithm of alpha, and kappa in standard deviations of the scores, of every
                group and then every block.
            limit_ms: Latency in ms; what is left of it goes to groups that lost most.
        """
        space = self.problem.space
        units, blocks = self._affine(genes)
        thresholds = np.unique(np.concatenate([*units, blocks, [np.inf]]))

        def path(positions: Float[np.ndarray, " n"]) -> Points:
            at = thresholds[np.rint(positions * (len(thresholds) - 1)).astype(np.int64)]
            gone = [np.searchsorted(scores, at) / len(scores) for scores in units]
            ratios = np.stack(gone, axis=1) if gone else np.zeros((len(at), 0))
            return space.realise(ratios, blocks < at[:, None])

        found = first_within(self.problem, path, limit_ms) or path(np.ones(1))
        fitted = project(self.problem, space.candidates(*found)[0], budget_ms=limit_ms)
        keep = space.keep([fitted])
        widths = widen(self.problem, space.widths([fitted]), keep, limit_ms)
        return space.candidates(widths, keep)[0]

    def _affine(
        self, genes: Float[np.ndarray, "2 places"]
    ) -> tuple[list[Float[np.ndarray, " _"]], Float[np.ndarray, " blocks"]]:
        """Return the units' scores of each group, ascending, and the blocks', after the maps."""
        alpha, kappa = np.exp(genes[0]), genes[1] * self._spread
        groups = len(self._units)
        units = [alpha[g] * scores + kappa[g] for g, scores in enumerate(self._units)]
        return units, alpha[groups:] * self._strongest + kappa[groups:]

    def _genes(
        self, study: Study, trial: FrozenTrial, rng: np.random.Generator
    ) -> Float[np.ndarray, "2 places"]:
        shape = 2, len(self._spread)
        earlier = remembered(study, trial, _GENES)
        if not earlier:
            return np.zeros(shape)
        known = {other.number for other in earlier}
        population = evaluated(self.problem, study)
        mine = np.array(
            [i for i in population.ranked() if population.trials[i].number in known], int
        )
        if len(earlier) < self.startup_trials or not len(mine):
            return rng.normal(size=shape)
        # Indices grow with the trials' numbers: the largest are the youngest.
        young = mine[mine >= np.sort(mine)[-self.population_size :][0]]
        drawn = rng.choice(len(young), size=min(self.tournament, len(young)), replace=False)
        winner = population.trials[young[drawn.min()]]
        genes = np.array(winner.system_attrs[_GENES], float).reshape(shape)
        count = max(round(self.mutated * shape[1]), min(1, shape[1]))
        chosen = rng.choice(shape[1], size=count, replace=False)
        step = max(1.0 - len(earlier) / self.anneal, 0.1)
        genes[:, chosen] += rng.normal(size=(2, count)) * np.array([[step], [1.0]])
        return genes

    @cached_property
    def _units(self) -> list[Float[np.ndarray, " _"]]:
        """Scores of each group's units, ascending."""
        dimensions, scores = self.problem.space.dimensions, self.problem.scores
        if all(len(scores.get(dim.group, ())) == dim.size for dim in dimensions):
            return [np.sort(np.asarray(scores[dim.group], float)) for dim in dimensions]
        return [(2.0 * np.arange(dim.size) + 1.0) / dim.size**2 for dim in dimensions]

    @cached_property
    def _strongest(self) -> Float[np.ndarray, " blocks"]:
        """Score of the strongest unit inside each block; of all units where none is inside."""
        space = self.problem.space
        top = np.array([scores[-1] for scores in self._units], float)
        inside = space.inside or ((),) * len(space.blocks)
        largest = [top[list(groups)] if groups else top for groups in inside]
        return np.array([values.max(initial=0.0) for values in largest], float)

    @cached_property
    def _spread(self) -> Float[np.ndarray, " places"]:
        """Standard deviation of the scores of each group, and of each block's groups on average."""
        space = self.problem.space
        spread = np.array([scores.std() for scores in self._units], float)
        inside = space.inside or ((),) * len(space.blocks)
        blocks = [spread[list(groups)] if groups else spread for groups in inside]
        means = [float(values.mean()) if len(values) else 0.0 for values in blocks]
        return np.concatenate([spread, np.array(means, float)])


@SAMPLERS.register("legr")
def legr(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 16,
    population_size: int = 64,
    tournament: int = 16,
    mutated: float = 0.1,
    anneal: int = 500,
) -> BaseSampler:
    """Return :class:`Legr`.

    Args:
        problem: What is searched; its scores are read.
        seed: At least 0.
        startup_trials: Candidates with random genes before there are children; the paper's are a
            whole population.
        population_size: Youngest candidates that may be parents.
        tournament: How many of them are drawn, the best being the parent.
        mutated: Share of the groups and blocks whose genes a child changes.
        anneal: Trials over which changes of alpha shrink, to a tenth.

    Raises:
        SettingsError: A number is out of its range.
    """
    return Legr(
        problem,
        seed=seed,
        startup_trials=startup_trials,
        population_size=population_size,
        tournament=tournament,
        mutated=mutated,
        anneal=anneal,
    )
