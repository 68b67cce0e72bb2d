from __future__ import annotations

from autoprune.pruning.realise.statistics import Statistics
from autoprune.testing.realisers import RealiserSuite


class TestStatistics(RealiserSuite):
    def build(self):
        return Statistics()
