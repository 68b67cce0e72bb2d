import dataclasses
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.latency.layers import ops_from_rows
from autoprune.latency.memory import MemoryModel
from autoprune.network.ops import Affine, Op, OpTable, ParameterSize
from autoprune.network.trace import trace


def random_table(rng, *, count=25, groups=3, blocks=2):
    """Operators that read random earlier ones; some are views, elementwise, or in a block."""
    ops = []
    for index in range(count):
        kind = str(rng.choice(["conv", "pointwise", "view", "norm"]))
        sources = rng.choice(index, size=min(index, int(rng.integers(0, 3))), replace=False)
        inputs = tuple(int(i) for i in sources)
        cout = Affine(int(rng.integers(1, 5)), ((int(rng.integers(groups)), 2),))
        size = (int(rng.integers(1, 4)), 2)
        if inputs and kind != "conv":
            cout, size = ops[inputs[0]].cout, ops[inputs[0]].out_size
        ops.append(
            Op(
                kind="other" if kind == "view" else kind,
                name={"norm": "aten.native_batch_norm", "view": "aten.view"}.get(kind, "aten.mul"),
                path=str(index),
                inputs=inputs,
                cin=cout,
                cout=cout,
                in_size=size,
                out_size=size,
                batch=2,
                block=int(rng.integers(-1, blocks)) if index > 3 else -1,
            )
        )
    weights = (ParameterSize("w", (Affine(4), Affine(0, ((0, 1),)))), ParameterSize("b", ()))
    return OpTable(tuple(ops), weights, (5, 6, 7)[:groups], blocks)


def elements(op, widths):
    return op.batch * op.cout.at(widths) * math.prod(op.out_size)


def form(op):
    return op.cout, op.batch * math.prod(op.out_size)


class Plain:
    """The most elements alive at once: every step, every tensor, plain loops."""

    def __init__(self, table, widths, keep, *, reuse):
        self.ops, self.widths, self.keep, self.reuse = table.ops, widths, keep, reuse
        self.own = [i for i in range(len(self.ops)) if self.shown(i) == i]
        self.reads = {i: {self.shown(p) for p in self.ops[i].inputs} - {None} for i in self.own}

    def shown(self, i):
        """The operator whose output the name ``i`` stands for, None for the caller's tensors."""
        op = self.ops[i]
        if (op.block < 0 or self.keep[op.block]) and op.name != "aten.view":
            return i
        sources = [s for s in map(self.shown, op.inputs) if s is not None]
        alike = [s for s in sources if form(self.ops[s]) == form(op)]
        if alike:
            return alike[0]
        return self.shown(op.inputs[0]) if op.inputs else None

    def needed(self, value, after):
        """Whether anybody reads a value after a step; what nobody ever reads is an output."""
        readers = [i for i in self.own if value in self.reads[i]]
        return not readers or max(readers) > after

    def overwritten(self, i):
        op = self.ops[i]
        if not self.reuse or op.kind not in ("pointwise", "norm"):
            return None
        values = [v for v in map(self.shown, op.inputs) if v is not None]
        fit = [v for v in values if not self.needed(v, i) and form(self.ops[v]) == form(op)]
        return fit[0] if fit else None

    def peak(self):
        memory, peak = {}, 0
        for i in self.own:
            memory.pop(self.overwritten(i), None)
            memory[i] = elements(self.ops[i], self.widths)
            peak = max(peak, sum(memory.values()))
            memory = {v: size for v, size in memory.items() if self.needed(v, i)}
        return peak


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_equals_a_plain_loop_for_every_candidate(seed, reuse):
    rng = np.random.default_rng(seed)
    table = random_table(rng)
    widths = rng.integers(1, 6, size=(8, 3))
    keep = rng.random((8, 2)) < 0.6
    found = MemoryModel(table, bytes_per_element=2, reuse=reuse).footprint(widths, keep)
    pairs = zip(widths, keep, strict=True)
    expected = [2 * Plain(table, w, k, reuse=reuse).peak() for w, k in pairs]
    assert found.activations.tolist() == expected
    assert found.weights.tolist() == [2 * (4 * w[0] + 1) for w in widths]
    assert (found.total == found.weights + found.activations).all()


class Residual(nn.Module):
    def __init__(self, *, inplace):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(6, 12, 1), nn.ReLU(inplace), nn.Conv2d(12, 6, 3, 1, 1))
        self.act, self.pool, self.last = nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3)
        self.inplace = inplace

    def forward(self, x):
        x = self.act(self.first(x))
        y = self.inner(x)
        x = y.add_(x) if self.inplace else y + x
        del y
        x = self.pool(x)
        return self.last(x)


class Watch(TorchDispatchMode):
    """Sums the storages that operators made and that still exist."""

    def __init__(self, known):
        super().__init__()
        self.ours = {tensor.untyped_storage()._cdata for tensor in known}
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Max pooling also returns indices, which nobody reads and no runtime makes.
        first = out[0] if isinstance(out, tuple) else out
        storage = first.untyped_storage()
        if storage._cdata not in self.ours and storage._cdata not in self.live:
            self.live[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize("inplace", [False, True])
def test_equals_the_live_tensors_of_a_forward_pass(inplace):
    model = Residual(inplace=inplace).eval()
    image = torch.randn(2, 3, 8, 8)
    with Watch([image, *model.parameters()]) as watch, torch.no_grad():
        model(image)
    gc.collect()
    table = trace(model, image).ops
    found = MemoryModel(table, bytes_per_element=4, reuse=inplace).footprint()
    assert found.activations.tolist() == [watch.peak]
    assert found.weights.tolist() == [sum(p.nbytes for p in model.parameters())]


def test_layer_lists_know_the_weights_of_their_kernels():
    rows = [
        ["conv", 3, 8, 3, 1, 1, 4, 4, 4, 4],
        ["relu", 8, 8, 1, 1, 1, 4, 4, 4, 4],
        ["dwconv", 8, 8, 5, 1, 8, 4, 4, 4, 4],
        ["globalpool", 8, 8, 1, 1, 1, 4, 4, 1, 1],
        ["fc", 8, 10, 1, 1, 1, 1, 1, 1, 1],
    ]
    found = MemoryModel(ops_from_rows(rows, batch=3), bytes_per_element=1).footprint()
    assert found.weights.tolist() == [3 * 8 * 9 + 8 * 25 + 80]
    assert found.activations.tolist() == [3 * 2 * 8 * 16]


def test_many_candidates_and_chunks_agree_with_one_at_a_time(monkeypatch):
    rng = np.random.default_rng(3)
    table = random_table(rng)
    widths, keep = rng.integers(1, 6, size=(40, 3)), rng.random((40, 2)) < 0.5
    model = MemoryModel(table, bytes_per_element=4)
    alone = [
        int(model.footprint(widths[i : i + 1], keep[i : i + 1]).activations[0]) for i in range(40)
    ]
    monkeypatch.setattr("autoprune.latency.memory._CHUNK_ELEMENTS", 60)
    assert model.footprint(widths, keep).activations.tolist() == alone


def test_a_network_without_operators_needs_nothing():
    table = dataclasses.replace(random_table(np.random.default_rng(0)), ops=(), parameters=())
    found = MemoryModel(table, bytes_per_element=4).footprint()
    assert (found.weights.tolist(), found.activations.tolist()) == ([0], [0])
