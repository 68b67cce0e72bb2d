import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.network.groups import Block, ChannelGroup, ParamSlice
from autoprune.strategy.space import (
    BlockSettings,
    Candidate,
    Dimension,
    GroupSettings,
    SearchSpace,
    SpaceSettings,
    build_space,
)

SPACE = SearchSpace(
    dimensions=(
        Dimension("stem", 20, 4, 8),
        Dimension("a", 16, 4, 4),
        Dimension("frozen", 6, 6),
        Dimension("b", 5, 1),
    ),
    blocks=("one", "two", "three"),
    droppable=(True, True, False),
    inside=((1,), (3,), ()),
    max_dropped=1,
)


def group(name, size, per_unit=1, members=None):
    if members is None:
        members = (ParamSlice(f"{name}.weight", 0, np.arange(size * per_unit).reshape(size, -1)),)
    return ChannelGroup(name, size, members)


def every(space):
    """Every combination of allowed widths and droppable blocks, whether allowed or not."""
    widths = itertools.product(*(dim.widths.tolist() for dim in space.dimensions))
    flags = itertools.product(*([False, True] for _ in space.blocks))
    for row, dropped in itertools.product(widths, flags):
        ratios = tuple(1.0 - w / dim.size for w, dim in zip(row, space.dimensions, strict=True))
        yield Candidate(ratios, tuple(dropped))


class TestDimension:
    def test_widths_are_multiples_and_the_full_size(self):
        assert SPACE.dimensions[0].widths.tolist() == [8, 16, 20]
        assert SPACE.dimensions[1].widths.tolist() == [4, 8, 12, 16]
        assert SPACE.dimensions[2].widths.tolist() == [6]
        assert not SPACE.dimensions[2].searched

    def test_a_minimum_above_the_last_multiple_leaves_the_full_size(self):
        assert Dimension("g", 20, 17, 8).widths.tolist() == [20]

    @pytest.mark.parametrize(("minimum", "multiple"), [(0, 1), (9, 1), (1, 0)])
    def test_impossible_bounds_are_refused(self, minimum, multiple):
        with pytest.raises(SettingsError, match="expected 1 <= minimum <= size"):
            Dimension("g", 8, minimum, multiple)


class TestCandidate:
    def test_key_is_the_same_in_another_process(self):
        candidate = Candidate((0.5, 1 / 3), (True, False))
        code = (
            "from autoprune.strategy.space import Candidate;"
            "print(Candidate((0.5, 1 / 3), (True, False)).key)"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert other.stdout.decode().strip() == candidate.key

    def test_key_survives_json(self):
        candidate = Candidate((0.1 + 0.2, 2 / 3), (False,))
        copy = Candidate(tuple(json.loads(json.dumps(candidate.ratios))), (False,))
        assert copy.key == candidate.key

    def test_keys_tell_candidates_apart(self):
        snapped = {SPACE.snap(candidate) for candidate in every(SPACE)}
        # 3 * 4 * 5 with all blocks, 3 * 5 without the first, 3 * 4 without the second.
        assert len({candidate.key for candidate in snapped}) == len(snapped) == 87

    def test_zero_has_one_key(self):
        assert Candidate((-0.0,)).key == Candidate((0.0,)).key


class TestSearchSpace:
    def test_distributions_are_those_searched(self):
        searched = SPACE.distributions()
        assert list(searched) == ["ratio/stem", "ratio/a", "ratio/b", "drop/one", "drop/two"]
        assert searched["ratio/stem"].high == 1 - 8 / 20
        assert searched["drop/one"].choices == (False, True)

    def test_no_drop_is_searched_if_none_is_allowed(self):
        space = dataclasses.replace(SPACE, max_dropped=0)
        assert not any(name.startswith("drop/") for name in space.distributions())

    def test_params_and_candidate_are_inverse(self):
        for candidate in {SPACE.snap(candidate) for candidate in every(SPACE)}:
            params = SPACE.params(candidate)
            assert params.keys() == SPACE.distributions().keys()
            assert SPACE.candidate(params) == candidate
            for name, distribution in SPACE.distributions().items():
                # Optuna draws values outside the distribution anew, silently.
                assert distribution._contains(distribution.to_internal_repr(params[name]))

    def test_foreign_parameters_are_refused(self):
        with pytest.raises(SettingsError, match=r"\['ratio/other'\].*another model"):
            SPACE.candidate({"ratio/other": 0.5})

    def test_widths_are_the_nearest_on_the_grid(self):
        rng = np.random.default_rng(0)
        ratios = rng.uniform(size=(300, 4))
        widths = SPACE.widths([Candidate(tuple(row), (False,) * 3) for row in ratios.tolist()])
        for row, chosen in zip(ratios, widths, strict=True):
            for dim, ratio, width in zip(SPACE.dimensions, row, chosen, strict=True):
                distance = np.abs(dim.widths - dim.size * (1 - ratio))
                assert width in dim.widths
                assert abs(width - dim.size * (1 - ratio)) == pytest.approx(distance.min())

    def test_snapping_is_idempotent_and_realises_the_same(self):
        rng = np.random.default_rng(1)
        for _ in range(300):
            raw = Candidate(tuple(rng.uniform(size=4)), tuple((rng.uniform(size=3) < 0.5).tolist()))
            snapped = SPACE.snap(raw)
            assert SPACE.snap(snapped) == snapped
            assert SPACE.snap(snapped).key == snapped.key
            assert (SPACE.widths([raw]) == SPACE.widths([snapped])).all()
            assert (SPACE.keep([raw]) == SPACE.keep([snapped])).all()

    def test_groups_inside_a_dropped_block_are_whole(self):
        snapped = SPACE.snap(Candidate((0.0, 0.75, 0.0, 0.8), (True, False, False)))
        assert snapped == Candidate((0.0, 0.0, 0.0, 0.8), (True, False, False))
        assert SPACE.widths([snapped]).tolist() == [[20, 16, 6, 1]]

    def test_blocks_that_may_not_go_stay(self):
        assert not SPACE.snap(Candidate((0.0,) * 4, (False, False, True))).dropped[2]

    @pytest.mark.parametrize("limit", range(9))
    def test_too_many_drops_are_thinned_evenly(self, limit):
        space = SearchSpace((), tuple("abcdefgh"), (True,) * 8, (), limit)
        kept = space.keep([Candidate((), (True,) * 8)])[0]
        gone = np.flatnonzero(~kept)
        assert len(gone) == limit
        if limit > 1:
            assert np.ptp(np.diff(gone)) <= 1

    def test_dense_and_smallest(self):
        assert SPACE.widths([SPACE.dense()]).tolist() == [[20, 16, 6, 5]]
        assert SPACE.widths([SPACE.smallest()]).tolist() == [[8, 4, 6, 1]]
        assert SPACE.keep([SPACE.dense(), SPACE.smallest()]).all()

    def test_no_candidates_no_rows(self):
        assert SPACE.widths([]).shape == (0, 4)
        assert SPACE.keep([]).shape == (0, 3)

    def test_lists_of_blocks_must_agree(self):
        with pytest.raises(SettingsError, match="each of 2 blocks, got 1 and 0"):
            SearchSpace((), ("one", "two"), (True,))


class TestBuildSpace:
    def build(self, traced, removable=(), /, *, alignment=1, **settings):
        return build_space(
            traced, removable, SpaceSettings(version=1, **settings), alignment=alignment
        )

    @pytest.mark.parametrize(
        ("size", "max_ratio", "minimum"), [(10, 0.9, 1), (10, 0.7, 3), (20, 0.9, 2), (3, 0.0, 3)]
    )
    def test_max_ratio_is_met_exactly(self, size, max_ratio, minimum):
        space = self.build([group("g", size)], max_ratio=max_ratio)
        assert space.dimensions[0].minimum == minimum

    def test_minimum_units_bounds_small_groups(self):
        space = self.build([group("g", 16), group("tiny", 2)], minimum_units=4)
        assert [dim.minimum for dim in space.dimensions] == [4, 2]

    def test_what_the_network_insists_on_bounds_the_widths(self):
        picked = dataclasses.replace(group("experts", 8), least=2)
        aligned = dataclasses.replace(group("inner", 24), least=4, multiple=4)
        space = self.build([picked, aligned], multiple=6)
        assert space.dimensions[0].minimum == 6
        assert space.dimensions[1].widths.tolist() == [12, 24]
        assert self.build([picked]).dimensions[0].widths.tolist() == [2, 3, 4, 5, 6, 7, 8]
        assert not any(aligned.allows(width) for width in (0, 2, 6, 23, 25, 28))
        assert aligned.allows(4)

    def test_multiple_counts_channels_not_units(self):
        heads = self.build([group("attention", 12, per_unit=64)], multiple=8)
        assert heads.dimensions[0].multiple == 1
        quads = self.build([group("norm", 64, per_unit=4)], multiple=32)
        assert quads.dimensions[0].multiple == 8
        odd = self.build([group("odd", 32, per_unit=6)], multiple=8)
        assert odd.dimensions[0].multiple == 4

    def test_multiple_is_that_of_the_producing_layer(self):
        members = (
            ParamSlice("next.weight", 1, np.arange(96).reshape(24, 4)),
            ParamSlice("conv.weight", 0, np.arange(24).reshape(24, 1)),
            ParamSlice("conv.weight", 1, np.arange(48).reshape(24, 2)),
        )
        space = self.build([group("conv", 24, members=members)], multiple=8)
        assert space.dimensions[0].multiple == 8

    def test_device_takes_the_alignment(self):
        assert self.build([group("g", 256)], alignment=32).dimensions[0].multiple == 32

    def test_device_leaves_small_groups_a_choice(self):
        small = self.build([group("g", 16)], alignment=32).dimensions[0]
        assert len(small.widths) >= 4
        # A number is meant as it is said.
        strict = self.build([group("g", 16)], multiple=32).dimensions[0]
        assert strict.widths.tolist() == [16]

    def test_later_patterns_win_key_by_key(self):
        space = self.build(
            [group("layer1.conv", 10), group("layer2.conv", 10), group("stem", 10)],
            groups={
                "layer*": GroupSettings(max_ratio=0.5, minimum_units=2),
                "layer2.*": GroupSettings(max_ratio=0.2),
                "stem": GroupSettings(freeze=True),
            },
        )
        assert [dim.minimum for dim in space.dimensions] == [5, 8, 10]

    def test_blocks(self):
        blocks = [
            Block("layer1", ("g",)),
            Block("layer2", ("g", "gone")),
            Block("layer3"),
            Block("x"),
        ]
        space = self.build(
            [group("f", 4), group("g", 4)],
            blocks,
            max_dropped=0.5,
            blocks={"layer2": BlockSettings(freeze=True)},
        )
        assert space.blocks == ("layer1", "layer2", "layer3", "x")
        assert space.droppable == (True, False, True, True)
        # A group that was frozen after the block was found is not in the space.
        assert space.inside == ((1,), (1,), (), ())
        assert space.max_dropped == 2

    @pytest.mark.parametrize("settings", [{"depth": False}, {"max_dropped": 0.1}])
    def test_depth_can_be_switched_off(self, settings):
        space = self.build([group("g", 4)], [Block("one"), Block("two")], **settings)
        assert space.droppable == (False, False)

    def test_patterns_that_match_nothing_are_all_reported(self):
        with pytest.raises(SettingsError) as caught:
            self.build(
                [group("layer1.0.conv1", 4), group("stem", 4)],
                [Block("layer1.0")],
                groups={"layer1.0.conv": GroupSettings(), "Stem*": GroupSettings()},
                blocks={"layer9": BlockSettings(freeze=True)},
            )
        message = str(caught.value)
        assert "no group matches 'layer1.0.conv'; near names: layer1.0.conv1" in message
        assert "no group matches 'Stem*'" in message
        assert "no block matches 'layer9'; near names: layer1.0" in message


def test_no_torch_is_loaded():
    code = (
        "import sys, autoprune.strategy.projected as p, autoprune.strategy.registry as r;"
        "r.SAMPLERS.names(); print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().split() == ["False", "False"]
