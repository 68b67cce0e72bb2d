import numpy as np

from autoprune.tuning.order import SampleOrder, augmentation_rng, torch_seed


def test_every_epoch_visits_each_sample_once_in_another_order():
    order = SampleOrder(12, 4, seed=0)
    epochs = [np.concatenate([order.positions(3 * e + s) for s in range(3)]) for e in range(3)]
    assert order.per_epoch == 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_does_not_depend_on_those_before():
    one, other = SampleOrder(50, 8, seed=3), SampleOrder(50, 8, seed=3)
    expected = [one.positions(step).tolist() for step in range(20)]
    assert [other.positions(step).tolist() for step in reversed(range(20))] == expected[::-1]
    assert SampleOrder(50, 8, seed=4).positions(0).tolist() != expected[0]


def test_what_fills_no_batch_is_left_out_and_few_samples_are_one():
    order = SampleOrder(10, 4, seed=0)
    assert order.per_epoch == 2
    assert SampleOrder(3, 8, seed=0).batch == 3
    assert sorted(SampleOrder(3, 8, seed=0).positions(5)) == [0, 1, 2]


def test_random_numbers_differ_by_step_process_and_purpose():
    drawn = {
        float(augmentation_rng(seed, step, rank).random())
        for seed in (0, 1)
        for step in (0, 1)
        for rank in (0, 1)
    }
    assert len(drawn) == 8
    assert augmentation_rng(0, 1, 0).random() == augmentation_rng(0, 1, 0).random()
    assert len({torch_seed(s, t, r) for s in (0, 1) for t in (0, 1) for r in (0, 1)}) == 8
