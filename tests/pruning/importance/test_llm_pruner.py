from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from autoprune.errors import PruningError
from autoprune.pruning.importance.llm_pruner import LLMPruner
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestLLMPruner(CriterionSuite):
    def build(self):
        return LLMPruner()


def slopes(model, paths, inputs, targets):
    """Return the gradient of the mean loss by some parameters, in plain PyTorch."""
    model = copy.deepcopy(model)
    F.cross_entropy(model(inputs), targets).backward()
    return {path: model.get_parameter(path).grad for path in paths}


def entries(values, member, unit):
    """Return what one unit occupies of a tensor, as a list."""
    return [
        value
        for position in member.indices[unit]
        for value in values.select(member.dim, int(position)).flatten().tolist()
    ]


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
@pytest.mark.parametrize("order", ["first", "mixed"])
@pytest.mark.parametrize("grain", ["element", "vector"])
def test_equals_a_loop_over_the_formula(name, order, grain):
    case = tiny(name, dtype=torch.float64)
    (inputs, targets) = case.batches(3)[0]
    found = LLMPruner(grain=grain, order=order).score(case.network, [(inputs, targets)])
    weights = {path: p for path, p in case.model.named_parameters() if p.ndim > 1}
    mean = slopes(case.model, weights, inputs, targets)
    each = [slopes(case.model, weights, inputs[i : i + 1], targets[i : i + 1]) for i in range(3)]
    for group in case.groups:
        for unit in range(group.size):
            expected = 0.0
            for member in group.members:
                if member.path not in weights:
                    continue
                values = entries(weights[member.path].detach(), member, unit)
                gradients = entries(mean[member.path], member, unit)
                by_image = [entries(slope[member.path], member, unit) for slope in each]
                terms = []
                for w, g, *images in zip(values, gradients, *by_image, strict=True):
                    square = sum(one * one for one in images) / 3
                    terms.append(w * g - (0.5 * w * w * square if order == "mixed" else 0))
                site = sum(abs(t) for t in terms) if grain == "element" else abs(sum(terms))
                expected += site
            assert found[group.name][unit] == pytest.approx(expected, rel=1e-9)


def test_options_are_checked_at_once():
    with pytest.raises(PruningError, match="grain 'element' or 'vector'"):
        LLMPruner(grain="matrix")
