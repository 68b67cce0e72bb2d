from autoprune.testing.backends import BackendConformance


class TestTorchEager(BackendConformance):
    def name(self):
        return "torch"


class TestTorchEagerCuda(BackendConformance):
    def name(self):
        return "torch-cuda"
