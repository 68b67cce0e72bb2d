from __future__ import annotations

from autoprune.pruning.realise.slice import Slice
from autoprune.testing.realisers import RealiserSuite


class TestSlice(RealiserSuite):
    def build(self):
        return Slice()
