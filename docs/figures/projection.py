"""Proposals at random, before and after they are moved inside the budget."""

from __future__ import annotations

import dataclasses

import numpy as np
from drawing import BLUE, GREY, ORANGE, new_figure, save
from matplotlib.figure import Figure

from autoprune.strategy.budget import project
from autoprune.strategy.space import Candidate
from autoprune.testing.samplers import MadeUpLatency, made_up_problem

_SHARE = 0.5


def draw() -> Figure:
    """Return latencies of random candidates of a made-up residual network, two by two."""
    problem = made_up_problem(8, 64, latency=MadeUpLatency(padding=8))
    problem = dataclasses.replace(problem, budget_ms=_SHARE * problem.dense_ms)
    rng = np.random.default_rng(0)
    space = problem.space
    proposed = [
        space.snap(Candidate(tuple(row), (False,) * len(space.blocks)))
        for row in rng.random((60, len(space.dimensions))) * rng.random((60, 1))
    ]
    before = problem.latency_ms(proposed) / problem.dense_ms
    after = problem.latency_ms([project(problem, each) for each in proposed]) / problem.dense_ms
    figure = new_figure(8.2, 2.4)
    axis = figure.subplots()
    order = np.argsort(before)
    places = np.arange(len(order))
    axis.vlines(places, before[order], after[order], color=GREY, alpha=0.4, linewidth=1)
    axis.plot(places, before[order], "o", markersize=3, color=ORANGE, label="as proposed")
    axis.plot(places, after[order], "o", markersize=3, color=BLUE, label="as evaluated")
    axis.axhline(_SHARE, color="black", linewidth=0.8, linestyle="--", label="budget")
    axis.set_xlabel("60 random proposals, by latency")
    axis.set_ylabel("latency, share of\nthe unpruned network's")
    axis.set_xticks([])
    axis.legend(loc="upper left", ncols=3)
    return figure


if __name__ == "__main__":
    print(save(draw(), "projection"))
