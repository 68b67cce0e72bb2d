"""A made-up run whose front, failures and chosen network are known."""

from __future__ import annotations

import dataclasses

import pytest

from autoprune.report.data import (
    ChosenNetwork,
    Command,
    GroupWidth,
    KernelTime,
    NetworkFacts,
    ProfileFacts,
    ReportData,
    RunFacts,
    trial_table,
)

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
def data(rows):
    return ReportData(
        model_name="torchvision:resnet18",
        profile=ProfileFacts(
            name="nano",
            device="Some board",
            runtime="onnxruntime",
            precision="fp32",
            batch=1,
            error=0.1,
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
def empty(data):
    """The same run before its first trial ended."""
    return dataclasses.replace(data, trials=trial_table([]), hypervolume=(), chosen=None)
