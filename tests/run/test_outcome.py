import numpy as np
import torch
from torch import nn

from autoprune.evaluation import Evaluation
from autoprune.execution.driver import Record
from autoprune.run.outcome import _chosen_network
from autoprune.run.preparation import prepare
from autoprune.run.settings import RunSettings
from autoprune.strategy.settings import SpaceSettings
from autoprune.testing.profiles import made_up_profile
from autoprune.testing.tasks import TeacherTask


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        return x + self.outer(self.inner(x).relu())


def test_groups_of_removed_blocks_keep_nothing():
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block(), *head).eval()
    prepared = prepare(
        RunSettings(device="here", criterion="l1", realise="slice"),
        SpaceSettings(version=1, multiple=1),
        made_up_profile(),
        model=model,
        task=TeacherTask(model, shape=(2, 3, 8, 8)),
        say=lambda sentence: None,
    )
    space = prepared.problem.space
    candidate = space.candidates(space.sizes[None], np.array([[False, True]]))[0]
    evaluation = Evaluation(
        candidate=candidate, status="complete", latency_ms=1.0, macs=1, params=1
    )
    chosen = Record(number=3, evaluation=evaluation)
    found = _chosen_network(chosen, prepared)
    assert {width.name: width.kept for width in found.widths} == {
        "0": 8,
        "1.inner": 0,
        "2.inner": 6,
    }
    assert found.removed_blocks == ("1",)
