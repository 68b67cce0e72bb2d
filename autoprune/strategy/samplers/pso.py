"""Particle swarm optimisation of the ratios."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
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

_PARTICLE = "pso:particle"


class ParticleSwarm(CandidateSampler):
    """Particles fly on, pulled to the best place of their own and of all [Kennedy1995pso].

    With the coefficients that make a swarm contract [Clerc2002constriction]. A position is a
    candidate's ratios as parts of the largest, and whether each block is dropped; what the moved
    particle would have is scaled to the budget, and its velocity is the difference of the last two
    positions it really had. Without a budget every trial aims at another latency: places are
    compared by how good they are for theirs, and scaled to the new one before they are subtracted.
    A block's new coordinate is the probability that it is dropped.

    A particle's trials are known by a note in the study. What failed or is pending counts as a
    place where the particle was, not as one that is good.

    References:
        [Kennedy1995pso] Kennedy, Eberhart. Particle Swarm Optimization. ICNN 1995.
        [Clerc2002constriction] Clerc, Kennedy. The Particle Swarm: Explosion, Stability, and
        Convergence in a Multidimensional Complex Space. IEEE Transactions on Evolutionary
        Computation 6(1), 2002.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        particles: int = 20,
        inertia: float = 0.7298,
        pull: float = 1.49618,
        max_velocity: float = 0.2,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            particles: How many there are; as many trials are random.
            inertia: Share of the velocity that stays.
            pull: Largest strength of the pull to either place.
            max_velocity: Largest change of a group's ratio in a trial, as a part of the largest.

        Raises:
            SettingsError: There is no particle.
        """
        super().__init__(problem, seed=seed)
        if particles < 1:
            raise SettingsError(f"sampler 'pso': expected particles >= 1, got {particles}")
        self.particles = particles
        self.inertia = inertia
        self.pull = pull
        self.max_velocity = max_velocity

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return where the next particle flies."""
        earlier = remembered(study, trial, _PARTICLE)
        particle = len(earlier) % self.particles
        remember(study, trial, _PARTICLE, particle)
        names = self.problem.space.distributions().keys()
        places = [
            other
            for other in earlier
            if other.system_attrs[_PARTICLE] == particle and names <= other.params.keys()
        ]
        limit = target_ms(self.problem, trial.number)
        population = evaluated(self.problem, study)
        if not places or not len(population):
            return random_at(self.problem, rng, limit)
        return self._moved(places, population, limit, rng)

    def _moved(
        self,
        places: list[FrozenTrial],
        population: Population,
        limit_ms: float,
        rng: np.random.Generator,
    ) -> Candidate:
        ranked = population.ranked()
        own = {place.number for place in places}
        mine = [index for index in ranked.tolist() if population.trials[index].number in own]
        chosen = [population.trials[index] for index in (*mine[:1], ranked[0])]
        # Before any of its own trials is complete a particle has no best place but the last.
        best = chosen if mine else [places[-1], *chosen]
        here, before = places[-1], places[-2] if len(places) > 1 else places[-1]
        points, dropped = self._points([here, before, *best], limit_ms)
        flags = dropped.astype(float)
        velocity = self._velocity(points, rng)
        parts = points[0] + np.clip(velocity, -self.max_velocity, self.max_velocity)
        chance = flags[0] + self._velocity(flags, rng)
        return at_position(self.problem, parts, rng.random(len(chance)) < chance, limit_ms)

    def _points(
        self, trials: list[FrozenTrial], limit_ms: float
    ) -> tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        candidates = [self.problem.space.candidate(_own(self.problem, t)) for t in trials]
        ratios = np.array([c.ratios for c in candidates], float)
        dropped = np.array([c.dropped for c in candidates], bool)
        return positions_at(self.problem, ratios, dropped, limit_ms), dropped

    def _velocity(
        self, points: Float[np.ndarray, "4 dims"], rng: np.random.Generator
    ) -> Float[np.ndarray, " dims"]:
        """Return the velocity from the last place, the one before, the own best and the best."""
        here, before, own, best = points
        strength = self.pull * rng.random((2, len(here)))
        velocity: Float[np.ndarray, " dims"] = (
            self.inertia * (here - before)
            + strength[0] * (own - here)
            + strength[1] * (best - here)
        )
        return velocity


def _own(problem: Problem, trial: FrozenTrial) -> dict[str, float | bool]:
    """Return those of a trial's parameters that belong to the search space."""
    return {name: trial.params[name] for name in problem.space.distributions()}


@SAMPLERS.register("pso")
def pso(
    problem: Problem,
    *,
    seed: int,
    particles: int = 20,
    inertia: float = 0.7298,
    pull: float = 1.49618,
    max_velocity: float = 0.2,
) -> BaseSampler:
    """Return :class:`ParticleSwarm`.

    Args:
        problem: What is searched.
        seed: At least 0.
        particles: How many there are; as many trials are random.
        inertia: Share of the velocity that stays.
        pull: Largest strength of the pull to the own best and to the best place.
        max_velocity: Largest change of a group's ratio in a trial, as a part of the largest.

    Raises:
        SettingsError: There is no particle.
    """
    return ParticleSwarm(
        problem,
        seed=seed,
        particles=particles,
        inertia=inertia,
        pull=pull,
        max_velocity=max_velocity,
    )
