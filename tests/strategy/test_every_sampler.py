"""Every registered sampler, those of new files included, in Optuna's own suites."""

import pytest

from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import OptunaConformance

pytestmark = pytest.mark.slow


class TestOptunaConformance(OptunaConformance):
    @pytest.fixture(params=SAMPLERS.names())
    def factory(self, request):
        return SAMPLERS[request.param]
