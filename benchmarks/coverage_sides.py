"""The two sides of `coverage.py`: what autoprune and torch-pruning make of one network.

Each side yields its row again after every step. A step that fails leaves its reason in the row, and
the next one runs.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage_models import Case
from torch import Tensor, nn

from autoprune.export.onnx import export_onnx
from autoprune.export.package import PackageMetrics, load, save_package
from autoprune.export.program import export_program
from autoprune.network.call import tensors_in
from autoprune.network.inputs import Inputs, call_model, normalised
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.trial import Trial
from autoprune.pruning.verify import verified
from autoprune.testing.plans import half_plan, random_plans

CANDIDATES = 5
#: An export that takes longer is given up and its cell says so.
EXPORT_SECONDS = 60

Row = dict[str, Any]


def ours(case: Case) -> Iterator[Row]:
    """Yield autoprune's row."""
    torch.manual_seed(0)
    model = case.build()
    inputs = normalised(case.inputs(model))
    row: Row = {"cnn": _is_cnn(model), "params": sum(p.numel() for p in model.parameters())}
    row["forward_s"] = _forward_seconds(model, inputs)
    yield row
    started = time.perf_counter()
    traced = trace(model, inputs)
    row["trace_s"] = time.perf_counter() - started
    yield row
    started = time.perf_counter()
    network = verified(traced)
    row["verify_s"] = time.perf_counter() - started
    row |= {
        "groups": [len(network.groups), len(traced.groups)],
        "blocks": [len(network.blocks), len(traced.blocks)],
        "prunable": network.ops.prunable_shares()[0],
        "unsupported": sorted(network.unsupported),
    }
    yield row
    surgeon = Surgeon(network)
    half = half_plan(network)
    steps: dict[str, Callable[[], object]] = {
        "half": lambda: _half(network, surgeon, half),
        "random": lambda: _random(surgeon, random_plans(network, CANDIDATES), inputs),
        "masked": lambda: _masked(network, half),
        "reload": lambda: _reload(case, network, surgeon, half),
        "program": lambda: _exported(export_program, surgeon.cut(half), model, inputs),
        "onnx": lambda: _exported(export_onnx, surgeon.cut(half), model, inputs),
    }
    for name, step in steps.items():
        try:
            row[name] = step()
        except Exception as error:  # noqa: BLE001 - whatever it raises is its result
            row[name] = f"{type(error).__name__}: {_first_line(error)}"
        yield row


def theirs(case: Case) -> Iterator[Row]:
    """Yield torch-pruning's row: half of every channel, its own way of finding groups."""
    import torch_pruning

    torch.manual_seed(0)
    model = case.build()
    inputs = normalised(case.inputs(model))
    before = _outputs(model, inputs)
    macs = int(trace(model, inputs).ops.macs()[0])
    row: Row = {}
    yield row
    started = time.perf_counter()
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            inputs if isinstance(inputs, dict) else tuple(inputs),
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=_output_layers(model, before),
            num_heads=_heads(model),
            prune_num_heads=True,
            output_transform=lambda out: sum(t.sum() for t in tensors_in(out)),
        )
        pruner.step()
        row["step_s"] = time.perf_counter() - started
        yield row
        after = _outputs(model, inputs)
        if [t.shape for t in after] != [t.shape for t in before]:
            raise RuntimeError("the outputs have other shapes")
        # The same counter for both, or the comparison would be one of counters.
        row["left"] = int(trace(model, inputs).ops.macs()[0]) / macs if macs else 1.0
    except Exception as error:  # noqa: BLE001 - whatever it raises is its result
        row["error"] = f"{type(error).__name__}: {_first_line(error)}"
    yield row


SIDES: dict[str, Callable[[Case], Iterator[Row]]] = {"ours": ours, "theirs": theirs}


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_in(call_model(model.eval(), inputs)))


def _forward_seconds(model: nn.Module, inputs: Inputs) -> float:
    """Return the seconds of the second pass."""
    _outputs(model, inputs)
    started = time.perf_counter()
    _outputs(model, inputs)
    return time.perf_counter() - started


def _is_cnn(model: nn.Module) -> bool:
    """Return whether more parameters are in convolutions than in linear layers before the last."""
    convolutions = sum(
        p.numel() for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)
        for p in m.parameters(recurse=False)
    )  # fmt: skip
    linears = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    attention = any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    return not attention and convolutions > sum(linears[:-1])


def _half(network: Network, surgeon: Surgeon, half: PruningPlan) -> float:
    """Return the share of the MACs left where half of everything goes and the rest runs."""
    before = [t.shape for t in _outputs(network.model, network.inputs)]
    after = _outputs(surgeon.cut(half), network.inputs)
    if [t.shape for t in after] != before:
        raise RuntimeError("the outputs have other shapes")
    if not all(bool(torch.isfinite(t).all()) for t in after if t.is_floating_point()):
        raise RuntimeError("the outputs are not finite")
    widths = np.array([[len(half.kept[g.name]) for g in network.groups]], np.int64)
    whole = int(network.ops.macs()[0])
    left = network.ops.macs(widths.reshape(1, len(network.groups)))
    return int(left[0]) / whole if whole else 1.0


def _random(surgeon: Surgeon, plans: list[PruningPlan], inputs: Inputs) -> str:
    """Return how many candidates run, and the first reason where one does not."""
    faults = [fault for plan in plans if (fault := _fault(surgeon, plan, inputs))]
    count = str(len(plans) - len(faults))
    return f"{count} ({faults[0]})" if faults else count


def _fault(surgeon: Surgeon, plan: PruningPlan, inputs: Inputs) -> str:
    try:
        outputs = _outputs(surgeon.cut(plan), inputs)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its result
        return f"{type(error).__name__}: {_first_line(error)}"
    finite = all(bool(torch.isfinite(t).all()) for t in outputs if t.is_floating_point())
    return "" if finite else "not finite"


def _masked(network: Network, half: PruningPlan) -> str:
    """Return whether cutting equals zeroing, on other parameters than those of the trial cuts."""
    plain = {g.name: half.kept[g.name] for g in network.groups if not g.mixed}
    if not plain:
        return "all mixed"
    return Trial(network, seed=1).equals_masked(PruningPlan(plain)) or "yes"


def _reload(case: Case, network: Network, surgeon: Surgeon, half: PruningPlan) -> str:
    """Return whether the saved network, loaded from its folder, computes the same bits."""
    pruned = surgeon.cut(half).eval()
    metrics = PackageMetrics(
        accuracy=None,
        loss=None,
        latency_ms=0.0,
        latency_error=0.0,
        profile="none",
        macs=0,
        params=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_package(
            folder, model=pruned, network=network, plan=half, source=case.source, metrics=metrics
        )
        torch.manual_seed(1)  # a new model has other weights
        again = load(folder, None if case.source else case.build, trust_source=True)
    pairs = zip(_outputs(again, network.inputs), _outputs(pruned, network.inputs), strict=True)
    return "yes" if all(torch.equal(*pair) for pair in pairs) else "no"


def _exported(
    export: Callable[..., Any], pruned: nn.Module, original: nn.Module, inputs: Inputs
) -> str:
    """Return whether the export of the pruned network computes the same, and else why."""
    fault = _export_fault(export, pruned, inputs)
    if not fault:
        return "yes"
    if fault.startswith("more than"):
        return fault
    return f"nor does the original: {fault}" if _export_fault(export, original, inputs) else fault


def _export_fault(export: Callable[..., Any], model: nn.Module, inputs: Inputs) -> str:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {EXPORT_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(EXPORT_SECONDS)
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network"
            export(model, inputs, path, metadata={}, dynamic_batch=False)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its result
        if time.perf_counter() - started >= EXPORT_SECONDS:
            return f"more than {EXPORT_SECONDS} s"
        return _first_line(error)
    finally:
        signal.alarm(0)
    return ""


def _output_layers(model: nn.Module, outputs: list[Tensor]) -> list[nn.Module]:
    """Return the layers that torch-pruning must leave alone, as its examples do by class count."""
    widths = {t.shape[-1 if t.ndim < 4 else 1] for t in outputs if t.ndim > 1}
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    return [m for m in layers[-3:] if m.weight.shape[0] in widths]


_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_PROJECTIONS = (
    "qkv",
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_lin",
    "k_lin",
    "v_lin",
)


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the heads of projections, which torch-pruning has to be told."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        numbers = [n for name in _HEADS if type(n := getattr(module, name, None)) is int]
        width = getattr(module, "head_dim", None)
        for name in _PROJECTIONS:
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear) and name != "qkv" and type(width) is int:
                heads[layer] = layer.out_features // width  # keys may have fewer than queries
            elif isinstance(layer, nn.Linear) and numbers:
                heads[layer] = numbers[0]
    return heads


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:160]
