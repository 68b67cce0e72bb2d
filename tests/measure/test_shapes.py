import pandas as pd
import pytest
import torch

from autoprune.latency.kernels import fuse
from autoprune.latency.measurements import kernel_shapes
from autoprune.latency.samples import shapes_of
from autoprune.measure.shapes import KernelShape, measurable, shape_of
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace

SHAPES = [
    KernelShape("conv", 8, 12, 9, 10, kernel=(3, 3), stride=(2, 2)),
    KernelShape("conv", 3, 16, 32, 32, kernel=(16, 16), stride=(16, 16)),
    KernelShape("conv", 8, 12, 9, 10, kernel=(1, 3)),
    KernelShape("dwconv", 8, 8, 7, 7, kernel=(5, 5), groups=8),
    KernelShape("gconv", 8, 16, 7, 7, kernel=(3, 3), groups=4),
    KernelShape("linear", 24, 10, 5),
    KernelShape("maxpool", 8, 8, 13, 12, kernel=(3, 3), stride=(2, 2)),
    KernelShape("avgpool", 8, 8, 12, 12, kernel=(2, 2), stride=(2, 2)),
    KernelShape("globalpool", 8, 8, 7, 7),
    KernelShape("eltwise", 8, 8, 7, 7),
    KernelShape("layernorm", 12, 12, 20),
    KernelShape("matmul", 24, 60, 5, groups=3),
]
WITH_WEIGHTS = ("conv", "dwconv", "gconv", "linear")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.op)
def test_module_computes_what_the_table_says(shape):
    module, inputs = shape.module()
    with torch.no_grad():
        out = module(*inputs)
    frame = pd.DataFrame([{"batch": shape.batch, **shape.columns()}])
    for name in ("cin", "cout", "h", "w", "kernel", "stride", "groups", "m", "n", "k"):
        frame[name] = frame[name] if name in frame else float("nan")
    frame = frame.assign(adds=0.0).fillna({"kernel": 1, "stride": 1})
    table = kernel_shapes(frame)
    positions = float(table["outputs"][0] * table["batch"][0])
    assert out.numel() == positions * table["cout"][0]
    if shape.op in WITH_WEIGHTS:
        # Tracing the module counts its work independently of the table's formula.
        traced = shapes_of(fuse(trace(module, inputs).ops, "onnxruntime"))
        assert traced["macs"][0] * traced["cout"][0] == table["macs"][0] * table["cout"][0]
        weight = next(iter(module.parameters())).numel()
        product = table["cin"][0] * table["cout"][0] / table["groups"][0]
        assert weight == product * (table["taps"][0] if "conv" in shape.op else 1)


def test_products_have_rows_and_features_in_the_table():
    columns = KernelShape("matmul", 24, 60, 5, groups=3).columns()
    assert columns == {"op": "matmul", "groups": 3, "m": 5, "n": 20, "k": 8}


def test_windows_that_are_not_square_are_written_with_an_x():
    columns = KernelShape("conv", 4, 4, 8, 8, kernel=(1, 7), stride=(1, 2)).columns()
    assert (columns["kernel"], columns["stride"]) == ("1x7", "1x2")


def test_shapes_of_a_network_follow_its_widths():
    network = trace(SmallResNet(8).eval(), torch.zeros(2, 3, 32, 32))
    ops = measurable(network.ops)
    widths = [max(1, size // 2) for size in network.ops.group_sizes]
    full = [shape_of(op, network.ops.group_sizes) for op in ops]
    half = [shape_of(op, widths) for op in ops]
    assert {shape.op for shape in full} >= {"conv", "linear", "eltwise", "globalpool"}
    assert all(shape.batch == 2 for shape in full)
    first = next(i for i, shape in enumerate(full) if shape.op == "conv" and shape.cin > 3)
    assert half[first].cin == full[first].cin // 2
    assert [shape.h for shape in half] == [shape.h for shape in full]


def test_transposed_convolutions_are_not_measured_alone():
    model = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 4, 2, stride=2)).eval()
    assert measurable(trace(model, torch.zeros(1, 3, 4, 4)).ops) == []
