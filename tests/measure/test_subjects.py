import itertools

import pytest
import torch
from torch import nn

from autoprune.errors import MeasureError
from autoprune.latency.layers import ops_from_rows
from autoprune.measure.subjects import Sampler, Source
from autoprune.network.resnet import SmallResNet


@pytest.fixture(scope="module")
def source():
    return Source("net", SmallResNet(8).eval(), torch.zeros(1, 3, 16, 16))


def laps(sampler, count):
    return list(itertools.islice(sampler.laps(), count))


def test_first_network_is_whole_and_every_third_is_for_the_check(source):
    sampler = Sampler([source], alignment=4, kernels=0)
    subjects = [draw.build() for lap in laps(sampler, 4) for draw in lap]
    assert [subject.columns["role"] for subject in subjects] == ["check", "fit", "fit", "check"]
    assert [subject.name for subject in subjects] == ["net#0", "net#1", "net#2", "net#3"]
    sizes = [sum(p.numel() for p in subject.module.parameters()) for subject in subjects]
    assert sizes[0] == sum(p.numel() for p in source.network.model.parameters())
    assert max(sizes[1:]) < sizes[0]
    assert len(set(sizes)) == 4


def test_layers_describe_the_pruned_network(source):
    subject = laps(Sampler([source], alignment=1, kernels=0), 2)[1][0].build()
    macs = int(ops_from_rows(subject.layers).macs()[0])
    convolutions = [m for m in subject.module.modules() if isinstance(m, nn.Conv2d)]
    listed = [row for row in subject.layers if row[0] == "conv"]
    assert [(row[1], row[2]) for row in listed] == [
        (m.in_channels, m.out_channels) for m in convolutions
    ]
    assert 0 < macs < int(source.network.ops.macs()[0])


def test_draws_are_the_same_every_time_and_differ_with_the_seed(source):
    def names(seed):
        sampler = Sampler([source], alignment=2, kernels=3, seed=seed)
        return [draw.name for lap in laps(sampler, 3) for draw in lap]

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_kernels_are_distinct_and_of_pruned_networks(source):
    sampler = Sampler([source], alignment=1, kernels=5)
    draws = [draw for lap in laps(sampler, 4) for draw in lap if draw.kind == "kernel"]
    assert len({draw.name for draw in draws}) == len(draws) > 10
    assert any(draw.build().columns.get("cin") not in (3, 16, 32, 64) for draw in draws)


def test_kernels_run_out_without_a_loop():
    tiny = Source("tiny", nn.Sequential(nn.Conv2d(3, 2, 1)).eval(), torch.zeros(1, 3, 4, 4))
    draws = [draw for lap in laps(Sampler([tiny], alignment=1, kernels=3), 3) for draw in lap]
    assert sum(draw.kind == "kernel" for draw in draws) == 1


def test_other_inputs_than_tensors_are_refused():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *, x):
            return self.layer(x)

    with pytest.raises(MeasureError, match="positional tensors"):
        Source("named", Named().eval(), {"x": torch.zeros(1, 4)})
