import dataclasses
import math

import numpy as np
import pytest
import torch

from autoprune.errors import RunError
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.pruning.criterion import CRITERIA, build_criterion
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.run.stages import Stage
from autoprune.tuning.loop import Check, Tuned

IMAGES = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES, torch.arange(64) % 10)]


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallResNet(14, widths=(8, 16, 16)).eval()
    return verified(trace(model, (IMAGES[:2],)))


def plan_without(network, units):
    """The first units of every group go, and a block."""
    kept = {g.name: tuple(range(units, g.size)) for g in network.groups}
    return Surgeon(network).complete(PruningPlan(kept, (network.blocks[0].name,)))


@pytest.fixture(scope="module")
def grown(network):
    plan = plan_without(network, 1)
    model = Surgeon(network).grow(plan, Surgeon(network).cut(plan))
    return dataclasses.replace(network, model=model)


@pytest.mark.parametrize("name", CRITERIA.names())
def test_every_criterion_scores_a_grown_network(grown, name):
    scores = build_criterion(name, seed=0).score(grown, BATCHES)
    assert scores.keys() == {group.name for group in grown.groups}
    assert all(np.isfinite(each).all() for each in scores.values())


def test_units_that_are_gone_count_least(grown):
    for name in ("l2", "obs", "taylor"):
        scores = build_criterion(name, seed=0).score(grown, BATCHES)
        gone = set(grown.blocks[0].groups)
        assert all(s[0] == s.min() for group, s in scores.items() if group not in gone)


@torch.no_grad()
def test_a_grown_network_is_repaired_towards_itself(network, grown):
    """What is cut further comes nearer to the network before, not to the unpruned one."""
    before = Surgeon(network).cut(plan_without(network, 1))(IMAGES)
    further = plan_without(network, 3)

    def error(outputs):
        return float((outputs - before).norm() / before.norm())

    sliced, repaired = (
        error(build_realiser(name, grown, BATCHES)(further)(IMAGES))
        for name in ("slice", "reconstruct")
    )
    assert repaired < 0.5 * sliced
    towards_dense = build_realiser("reconstruct", network, BATCHES)(further)(IMAGES)
    assert repaired < 0.5 * error(towards_dense)


def test_a_stage_comes_back_as_it_was_written(network, tmp_path):
    plan = plan_without(network, 2)
    checks = (Check(0, 0.5, math.nan, 2.0, 0.1), Check(4, 1.5, 1.0, 1.5, 0.4))
    stage = Stage(1, plan, Surgeon(network).cut(plan))
    trained = stage.trained(Tuned(stage.model, checks, checks[1], complete=True), 0)
    again = dataclasses.replace(trained, number=2).trained(
        Tuned(stage.model, checks, checks[1], complete=True), 4
    )
    assert [(n, c.step, c.seconds) for n, c in again.history] == [
        *((1, 0, 0.5), (1, 4, 1.5), (2, 4, 2.0), (2, 8, 3.0)),
    ]
    again.write(tmp_path / "stage.safetensors")
    read = Stage.read(tmp_path / "stage.safetensors", network)
    assert (read.number, read.plan) == (2, plan)
    assert str(read.history) == str(again.history)  # NaN is not equal to itself
    torch.testing.assert_close(read.model(IMAGES), stage.model(IMAGES), rtol=0, atol=0)

    (tmp_path / "stage.safetensors").write_bytes(b"{}")
    with pytest.raises(RunError, match="--restart"):
        Stage.read(tmp_path / "stage.safetensors", network)
