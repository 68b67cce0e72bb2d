import pytest
import safetensors.torch
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.network.copies import deep_copy
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import INPUT_SHAPE, tiny
from autoprune.tuning.initial import from_scratch, rewound


@pytest.fixture
def network():
    return trace(tiny("residual").model, (torch.zeros(INPUT_SHAPE),))


@pytest.fixture
def plan(network):
    return PruningPlan({g.name: tuple(range(1, g.size, 2)) for g in network.groups})


def test_rewinding_cuts_the_earlier_network_at_the_same_units(network, plan, tmp_path):
    earlier = deep_copy(network.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*earlier.parameters(), *earlier.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    file = tmp_path / "earlier.safetensors"
    safetensors.torch.save_file(earlier.state_dict(), file)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}

    made = rewound(network, plan, file)

    images = torch.randn(4, *INPUT_SHAPE[1:], generator=generator)
    masked = Surgeon(trace(earlier, network.inputs)).mask(plan)
    torch.testing.assert_close(made(images), masked(images), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], t) for name, t in network.model.state_dict().items())


def test_earlier_weights_of_something_else_are_refused(network, plan, tmp_path):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(ModelError):
        rewound(network, plan, file)
    with pytest.raises(ModelError):
        rewound(network, plan, tmp_path / "none.safetensors")


def test_scratch_draws_new_weights_of_the_same_shapes(network, plan):
    pruned = Surgeon(network).cut(plan)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (from_scratch(pruned, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in pruned.state_dict().items())
    weights = [name for name, parameter in pruned.named_parameters() if parameter.ndim > 1]
    assert weights
    for name in weights:
        assert first[name].shape == before[name].shape
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], before[name])


def test_parameters_that_nobody_can_draw_are_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ModelError, match=r"0\.scale.*--init rewind:FILE"):
        from_scratch(nn.Sequential(Own(), nn.Linear(3, 3)), seed=0)
