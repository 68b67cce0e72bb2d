"""Conformance suites for samplers: any sampler of a search can be run through them.

A plug-in's test is a subclass of each that supplies the factory::

    class TestMySampler(SamplerConformance):
        @pytest.fixture
        def factory(self) -> SamplerFactory:
            return my_sampler

The problems are made up, so a whole run takes milliseconds and no network is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import optuna
import pytest
from jaxtyping import Bool, Float, Int
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from autoprune.errors import BudgetError
from autoprune.strategy.goals import Cost, Limit
from autoprune.strategy.problem import Latency, Problem
from autoprune.strategy.registry import SamplerFactory
from autoprune.strategy.space import Candidate, Dimension, SearchSpace

#: Trials per study of the suite.
TRIALS = 12


@dataclasses.dataclass(frozen=True)
class MadeUpLatency:
    """Latency of a residual network that does not exist: a stem, then blocks of two layers.

    Group 0 is the width of the residual path, group i > 0 the inner width of block i - 1.

    Attributes:
        padding: Channels are computed in multiples of this, so latency is a staircase.
        bumps: Relative height of pseudo-random bumps: 0.3 makes narrower layers up to 30 % slower.
    """

    padding: int = 1
    bumps: float = 0.0

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds per row."""
        outer, inner = widths[:, :1], widths[:, 1:]
        stem = self._layer(np.full_like(outer, 3), outer).sum(axis=1)
        layers = self._layer(outer, inner) + self._layer(inner, outer)
        head = self._layer(outer, np.full_like(outer, 10)).sum(axis=1)
        ms: Float[np.ndarray, " n"] = stem + head + (layers * keep).sum(axis=1)
        return ms

    def _layer(
        self, cin: Int[np.ndarray, "n inputs"], cout: Int[np.ndarray, "n outputs"]
    ) -> Float[np.ndarray, "n ops"]:
        """Return ms of layers; one width on one side goes with every width on the other."""
        work = -(-cin // self.padding) * -(-cout // self.padding) * self.padding**2
        # Any integer hash will do; neighbouring widths must get unrelated values.
        noise = ((cin * 7919 + cout * 104729) * 2654435761 % 2**32) / 2**32
        ms: Float[np.ndarray, "n ops"] = 0.02 + work * 1e-3 * (1.0 + self.bumps * noise)
        return ms


def made_up_problem(
    blocks: int = 6,
    width: int = 32,
    *,
    latency: MadeUpLatency | None = None,
    budget: float | None = None,
    multiple: int = 2,
    droppable: bool = True,
) -> Problem:
    """Return a search problem on a made-up residual network.

    Args:
        blocks: Number of residual blocks, each with one group inside.
        width: Units of every group.
        latency: The latency; a smooth one if ``None``.
        budget: Latency budget as a fraction of the unpruned network's; ``None`` for no budget.
        multiple: Step of the width grids in units.
        droppable: Whether up to half of the blocks may be dropped.
    """
    latency = latency or MadeUpLatency()
    space = SearchSpace(
        dimensions=tuple(
            Dimension(f"group{index}", width, multiple, multiple) for index in range(blocks + 1)
        ),
        blocks=tuple(f"block{index}" for index in range(blocks)),
        droppable=(droppable,) * blocks,
        inside=tuple((index + 1,) for index in range(blocks)),
        max_dropped=blocks // 2,
    )
    free = Problem(space, latency)
    return free if budget is None else Problem(space, latency, budget * free.dense_ms)


def limited_problem(budget: float | None) -> Problem:
    """Return a problem with limits on units and on the latency of another device.

    Args:
        budget: Latency budget as a fraction of the unpruned network's; ``None`` for no budget.
    """
    problem = made_up_problem(
        latency=MadeUpLatency(padding=4, bumps=0.2), budget=budget, multiple=1
    )
    costs = Cost("params", _units), Cost("latency@other", MadeUpLatency(padding=8))
    dense = [problem.space.dense()]
    widths, keep = problem.space.widths(dense), problem.space.keep(dense)
    limits = tuple(
        Limit(cost, share * float(cost.measure(widths, keep)[0]))
        for cost, share in zip(costs, (0.6, 0.5), strict=True)
    )
    return dataclasses.replace(problem, limits=limits)


def _units(
    widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
) -> Float[np.ndarray, " n"]:
    """Return the units of the residual path three times, and those inside of kept blocks."""
    units: Float[np.ndarray, " n"] = 3.0 * widths[:, 0] + (widths[:, 1:] * keep).sum(axis=1)
    return units


def made_up_loss(space: SearchSpace, candidate: Candidate) -> float:
    """Return a loss that grows with what is removed, differently for every group and block."""
    widths, keep = space.widths([candidate])[0], space.keep([candidate])[0]
    ratios = 1.0 - widths / space.sizes
    damage = 1.0 + np.arange(len(ratios)) * 7 % 5
    return float(0.1 + (damage * ratios**2).sum() + 1.5 * (~keep).sum())


def _problems() -> dict[str, Problem]:
    narrowest = made_up_problem(budget=0.5)
    tight = dataclasses.replace(narrowest, budget_ms=narrowest.fastest[1] * 1.05)
    nothing = SearchSpace((Dimension("group0", 8, 8), Dimension("group1", 8, 8)), (), ())
    return {
        "no budget": made_up_problem(),
        "half the latency": made_up_problem(budget=0.5),
        "staircase": made_up_problem(latency=MadeUpLatency(padding=8), budget=0.4),
        "bumpy staircase": made_up_problem(
            latency=MadeUpLatency(padding=4, bumps=0.3), budget=0.4, multiple=1
        ),
        "width alone": made_up_problem(budget=0.3, droppable=False),
        "tight": tight,
        "few candidates": made_up_problem(2, 8, budget=0.8, multiple=4),
        "nothing to prune": Problem(nothing, MadeUpLatency()),
    }


#: Made-up problems that every sampler has to cope with.
PROBLEMS: dict[str, Problem] = _problems()


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's study log out of the output, and put its level back afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def new_study(sampler: BaseSampler) -> optuna.Study:
    """Return an empty study in memory with the directions of a search: loss and latency down."""
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)


def run_trials(
    study: optuna.Study,
    problem: Problem,
    trials: int,
    *,
    batch: int = 1,
    fails: Callable[[int], bool] = lambda number: False,
    loss: Callable[[SearchSpace, Candidate], float] = made_up_loss,
) -> list[Candidate]:
    """Run trials as a search does and return the proposed candidates in order.

    Args:
        study: A study made by :func:`new_study`.
        problem: Supplies the parameters and the latency.
        trials: How many trials.
        batch: Trials that are proposed before the first of them is told its result.
        fails: Trial numbers to failing or not.
        loss: What is told as the first objective.
    """
    space, proposed = problem.space, []
    pending: list[tuple[optuna.Trial, Candidate]] = []
    for index in range(trials):
        trial = study.ask(space.distributions())
        candidate = space.candidate(trial.params)
        proposed.append(candidate)
        pending.append((trial, candidate))
        if len(pending) < batch and index < trials - 1:
            continue
        # Last asked, first told: results come in any order.
        while pending:
            done, tried = pending.pop()
            if fails(done.number):
                study.tell(done, state=TrialState.FAIL)
            else:
                latency_ms = float(problem.latency_ms([tried])[0])
                study.tell(done, [loss(space, tried), latency_ms])
    return proposed


@dataclasses.dataclass
class Metered:
    """A latency that counts the rows it predicts, and ends what would go on for ever.

    Attributes:
        latency: What is predicted.
        limit: Rows after which predicting is an AssertionError.
        rows: Rows predicted so far.
    """

    latency: Latency
    limit: int = 3_000_000
    rows: int = 0

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds per row."""
        self.rows += len(widths)
        assert self.rows <= self.limit, f"more than {self.limit} latencies for a few proposals"
        return self.latency(widths, keep)


class SamplerConformance:
    """What every sampler must do; subclass it and supply the ``factory`` fixture.

    Attributes:
        order_matters: The algorithm itself depends on the order in which results come.
    """

    order_matters: ClassVar[bool] = False

    @pytest.fixture
    def factory(self) -> SamplerFactory:
        """Return the sampler under test as ``(problem, *, seed) -> BaseSampler``."""
        raise NotImplementedError("override the fixture 'factory' with the sampler under test")

    @pytest.fixture(params=list(PROBLEMS))
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        """Each of the made-up problems in turn."""
        return PROBLEMS[request.param]

    @pytest.fixture
    def roomy(self) -> Problem:
        """A problem with far more candidates than trials."""
        return made_up_problem(8, 64, budget=0.5, multiple=1)

    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        with quiet_optuna():
            yield

    def test_proposals_are_feasible(self, factory: SamplerFactory, problem: Problem) -> None:
        """Proposals are within the budget and on the grid, with trials pending and failed."""
        study = new_study(factory(problem, seed=0))
        proposed = run_trials(study, problem, TRIALS, batch=4, fails=lambda n: n % 3 == 1)
        assert len(proposed) == TRIALS
        budget = np.inf if problem.budget_ms is None else problem.budget_ms
        for candidate in proposed:
            ms = problem.latency_ms([candidate])[0]
            assert ms <= budget, f"over the budget of {budget} ms: {ms} ms"
            assert problem.space.snap(candidate) == candidate, f"off the grid: {candidate}"

    def test_parameters_are_plain(self, factory: SamplerFactory, roomy: Problem) -> None:
        """Every searched parameter is set, to a Python float or bool that storages can keep."""
        study = new_study(factory(roomy, seed=0))
        run_trials(study, roomy, 2)
        for trial in study.trials:
            assert trial.params.keys() == roomy.space.distributions().keys()
            for name, value in trial.params.items():
                assert type(value) is (float if name.startswith("ratio/") else bool)

    def test_same_seed_same_proposals(self, factory: SamplerFactory, roomy: Problem) -> None:
        """Two runs with one seed propose the same, in batches and with failures too."""
        runs = [
            run_trials(new_study(factory(roomy, seed=3)), roomy, 8, batch=3, fails=lambda n: n == 5)
            for _ in range(2)
        ]
        assert runs[0] == runs[1]

    def test_global_random_state_is_left_alone(
        self, factory: SamplerFactory, roomy: Problem
    ) -> None:
        """NumPy's global generator is neither read nor seeded."""
        # The legacy generator is the global state in question.
        np.random.seed(1)
        run_trials(new_study(factory(roomy, seed=0)), roomy, 4)
        after = np.random.random()
        np.random.seed(1)
        assert after == np.random.random()

    def test_all_trials_may_fail(self, factory: SamplerFactory, roomy: Problem) -> None:
        """With nothing to learn from, proposals go on and differ."""
        study = new_study(factory(roomy, seed=0))
        proposed = run_trials(study, roomy, TRIALS, fails=lambda n: True)
        assert len(set(proposed)) == TRIALS

    def test_proposals_differ(self, factory: SamplerFactory, roomy: Problem) -> None:
        """Of more candidates than can be tried none is proposed twice, not even while pending."""
        study = new_study(factory(roomy, seed=0))
        proposed = run_trials(study, roomy, TRIALS // 2)
        proposed += run_trials(study, roomy, TRIALS // 2, batch=TRIALS // 2)
        assert len(set(proposed)) == len(proposed)

    def test_exhausted_space(self, factory: SamplerFactory) -> None:
        """More trials than candidates are no error, and most candidates are found."""
        small = PROBLEMS["few candidates"]
        proposed = run_trials(new_study(factory(small, seed=0)), small, TRIALS)
        assert len(proposed) == TRIALS
        assert len(set(proposed)) >= 2

    def test_resumed_run_continues(self, factory: SamplerFactory, roomy: Problem) -> None:
        """A new sampler on a half-finished study proposes what the old one would have."""
        whole = run_trials(new_study(factory(roomy, seed=0)), roomy, TRIALS)
        study = new_study(factory(roomy, seed=0))
        first = run_trials(study, roomy, TRIALS // 2)
        study.sampler = factory(roomy, seed=0)
        assert first + run_trials(study, roomy, TRIALS - TRIALS // 2) == whole

    @pytest.mark.parametrize("budget", [None, 0.5])
    def test_limits_hold(self, factory: SamplerFactory, budget: float | None) -> None:
        """Limits beside the budget hold for every proposal, whichever binds."""
        limited = limited_problem(budget)
        study = new_study(factory(limited, seed=0))
        run_trials(study, limited, TRIALS // 2, batch=2, fails=lambda n: n == 3)
        for trial in study.trials:
            candidate = limited.space.candidate(trial.params)
            widths, keep = limited.space.widths([candidate]), limited.space.keep([candidate])
            for limit in limited.limits:
                value = limit.cost.measure(widths, keep)[0]
                assert value <= limit.most, f"over {limit}: {value}"
            if budget is not None:
                assert limited.latency(widths, keep)[0] <= budget * limited.dense_ms

    def test_impossible_limits(self, factory: SamplerFactory) -> None:
        """A limit that no candidate meets is a BudgetError, not a loop and not a proposal."""
        limited = limited_problem(None)
        limit = dataclasses.replace(limited.limits[0], most=1.0)
        impossible = dataclasses.replace(limited, limits=(limit, *limited.limits[1:]))
        with pytest.raises(BudgetError, match="params"):
            run_trials(new_study(factory(impossible, seed=0)), impossible, 1)

    @pytest.mark.parametrize("share", [1.0, 1.02])
    def test_one_candidate_or_few(self, factory: SamplerFactory, share: float) -> None:
        """Where a budget leaves one or a few candidates, those are proposed, in bounded time."""
        free = made_up_problem(4, 16, latency=MadeUpLatency(padding=4), multiple=4)
        metered = Metered(free.latency)
        tight = dataclasses.replace(free, latency=metered, budget_ms=free.fastest[1] * share)
        proposed = run_trials(new_study(factory(tight, seed=0)), tight, TRIALS // 4)
        assert (tight.latency_ms(proposed) <= tight.fastest[1] * share).all()

    def test_impossible_budget(self, factory: SamplerFactory, roomy: Problem) -> None:
        """A budget that no candidate meets is a BudgetError, not a loop and not a proposal."""
        impossible = dataclasses.replace(roomy, budget_ms=0.5 * roomy.fastest[1])
        with pytest.raises(BudgetError):
            run_trials(new_study(factory(impossible, seed=0)), impossible, 1)

    def test_order_of_results(self, factory: SamplerFactory, roomy: Problem) -> None:
        """Trials that end in another order lead to the same next proposals."""
        if self.order_matters:
            pytest.skip("the algorithm depends on the order of results")
        runs = []
        for order in (list(range(TRIALS)), list(range(TRIALS))[::-1], [*range(1, TRIALS), 0]):
            study = new_study(factory(roomy, seed=0))
            asked = [study.ask(roomy.space.distributions()) for _ in range(TRIALS)]
            for index in order:
                candidate = roomy.space.candidate(asked[index].params)
                values = made_up_loss(roomy.space, candidate), roomy.latency_ms([candidate])[0]
                study.tell(asked[index], [float(value) for value in values])
            runs.append(run_trials(study, roomy, 3))
        assert runs[0] == runs[1] == runs[2]

    def test_foreign_trials(self, factory: SamplerFactory, roomy: Problem) -> None:
        """Trials that somebody else put into the study do not disturb the sampler."""
        study = new_study(factory(roomy, seed=0))
        dense = roomy.space.dense()
        study.enqueue_trial(roomy.space.params(dense))
        study.ask()
        assert run_trials(study, roomy, 4)[0] != dense


class OptunaConformance(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    """Optuna's own suites on a sampler of a search; subclass and supply the ``factory`` fixture.

    They ask for parameters of all kinds that no search space has, in studies with one objective
    too: a sampler draws those at random, next to its own. ``SingleOnlySamplerTestCase`` cannot
    apply, since it wants two objectives refused.
    """

    @pytest.fixture
    def factory(self) -> SamplerFactory:
        """Return the sampler under test as ``(problem, *, seed) -> BaseSampler``."""
        raise NotImplementedError("override the fixture 'factory' with the sampler under test")

    @pytest.fixture
    def sampler(self, factory: SamplerFactory) -> Callable[[], BaseSampler]:
        """Return what Optuna's suites make samplers with."""
        problem = made_up_problem(1, 8)
        return lambda: factory(problem, seed=0)

    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        with quiet_optuna():
            yield
