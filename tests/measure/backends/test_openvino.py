from autoprune.testing.backends import BackendConformance


class TestOpenVino(BackendConformance):
    def name(self):
        return "openvino"
