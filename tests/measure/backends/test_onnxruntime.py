from autoprune.testing.backends import BackendConformance


class TestOnnxRuntime(BackendConformance):
    def name(self):
        return "onnxruntime"


class TestOnnxRuntimeCuda(BackendConformance):
    def name(self):
        return "onnxruntime-cuda"


class TestOnnxRuntimeTensorrt(BackendConformance):
    def name(self):
        return "onnxruntime-tensorrt"
