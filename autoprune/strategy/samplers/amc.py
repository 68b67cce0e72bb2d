"""AMC: an agent walks through the network and decides group by group what stays."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.strategy.ddpg import Agent, Rates, Transitions, truncated_normal
from autoprune.strategy.passage import Passage
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

#: A trial that is still pending after so many later ones is no longer waited for.
_PATIENCE = 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a reward may depend on.

    Attributes:
        loss: In nats.
        accuracy: In [0, 1]; ``exp(-loss)`` where the trial has none.
        latency_ms: Predicted latency in ms.
        macs: Multiply-accumulates; nan where the problem has no operators.
        dense_ms: Predicted latency of the unpruned network.
        budget_ms: Latency that was allowed.
    """

    loss: float
    accuracy: float
    latency_ms: float
    macs: float
    dense_ms: float
    budget_ms: float


def _distiller(outcome: Outcome) -> float:
    if outcome.latency_ms > outcome.budget_ms:
        return -3.0 - outcome.latency_ms / outcome.dense_ms
    return outcome.accuracy + 1.0


#: Rewards by name; latency is in microseconds so that its logarithm is positive.
REWARDS: dict[str, Callable[[Outcome], float]] = {
    "loss": lambda outcome: -outcome.loss,
    "accuracy": lambda outcome: outcome.accuracy,
    "latency": lambda outcome: (
        -(1.0 - outcome.accuracy) * math.log(max(1e3 * outcome.latency_ms, 1.0))
    ),
    "macs": lambda outcome: -(1.0 - outcome.accuracy) * math.log(max(outcome.macs, 1.0)),
    "distiller": _distiller,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of :func:`amc`, which says what they mean."""

    reward: str
    warmup: int
    noise: float
    noise_decay: float
    hidden: int
    batch: int
    replay: int
    updates: int
    rates: Rates


class Student:
    """An agent with its memory."""

    def __init__(self, features: int, *, seed: int, options: Options) -> None:
        """Draw the agent and remember nothing.

        Args:
            features: Numbers in a state.
            seed: At least 0.
            options: How it learns.
        """
        self.seed = seed
        self.options = options
        self.agent = Agent(
            features,
            hidden=options.hidden,
            rates=options.rates,
            rng=np.random.default_rng([seed, 0xA3C]),
        )
        self.episodes = 0
        self._memory: list[Transitions] = []

    @property
    def spread(self) -> float | None:
        """Standard deviation of the noise; ``None`` while actions are uniform."""
        after = self.episodes - self.options.warmup
        return None if after < 0 else self.options.noise * self.options.noise_decay**after

    def learn(self, episode: Transitions, number: int) -> None:
        """Remember an episode and, after the warm-up, update the agent.

        Args:
            episode: Its steps.
            number: The trial's number, which decides what is drawn from the memory.
        """
        self.episodes += 1
        self._memory.append(episode)
        del self._memory[: -self.options.replay]
        if self.spread is None:
            return
        memory = Transitions.joined(self._memory)
        rng = np.random.default_rng([self.seed, number, 0xA3C])
        for _ in range(min(len(episode.actions), self.options.updates)):
            self.agent.learn(
                memory.rows(rng.integers(len(memory.actions), size=self.options.batch))
            )


class AMC(CandidateSampler):
    """Rolls out an actor that DDPG trains on the study's evaluations [He2018amc].

    As published: the state (:class:`~autoprune.strategy.passage.Passage`), one action per step,
    truncated normal noise that shrinks after a warm-up of uniform actions, actions cut where the
    budget would be lost with the rest at its narrowest, the episode's reward given to every step
    without discount and relative to a moving average, replay, slowly moving copies, one update per
    step of an episode (in networks of very many steps, fewer).

    Ours are: the wall stands on the exact latency, found by search over the widths; steps are
    channel groups and removable blocks; the evaluation is the run's realisation, and the default
    reward its loss, which ranks unfinished networks better than accuracy; the warm-up is short.
    Without a budget every episode has its own, drawn log-evenly between the fastest and the
    unpruned network, and the state has it as a twelfth feature, so that one agent serves all.

    The agent is a function of the study: it is trained on the finished trials in the order of their
    numbers, as they were evaluated and not as they were asked for, up to the first that is still
    pending. What it has learned is kept, so a new trial costs the updates of one episode; a sampler
    on an old study goes through all of them. Trials over the budget, such as the unpruned network,
    teach only the ``"distiller"`` reward, which is made for them.

    References:
        [He2018amc] He, Lin, Liu, Wang, Li, Han. AMC: AutoML for Model Compression and Acceleration
        on Mobile Devices. ECCV 2018.
    """

    def __init__(self, problem: Problem, *, seed: int, options: Options) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            options: Everything else, see :func:`amc`.
        """
        super().__init__(problem, seed=seed)
        self.options = options
        self.passage = Passage(problem)
        # What the agent has learned, and from which trials; it may be lost at any time.
        self._learned: list[int] = []
        self._student = Student(self._features, seed=seed, options=options)
        self._lock = threading.Lock()

    @property
    def _features(self) -> int:
        return 11 if self.problem.budget_ms is not None else 12

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the end of an episode with the agent as the study has trained it."""
        target_ms = self._target_ms(rng)
        with self._lock:
            student = self._trained(study)
            spread = student.spread

            def decide(step: int, state: Float32[np.ndarray, "1 eleven"]) -> float:
                if spread is None:
                    return float(rng.uniform())
                mean = float(student.agent.act(self._with_goal(state, target_ms))[0, 0])
                return truncated_normal(mean, spread, float(rng.uniform()))

            return self.passage.walk(decide, target_ms)

    def _target_ms(self, rng: np.random.Generator) -> float:
        """Return the latency of an episode; the first that is drawn for a trial."""
        if self.problem.budget_ms is not None:
            return self.problem.budget_ms
        low, high = math.log(self.problem.fastest[1]), math.log(self.problem.dense_ms)
        return max(math.exp(rng.uniform(low, max(low, high))), self.problem.fastest[1])

    def _with_goal(
        self, states: Float32[np.ndarray, "n eleven"], target_ms: float
    ) -> Float32[np.ndarray, "n features"]:
        if self.problem.budget_ms is not None:
            return states
        goal = np.full((len(states), 1), target_ms / self.problem.dense_ms, np.float32)
        return np.hstack([states, goal])

    def _trained(self, study: Study) -> Student:
        """Return the student that has learned what is finished, in the order of numbers."""
        trials = learnable(self.problem, study)
        numbers = [trial.number for trial in trials]
        if numbers[: len(self._learned)] != self._learned:
            # An old trial has ended after all: its place is in between.
            self._student = Student(self._features, seed=self.seed, options=self.options)
            self._learned = []
        for trial in trials[len(self._learned) :]:
            episode = self._episode(trial)
            if episode is not None:
                self._student.learn(episode, trial.number)
            self._learned.append(trial.number)
        return self._student

    def _episode(self, trial: FrozenTrial) -> Transitions | None:
        """Return what a finished trial teaches, if anything."""
        problem, space = self.problem, self.problem.space
        candidate = space.snap(space.candidate(trial.params))
        loss, latency_ms = trial.values
        target_ms = self._target_ms(np.random.default_rng([self.seed, trial.number]))
        if problem.budget_ms is None:
            # A trial of somebody else, or that was varied, had more.
            target_ms = max(target_ms, latency_ms)
        elif latency_ms > target_ms and self.options.reward != "distiller":
            return None
        macs = math.nan
        if problem.ops is not None:
            macs = float(problem.ops.macs(space.widths([candidate]), space.keep([candidate]))[0])
        outcome = Outcome(
            loss=loss,
            accuracy=float(trial.user_attrs.get("accuracy", math.exp(-loss))),
            latency_ms=latency_ms,
            macs=macs,
            dense_ms=problem.dense_ms,
            budget_ms=target_ms,
        )
        reward = REWARDS[self.options.reward](outcome)
        states, actions = self.passage.retrace(candidate)
        if not len(actions) or not math.isfinite(reward):
            return None
        states = self._with_goal(states, target_ms)
        return Transitions(
            states=states,
            actions=actions,
            rewards=np.full_like(actions, reward),
            following=np.concatenate([states[1:], states[-1:]]),
            last=(np.arange(len(actions)) == len(actions) - 1).astype(np.float32)[:, None],
        )


def learnable(problem: Problem, study: Study) -> list[FrozenTrial]:
    """Return complete trials by number, up to the first that is waited for."""
    names = problem.space.distributions().keys()
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    found = []
    for trial in trials:
        if not trial.state.is_finished() and trial.number >= len(trials) - _PATIENCE:
            break
        if trial.state == TrialState.COMPLETE and names <= trial.params.keys():
            found.append(trial)
    return found


@SAMPLERS.register("amc")
def amc(
    problem: Problem,
    *,
    seed: int,
    reward: str = "loss",
    warmup: int = 25,
    noise: float = 0.5,
    noise_decay: float = 0.95,
    hidden: int = 300,
    batch: int = 64,
    replay: int = 100,
    updates: int = 64,
    actor_rate: float = 1e-4,
    critic_rate: float = 1e-3,
    target_rate: float = 0.01,
    discount: float = 1.0,
    baseline: float = 0.5,
) -> BaseSampler:
    """Return :class:`AMC`.

    Args:
        problem: What is searched.
        seed: At least 0.
        reward: ``"loss"`` (its negative), ``"accuracy"``, ``"latency"`` or ``"macs"``
            (-(1 - accuracy) times the logarithm of microseconds or of multiply-accumulates), or
            ``"distiller"`` (accuracy + 1 within the budget, else -3 - latency / dense latency).
        warmup: Episodes with uniform actions; the paper has 100 of 800.
        noise: Standard deviation of the first actions after the warm-up.
        noise_decay: Factor on it after every episode.
        hidden: Width of both hidden layers of actor and critic.
        batch: Steps per update.
        replay: Episodes that are remembered.
        updates: Most updates per episode; as published one per step where there are fewer.
        actor_rate: Adam's rate for the actor.
        critic_rate: Adam's rate for the critic.
        target_rate: Share of the new parameters in the slow copies, per update.
        discount: Factor on what follows a step.
        baseline: Share of a batch's mean reward in the moving baseline.

    Raises:
        UnknownNameError: No such reward.
        SettingsError: The reward counts multiply-accumulates and the problem has no operators.
    """
    if reward not in REWARDS:
        raise UnknownNameError("reward", reward, REWARDS)
    if reward == "macs" and problem.ops is None:
        raise SettingsError(
            "reward 'macs' needs the network's operators, which this problem does not have; "
            "take 'latency'"
        )
    rates = Rates(actor_rate, critic_rate, target_rate, discount, baseline)
    options = Options(reward, warmup, noise, noise_decay, hidden, batch, replay, updates, rates)
    return AMC(problem, seed=seed, options=options)
