import pytest
from optuna.samplers import QMCSampler, TPESampler

from autoprune.errors import SettingsError
from autoprune.strategy.options import check_options, parse_options
from autoprune.strategy.registry import SAMPLERS


def test_values_are_numbers_words_or_text():
    texts = [
        "a=40",
        "b=0.5",
        "c=True",
        "d=false",
        "e=none",
        "f=halton",
        "g = 1e-3 ",
        "h='7'",
        "i=-2",
    ]
    assert parse_options([*texts, "j=[1, 2]", "k="]) == {
        "a": 40,
        "b": 0.5,
        "c": True,
        "d": False,
        "e": None,
        "f": "halton",
        "g": 1e-3,
        "h": "7",
        "i": -2,
        "j": "[1, 2]",
        "k": "",
    }


def test_all_malformed_texts_are_named():
    with pytest.raises(SettingsError) as caught:
        parse_options(["population_size", "a=1", "a=2", "b c=3"])
    message = str(caught.value)
    assert "'population_size' is not of the form name=value" in message
    assert "'a' is given twice" in message
    assert "'b c=3' is not" in message


def test_all_wrong_options_come_at_once():
    options = {"populaton_size": 40, "mutation_prob": "high", "crossover_prob": 1, "seed": 3}
    with pytest.raises(SettingsError) as caught:
        check_options("nsga2", SAMPLERS["nsga2"], options)
    message = str(caught.value)
    assert "no option 'populaton_size'; did you mean 'population_size'?" in message
    assert "mutation_prob should be float | None, got 'high'" in message
    assert "no option 'seed'" in message
    # A whole number is a float too.
    assert "crossover_prob should" not in message
    first = message.splitlines()[0]
    assert first.endswith(
        "'nsga2' has: crossover_prob, mutation_prob, population_size, swapping_prob"
    )


@pytest.mark.parametrize(
    ("value", "fits"), [(4, True), (4.0, False), (True, False), ("4", False), (None, False)]
)
def test_types_are_strict(value, fits):
    def factory(problem, *, seed: int, size: "int" = 1, rest=None):
        """Make nothing."""

    if fits:
        check_options("mine", factory, {"size": value, "rest": object()})
    else:
        with pytest.raises(SettingsError, match="size should be int, got"):
            check_options("mine", factory, {"size": value})


def test_optunas_own_classes_are_checked():
    check_options("qmc", QMCSampler, {"qmc_type": "halton", "scramble": True})
    with pytest.raises(SettingsError, match="scramble should be bool, got 'yes'"):
        check_options("qmc", QMCSampler, {"scramble": "yes"})
    # This annotation is imported for type checkers only.
    check_options("tpe", TPESampler, {"gamma": len})


def test_further_keywords_pass_where_there_are_any():
    check_options("mine", lambda problem, *, seed, **others: None, {"anything": 1})


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_option_has_a_default_of_its_type(name):
    import inspect

    parameters = inspect.signature(SAMPLERS[name]).parameters
    options = {key: p.default for key, p in parameters.items() if key not in ("problem", "seed")}
    assert inspect.Parameter.empty not in options.values()
    check_options(name, SAMPLERS[name], options)
