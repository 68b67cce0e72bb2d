import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.tasks import numerics
from autoprune.tasks.numerics import Numerics, numerics_for


class Net(nn.Module):
    """Two convolutions and a head; what comes between is up to a test."""

    def __init__(self, between=lambda x: x.mean((2, 3))):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.between = nn.Linear(8, 4), between

    def forward(self, x):
        self.types = []
        x = self.first(x)
        self.types.append(x.dtype)
        self.strides = x.stride()
        return self.head(self.between(self.second(x).relu()))


IMAGES = (torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request, monkeypatch):
    monkeypatch.setattr(numerics, "native_bfloat16", lambda: request.param)
    return request.param


def test_automatic_is_bfloat16_only_where_the_processor_has_it(native):
    assert numerics_for("auto", Net(), IMAGES) == Numerics("bf16" if native else "fp32", True)
    assert numerics_for("fp32", Net(), IMAGES) == Numerics("fp32", True)
    assert numerics_for("bf16", Net(), IMAGES) == Numerics("bf16", True)
    linear = nn.Linear(3, 4)
    assert not numerics_for("auto", linear, (torch.zeros(2, 3),)).channels_last


def test_code_that_needs_contiguous_maps_gets_them(native):
    def viewed(x):
        return x.view(len(x), -1)[:, :8]

    assert numerics_for("auto", Net(viewed), IMAGES) == Numerics("bf16" if native else "fp32")


def test_code_that_takes_no_bfloat16_stays_in_float32(monkeypatch):
    def refuses(x):
        if x.dtype != torch.float32:
            raise TypeError("only float32")
        return x.mean((2, 3))

    monkeypatch.setattr(numerics, "native_bfloat16", lambda: True)
    assert numerics_for("auto", Net(refuses), IMAGES) == Numerics("fp32", True)
    with pytest.raises(TaskError, match="does not run in bfloat16"):
        numerics_for("bf16", Net(refuses), IMAGES)


def test_network_computes_as_it_is_told_and_almost_the_same():
    with torch.no_grad():
        expected = Net()(*IMAGES)
        for way in (Numerics("fp32", True), Numerics("bf16", True), Numerics("bf16")):
            model = Net()
            with way.applied(model):
                outputs = model(*IMAGES)
            assert model.types == [torch.bfloat16 if way.precision == "bf16" else torch.float32]
            assert (model.strides[1] == 1) == way.channels_last
            torch.testing.assert_close(
                outputs.float(), expected, rtol=0, atol=0.02 if way.precision == "bf16" else 1e-5
            )
        assert (outputs.float() != expected).any()


def test_choosing_leaves_the_network_as_it_was():
    model = Net().train()
    numerics_for("auto", model, IMAGES)
    assert model.first.weight.is_contiguous()
    assert model.training
    with torch.no_grad():
        assert model(*IMAGES).dtype == torch.float32
