from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.weights import METADATA_KEY, fill, read_weights, write_weights


class Shared(nn.Module):
    """Two names for one weight, two halves of one storage, and a buffer of no state dict."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        whole = torch.randn(2, 5)
        self.upper, self.lower = nn.Parameter(whole[0]), nn.Parameter(whole[1])
        self.register_buffer("offset", torch.full((3,), offset), persistent=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.safetensors"


def test_shared_tensors_are_written_once(path):
    write_weights(Shared(), path, {"version": 2})

    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"first.weight", "upper", "lower", "offset"}
        header = json.loads(file.metadata()[METADATA_KEY])
    assert header == {"version": 2, "tied": {"second.weight": "first.weight"}}


def test_everything_comes_back(path):
    model, other = Shared(offset=2.5), Shared()
    write_weights(model, path, {})
    fill(other, read_weights(path))

    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert torch.equal(other.offset, model.offset)
    assert other.first.weight is other.second.weight


def test_buffers_that_do_not_fit_are_named(path):
    model, other = Shared(), Shared()
    model.register_buffer("offset", torch.zeros(4), persistent=False)
    write_weights(model, path, {})

    with pytest.raises(ExportError, match="buffers that do not fit: offset"):
        fill(other, read_weights(path))
    other.register_buffer("more", torch.zeros(4), persistent=False)
    other.offset = torch.zeros(4)
    with pytest.raises(ExportError, match="buffers that do not fit: more"):
        fill(other, read_weights(path))


def test_a_name_too_many_is_refused(path):
    model = Shared()
    model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    write_weights(model, path, {})

    with pytest.raises(ExportError, match="extra"):
        fill(Shared(), read_weights(path))


def test_a_network_without_values_is_refused(path):
    with pytest.raises(ExportError, match="has no values for weight, bias"):
        write_weights(nn.Linear(2, 2, device="meta"), path, {})
    assert not path.exists()
