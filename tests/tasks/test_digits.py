from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import autoprune.tasks
from autoprune.errors import TaskError
from autoprune.network.source import ModelSource
from autoprune.tasks.digits import MEAN, STD, digits

RECORD = Path(autoprune.tasks.__file__).with_name("digits_resnet20.json")


@pytest.fixture(scope="module")
def task():
    return digits()


def test_splits_are_disjoint_stratified_and_together_the_whole_data_set(task):
    splits = (task.training, task.search, task.test)
    assert [len(split) for split in splits] == [1078, 360, 359]
    images = np.concatenate([split.pixels for split in splits])
    # No two digits of the data set are alike, so equal counts of distinct images mean disjoint.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    whole = np.bincount(load_digits().target)
    for split in splits:
        share = len(split) / 1797
        assert np.abs(np.bincount(split.targets) - share * whole).max() <= 1


def test_two_calls_give_the_same_splits(task):
    again = digits()
    for split in ("training", "search", "test"):
        assert (getattr(task, split).pixels == getattr(again, split).pixels).all()


def test_the_deployment_batch_is_a_page_of_64_resized_digits(task):
    (inputs,) = task.example_inputs()
    assert inputs.shape == (64, 1, 32, 32)
    assert inputs.dtype == torch.float32
    assert digits(batch=3).example_inputs()[0].shape == (3, 1, 32, 32)


def test_normalisation_is_that_of_the_training_split(task):
    # Bilinear resizing keeps the mean nearly and shrinks the deviation: of the 8x8 originals.
    originals = load_digits().images
    small = task.training.pixels.reshape(-1, 8, 4, 8, 4)
    assert small.mean() == pytest.approx(MEAN[0], abs=0.05)
    assert originals.std() == pytest.approx(STD[0], abs=0.05)


def test_shipped_weights_reach_the_recorded_accuracy(task):
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["splits"]
    model = ModelSource.parse("digits").build()
    for split in ("search", "test"):
        score = task.evaluate(model, split)
        assert score.samples == recorded[split]["samples"]
        # Other processors round differently: one sample on the edge may change sides.
        assert score.accuracy == pytest.approx(
            recorded[split]["accuracy"], abs=1.01 / score.samples
        )
        assert score.loss == pytest.approx(recorded[split]["loss"], rel=0.01)
        assert score.accuracy >= 0.97


def test_nothing_may_follow_the_name():
    with pytest.raises(TaskError, match="takes nothing after its name, but got 'mnist'"):
        digits("mnist")
