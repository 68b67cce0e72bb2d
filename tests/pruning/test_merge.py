from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning import merge as merging
from autoprune.pruning.merge import Calibrated, Merger, endings, merge
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import TINY_NETWORKS, tiny
from autoprune.testing.plans import half_of, half_plan


def _calibrated(name, *sizes):
    case = tiny(name, dtype=torch.float64)
    return case, Calibrated.of(case.network, case.batches(*(sizes or (32, 32))))


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_all_units_kept_is_the_identity(name):
    case, calibrated = _calibrated(name)
    everything = PruningPlan({group.name: tuple(range(group.size)) for group in case.groups})
    merged = Merger(calibrated).cut(everything).state_dict()
    assert all(torch.equal(value, merged[key]) for key, value in case.model.state_dict().items())


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_least_squares_solved_row_by_row(name, monkeypatch):
    """The ridge written as extra rows of a naive least-squares problem, per group of channels."""
    monkeypatch.setattr(merging, "FEWEST_ROWS_PER_CHANNEL", 0)
    monkeypatch.setattr(merging, "LARGEST_SHARE", np.inf)
    case, calibrated = _calibrated(name)
    compared = 0
    for group in case.groups:
        plan = PruningPlan({group.name: half_of(group)})
        merged = Merger(calibrated).replaced(plan)
        heard = {h.member.path: h for h in case.heard(group, case.batches(32, 32))}
        for reading in calibrated.readings(group):
            path = reading.reader.path
            found = heard[path]
            units = found.member.indices
            stay = units[list(plan.kept[group.name])].ravel()
            gone = np.delete(units, plan.kept[group.name], axis=0).ravel()
            rows = found.values.transpose(1, 2).flatten(0, 1)
            parts = rows.tensor_split(found.conv_groups, dim=1)
            weights = found.weight.chunk(found.conv_groups)
            changed = merged[path].chunk(found.conv_groups)
            for part, weight, new in zip(parts, weights, changed, strict=True):
                centred = part - part.mean(0) if reading.centred else part
                ours = centred[:, units.ravel()]
                ridge = (1e-2 * ours.square().mean() * len(ours)).sqrt()
                extra = torch.zeros(len(units.ravel()), part.shape[1], dtype=part.dtype)
                extra[range(len(extra)), units.ravel()] = ridge
                system = torch.cat([centred, extra])
                share = torch.linalg.lstsq(system[:, stay], system[:, gone]).solution
                flat, after = (w.movedim(1, -1).flatten(0, -2) for w in (weight, new))
                torch.testing.assert_close(
                    after[:, stay], flat[:, stay] + flat[:, gone] @ share.T, rtol=1e-7, atol=1e-9
                )
                compared += 1
            module = found.module
            if module.bias is not None:  # the mean of the output stays (borders left aside)
                before, after = module.weight, merged[path].clone()
                after.index_fill_(1, torch.from_numpy(gone), 0.0)
                bias = merged[f"{path.removesuffix('weight')}bias"]
                mean = rows.mean(0).reshape(found.conv_groups, -1)
                taps = [w.flatten(2).sum(2) if w.ndim > 2 else w for w in (before, after)]
                assert found.conv_groups == 1
                torch.testing.assert_close(
                    taps[1] @ mean[0] + bias, taps[0] @ mean[0] + module.bias
                )
    assert compared >= len(case.groups)


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_merging_beats_compensating_means_beats_cutting(name, monkeypatch):
    """In the output of the reader, on the images it was calibrated on.

    Kernels of one tap only: over several, the errors that all share may add up.
    """
    case, calibrated = _calibrated(name)
    monkeypatch.setattr(merging, "FEWEST_ROWS_PER_CHANNEL", 0)
    for group in case.groups:
        kept = half_of(group)
        for reading in calibrated.readings(group):
            found = next(
                h
                for h in case.heard(group, case.batches(32, 32))
                if h.member.path == reading.reader.path
            )
            if found.weight[0, 0].numel() > 1:
                continue
            gone = torch.from_numpy(np.delete(found.member.indices, kept, axis=0).ravel())
            errors = []
            for largest in (np.inf, 0.0):  # 0: no share is small enough, only means are moved
                monkeypatch.setattr(merging, "LARGEST_SHARE", largest)
                changed = Merger(calibrated).replaced(PruningPlan({group.name: kept}))
                weight = changed[reading.reader.path].index_fill(1, gone, 0.0)
                bias = changed.get(f"{reading.reader.path.removesuffix('weight')}bias")
                errors.append(_error(found, weight, bias, reading.centred))
            cut = found.weight.index_fill(1, gone, 0.0)
            errors.append(_error(found, cut, found.module.bias, reading.centred))
            assert errors[0] < errors[1] * (1 - 1e-9)
            assert errors[1] <= errors[2] * (1 + 1e-9)


def _error(found, weight, bias, centred):
    """Return the mean square by which a layer's outputs change; a BatchNorm absorbs the mean."""
    module = found.module
    with torch.no_grad():
        if isinstance(module, nn.Conv2d):
            # No padding: that it reads other values at the border is left aside by merging.
            outputs = [
                F.conv2d(found.inputs, w, b, module.stride, 0, module.dilation, module.groups)
                for w, b in ((module.weight, module.bias), (weight, bias))
            ]
            change = (outputs[0] - outputs[1]).movedim(1, -1).flatten(0, -2)
        else:
            change = (
                (F.linear(found.inputs, module.weight, module.bias)
                 - F.linear(found.inputs, weight, bias)).flatten(0, -2)
            )  # fmt: skip
    if centred and module.bias is None:
        change = change - change.mean(0)
    return float(change.square().mean())


def test_a_channel_that_depends_on_others_goes_without_a_trace():
    """Through a whole network: unit 2 is the sum of units 0 and 1 before a linear reader."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[2] = model[0].weight[0] + model[0].weight[1]
    network = trace(model, torch.randn(2, 4).double())
    x = torch.randn(200, 4).double()
    calibrated = Calibrated.of(network, [(x, torch.zeros(200))])
    plan = PruningPlan({"0": (0, 1, 3, 4)})
    with torch.no_grad():
        cut = Surgeon(network).cut(plan)(x)
        merged = Merger(calibrated, ridge=1e-10).cut(plan)(x)
        assert (cut - model(x)).abs().max() > 0.05
        torch.testing.assert_close(merged, model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_the_pruned_network_computes_what_the_merged_masked_one_does(name):
    """Surgery on merged weights: cutting equals zeroing them at full size."""
    case, calibrated = _calibrated(name)
    merger = Merger(calibrated)
    plan = half_plan(case.network)
    if any(group.mixed for group in case.groups) or name == "attention":
        plan = PruningPlan({k: v for k, v in plan.kept.items() if k != "patch"})  # LayerNorm mixes
    masked = dataclasses.replace(case.network, model=_with(case.model, merger.replaced(plan)))
    with torch.no_grad():
        torch.testing.assert_close(
            merger.cut(plan)(*case.inputs), Surgeon(masked).mask(plan)(*case.inputs)
        )


def _with(model, replaced):
    import copy

    model = copy.deepcopy(model)
    model.load_state_dict(model.state_dict() | replaced)
    return model


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_the_curve_is_the_error_of_merging_at_every_width(name, monkeypatch):
    """One reader at a time, its relative output error from the merged weights themselves."""
    monkeypatch.setattr(merging, "FEWEST_ROWS_PER_CHANNEL", 0)
    monkeypatch.setattr(merging, "LARGEST_SHARE", np.inf)
    case, calibrated = _calibrated(name)
    for group in case.groups:
        readings = calibrated.readings(group)
        elimination = calibrated.elimination(group)
        assert elimination.damage[0] == 0
        assert (np.diff(elimination.damage) >= 0).all()
        for width in range(1, group.size):
            kept = tuple(sorted(elimination.order[group.size - width :].tolist()))
            total = 0.0
            for reading in readings:
                merged = merge(reading, kept)
                weight, gram = reading.weight, reading.gram
                after = torch.zeros_like(weight)
                stays = np.setdiff1d(
                    np.arange(weight.shape[2]), np.delete(reading.reader.indices, kept, 0)
                )
                after[:, :, stays] = weight[:, :, stays]
                after[:, :, merged.columns] += merged.weight
                change = weight - after
                at = reading.channels
                ridge = 1e-2 * gram[:, at, at].mean(1)[:, None, None]
                energy = float(((weight @ gram) * weight).sum())
                error = ((change @ gram) * change).sum() + (ridge * change[:, :, at] ** 2).sum()
                total += float(error) / energy
            removed = group.size - width
            assert elimination.damage[removed] == pytest.approx(total, rel=1e-6), (
                group.name,
                width,
            )


def test_few_positions_and_wild_shares_leave_only_the_means():
    case, calibrated = _calibrated("chain", 2, 2)
    reading = calibrated.readings(case.groups[1])[0]  # a linear layer behind the pool: 4 rows
    assert reading.moments.count == 4
    merged = merge(reading, (0, 1, 2))
    assert not merged.weight.any()
    assert merged.bias.any()


def test_a_candidate_is_looked_up_when_its_widths_were_seen(monkeypatch):
    case, calibrated = _calibrated("chain")
    calls = []
    monkeypatch.setattr(merging, "merge", lambda *args, **kw: calls.append(1) or merge(*args, **kw))
    merger = Merger(calibrated)
    plan = half_plan(case.network)
    first, second = merger.replaced(plan), merger.replaced(plan)
    assert len(calls) == 2
    assert all(torch.equal(first[key], second[key]) for key in first)
    small = Merger(calibrated, cache_bytes=1)
    for _ in range(2):
        small.replaced(plan)
    assert len(calls) == 6


def test_knows_what_follows_a_weight():
    case = tiny("residual")
    found = endings(
        case.network, ["stem.weight", "reduce.weight", "expand.weight", "square.weight"]
    )
    assert {path: (e.norm, e.added) for path, e in found.items()} == {
        "stem.weight": ("stem_norm", False),
        "reduce.weight": ("reduce_norm", False),
        "expand.weight": ("expand_norm", True),
        "square.weight": (None, True),
    }


def test_transposed_linear_layers_and_heads_without_bias():
    """Inputs are merged in the dimension that reads, whichever it is, and no bias is made up."""

    class Conv1D(nn.Module):
        __module__ = "transformers.pytorch_utils"

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))

        def forward(self, x):
            return torch.mm(x, self.weight)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6).double(), nn.ReLU(), Conv1D()).eval()
    x = torch.randn(300, 4).double()
    network = trace(model, x[:2])
    calibrated = Calibrated.of(network, [(x, torch.zeros(300))])
    plan = PruningPlan({"0": (0, 2, 5)})
    merged = Merger(calibrated, ridge=1e-12).cut(plan)
    inner = model[:2](x).detach()
    expected = torch.linalg.lstsq(inner[:, [0, 2, 5]], model(x).detach()).solution
    torch.testing.assert_close(merged[2].weight.detach(), expected, rtol=1e-6, atol=1e-6)
