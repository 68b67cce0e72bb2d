import pytest

from autoprune.strategy.registry import SAMPLERS, wanted_damage
from autoprune.testing.samplers import (
    SamplerConformance,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["knapsack"]


def test_it_wants_damage_curves():
    assert wanted_damage("knapsack") == "obs"
