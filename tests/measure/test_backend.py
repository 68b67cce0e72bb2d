import pytest

from autoprune.errors import MeasureError, UnknownNameError
from autoprune.latency.kernels import RUNTIMES
from autoprune.latency.profile import BYTES_PER_ELEMENT
from autoprune.measure.backend import BACKENDS, open_backend


def opened(name="torch", **changes):
    return open_backend(name, **{"threads": 1, "precision": "fp32", "clock": "auto", **changes})


def test_every_backend_has_fusion_rules_and_known_precisions():
    assert {"torch", "torch-compile", "onnxruntime", "openvino", "tensorrt"} <= set(
        BACKENDS.names()
    )
    for name in BACKENDS.names():
        assert BACKENDS[name].rules in RUNTIMES
        assert set(BACKENDS[name].precisions) <= set(BYTES_PER_ELEMENT)


def test_unknown_runtime_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        opened("onnx-runtime")


def test_absent_runtime_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(BACKENDS["tensorrt"], "missing", lambda: "install it so")
    with pytest.raises(MeasureError, match="'tensorrt' is not on this machine: install it so"):
        opened("tensorrt")


def test_precision_that_a_backend_lacks_is_refused():
    with pytest.raises(MeasureError, match="torch measures in fp32 or bf16, got --precision int8"):
        opened(precision="int8")


def test_clock_of_the_thread_is_chosen_where_one_thread_does_it_all():
    assert opened().clock == "cpu"
    assert opened(threads=2).clock == "wall"
    assert opened(clock="wall").clock == "wall"
    with pytest.raises(MeasureError, match="--threads 1"):
        opened(threads=2, clock="cpu")
