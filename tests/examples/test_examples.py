"""Each example trains a pruned network in a loop that is not ours."""

import importlib
import sys
from pathlib import Path

import pytest

import autoprune
from autoprune.export.package import PackageMetrics, save_package
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.network.vision import load_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.tasks.digits import digits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
#: What each example needs beside torch.
NEEDS = {
    "plain_pytorch": None,
    "lightning_finetune": "lightning",
    "huggingface_trainer": "transformers",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The embedded network, half of whose channels are cut out and nothing repaired."""
    source = ModelSource.parse("digits")
    network = trace(source.build(), digits(batch=1).example_inputs())
    surgeon = Surgeon(network)
    plan = surgeon.complete(
        PruningPlan({g.name: tuple(range(0, g.size, 2)) for g in network.groups})
    )
    metrics = PackageMetrics(
        accuracy=0.0, test_accuracy=None, loss=0.0, latency_ms=1.0, latency_error=0.1,
        profile="none", macs=1, params=1,
    )  # fmt: skip
    return save_package(
        tmp_path_factory.mktemp("package"), model=surgeon.cut(plan), network=network, plan=plan,
        source="digits", metrics=metrics,
    )  # fmt: skip


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
# What Lightning and the Trainer say about their own set-up is theirs.
@pytest.mark.filterwarnings("default")
def test_the_network_learns(name, package, monkeypatch):
    if NEEDS[name]:
        # Both import torchvision where it is there, even if its compiled part does not load.
        load_torchvision()
        pytest.importorskip(NEEDS[name], reason=f"the example needs {NEEDS[name]}")
    monkeypatch.syspath_prepend(EXAMPLES)
    stored = [p.clone() for p in autoprune.load(package).parameters()]
    try:
        before, after = importlib.import_module(name).main(package, epochs=2)
    finally:
        for module in NEEDS:
            sys.modules.pop(module, None)
    assert before < 0.5
    assert after > before + 0.3
    # the package is as it was
    again = autoprune.load(package).parameters()
    assert all((a == b).all() for a, b in zip(again, stored, strict=True))
