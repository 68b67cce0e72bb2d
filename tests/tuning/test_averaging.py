import torch
from torch import nn

from autoprune.tuning.averaging import MovingAverage


def test_average_follows_the_plain_recursion():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = MovingAverage(model, 0.5)
    weight, mean = model[0].weight.detach().clone(), model[1].running_mean.clone()
    for step in range(12):
        with torch.no_grad():
            model[0].weight.add_(1.0 + step)
            model[1].running_mean.add_(0.5)
            model[1].num_batches_tracked.add_(1)
        decay = min(0.5, (1 + step) / (10 + step))
        weight = decay * weight + (1 - decay) * model[0].weight
        mean = decay * mean + (1 - decay) * model[1].running_mean
        average.update(model, step)
    torch.testing.assert_close(average.model[0].weight, weight)
    torch.testing.assert_close(average.model[1].running_mean, mean)
    assert int(average.model[1].num_batches_tracked) == 12
    assert not torch.allclose(average.model[0].weight, model[0].weight)


def test_shared_parameters_are_averaged_once():
    first = nn.Linear(2, 2)
    model = nn.Sequential(first, first)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        first.weight.add_(1.0)
    before = average.model[0].weight.clone()
    average.update(model, 0)
    assert average.model[0].weight is average.model[1].weight
    torch.testing.assert_close(average.model[0].weight, before + 0.9)  # decay 1 / 10
