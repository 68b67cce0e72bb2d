import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import MOST_APART, Dimension, build_space
from autoprune.strategy.ties import Grid, shared_grid, tied


def group(name, size, per_unit=1, kind="channel"):
    indices = np.arange(size * per_unit).reshape(size, per_unit)
    members = (ParamSlice(f"{name}.weight", 0, indices), ParamSlice(f"{name}.bias", 0, indices))
    return ChannelGroup(name, size, members, kind=kind)


GROUPS = [
    group("stem", 16),
    group("layer1.0.conv1", 16),
    group("layer1.1.conv1", 16),
    group("layer1.10.conv1", 16),
    group("layer2.0.conv1", 32),
    group("layer2.1.conv1", 32),
    group("layer2.1.conv2", 32),
]


def test_groups_of_one_pattern_are_tied():
    assert tied(GROUPS, ["layer1.*", "stem", "*conv2"], isomorphic=False) == {"layer1.*": (1, 2, 3)}


def test_isomorphic_groups_differ_in_numbers_between_dots_alone():
    assert tied(GROUPS, [], isomorphic=True) == {
        "layer1.0.conv1": (1, 2, 3),
        "layer2.0.conv1": (4, 5),
    }
    heads = [group("0.fc", 8), group("1.fc", 8), group("2.fc", 8, kind="head"), group("3.fc", 8, 2)]
    assert tied(heads, [], isomorphic=True) == {"0.fc": (0, 1)}


def test_patterns_come_before_structure():
    assert tied(GROUPS, ["layer1.[01].conv1"], isomorphic=True) == {
        "layer1.[01].conv1": (1, 2),
        "layer2.0.conv1": (4, 5),
    }


def test_a_group_is_in_one_tie():
    with pytest.raises(SettingsError) as caught:
        tied(GROUPS, ["layer1.*", "*.1.*"], isomorphic=False)
    assert "group 'layer1.1.conv1' matches both 'layer1.*' and '*.1.*'" in str(caught.value)


def test_the_shared_grid_has_the_widths_that_all_allow():
    rng = np.random.default_rng(0)
    for _ in range(200):
        grids = []
        for _ in range(int(rng.integers(2, 4))):
            size = int(rng.choice([8, 12, 16, 24, 32, 36]))
            grids.append(Grid(size, int(rng.integers(1, size + 1)), int(rng.integers(1, 7))))
        shared = shared_grid(grids)
        found = Dimension("", shared.size, min(shared.minimum, shared.size), shared.multiple)
        allowed = [set(Dimension("", g.size, g.minimum, g.multiple).widths.tolist()) for g in grids]
        # A plain scan: what every grid allows in proportion, but for whole numbers of the multiple
        # of one that are the full size of another.
        expected = [
            w
            for w in range(1, shared.size)
            if all(
                w * (g.size // shared.size) in widths
                and not (w * (g.size // shared.size)) % g.multiple
                for g, widths in zip(grids, allowed, strict=True)
            )
        ]
        assert found.widths.tolist() == [*expected, shared.size]


@pytest.mark.parametrize("count", [MOST_APART, MOST_APART + 1])
def test_deep_networks_are_tied_by_structure_unless_told_otherwise(count):
    kinds = [f"stage{index % 3}.{index}.conv1" for index in range(count)]
    groups = [group(name, 16) for name in kinds]

    def dimensions(**settings):
        return len(
            build_space(groups, [], SpaceSettings(version=1, **settings), alignment=1).dimensions
        )

    assert dimensions() == (count if count <= MOST_APART else 3)
    assert dimensions(isomorphic=False) == count
    assert dimensions(isomorphic=True) == 3
    # What is not searched does not count.
    assert dimensions(groups={"stage0.0.conv1": {"freeze": True}}) == count
