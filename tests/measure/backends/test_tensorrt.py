from autoprune.testing.backends import BackendConformance


class TestTensorRt(BackendConformance):
    def name(self):
        return "tensorrt"
