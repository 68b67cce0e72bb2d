import numpy as np

from autoprune.strategy.moves import neighbour, shifted, single_moves, with_moves
from autoprune.strategy.space import Candidate, Dimension, SearchSpace

SPACE = SearchSpace(
    (Dimension("a", 20, 8, 8), Dimension("b", 9, 1), Dimension("c", 4, 4)),
    ("one", "two"),
    (True, False),
    ((1,), ()),
    1,
)


def test_shifts_follow_the_grid_from_end_to_end():
    for levels, expected in ((1, [16, 20, 20]), (2, [20, 20, 20]), (-1, [8, 8, 16])):
        starts = [8, 16, 20]
        got = [int(shifted(SPACE, np.array([w, 5, 4]), levels)[0]) for w in starts]
        assert got == expected


def test_moves_double_up_to_the_bound():
    groups, targets = single_moves(
        SPACE, np.array([8, 1, 4]), bound=np.array([20, 8, 4]), allowed=np.ones(3, bool)
    )
    assert sorted(zip(groups.tolist(), targets.tolist(), strict=True)) == [
        (0, 16),
        (0, 20),
        (1, 2),
        (1, 3),
        (1, 5),
        (1, 8),
    ]


def test_moves_go_down_and_skip_what_is_not_allowed():
    groups, targets = single_moves(
        SPACE,
        np.array([20, 4, 4]),
        bound=SPACE.smallest_widths,
        allowed=np.array([True, False, True]),
    )
    assert list(zip(groups.tolist(), targets.tolist(), strict=True)) == [(0, 16), (0, 8)]


def test_each_row_has_one_move():
    rows = with_moves(np.array([8, 1, 4]), np.array([0, 1]), np.array([16, 5]))
    assert rows.tolist() == [[16, 1, 4], [8, 5, 4]]


def test_neighbours_differ_a_little_and_are_snapped():
    rng = np.random.default_rng(0)
    start = SPACE.snap(Candidate((0.6, 0.5, 0.0), (False, False)))
    for _ in range(200):
        other = neighbour(SPACE, start, rng)
        assert other != start
        assert SPACE.snap(other) == other
        changed = [a != b for a, b in zip(other.ratios, start.ratios, strict=True)]
        # A dropped block takes its groups with it.
        assert sum(changed) + (other.dropped != start.dropped) <= 1 + other.dropped[0]
        assert not other.dropped[1]


def test_every_place_is_moved():
    # Four places of which one is drawn: one of them is missed in 200 draws with a probability
    # below 3 * (2/3) ** 200 < 1e-34.
    rng = np.random.default_rng(0)
    start = SPACE.dense()
    seen = [neighbour(SPACE, start, rng) for _ in range(200)]
    assert any(candidate.ratios[0] for candidate in seen)
    assert any(candidate.ratios[1] for candidate in seen)
    assert any(candidate.dropped[0] for candidate in seen)


def test_nothing_to_move_is_no_error():
    space = SearchSpace((Dimension("a", 4, 4),))
    assert neighbour(space, space.dense(), np.random.default_rng(0)) == space.dense()
