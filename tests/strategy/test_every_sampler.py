"""Every registered sampler, those of new files included, in our suite and in Optuna's."""

import pytest

from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import OptunaConformance, SamplerConformance

pytestmark = pytest.mark.slow


class EverySampler:
    @pytest.fixture(params=SAMPLERS.names())
    def factory(self, request):
        return SAMPLERS[request.param]


class TestConformance(EverySampler, SamplerConformance):
    pass


class TestOptunaConformance(EverySampler, OptunaConformance):
    pass
