"""The small architectures run, are cut everywhere but at their ends, and stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.network.trace import trace
from autoprune.pruning.verify import verified
from autoprune.testing.architectures import DiffusionUNet, RecurrentClassifier, UNet

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(14).reshape(2, 7)

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[int, ...], set[str]]] = {
    "unet": (UNet, (IMAGES,), (2, 2, 16, 16), {"stem.0.input", "head"}),
    "deep unet": (
        lambda: UNet(classes=5, widths=(4, 6, 8, 10)),
        (IMAGES,),
        (2, 5, 16, 16),
        {"stem.0.input", "head"},
    ),
    "diffusion": (
        DiffusionUNet,
        (IMAGES, torch.tensor([3, 500])),
        (2, 3, 16, 16),
        {"time.0.input", "stem.input", "head.2"},
    ),
    "deep diffusion": (
        lambda: DiffusionUNet(widths=(8, 16, 32), blocks=2, heads=2),
        (IMAGES, torch.tensor([3, 500])),
        (2, 3, 16, 16),
        {"time.0.input", "stem.input", "head.2"},
    ),
    "lstm": (RecurrentClassifier, (TOKENS,), (2, 5), {"embedding", "head"}),
    "gru": (lambda: RecurrentClassifier(nn.GRU), (TOKENS,), (2, 5), {"embedding", "head"}),
}


@pytest.mark.parametrize("name", CASES)
def test_everything_but_the_ends_can_be_cut(name: str) -> None:
    build, inputs, shape, fixed = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        assert model(*inputs).shape == shape
    network = verified(trace(model, inputs))
    assert not network.unsupported
    assert set(network.frozen) == fixed
    assert network.ops.prunable_shares()[0] > 0.8


def test_attention_of_the_diffusion_network_has_heads() -> None:
    network = verified(trace(DiffusionUNet(), (IMAGES, torch.tensor([3, 500]))))
    assert {g.name: g.size for g in network.groups if g.kind == "head"} == {"middle.1.qkv": 4}
