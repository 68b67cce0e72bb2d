from __future__ import annotations

from autoprune.pruning.realise.merge import Merge
from autoprune.testing.realisers import RealiserSuite


class TestMerge(RealiserSuite):
    def build(self):
        return Merge()
