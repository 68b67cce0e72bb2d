import pytest

from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import SamplerConformance


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["group_fisher"]
