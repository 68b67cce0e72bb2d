from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.network.trace import trace
from autoprune.pruning.reads import Convolution, Product, listening, readers, rows_of
from autoprune.testing.networks import TINY_NETWORKS, tiny


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]))


def _heard(model, paths, inputs):
    heard = []
    with listening(model, paths, lambda path, x, how: heard.append((path, x.clone(), how))):
        model(*inputs)
    return heard


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_hears_what_forward_hooks_see(name):
    """Independent of the operators: the modules' own inputs."""
    case = tiny(name)
    modules = {
        f"{path}.weight": module
        for path, module in case.model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0]}))
        for path, module in modules.items()
    ]
    heard = _heard(case.model, list(modules), case.inputs)
    for hook in hooks:
        hook.remove()
    assert sorted(path for path, _, _ in heard) == sorted(modules)
    for path, inputs, how in heard:
        module = modules[path]
        if isinstance(module, nn.Conv2d):
            assert how == Convolution(
                1, module.stride, module.padding, module.dilation, module.groups, False
            )
            assert torch.equal(inputs, seen[path])
            assert rows_of(inputs, how).shape == (inputs[:, 0].numel(), inputs.shape[1])
        else:
            assert how == Product(1)
            assert torch.equal(inputs, seen[path].reshape(-1, seen[path].shape[-1]))


def test_hears_weights_that_no_module_call_uses():
    """PyTorch's attention hands the weight of out_proj to a function."""
    torch.manual_seed(0)
    model = Attention().eval()
    x = torch.randn(2, 5, 8)
    paths = ["attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    heard = _heard(model, paths, (x,))
    assert [path for path, _, _ in heard] == paths
    (_, projected, how), (_, mixed, _), (_, normed, _) = heard
    assert how == Product(1)
    # With batch_first the sequence comes first inside.
    assert torch.equal(projected, x.transpose(0, 1).reshape(-1, 8))
    layer = model.attention.out_proj
    with torch.no_grad():
        stream = x + layer(mixed).reshape(5, 2, 8).transpose(0, 1)
        torch.testing.assert_close(model.norm(stream).reshape(-1, 8), normed)


def test_hears_transposes_whatever_the_order_of_the_factors():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Parameter(torch.randn(4, 3))
            self.right = nn.Parameter(torch.randn(4, 5))
            self.stacked = nn.Parameter(torch.randn(2, 5, 6))

        def forward(self, x):
            inner = torch.einsum("oc,bcp->bop", self.left, x)
            return (inner.transpose(1, 2) @ self.right) @ self.stacked

    model = Products()
    x = torch.randn(2, 3, 7)
    heard = _heard(model, ["left", "right", "stacked"], (x,))
    assert [(path, how) for path, _, how in heard] == [("left", Product(1)), ("right", Product(0))]
    rows = heard[0][1]
    sort = sorted(map(tuple, x.transpose(1, 2).reshape(-1, 3).tolist()))
    assert sorted(map(tuple, rows.tolist())) == sort
    assert heard[1][1].shape == (14, 4)


def test_refuses_a_weight_that_is_not_there():
    with (
        pytest.raises(PruningError, match="no parameter 'nothing'"),
        listening(nn.Linear(2, 2), ["nothing"], lambda *_: None),
    ):
        pass


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_readers_are_the_weights_that_multiply_the_units(name):
    """Changing what a unit carries changes a reader's output, by exactly its columns."""
    case = tiny(name)
    expected = {
        "chain": {"conv1": ["conv2"], "conv2": ["head.2"]},
        "residual": {"stem": ["reduce", "square", "head.2"], "reduce": ["expand"]},
        "concatenation": {"left": ["merge"], "right": ["merge"], "merge": ["head.2"]},
        "depthwise": {"widen": ["project"], "project": ["head.2"]},
        "grouped": {"conv1": ["conv2"], "conv2": ["head.2"]},
        "flatten": {"conv": ["hidden"], "hidden": ["output"]},
        "attention": {
            "patch": ["qkv", "widen", "head"],
            "qkv": ["project"],
            "widen": ["narrow"],
        },
    }[name]
    found = {
        group.name: [reader.owner for reader in readers(case.network, group)]
        for group in case.groups
    }
    assert found == expected


def test_readers_of_attention_and_of_what_is_not_known():
    network = trace(Attention().eval(), torch.randn(2, 5, 8))
    found = {
        group.name: sorted((r.path, r.dim) for r in readers(network, group))
        for group in network.groups
    }
    assert [("attention.out_proj.weight", 1)] in found.values()

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

        def forward(self, x):
            return self.first(x) @ self.weight.T

    network = trace(Own(), torch.randn(2, 3))
    assert readers(network, network.groups[0]) == ()


def test_grouped_and_transposed_convolutions_say_so():
    case = tiny("grouped")
    reader = readers(case.network, case.groups[0])[0]
    assert (reader.conv_groups, reader.indices.tolist()) == (4, [[0], [1]])
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2, stride=2))
    network = trace(model, torch.randn(1, 3, 4, 4))
    reader = readers(network, network.groups[0])[0]
    assert (reader.transposed, reader.dim) == (True, 0)
    heard = _heard(model, ["1.weight"], (torch.randn(1, 3, 4, 4),))
    assert heard[0][2].transposed


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_is_looked_up_is_no_reader_even_where_it_is_a_layers_weight(tied):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.inner = nn.Linear(4, 3)
            if tied:
                self.head.weight = self.table.weight

        def forward(self, x):
            stream = self.table(x)
            return self.head(stream), self.inner(stream)

    paths = ["table.weight", "inner.weight", *([] if tied else ["head.weight"])]
    group = ChannelGroup(
        "table", 4, tuple(ParamSlice(path, 1, np.arange(4)[:, None]) for path in paths)
    )
    network = trace(Language(), torch.zeros(2, 3, dtype=torch.long))
    assert [reader.path for reader in readers(network, group)] == paths[1:]
