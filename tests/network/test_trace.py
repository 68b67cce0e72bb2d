"""Groups, blocks and counts of traced networks, compared with independent implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from fvcore.nn import FlopCountAnalysis
from torch import nn

from autoprune.errors import TraceError
from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.network.resnet import digits_resnet20
from autoprune.network.trace import trace
from autoprune.network.vision import build_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified

#: One small member of every CNN family of torchvision's classifiers, and its input size.
FAMILIES = {
    "alexnet": 224,
    "vgg11": 64,
    "vgg11_bn": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "mnasnet0_5": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "shufflenet_v2_x1_0": 64,
    "convnext_tiny": 64,
}
#: Large ones; every operator of theirs is in others too.
SLOW = ("vgg11", "vgg11_bn", "efficientnet_v2_s", "wide_resnet50_2", "inception_v3")
#: The operators of fvcore that multiply and accumulate; its other counts are estimates.
MAC_OPERATORS = {"conv", "linear", "addmm", "mm", "bmm", "matmul", "einsum"}


def _fvcore_macs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    return int(sum(count for name, count in counts.items() if name in MAC_OPERATORS))


def _random_candidate(
    network: Network, rng: np.random.Generator
) -> tuple[PruningPlan, np.ndarray, np.ndarray]:
    widths = np.array([[rng.integers(1, group.size + 1) for group in network.groups]])
    keep = rng.random((1, len(network.blocks))) < 0.7
    kept = {
        group.name: tuple(sorted(rng.choice(group.size, width, replace=False).tolist()))
        for group, width in zip(network.groups, widths[0], strict=True)
    }
    dropped = tuple(b.name for b, stays in zip(network.blocks, keep[0], strict=True) if not stays)
    return PruningPlan(kept, dropped), widths.astype(np.int64), keep


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES]
)
def test_torchvision_family_is_traced_cut_and_counted(name: str) -> None:
    torch.manual_seed(0)
    size = FAMILIES[name]
    model = build_torchvision(name)
    inputs = (torch.randn(1, 3, size, size),)
    traced = trace(model, inputs)
    network = verified(traced)

    assert not network.unsupported
    assert network.frozen == traced.frozen, "verification found a group that tracing got wrong"
    assert set(network.frozen.values()) <= {
        "reads a fixed tensor",
        "network output",
        "a single unit",
    }
    assert len(network.groups) >= 7
    assert network.ops.macs()[0] == _fvcore_macs(model.eval(), inputs)

    surgeon, rng = Surgeon(network), np.random.default_rng(0)
    for _ in range(2):
        plan, widths, keep = _random_candidate(network, rng)
        pruned = surgeon.cut(plan).eval()
        assert network.ops.macs(widths, keep)[0] == _fvcore_macs(pruned, inputs)
        assert network.ops.params(widths, keep)[0] == sum(p.numel() for p in pruned.parameters())


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2", "resnet50"])
def test_groups_equal_torch_prunings(name: str) -> None:
    model = build_torchvision(name).eval()
    inputs = (torch.randn(1, 3, 64, 64),)
    network = trace(model, inputs)
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs[0])
    paths = {module: path for path, module in model.named_modules()}
    for group in network.groups:
        layer = model.get_submodule(group.name)
        cut = torch_pruning.prune_conv_out_channels
        if isinstance(layer, nn.Linear):
            cut = torch_pruning.prune_linear_out_channels
        theirs = set()
        for item in graph.get_pruning_group(layer, cut, idxs=[0]):
            target = item.dep.target.module
            if isinstance(target, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                entering = "in_channels" in item.dep.handler.__name__
                norm = isinstance(target, nn.BatchNorm2d)
                depthwise = isinstance(target, nn.Conv2d) and target.groups > 1
                theirs.add((paths[target], 1 if entering and not (norm or depthwise) else 0))
        ours = {
            (member.path.removesuffix(".weight"), member.dim)
            for member in group.members
            if member.path.endswith(".weight")
        }
        assert ours == theirs, group.name


class _Padded(nn.Module):
    """A ResNet stage change that pads the channel dimension by a fixed amount on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 8, 3, 2, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def test_a_shortcut_that_pads_by_a_constant_shifts_no_channels() -> None:
    """Only the unpadded middle can be cut: anything else would move channels of the shortcut."""
    network = verified(trace(_Padded(), (torch.randn(1, 3, 8, 8),)))
    (stream,) = network.groups
    places = {(m.path, m.dim): m.indices.ravel().tolist() for m in stream.members}
    assert places["stem.weight", 0] == [0, 1, 2, 3]
    assert places["wide.weight", 0] == places["head.weight", 1] == [2, 3, 4, 5]
    assert "does not run when cut" in network.frozen["wide"]


def test_a_shortcut_whose_padding_follows_the_width_can_be_cut_everywhere() -> None:
    network = verified(trace(digits_resnet20(), (torch.randn(2, 1, 32, 32),)))
    places = {
        group.name: {(m.path, m.dim): m.indices.ravel().tolist() for m in group.members}
        for group in network.groups
    }
    assert places["conv1"]["conv1.weight", 0] == list(range(16))
    assert places["conv1"]["layer2.0.conv2.weight", 0] == list(range(16))
    assert places["layer2.0.conv2"]["layer2.0.conv2.weight", 0] == list(range(16, 32))
    assert places["layer3.0.conv2"]["fc.weight", 1] == list(range(32, 64))
    assert len(network.groups) == 12
    assert len(network.blocks) == 7


class _Attention(nn.Module):
    """Self-attention over a fused projection, written with plain tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, -1, 6).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


def test_attention_heads_are_units_without_a_hint() -> None:
    model = nn.Sequential(nn.Linear(5, 24), _Attention(), nn.Linear(24, 3))
    network = verified(trace(model, (torch.randn(2, 7, 5),)))
    heads = next(group for group in network.groups if group.name == "1.qkv")
    per_unit = {(m.path, m.dim): m.per_unit for m in heads.members}
    assert heads.size == 4
    assert per_unit["1.qkv.weight", 0] == 18
    assert per_unit["1.out.weight", 1] == 6
    assert [block.name for block in network.blocks] == ["1"]


class _Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.first(x), self.second(x)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, _ = y.chunk(2, 1)
        return self.last(left)


def test_channel_shuffle_and_chunk_keep_the_halves_aligned() -> None:
    network = verified(trace(_Shuffle(), (torch.randn(1, 3, 9, 9),)))
    (group,) = network.groups
    members = {(m.path, m.dim): m.indices.tolist() for m in group.members}
    assert group.size == 4
    assert members["first.weight", 0] == members["second.weight", 0]
    assert members["first.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


class _FillsUp(nn.Module):
    """Pads with zeros up to a fixed width at run time: a cut would move later channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = torch.cat([y, y.new_zeros(len(y), 8 - y.shape[1], *y.shape[2:])], 1)
        return self.b(y)


@torch.library.custom_op("autoprune_tests::mystery", mutates_args=())
def _mystery(x: torch.Tensor) -> torch.Tensor:
    """An operator that nobody has a rule for."""
    return x.flip(1) * 2


class _Mysterious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(_mystery(self.a(x)))
        return self.head(F.relu(y).mean((2, 3)))


def test_what_cutting_breaks_is_frozen_with_its_reason() -> None:
    network = verified(trace(_FillsUp(), (torch.randn(1, 3, 5, 5),)))
    assert network.groups == ()
    assert "does not run when cut" in network.frozen["a"]
    assert len(network.ops.group_sizes) == 0
    assert network.ops.params()[0] == sum(p.numel() for p in network.model.parameters())


def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_listed() -> None:
    network = verified(trace(_Mysterious(), (torch.randn(1, 3, 5, 5),)))
    assert dict(network.unsupported) == {"autoprune_tests.mystery": 1}
    assert network.frozen["a"] == "operator autoprune_tests.mystery has no rule"
    assert [group.name for group in network.groups] == ["b"]


class _Twice(nn.Module):
    """A shared module that is called twice, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)
        self.auxiliary = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.shared(F.relu(self.shared(self.stem(x)))))


def test_shared_modules_are_coupled_and_unused_ones_listed() -> None:
    model = _Twice()
    network = verified(trace(model, (torch.randn(1, 3, 5, 5),)))
    assert network.unused == ("auxiliary",)
    (group,) = network.groups
    assert {(m.path, m.dim) for m in group.members} == {
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("shared.weight", 0),
        ("shared.weight", 1),
        ("shared.bias", 0),
        ("head.weight", 1),
    }


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = build_torchvision("mobilenet_v2").train()
    model.features[0].eval()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, (torch.randn(2, 3, 64, 64),))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class _Keywords(nn.Module):
    """Takes nested keyword arguments, hands them on by name and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(4, 6), _Adds(), nn.Linear(6, 2)

    def forward(self, *, data: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
        hidden = self.block(hidden=self.stem(data["x"]) * scale, other=None)
        return {"logits": self.head(hidden)}


class _Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, hidden: torch.Tensor, other: object) -> torch.Tensor:
        return hidden + self.b(F.relu(self.a(hidden)))


def test_keyword_arguments_and_dict_outputs() -> None:
    model = _Keywords().eval()
    inputs = {"data": {"x": torch.randn(3, 4)}, "scale": 0.5}
    network = verified(trace(model, inputs))
    assert {group.name: group.size for group in network.groups} == {"stem": 6, "block.a": 10}
    assert [block.name for block in network.blocks] == ["block"]
    pruned = Surgeon(network).cut(PruningPlan({"stem": (1, 4)}, ("block",)))
    expected = model.head.weight[:, [1, 4]] @ model.stem(inputs["data"]["x"])[:, [1, 4]].T * 0.5
    torch.testing.assert_close(
        pruned(**inputs)["logits"], expected.T + model.head.bias, rtol=1e-4, atol=1e-5
    )


def test_half_precision_weights_are_judged_without_their_rounding() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 8))
    model = model.to(torch.bfloat16)
    network = verified(trace(model, torch.randn(2, 64, dtype=torch.bfloat16)))
    assert [group.size for group in network.groups] == [128, 64]
    assert model[0].weight.dtype is torch.bfloat16
    macs, params = network.ops.prunable_shares()
    assert macs == pytest.approx(1 - (64 + 1 + 8) / (64 * 128 + 128 * 64 + 64 * 8))
    assert 0.98 < params < 1


def test_an_error_of_the_model_names_the_module() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(5, 2)))
    with pytest.raises(TraceError, match=r"^RuntimeError: mat1.*\(in module '1\.0'\)"):
        trace(model, torch.zeros(1, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_does_not_run_says_so() -> None:
    with pytest.raises(TraceError, match=r"Linear does not run on inputs float32 \(1, 4\) on cpu"):
        trace(nn.Linear(3, 2), (torch.zeros(1, 4),))


class _LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions and a gated perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
        self.k, self.v = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)
        self.gate, self.up = nn.Linear(32, 40, bias=False), nn.Linear(32, 40, bias=False)
        self.down = nn.Linear(40, 32, bias=False)
        self.norm, self.norm2 = nn.RMSNorm(32), nn.RMSNorm(32)
        self.register_buffer("frequencies", 10.0 ** -torch.linspace(0, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        angles = torch.arange(t)[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(n, t, -1, 8).transpose(1, 2)

        def rotated(y: torch.Tensor) -> torch.Tensor:
            turned = torch.cat([-y[..., 4:], y[..., :4]], -1)
            return y * angles.cos() + turned * angles.sin()

        h = self.norm(x)
        q, k, v = rotated(heads(self.q(h))), rotated(heads(self.k(h))), heads(self.v(h))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, t, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def test_key_value_groups_with_their_queries_are_units() -> None:
    model = nn.Sequential(nn.Embedding(50, 32), _LlamaBlock(), nn.Linear(32, 50, bias=False))
    network = verified(trace(model, (torch.randint(0, 50, (2, 6)),)))
    assert not network.unsupported
    by_name = {group.name: group for group in network.groups}
    pairs = {(m.path, m.dim): m.per_unit for m in by_name["1.q"].members}
    assert by_name["1.q"].size == 2
    assert pairs == {
        ("1.q.weight", 0): 16,
        ("1.k.weight", 0): 8,
        ("1.v.weight", 0): 8,
        ("1.o.weight", 1): 16,
    }
    assert by_name["1.gate"].size == 40
    assert next(g for g in network.groups if ("0.weight", 1) in _places(g)).mixed
    assert network.frozen["0"] == "rows of a table are named by number"
    assert [block.name for block in network.blocks] == ["1"]


def _places(group: ChannelGroup) -> set[tuple[str, int]]:
    return {(member.path, member.dim) for member in group.members}


class _Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.cells = cell(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.table(x))[0][:, -1])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_go_with_their_gates_and_their_state(cell: type[nn.RNNBase]) -> None:
    model, x = _Recurrent(cell).eval(), torch.randint(0, 30, (2, 5))
    network = verified(trace(model, x))
    assert not network.unsupported
    units = next(group for group in network.groups if group.size == 16)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[cell]
    pairs = {(m.path, m.dim): m.per_unit for m in units.members}
    assert pairs["cells.weight_ih_l0", 0] == pairs["cells.weight_hh_l0", 0] == gates
    assert pairs["cells.weight_hh_l0", 1] == 1
    assert [m.attribute for m in units.mirrors] == ["cells.hidden_size"]
    surgeon, plan = Surgeon(network), PruningPlan({units.name: tuple(range(0, 16, 3))})
    pruned = surgeon.cut(plan)
    assert pruned.cells.hidden_size == 6
    torch.testing.assert_close(pruned(x), surgeon.mask(plan)(x), rtol=1e-4, atol=1e-5)
    assert torch._C._get_mkldnn_enabled()


class _Misbehaves(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(3, 2), how

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> object:
        if self.how == "raises":
            raise LookupError("no such key in my table")  # the line that is named
        if self.how == "skips":
            return x * 2
        hidden = self.layer(x)
        return {"none": None, "number": 3.0, "empty": {}, "fine": hidden}[self.how]


def test_a_models_own_error_comes_first_with_its_line_and_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), _Misbehaves("raises"))
    with pytest.raises(TraceError) as error:
        trace(model, torch.zeros(1, 3))
    line = next(
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith("# the line that is named")
    )
    assert str(error.value).startswith(
        f"LookupError: no such key in my table (in module '1' at {__file__}:{line}). "
        "Sequential does not run on inputs float32 (1, 3) on cpu: "
    )
    assert isinstance(error.value.__cause__, LookupError)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(1, 4), r"inputs float32 \(1, 4\) on cpu: give example inputs of the shapes"),
        (torch.zeros(1, 3).double(), "its weights are float32, an input is float64"),
        (torch.zeros(1, 3).to("meta"), "its weights are on cpu, an input is on meta"),
        ((), r"does not run on inputs without a tensor: its forward takes \(x: .*missing a"),
        ((torch.zeros(1, 3),) * 3, r"its forward takes \(x: .*too many positional arguments"),
        ({"y": torch.zeros(1, 3)}, r"its forward takes \(x: .*missing a required argument: 'x'"),
        (torch.zeros(1, 3, dtype=torch.int64), r"inputs int64 \(1, 3\) on cpu"),
    ],
)
def test_inputs_that_do_not_fit_are_told_with_what_was_given(inputs: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(_Misbehaves("fine"), inputs)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "_Misbehaves returned NoneType, in which there is no tensor; its forward must"),
        ("number", "_Misbehaves returned float"),
        ("empty", "_Misbehaves returned dict"),
        (
            "skips",
            r"ran on inputs float32 \(1, 3\) on cpu without an operator on any of its 2 para",
        ),
    ],
)
def test_a_forward_that_gives_nothing_to_work_with_says_so(how: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(_Misbehaves(how), torch.zeros(1, 3))


def test_a_model_without_parameters_says_so() -> None:
    with pytest.raises(TraceError, match="ReLU has no parameters, so there is nothing to prune"):
        trace(nn.ReLU(), torch.zeros(1, 3))
