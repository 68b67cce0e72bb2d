import itertools

import numpy as np
import pytest
from torch import nn

from autoprune.errors import TaskError
from autoprune.pruning import merge
from autoprune.pruning.distances import answer_distances
from autoprune.pruning.importance.fisher import Fisher
from autoprune.pruning.importance.obs import StructuredObs
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.plan import PruningPlan
from autoprune.run import preparation
from autoprune.run.preparation import measured_damage, prepare
from autoprune.run.settings import RunSettings
from autoprune.strategy.damage import probes
from autoprune.strategy.settings import SpaceSettings
from autoprune.testing.networks import tiny
from autoprune.testing.profiles import made_up_profile
from autoprune.testing.tasks import TeacherTask


@pytest.fixture
def prepared(board):
    """Prepares a search of a small residual network; keyword arguments are settings."""
    case = tiny("residual")
    task = TeacherTask(case.network.model, shape=(2, 3, 8, 8))

    def run(**settings):
        given = {"device": board, "sampler": "random", "calibration_samples": 32, **settings}
        return prepare(
            RunSettings.checked(given),
            SpaceSettings(version=1, multiple=1),
            made_up_profile(),
            model=case.network.model,
            task=task,
            say=lambda sentence: None,
        )

    return run


def test_samplers_know_operators_and_scores(prepared):
    found = prepared()
    assert found.problem.ops is found.network.ops
    assert found.problem.damage is None
    for group in found.network.groups:
        assert found.problem.scores[group.name].shape == (group.size,)


def test_damage_has_the_shape_of_structured_obs_and_the_size_that_was_measured(prepared):
    found = prepared(damage="obs", realise="merge")
    batches = found.task.calibration(32)
    calibrated = Calibrated.of(found.network, batches)
    damage, space, order = found.problem.damage, found.problem.space, found.problem.scores
    for group, curve in zip(found.network.groups, damage.groups, strict=True):
        shape = calibrated.elimination(group).damage[::-1]
        width = (group.size + space.smallest_widths[space.groups.index(group.name)]) // 2
        kept = np.argsort(-order[group.name], kind="stable")[:width]
        plan = PruningPlan({group.name: tuple(sorted(kept.tolist()))})
        (distance,) = answer_distances(found.network, batches, [plan], realise="merge")
        np.testing.assert_allclose(curve[width], distance**1.25, rtol=1e-4)
        np.testing.assert_allclose(curve, shape * curve[width] / shape[width], rtol=1e-6)
    plans = [PruningPlan({}, (name,)) for name in space.blocks]
    distances = answer_distances(found.network, batches, plans, realise="merge")
    np.testing.assert_allclose(damage.blocks, np.power(distances, 1.25), rtol=1e-4)


def test_damage_of_other_criteria_adds_up_the_units_that_go(prepared):
    found = prepared(damage="fisher", criterion="l1")
    batches = found.task.calibration(32)
    fisher = Fisher().score(found.network, batches)
    for group, curve in zip(found.network.groups, found.problem.damage.groups, strict=True):
        gone = np.sort(fisher[group.name])
        expected = [sum(gone[: group.size - width]) for width in range(group.size + 1)]
        np.testing.assert_allclose(curve, expected, rtol=1e-6, atol=1e-12)
        assert not np.allclose(found.problem.scores[group.name], fisher[group.name])


def test_images_pass_once_for_ranking_damage_and_realisation(prepared, monkeypatch):
    passes, measure = [], merge.measure

    def counted(*arguments, **options):
        passes.append(sum(len(inputs) for inputs, _ in arguments[1]))
        return measure(*arguments, **options)

    monkeypatch.setattr(merge, "measure", counted)
    found = prepared(damage="obs", realise="merge")
    assert sorted(passes) == [16, 32]  # the few are those that damage is measured with
    expected = StructuredObs().score(found.network, found.task.calibration(32))
    for name, scores in found.problem.scores.items():
        np.testing.assert_allclose(scores, expected[name], rtol=1e-9)
    passes.clear()
    assert prepared(realise="statistics").calibrated is None
    assert not passes


def test_criteria_say_where_they_fall_back(board):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    said = []
    prepare(
        RunSettings.checked({"device": board, "sampler": "random", "criterion": "bn_scale"}),
        SpaceSettings(version=1, multiple=1),
        made_up_profile(),
        model=model,
        task=TeacherTask(model, shape=(2, 3, 2, 2)),
        say=said.append,
    )
    assert any("criterion 'bn_scale', 1 of 1 groups (1): " in line for line in said)


def test_divergence_needs_a_task_that_scores_samples(prepared):
    with pytest.raises(TaskError, match=r"'kl' needs a task that scores sample by sample, and 'te"):
        prepared(metric="kl")


def test_unless_it_is_said_images_are_told_apart_by_calibrated_losses(board, prepared):
    settings = RunSettings.checked({"device": board, "sampler": "random"})
    space = SpaceSettings(version=1, multiple=8)
    found = prepare(settings, space, made_up_profile(), say=lambda line: None)
    assert (settings.metric, found.metric) == ("auto", "calibrated")
    assert prepared().metric == "loss"  # its task cannot be scored sample by sample
    plain = settings.model_copy(update={"metric": "loss"})
    assert prepare(plain, space, made_up_profile(), say=lambda line: None).metric == "loss"


def test_divergences_are_lifted_before_their_logarithm(board):
    settings = RunSettings.checked({"device": board, "sampler": "random", "metric": "kl"})
    found = prepare(
        settings, SpaceSettings(version=1, multiple=8), made_up_profile(), say=lambda line: None
    )
    assert found.problem.log_loss(np.zeros(1)) == pytest.approx(np.log(0.05))


def test_ties_of_deep_networks_are_said_once(board, monkeypatch):
    said = []
    monkeypatch.setattr("autoprune.strategy.space.MOST_APART", 3)
    settings = RunSettings.checked({"device": board, "sampler": "random"})
    made = prepare(
        settings, SpaceSettings(version=1, multiple=8), made_up_profile(), say=said.append
    )
    space = made.problem.space
    assert len(space.dimensions) < len(space.groups) == len(made.network.groups)
    sentences = [line for line in said if "isomorphic: false" in line]
    assert sentences == [
        f"{len(space.groups)} groups share {len(space.dimensions)} ratios by their structure; "
        "'isomorphic: false' in the search space keeps them apart"
    ]


def test_says_how_long_measuring_takes_where_that_is_long(prepared, monkeypatch):
    found = prepared(damage="obs")
    damage, network, space = found.problem.damage, found.network, found.problem.space
    given = (damage, network, space, found.problem.scores, found.task.calibration(32), "slice")
    said = []
    measured_damage(*given, say=said.append)
    assert not said
    clock = itertools.count(step=60.0)
    monkeypatch.setattr(preparation.time, "monotonic", lambda: next(clock))
    measured_damage(*given, say=said.append)
    (sentence,) = said
    assert f"each of {len(probes(space))} groups and blocks is worth, about" in sentence
