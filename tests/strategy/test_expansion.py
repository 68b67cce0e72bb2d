import dataclasses

import numpy as np
import pytest

from autoprune.network.groups import Block, ChannelGroup, ParamSlice
from autoprune.network.ops import Affine, Op, OpTable, ParameterSize
from autoprune.strategy.damage import Damage
from autoprune.strategy.expansion import space_latency, space_ops, space_scores
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.space import Candidate, SpaceSettings, build_space
from autoprune.testing.samplers import new_study, quiet_optuna, run_trials

SIZES = {"stem": 12, "a.0": 8, "b.0": 16, "a.1": 8, "b.1": 16}
BLOCKS = [Block("0", ("a.0", "b.0")), Block("1", ("a.1", "b.1"))]
OPS = OpTable(
    tuple(
        Op("linear", "aten.mm", "", (), Affine(1, ((i, 2),)), Affine(0, ((j, 1),)), block=block)
        for i, j, block in ((0, 1, 0), (1, 2, 0), (2, 3, 1), (3, 4, 1), (4, 4, -1))
    ),
    (ParameterSize("w", (Affine(0, ((1, 1),)), Affine(2, ((2, 3), (3, 1))))),),
    tuple(SIZES.values()),
    2,
)


def groups():
    return [
        ChannelGroup(name, size, (ParamSlice(f"{name}.w", 0, np.arange(size).reshape(size, 1)),))
        for name, size in SIZES.items()
    ]


def space(**settings):
    settings = {"ties": ["[ab].0", "?.1"], "multiple": 1, **settings}
    return build_space(groups(), BLOCKS, SpaceSettings(version=1, **settings), alignment=1)


def test_ties_are_dimensions_in_the_place_of_their_first_group():
    tied = space()
    assert [dim.group for dim in tied.dimensions] == ["stem", "tie:[ab].0", "tie:?.1"]
    assert [dim.size for dim in tied.dimensions] == [12, 8, 8]
    assert tied.groups == tuple(SIZES)
    assert tied.inside == ((1,), (2,))
    assert list(tied.distributions()) == [
        "ratio/stem",
        "ratio/tie:[ab].0",
        "ratio/tie:?.1",
        "drop/0",
        "drop/1",
    ]
    # A tie across blocks is in neither.
    assert space(ties=["a.*", "b.*"]).inside == ((), ())
    assert space(ties=[]).members == ()


def test_groups_that_cannot_be_cut_stay_out():
    tied = space(ties=["[ab].?"], groups={"b.1": {"freeze": True}})
    assert [(dim.group, dim.size) for dim in tied.dimensions] == [
        ("stem", 12),
        ("tie:[ab].?", 8),
        ("b.1", 16),
    ]
    assert tied.network_widths(np.array([[5, 3, 16]])).tolist() == [[5, 3, 6, 3, 16]]


def test_every_member_has_the_ratio_of_its_tie():
    tied = space()
    rng = np.random.default_rng(0)
    for _ in range(50):
        ratios, dropped = rng.uniform(size=3), rng.uniform(size=2) < 0.3
        candidate = tied.snap(Candidate(tuple(ratios), tuple(dropped.tolist())))
        widths = tied.network_widths(tied.widths([candidate]))[0]
        for dim, members in enumerate(tied.parts):
            for member in members:
                expected = member.size * (1 - candidate.ratios[dim])
                assert widths[member.index] == pytest.approx(expected)


def test_operators_and_latency_are_those_of_the_network():
    tied = space()
    ops = space_ops(tied, OPS)
    latency = space_latency(tied, lambda w, keep: w @ np.arange(1.0, 6.0) + keep.sum(axis=1))
    rng = np.random.default_rng(0)
    candidates = [
        Candidate(tuple(row), tuple(gone))
        for row, gone in zip(
            rng.uniform(size=(20, 3)).tolist(),
            (rng.uniform(size=(20, 2)) < 0.3).tolist(),
            strict=True,
        )
    ]
    widths, keep = tied.widths(candidates), tied.keep(candidates)
    expanded = tied.network_widths(widths)
    assert ops.macs(widths, keep).tolist() == OPS.macs(expanded, keep).tolist()
    assert ops.params(widths, keep).tolist() == OPS.params(expanded, keep).tolist()
    expected = [sum((g + 1) * w for g, w in enumerate(row)) for row in expanded.tolist()]
    assert latency(widths, keep) == pytest.approx(np.array(expected) + keep.sum(axis=1))
    untied = space(ties=[])
    assert space_ops(untied, OPS) is OPS


@pytest.mark.parametrize("cumulative", [False, True])
def test_damage_of_a_tie_is_the_sum_over_its_groups(cumulative):
    rng = np.random.default_rng(0)
    scores = {name: np.cumsum(rng.uniform(size=size)) for name, size in SIZES.items()}
    tied, untied = space(), space(ties=[])
    damage = Damage.of_scores(tied, scores, cumulative=cumulative)
    plain = Damage.of_scores(untied, scores, cumulative=cumulative)
    candidates = [
        Candidate(tuple(row), (False, False)) for row in rng.uniform(size=(9, 3)).tolist()
    ]
    widths, keep = tied.widths(candidates), tied.keep(candidates)
    expected = plain.at(untied, tied.network_widths(widths), keep)
    assert damage.at(tied, widths, keep) == pytest.approx(expected)


def test_scores_of_ties_stand_beside_those_of_the_groups():
    scores = {name: np.arange(size)[::-1] * 1.0 for name, size in SIZES.items()}
    found = space_scores(space(), scores)
    assert found.keys() == {*SIZES, "tie:[ab].0", "tie:?.1"}
    # Unit k of a.0, and units 2k and 2k + 1 of b.0, least important first.
    assert found["tie:[ab].0"].tolist() == [k + 2 * k + 2 * k + 1 for k in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_searches_a_tied_space(name):
    tied = space(max_dropped=0.5)
    scores = {group: np.arange(1.0, size + 1) for group, size in SIZES.items()}
    problem = Problem(
        tied,
        space_latency(tied, lambda w, keep: 1.0 + w.sum(axis=1) / 10 + keep.sum(axis=1)),
        ops=space_ops(tied, OPS),
        scores=space_scores(tied, scores),
        damage=Damage.of_scores(tied, scores, cumulative=False),
    )
    problem = dataclasses.replace(problem, budget_ms=0.7 * problem.dense_ms)
    with quiet_optuna():
        proposed = run_trials(new_study(SAMPLERS[name](problem, seed=0)), problem, 14)
    assert (problem.latency_ms(proposed) <= problem.budget_ms).all()
    assert len(set(proposed)) >= 3
