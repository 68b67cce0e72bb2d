import pytest

from autoprune.testing.backends import BackendConformance


@pytest.mark.slow  # a compiler runs
class TestTorchCompile(BackendConformance):
    def name(self):
        return "torch-compile"


@pytest.mark.slow
class TestTorchCompileCuda(BackendConformance):
    def name(self):
        return "torch-compile-cuda"
