from __future__ import annotations

import torch

from autoprune.network import call


def test_arguments_that_index_labels_go_where_the_labels_are(monkeypatch):
    """There may be no second device here but one without values, which shows where tensors go."""
    arguments = (1, [None, torch.zeros(2), "x"], {"dim": torch.ones(1)})
    same = call.for_labels(arguments)
    assert same[1][1] is arguments[1][1]
    monkeypatch.setattr(call, "LABEL_DEVICE", torch.device("meta"))
    moved = call.for_labels(arguments)
    assert moved[1][1].is_meta
    assert moved[2]["dim"].is_meta
    assert moved[0] == 1
    assert moved[1][0] is None
    assert moved[1][2] == "x"
