from __future__ import annotations

from autoprune.pruning.realise.reconstruct import Reconstruct
from autoprune.testing.realisers import RealiserSuite


class TestReconstruct(RealiserSuite):
    def build(self):
        return Reconstruct()
