"""How near the knapsack solver comes to the optimum, and how long it takes.

`python benchmarks/bm_solver.py` prints and writes `benchmarks/results/bm_solver.md`. Made-up
problems have random staircases as latency and random costs, of groups and of pairs. Small ones are
enumerated; where nothing interacts, the optimum comes from mixed-integer programming (HiGHS). The
ResNets have the latency of the profile `jetson_nano` and random damage curves. Times are CPU time,
so that other work on the machine counts little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from bm_pipeline import SmallResNet
from common import write_result
from jaxtyping import Bool, Float, Int
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.trace import trace
from autoprune.network.vision import build_torchvision
from autoprune.strategy.allocation import Allocator
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import LevelGrid
from autoprune.strategy.problem import Problem
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import Dimension, SearchSpace, build_space

Tables = tuple[Float[np.ndarray, "groups levels"], Float[np.ndarray, "groups levels"]]


def main() -> None:
    """Solve, compare, print and write."""
    torch.set_num_threads(1)
    rows = [
        _row("5 groups x 4, all pairs interact", _made_up(5, 4, 1.0), _enumerated, 100),
        _row("20 groups x 8, additive", _made_up(20, 8, 0.0), _programmed, 20),
        _row("20 groups x 8, pairs interact", _made_up(20, 8, 0.15), None, 20),
        _row("60 groups x 16, additive", _made_up(60, 16, 0.0), _programmed, 5),
        _row("60 groups x 16, pairs interact", _made_up(60, 16, 0.05), None, 5),
        _row("200 groups x 16, pairs interact", _made_up(200, 16, 0.01), None, 2),
        _network("ResNet-56, 32x32", SmallResNet(56).eval(), 32),
        _network("ResNet-50, 224x224", build_torchvision("resnet50").eval(), 224),
    ]
    write_result(
        "bm_solver",
        pd.DataFrame(rows),
        command="python benchmarks/bm_solver.py",
        packages=["numpy", "scipy"],
    )


def _row(
    name: str,
    make: Callable[[np.random.Generator], tuple[Allocator, Costs, Tables]],
    optimum: Callable[[Allocator, Costs, Tables, float], float] | None,
    count: int,
) -> dict[str, str]:
    rng = np.random.default_rng(0)
    gaps, seconds = [], []
    for _ in range(count):
        allocator, costs, tables = make(rng)
        low, high = allocator.problem.fastest[1], allocator.problem.dense_ms
        budget = float(rng.uniform(low, high))
        start = time.process_time()
        point = allocator.allocate(costs, budget)
        seconds.append(time.process_time() - start)
        if optimum is not None:
            best = optimum(allocator, costs, tables, budget)
            gaps.append(float(point.cost[0]) / max(best, 1e-12) - 1.0)
    return _line(name, gaps, seconds)


def _line(name: str, gaps: list[float], seconds: list[float]) -> dict[str, str]:
    known = bool(gaps)
    row = {
        "problem": name,
        "instances": str(len(seconds)),
        "mean gap": f"{100 * np.mean(gaps):.2f} %" if known else "",
        "largest gap": f"{100 * np.max(gaps):.2f} %" if known else "",
        "CPU ms, median": f"{1e3 * np.median(seconds):.1f}",
    }
    print(row, flush=True)
    return row


# --- made-up problems ---------------------------------------------------------------------------


def _made_up(
    groups: int, levels: int, density: float
) -> Callable[[np.random.Generator], tuple[Allocator, Costs, Tables]]:
    """Return a maker of problems in which a fraction of all pairs interacts."""

    def make(rng: np.random.Generator) -> tuple[Allocator, Costs, Tables]:
        space = SearchSpace(tuple(Dimension(f"g{index}", levels, 1) for index in range(groups)))
        pairs = [e for e in itertools.combinations(range(groups), 2) if rng.uniform() < density]
        edges = np.array(pairs, np.int64).reshape(len(pairs), 2)
        cost = np.cumsum(rng.uniform(size=(groups, levels)), axis=1)
        cost -= cost[:, :1]
        own = np.cumsum(rng.uniform(size=(groups, levels)), axis=1)[:, ::-1]
        joint = np.cumsum(np.cumsum(rng.uniform(size=(len(edges), levels, levels)), 1), 2)
        joint = 0.3 * joint[:, ::-1, ::-1] / levels

        def latency(
            widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
        ) -> Float[np.ndarray, " n"]:
            level = levels - widths
            total = 1.0 + own[np.arange(groups), level].sum(axis=1)
            a, b = edges.T
            met = joint[np.arange(len(edges)), level[:, a], level[:, b]]
            ms: Float[np.ndarray, " n"] = total + met.sum(axis=1)
            return ms

        grid = LevelGrid.of([np.arange(levels, 0, -1)] * groups)
        meet = 0.3 * rng.uniform(size=(1, len(edges), levels, levels))
        costs = Costs(cost[None], np.zeros((1, 0)), edges, meet)
        return Allocator(Problem(space, latency), grid=grid), costs, (cost, own)

    return make


def _enumerated(allocator: Allocator, costs: Costs, tables: Tables, budget: float) -> float:
    """Return the least cost of all candidates within the budget."""
    counts = allocator.grid.counts.tolist()
    levels = np.array(list(itertools.product(*(range(count) for count in counts))))
    points = allocator.at(
        costs, levels, np.ones((len(levels), 0), bool), np.zeros(len(levels), np.int64)
    )
    return float(points.cost[points.ms <= budget].min())


def _programmed(allocator: Allocator, costs: Costs, tables: Tables, budget: float) -> float:
    """Return the least cost by mixed-integer programming, of a problem without interactions."""
    cost, own = tables
    groups, levels = cost.shape
    one_each = np.kron(np.eye(groups), np.ones(levels))
    solved = milp(
        cost.ravel(),
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint(own.reshape(1, -1), -np.inf, budget - 1.0),
        ],
        integrality=np.ones(cost.size),
        bounds=Bounds(0.0, 1.0),
        options={"time_limit": 20.0},
    )
    return float(solved.fun)


# --- networks -----------------------------------------------------------------------------------


def _network(name: str, module: nn.Module, size: int) -> dict[str, str]:
    network = trace(module, (torch.zeros(1, 3, size, size),))
    profile = load_profile("jetson_nano")
    settings = SpaceSettings(version=1)
    space = build_space(network.groups, network.blocks, settings, alignment=profile.alignment)
    problem = Problem(space, predictor_for(network.ops, profile).predict, ops=network.ops)
    allocator = Allocator(problem)
    rng = np.random.default_rng(0)
    damages = [_damage(space, rng) for _ in range(2)]
    costs = [Costs.of_damage(allocator.grid, damage) for damage in damages]
    low, high = problem.fastest[1], problem.dense_ms
    budgets = np.linspace(low, high, 6)[1:-1].tolist()
    seconds = []
    for function in costs:
        for budget in budgets:
            start = time.process_time()
            allocator.allocate(function, budget)
            seconds.append(time.process_time() - start)
    levels = allocator.grid.counts.max()
    searched = int((allocator.grid.counts > 1).sum())
    return _line(f"{name}: {searched} groups, up to {levels} levels", [], seconds)


def _damage(space: SearchSpace, rng: np.random.Generator) -> Damage:
    height = np.exp(rng.normal(0.0, 1.0, len(space.dimensions)))
    curves = [
        scale * (np.arange(dim.size, -1, -1) / dim.size) ** rng.uniform(1.0, 3.0)
        for scale, dim in zip(height, space.dimensions, strict=True)
    ]
    return Damage(tuple(curves), np.exp(rng.normal(0.0, 1.0, len(space.blocks))))


if __name__ == "__main__":
    main()
