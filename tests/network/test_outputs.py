from __future__ import annotations

import types

import torch

from autoprune.network.outputs import logits_of


def test_logits_are_a_tensor_or_an_attribute():
    logits = torch.ones(2, 3)
    assert logits_of(logits) is logits
    assert logits_of(types.SimpleNamespace(logits=logits, loss=None)) is logits


def test_other_outputs_have_none():
    assert logits_of(types.SimpleNamespace(logits=None)) is None
    assert logits_of({"logits": torch.ones(1)}) is None
