"""A made-up run whose front, failures and chosen network are known."""

from __future__ import annotations

import dataclasses

import pytest

from autoprune.report.data import (
    ChosenNetwork,
    Command,
    DamageCurve,
    GroupWidth,
    Importance,
    KernelTime,
    NetworkFacts,
    NetworkLayers,
    ReportData,
    RunFacts,
    UniformLadder,
    trial_table,
)
from autoprune.testing.profiles import made_up_facts

ROWS = (
    {"number": 0, "accuracy": 0.80, "latency_ms": 4.0, "on_front": True},
    {"number": 1, "accuracy": 0.70, "latency_ms": 5.0},
    {"number": 2, "accuracy": 0.90, "latency_ms": 8.0, "on_front": True, "test_accuracy": 0.89},
    {"number": 4, "accuracy": 0.92, "latency_ms": 12.0, "on_front": True},
)


def _complete(row):
    return {
        "loss": 1 - row["accuracy"],
        "macs": 1_000_000,
        "params": 2_000,
        "seconds": 1.5,
        "status": "complete",
    } | row


@pytest.fixture
def rows():
    failed = {"number": 3, "status": "failed", "reason": "out of memory", "seconds": 0.5}
    return [_complete(ROWS[0]), _complete(ROWS[1]), _complete(ROWS[2]), failed, _complete(ROWS[3])]


@pytest.fixture
def plain(rows):
    """A run of a version that said nothing beyond the table and the chosen network."""
    return ReportData(
        model_name="torchvision:resnet18",
        profile=made_up_facts(
            name="nano",
            device="Some board",
            runtime="onnxruntime",
            precision="fp32",
            error_text="median over 34 networks",
            provenance=("measured by us",),
        ),
        budget_ms=10.0,
        dense=NetworkFacts(accuracy=0.93, loss=0.2, latency_ms=16.0, macs=4_000_000, params=9_000),
        trials=trial_table(rows),
        hypervolume=(0.6, 0.6, 0.65, 0.65, 0.66),
        chosen=ChosenNetwork(
            trial=2,
            widths=(GroupWidth("conv1", 16, 64), GroupWidth("layer1.0.conv1", 64, 64)),
            removed_blocks=("layer3.1",),
            kernels=tuple(
                KernelTime(name=f"conv{i}", kind="conv", dense_ms=1.0 + i, chosen_ms=0.5 * i)
                for i in range(15)
            ),
        ),
        run=RunFacts(
            settings={"sampler": "additive", "space": {"minimum": 8}},
            versions={"autoprune": "0.1.0", "torch": "2.8.0"},
            seed=7,
            commands=(Command("Load in Python", "import autoprune\nautoprune.load('run')"),),
        ),
    )


@pytest.fixture
def data(plain):
    commands = (Command("Export as ONNX", "autoprune export run --pick {trial}"),)
    return dataclasses.replace(
        plain,
        run=dataclasses.replace(plain.run, network_commands=commands),
        layers=tuple(
            NetworkLayers(
                trial=trial,
                kept=(kept, 64),
                kernel_ms=tuple(0.1 * trial * i for i in range(15)),
                removed_blocks=("layer3.1",) if trial == 2 else (),
                memory_mb=memory_mb,
            )
            for trial, kept, memory_mb in ((0, 8, 2.0), (2, 16, 3.0), (4, 48, 4.0))
        ),
        dense_memory_mb=5.0,
        uniform=UniformLadder(
            (
                NetworkFacts(accuracy=0.75, loss=0.6, latency_ms=8.5, macs=9, params=8),
                NetworkFacts(accuracy=0.20, loss=2.6, latency_ms=2.5, macs=5, params=4),
            ),
            (0.35, 0.42),
        ),
        damage=(
            DamageCurve("conv1", (0.0, 0.5, 0.75), (0.0, 1.0, 4.0)),
            DamageCurve("layer1.0.conv1", (0.0, 0.25), (0.0, 0.25)),
        ),
        importance=Importance({"drop/layer3.1": 0.6, "ratio/conv1": 0.4}, trials=33),
    )


@pytest.fixture
def empty(plain):
    """The same run before its first trial ended."""
    return dataclasses.replace(plain, trials=trial_table([]), hypervolume=(), chosen=None)
