import dataclasses

import numpy as np
import pytest

from autoprune.network.ops import Affine, Op, OpTable
from autoprune.strategy.passage import Passage
from autoprune.strategy.space import Candidate
from autoprune.testing.samplers import MadeUpLatency, made_up_problem

PROBLEMS = {
    "smooth": made_up_problem(4, 16),
    "staircase": made_up_problem(4, 16, latency=MadeUpLatency(padding=4), multiple=1),
    "bumpy": made_up_problem(3, 12, latency=MadeUpLatency(padding=2, bumps=0.3), multiple=1),
    "width alone": made_up_problem(4, 16, droppable=False),
}


def test_a_block_comes_before_what_is_inside():
    passage = Passage(made_up_problem(3, 8))
    # Groups 0 to 3, block b is place 4 + b and has group b + 1 inside.
    assert passage.places == (0, 4, 1, 5, 2, 6, 3)


def naive_latency(problem, decided, rest):
    """Return ms with what was decided and the rest at ``rest`` of its largest ratio."""
    space = problem.space
    ratios = [rest * dim.max_ratio for dim in space.dimensions]
    dropped = [False] * len(space.blocks)
    for place, stays in decided.items():
        if place < len(ratios):
            ratios[place] = 1 - stays
        else:
            dropped[place - len(ratios)] = stays < 0.5
    if rest:
        # The rest drops blocks as the fastest network does, as many as still may go.
        left = space.max_dropped - sum(dropped)
        for block, gone in enumerate(problem.fastest[0].dropped):
            if gone and len(ratios) + block not in decided and left > 0:
                dropped[block] = True
                left -= 1
    return float(problem.latency_ms([Candidate(tuple(ratios), tuple(dropped))])[0])


@pytest.mark.parametrize("name", list(PROBLEMS))
@pytest.mark.parametrize("target", [0.15, 0.5, 1.0])
def test_walks_keep_the_wall_and_retrace(name, target):
    problem = PROBLEMS[name]
    space, passage = problem.space, Passage(problem)
    target_ms = max(target * problem.dense_ms, problem.fastest[1])
    rng = np.random.default_rng(1)
    for _ in range(4):
        seen, wanted = [], {}

        def decide(step, state, seen=seen, wanted=wanted):
            seen.append(state)
            wanted[passage.places[step]] = float(rng.uniform())
            return wanted[passage.places[step]]

        candidate = passage.walk(decide, target_ms)
        assert problem.latency_ms([candidate])[0] <= target_ms * (1 + 1e-9)
        states, actions = passage.retrace(candidate)
        assert states == pytest.approx(np.concatenate(seen), abs=1e-6)
        # Each action by brute force over the widths, wider than wanted never.
        decided = {}
        for (place, want), action in zip(wanted.items(), actions[:, 0].tolist(), strict=True):
            if place < len(space.sizes):
                options = (space.dimensions[place].widths / space.sizes[place]).tolist()
                up_to = options[: int(np.argmin([abs(o - want) for o in options])) + 1]
            else:
                # Half of the blocks may go, so below a quarter one does.
                up_to = options = [0.0, 1.0] if want >= 0.25 else [0.0]
                options = [0.0, 1.0]
            ms = {o: naive_latency(problem, decided | {place: o}, 1.0) for o in options}
            fits = [o for o in up_to if ms[o] <= target_ms]
            expected = max(fits) if fits else min(options, key=ms.__getitem__)
            assert action == pytest.approx(expected)
            decided[place] = expected


def test_reduced_rest_and_last_action():
    problem = PROBLEMS["staircase"]
    passage = Passage(problem)
    states = []

    def decide(step, state):
        states.append(state[0])
        return 0.5

    passage.walk(decide, problem.dense_ms)
    decided = {}
    for step, state in enumerate(states):
        full = naive_latency(problem, decided, 0.0)
        narrow = naive_latency(problem, decided, 1.0)
        last = list(decided.values())[-1] if decided else 1.0
        expected = [1 - full / problem.dense_ms, (full - narrow) / problem.dense_ms, last]
        assert state[8:] == pytest.approx(expected, abs=1e-6)
        decided[passage.places[step]] = 1.0 if passage.places[step] >= 5 else 0.5
    assert states[-1][8] > 0.3


def with_operators():
    """Return a problem with two convolutions and a block that holds the second."""
    problem = made_up_problem(1, 16)
    first = Op(
        kind="conv", name="aten.convolution", path="stem", inputs=(),
        cin=Affine(3), cout=Affine(0, ((0, 1),)),
        kernel=(3, 3), stride=(2, 2), in_size=(32, 30), out_size=(16, 15),
    )  # fmt: skip
    second = Op(
        kind="conv", name="aten.convolution", path="block", inputs=(0,),
        cin=Affine(0, ((0, 1),)), cout=Affine(0, ((1, 1),)),
        kernel=(5, 5), in_size=(16, 15), out_size=(16, 15), block=0,
    )  # fmt: skip
    norm = dataclasses.replace(second, kind="norm", cin=second.cout, kernel=(1, 1))
    ops = OpTable((first, second, norm), (), (16, 16), 1)
    return dataclasses.replace(problem, ops=ops, space=dataclasses.replace(
        problem.space, max_dropped=1
    ))  # fmt: skip


def test_features_are_those_of_the_layers():
    passage = Passage(with_operators())
    assert passage.places == (0, 2, 1)
    # n, c, h, w, stride, kernel, multiply-accumulates
    stem = (16, 3, 32, 30, 2, 3, 16 * 3 * 9 * 16 * 15)
    inner = (16, 16, 16, 15, 1, 5, 16 * 16 * 25 * 16 * 15)
    assert passage._layer(0) == stem
    assert passage._layer(1) == inner
    assert passage._layer(2) == (16, 16, 16, 15, 0, 0, inner[-1])
    table = passage._features
    assert table.shape == (3, 8)
    assert table[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert table[:, 2].tolist() == [0.0, 1.0, 1.0]
    # A column that is the same everywhere says nothing.
    assert table[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert table.min() == 0.0
    assert table.max() == 1.0
