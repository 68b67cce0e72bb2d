import numpy as np
import pytest

from autoprune.strategy.halving import promising


def beats(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def layers_by_hand(points):
    """Return the layers of points, peeled off one by one."""
    left, layers = list(range(len(points))), []
    while left:
        front = [i for i in left if not any(beats(points[j], points[i]) for j in left)]
        layers.append(front)
        left = [i for i in left if i not in front]
    return layers


def room_by_hand(points, layer, index):
    """Return how far the neighbours of a point are apart, summed over axes."""
    total = 0.0
    for axis in range(len(points[0])):
        values = sorted(points[i][axis] for i in layer)
        below = [v for v in values if v < points[index][axis]]
        above = [v for v in values if v > points[index][axis]]
        if not below or not above:
            return np.inf
        total += (above[0] - below[-1]) / (values[-1] - values[0])
    return total


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_order_is_that_of_layers_and_room(axes, seed):
    points = np.random.default_rng(seed).random((30, 1 + axes))
    order = promising(points[:, 0], points[:, 1:], count=30).tolist()

    expected = []
    for layer in layers_by_hand(points.tolist()):
        expected += sorted(
            layer, key=lambda i, layer=layer: (-room_by_hand(points, layer, i), points[i][0])
        )
    assert order == expected
    assert promising(points[:, 0], points[:, 1:], count=7).tolist() == expected[:7]


def test_network_of_least_loss_is_the_first_and_slow_networks_are_not_all():
    loss = np.array([0.9, 0.5, 0.1, 0.12, 0.13])
    latency = np.array([[1.0], [2.0], [9.0], [9.5], [9.9]])
    assert promising(loss, latency, count=3).tolist() == [2, 0, 1]


def test_few_and_equal_networks():
    nothing = promising(np.zeros(0), np.zeros((0, 1)), count=3)
    assert nothing.tolist() == []
    same = promising(np.ones(4), np.ones((4, 1)), count=4)
    assert sorted(same.tolist()) == [0, 1, 2, 3]
