"""The suite fails for criteria that break its promises, each by the check that is meant for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.criterion import Criterion
from autoprune.testing.criteria import CriterionSuite


class Flawed(Criterion):
    """Scores by position, and does something wrong besides."""

    name = "l2"
    needs = "nothing"
    family = "baseline"

    def __init__(self, flaw):
        self.flaw = flaw

    def _score(self, network, batches):
        return {group.name: self.flaw(network, group, batches) for group in network.groups}


def by_position(network, group, batches):
    return np.arange(group.size, dtype=float)


def leaves_training_mode(network, group, batches):
    network.model.eval()
    return by_position(network, group, batches)


def leaves_gradients(network, group, batches):
    next(network.model.parameters()).grad = None
    return by_position(network, group, batches)


def draws_from_the_global_generator(network, group, batches):
    return torch.rand(group.size).numpy()


def reads_labels(network, group, batches):
    return by_position(network, group, batches) * float(batches[0][1].sum())


def all_alike(network, group, batches):
    return np.ones(group.size)


class Suite(CriterionSuite):
    def __init__(self, flaw):
        self.flaw = flaw

    def build(self):
        return Flawed(self.flaw)


@pytest.mark.parametrize(
    ("flaw", "check"),
    [
        (by_position, "test_follows_the_units"),
        (by_position, "test_ranks_a_dead_unit_last"),
        (leaves_training_mode, "test_leaves_the_model_as_it_was"),
        (leaves_gradients, "test_leaves_the_model_as_it_was"),
        (draws_from_the_global_generator, "test_leaves_the_model_as_it_was"),
        (draws_from_the_global_generator, "test_repeats_itself"),
        (all_alike, "test_scores_every_unit"),
    ],
)
def test_a_flaw_is_found_on_a_network(flaw, check):
    with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError):
        getattr(Suite(flaw), check)("chain")


def test_a_criterion_that_is_not_registered_is_found():
    with pytest.raises(AssertionError):
        Suite(by_position).test_is_registered_under_its_name()


def test_a_criterion_that_reads_labels_unasked_is_found():
    with pytest.raises(AssertionError):
        Suite(reads_labels).test_reads_no_labels_it_does_not_need()


def test_a_criterion_that_ranks_nan_is_found():
    with pytest.raises(pytest.fail.Exception):
        Suite(by_position).test_refuses_weights_that_are_not_finite()
