import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from autoprune.strategy.registry import SAMPLERS, wanted_damage
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    quiet_optuna,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["knapsack"]


class TestOptunaConformance(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture(autouse=True)
    def _quiet(self):
        with quiet_optuna():
            yield

    @pytest.fixture
    def sampler(self):
        problem = made_up_problem(1, 8)
        return lambda: SAMPLERS["knapsack"](problem, seed=0)


def test_it_wants_damage_curves():
    assert wanted_damage("knapsack") == "obs"
