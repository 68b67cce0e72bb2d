from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.merge import Calibrated, Merger
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, build_realiser
from autoprune.pruning.reconstruct import Reconstruction
from autoprune.pruning.ridge import NormalEquations
from autoprune.pruning.statistics import recalibrate_batchnorm
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import tiny
from autoprune.testing.plans import half_of, half_plan


def _trained(name):
    """Return a tiny network whose statistics are those of its data, as after training."""
    case = tiny(name)
    recalibrate_batchnorm(case.model, case.batches(256))
    return case


def _inner_plan(case):
    """Return the plan that halves what lies inside branches; the stream stays whole."""
    stream = {"residual": "stem", "attention": "patch"}.get(case.name)
    return PruningPlan({g.name: half_of(g) for g in case.groups if g.name != stream})


def _output_error(case, model, images):
    with torch.no_grad():
        return float((model(images) - case.model(images)).square().mean())


@pytest.mark.parametrize("name", ["residual", "chain", "depthwise", "attention", "grouped"])
def test_reconstruction_beats_merging_beats_cutting(name):
    """In the output of the whole network, on images that nothing was calibrated on."""
    case = _trained(name)
    images = case.batches(256, seed=1)[0][0]
    errors = {
        realise: _output_error(
            case,
            build_realiser(realise, case.network, case.batches(256))(_inner_plan(case)),
            images,
        )
        for realise in REALISERS.names()
    }
    # Without a residual stream there is little that the last layer could make up for.
    assert errors["reconstruct"] < (1.0 if name == "chain" else 0.8) * errors["merge"]
    assert errors["merge"] < errors["slice"]


@pytest.mark.parametrize("name", ["residual", "chain", "flatten", "attention"])
def test_streams_that_are_cut_are_repaired_too(name):
    case = _trained(name)
    images = case.batches(256, seed=1)[0][0]
    plan = half_plan(case.network)
    # A linear layer has one row per image, so that it takes more of them.
    batches = case.batches(2048 if name == "flatten" else 256)
    merged = build_realiser("merge", case.network, batches)(plan)
    solved = build_realiser("reconstruct", case.network, batches)(plan)
    assert _output_error(case, solved, images) < _output_error(case, merged, images)


def test_nothing_cut_is_the_identity():
    case = tiny("residual")
    everything = PruningPlan({group.name: tuple(range(group.size)) for group in case.groups})
    model = Surgeon(case.network).cut(everything)
    reconstruction = Reconstruction(case.network, case.batches(32))
    assert reconstruction.repair(model, everything) == 0
    after = model.state_dict()
    for key, value in case.model.state_dict().items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


class OneBlock(nn.Module):
    """A residual block with BatchNorm behind the last layer, then a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 3, 3, padding=1, stride=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.before = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.before(x)
        return x + self.norm(self.conv2(self.conv1(x).relu()))


def _one_block():
    torch.manual_seed(0)
    model = OneBlock().double().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
        model.norm.weight.uniform_(-2, 2)
    network = trace(model, torch.randn(2, 3, 6, 6).double())
    return model, network, torch.randn(20, 3, 6, 6).double()


def test_equals_least_squares_over_patches_with_the_error_of_the_stream():
    """Naive: unfold, an intercept column, numpy; the pruned stream is off before the block."""
    model, network, images = _one_block()
    plan = PruningPlan({"conv1": (0, 2, 5)})
    pruned = Surgeon(network).cut(plan)
    with torch.no_grad():
        pruned.before.bias += 0.3  # an error that an earlier layer left behind
    before = copy.deepcopy(pruned)
    solved = Reconstruction(
        network,
        [(images, torch.zeros(20))],
        ridge=1e-12,
        ridge_per_unknown=0.0,
        rows=10**6,
        everywhere=False,
    ).repair(pruned, plan)
    assert solved == 1
    with torch.no_grad():
        stream = before.before(images)
        inner = before.conv1(stream).relu()
        rows = F.unfold(inner, 3, padding=1).transpose(1, 2).reshape(-1, 27)
        wanted = model(images) - stream
        norm = model.norm
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        raw = (wanted - norm.bias[:, None, None]) / scale + norm.running_mean[:, None, None]
        target = raw.movedim(1, -1).reshape(-1, 3)
    system = np.concatenate([rows.numpy(), np.ones((len(rows), 1))], axis=1)
    naive = np.linalg.lstsq(system, target.numpy(), rcond=None)[0]
    weight = pruned.conv2.weight.detach().flatten(1).numpy()
    np.testing.assert_allclose(weight, naive[:-1].T, rtol=1e-5, atol=1e-7)
    shift = (model.norm.running_mean - pruned.norm.running_mean).numpy()
    np.testing.assert_allclose(shift, naive[-1], rtol=1e-5, atol=1e-7)
    assert torch.equal(pruned.norm.running_var, model.norm.running_var)


def test_what_no_cut_touched_stays_as_it_was():
    case = tiny("residual")
    plan = PruningPlan({"reduce": (0, 2)})
    model = Surgeon(case.network).cut(plan)
    Reconstruction(case.network, case.batches(64)).repair(model, plan)
    after, before = model.state_dict(), case.model.state_dict()
    for key in ("stem.weight", "stem_norm.running_mean", "stem_norm.running_var"):
        torch.testing.assert_close(after[key], before[key], rtol=1e-5, atol=1e-6)
    assert not torch.equal(after["square.weight"], before["square.weight"])


def test_recomputing_the_statistics_afterwards_is_what_it_says_it_must_not_be():
    """The intercepts are in the statistics; other ones lose them on the calibration images."""
    case = _trained("residual")
    batches, plan = case.batches(256), _inner_plan(case)
    solved = build_realiser("reconstruct", case.network, batches)(plan)
    images = batches[0][0]
    before = _output_error(case, solved, images)
    recalibrate_batchnorm(solved, batches)
    assert before < _output_error(case, solved, images)


def test_dropped_blocks_are_made_up_for_by_what_comes_after():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.block = Inner()
            self.after = Inner()
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.after(self.block(self.stem(x))))

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    torch.manual_seed(0)
    model = Net().eval()
    network = trace(model, torch.randn(2, 6))
    assert "block" in [block.name for block in network.blocks]
    plan = PruningPlan({}, dropped=("block",))
    batches = [(torch.randn(400, 6), torch.zeros(400))]
    cut = build_realiser("slice", network, batches)(plan)
    solved = build_realiser("reconstruct", network, batches)(plan)
    x = torch.randn(400, 6)
    with torch.no_grad():
        errors = [float((each(x) - model(x)).square().mean()) for each in (cut, solved)]
    assert errors[1] < 0.5 * errors[0]


def test_a_layer_that_runs_twice_keeps_its_merged_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(2):
                x = self.down(self.up(x).relu())
            return self.head(x)

    torch.manual_seed(0)
    model = Twice().eval()
    network = trace(model, torch.randn(2, 4))
    batches = [(torch.randn(200, 4), torch.zeros(200))]
    plan = PruningPlan({"up": (0, 1, 4, 6)})
    merged = Merger(Calibrated.of(network, batches)).cut(plan)
    solved = build_realiser("reconstruct", network, batches)(plan)
    assert torch.equal(solved.down.weight, merged.down.weight)


def test_memory_bounds_the_images_of_a_pass():
    case = tiny("chain")
    batches = case.batches(64)
    bounded = Reconstruction(case.network, batches, memory_mb=1)
    image_bytes = 3 * 8 * 8 * 4 * 64
    assert max(bounded.images) <= -(-(2**19) // image_bytes)
    assert sum(bounded.images) == 64
    assert Reconstruction(case.network, batches).images == [64]


class Branch(nn.Module):
    """A stream and what is added to it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
        )

    def forward(self, x):
        return x + self.body(x)


class Blocks(nn.Module):
    """Residual blocks, one behind the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(Branch() for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x.mean((2, 3)))


def _blocks():
    torch.manual_seed(0)
    network = trace(Blocks().eval(), torch.randn(2, 3, 8, 8))
    batches = [(torch.randn(64, 3, 8, 8), torch.zeros(64))]
    recalibrate_batchnorm(network.model, batches)
    return network, batches


@pytest.mark.parametrize("memory_mb", [2048, 2])
def test_what_candidates_share_is_solved_once_and_the_same_bit_for_bit(memory_mb, monkeypatch):
    """Against a reconstruction that keeps nothing."""
    network, batches = _blocks()
    solved = []
    solution = NormalEquations.solution
    monkeypatch.setattr(
        NormalEquations,
        "solution",
        lambda self, *args, **kw: solved.append(1) or solution(self, *args, **kw),
    )
    kept = {f"blocks.{number}.body.0": (0, 2, 3, 7) for number in range(3)}
    plans = [
        PruningPlan(kept),
        PruningPlan({**kept, "blocks.2.body.0": (1, 4)}),
        PruningPlan({**kept, "blocks.1.body.0": (1, 4)}),
        PruningPlan({k: v for k, v in kept.items() if "2" not in k}, dropped=("blocks.2",)),
        PruningPlan(kept),
    ]
    keeping = Reconstruction(network, batches, memory_mb=memory_mb)
    forgetting = Reconstruction(network, batches, memory_mb=memory_mb, cache_mb=0)
    assert (len(keeping.images) > 1) == (memory_mb == 2)
    merger = Merger(Calibrated.of(network, batches))
    numbers = {}
    for reconstruction in (keeping, forgetting):
        found = numbers[reconstruction] = []
        for plan in plans:
            solved.clear()
            model = merger.cut(plan)
            told = reconstruction.repair(model, merger.surgeon.complete(plan))
            found.append((told, len(solved) // len(reconstruction.images), model.state_dict()))
    for kept_one, fresh in zip(numbers[keeping], numbers[forgetting], strict=True):
        assert kept_one[0] == fresh[0] == fresh[1]
        assert all(torch.equal(value, fresh[2][key]) for key, value in kept_one[2].items())
    # Six weights from the first block's last on; a block has two, and then there is the head.
    assert [each[1] for each in numbers[forgetting]] == [6, 6, 6, 4, 6]
    assert [each[1] for each in numbers[keeping]] == [6, 3, 5, 1, 0]


def test_little_room_for_what_was_solved_forgets_the_oldest():
    network, batches = _blocks()
    merger = Merger(Calibrated.of(network, batches))
    reconstruction = Reconstruction(network, batches, cache_mb=0)
    states = reconstruction._states
    states.most_bytes = 10_000
    for width in range(2, 8):
        plan = PruningPlan({"blocks.0.body.0": tuple(range(width))})
        reconstruction.repair(merger.cut(plan), plan)
    held = sum(v.nbytes for kept in states._states.values() for s in kept for v in s.values())
    assert 5_000 < held == states._bytes <= 10_000


def test_images_in_parts_come_near_what_they_give_at_once():
    case = _trained("residual")
    batches, images = case.batches(512), case.batches(256, seed=1)[0][0]
    plan = _inner_plan(case)
    merger = Merger(Calibrated.of(case.network, batches))
    errors = [_output_error(case, merger.cut(plan), images)]
    for memory_mb in (2048, 8):
        model = merger.cut(plan)
        reconstruction = Reconstruction(case.network, batches, memory_mb=memory_mb)
        assert len(reconstruction.images) == (1 if memory_mb == 2048 else 6)
        reconstruction.repair(model, plan)
        errors.append(_output_error(case, model, images))
    merged, whole, parts = errors
    assert whole < merged
    assert parts < whole + 0.1 * (merged - whole)


def test_depthwise_weights_are_solved_too():
    """Towards the dense network's, from the inputs that an error before them has changed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, groups=6)
    ).eval()
    network = trace(model, torch.randn(2, 3, 8, 8))
    images = torch.randn(64, 3, 8, 8)
    plan = PruningPlan({"0": (0, 2, 3, 5, 6)})
    pruned = Surgeon(network).cut(plan)
    reconstruction = Reconstruction(network, [(images, torch.zeros(64))], ridge_per_unknown=0.0)
    assert reconstruction.repair(pruned, plan) == 2
    with torch.no_grad():
        inner, wanted = pruned[:3](images), model(images)
        for channel in range(6):
            rows = F.unfold(inner[:, channel : channel + 1], 3).transpose(1, 2).reshape(-1, 9)
            system = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
            naive = torch.linalg.lstsq(system, wanted[:, channel].reshape(-1, 1).double()).solution
            found = torch.cat(
                [pruned[3].weight[channel].flatten(), pruned[3].bias[channel : channel + 1]]
            )
            torch.testing.assert_close(found.double(), naive[:, 0], rtol=0.1, atol=0.02)
