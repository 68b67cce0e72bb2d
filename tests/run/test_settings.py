import pytest

from autoprune.errors import AutopruneError, SettingsError, UnknownNameError
from autoprune.registry import Registry
from autoprune.run.settings import RunSettings
from autoprune.strategy.registry import SAMPLERS, wants_damage


def test_defaults_fill_what_is_left_out(board):
    settings = RunSettings.checked({"device": board, "budget_ms": 10})
    assert (settings.model, settings.data, settings.trials) == ("digits", "digits", 50)
    assert settings.budget_ms == 10.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "tpa"}, "no sampler named 'tpa'; did you mean 'tpe'"),
        ({"criterion": "l3"}, "no criterion named 'l3'; did you mean 'l2'"),
        ({"damage": "fischer"}, "no criterion named 'fischer'; did you mean 'fisher'"),
        ({"realise": "merged"}, "no realisation named 'merged'; did you mean 'merge'"),
        ({"space": "defalt"}, "no search space named 'defalt'; did you mean 'default'"),
        ({"device": "no_such_board"}, "no device profile named 'no_such_board'"),
    ],
)
def test_unknown_name_offers_the_nearest(board, change, message):
    with pytest.raises(UnknownNameError, match=message):
        RunSettings.checked({"device": board, **change})


def test_all_faults_come_at_once(board):
    wrong = {
        "device": board,
        "sampler": "tpa",
        "trials": 0,
        "budget_ms": float("inf"),
        "executor": "slurm",
        "colour": "red",
    }
    with pytest.raises(SettingsError) as raised:
        RunSettings.checked(wrong)

    message = str(raised.value)
    assert "5 settings are wrong" in message
    for part in ("sampler named 'tpa'", "trials:", "budget_ms:", "executor:", "colour:"):
        assert part in message


def test_device_must_be_given():
    with pytest.raises(SettingsError, match="device: missing; `autoprune devices` lists"):
        RunSettings.checked({})


def test_limits_may_change_and_nothing_else(board):
    settings = RunSettings.checked({"device": board, "trials": 5})
    changed = settings.with_limits({"trials": 9, "workers": 2})

    assert (changed.trials, changed.workers, changed.device) == (9, 2, board)
    with pytest.raises(SettingsError, match=r"only trials, time_limit and workers.*not sampler"):
        settings.with_limits({"sampler": "random"})
    with pytest.raises(SettingsError, match="trials: should be greater than or equal to 1, got 0"):
        settings.with_limits({"trials": 0})


@pytest.fixture
def planner(monkeypatch):
    """Name of a sampler that wants damage from structured OBS."""
    registry = Registry("sampler", package="autoprune.strategy.samplers")
    registry.register("planner")(wants_damage("obs")(lambda problem, *, seed: None))
    registry.register("random")(SAMPLERS["random"])
    monkeypatch.setattr("autoprune.strategy.registry.SAMPLERS", registry)
    return "planner"


@pytest.mark.parametrize(
    ("given", "damage", "criterion"),
    [
        ({"sampler": "random"}, None, "l2"),
        ({"sampler": "planner"}, "obs", "obs"),
        ({"sampler": "planner", "criterion": "l1"}, "obs", "l1"),
        ({"sampler": "planner", "damage": "fisher"}, "fisher", "fisher"),
        ({"sampler": "random", "damage": "taylor"}, "taylor", "taylor"),
        ({"sampler": "random", "warm_start": 3}, "obs", "obs"),
        ({"sampler": "planner", "damage": "fisher", "warm_start": 3}, "fisher", "fisher"),
    ],
)
def test_units_are_ranked_by_what_tells_the_damage_unless_said_otherwise(
    board, planner, given, damage, criterion
):
    settings = RunSettings.checked({"device": board, **given})
    assert (settings.damage, settings.criterion) == (damage, criterion)
    assert RunSettings.model_validate(settings.model_dump()) == settings


def test_damage_is_summed_over_groups_and_so_must_compare_across_them(board):
    with pytest.raises(SettingsError, match=r"'l2' do not compare across groups; .*fisher.*obs"):
        RunSettings.checked({"device": board, "damage": "l2"})


def test_options_of_the_sampler_are_checked_with_the_rest(board):
    options = {"population_size": 7, "mutation_prob": None, "crossover_prob": 0.5}
    settings = RunSettings.checked(
        {"device": board, "sampler": "nsga2", "sampler_options": options}
    )
    assert settings.sampler_options == options
    copy = RunSettings.model_validate_json(settings.model_dump_json())
    assert copy.sampler_options == options
    assert type(copy.sampler_options["population_size"]) is int
    with pytest.raises(SettingsError) as raised:
        RunSettings.checked(
            {
                "device": board,
                "sampler": "tpe",
                "sampler_options": {"size": 1, "multivariate": 3},
                "warm_start": -1,
            }
        )
    message = str(raised.value)
    assert "2 settings are wrong" in message
    assert "no option 'size'" in message
    assert "multivariate should be bool, got 3" in message
    assert "warm_start: " in message


def test_samplers_by_path_are_looked_up(board):
    path = "optuna.samplers:QMCSampler"
    options = {"qmc_type": "halton"}
    settings = RunSettings.checked({"device": board, "sampler": path, "sampler_options": options})
    assert (settings.sampler, settings.damage) == (path, None)
    with pytest.raises(SettingsError, match="has nothing called 'QMC'"):
        RunSettings.checked({"device": board, "sampler": "optuna.samplers:QMC"})


def test_what_is_asked_of_ray_is_checked_and_needs_ray():
    with pytest.raises(
        SettingsError,
        match=r"2 settings are wrong:\n.*ray: expected local.*\n.*logger named 'tensorbord'",
    ):
        RunSettings.checked({"device": "jetson", "ray": "my", "loggers": ["tensorbord"]})
    with pytest.raises(
        SettingsError, match="'inline' evaluates in this process, without ray, storage"
    ):
        RunSettings.checked(
            {"device": "jetson", "executor": "inline", "ray": "local", "storage": "kept"}
        )


def test_run_that_goes_on_may_do_so_on_another_cluster():
    settings = RunSettings.checked({"device": "jetson", "trials": 3})
    moved = settings.with_limits({"ray": "ray://head:10001", "gpus_per_trial": 0.5})
    assert (moved.ray, moved.gpus_per_trial, moved.trials) == ("ray://head:10001", 0.5, 3)
    with pytest.raises(SettingsError, match="ray: expected local"):
        settings.with_limits({"ray": "my"})


def test_objectives_and_counts_are_read_as_people_write_them(board):
    settings = RunSettings.checked(
        {"device": board, "objective": "accuracy, params,macs", "max_params": "1.5M"}
    )
    assert settings.objective == ("accuracy", "params", "macs")
    assert settings.max_params == 1_500_000
    again = RunSettings.model_validate_json(settings.model_dump_json())
    assert again == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "params,accuracy"}, "accuracy first"),
        ({"objective": ["accuracy", "energy"]}, "no measured power"),
        ({"max_params": "1.5Q"}, "max_params: .*'1.5Q'"),
        ({"max_params": 0}, "max_params"),
        ({"max_latency_ms": {"bord": 3.0}}, "no device profile named 'bord'"),
        ({"min_accuracy": 91}, "min_accuracy"),
    ],
)
def test_goals_that_cannot_be_are_refused(board, change, message):
    with pytest.raises(AutopruneError, match=message):
        RunSettings.checked({"device": board, **change})
