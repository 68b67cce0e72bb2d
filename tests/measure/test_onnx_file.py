import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.errors import MeasureError
from autoprune.measure.onnx_file import onnx_bytes


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[0]


def opset(content):
    return onnx.load_from_string(content).opset_import[0].version


def test_operators_are_those_that_old_runtimes_read():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish()).eval()
    content = onnx_bytes(module, (torch.zeros(1, 3, 8, 8),))
    assert opset(content) == 13
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert "BatchNormalization" not in kinds  # folded into the convolution
    assert opset(onnx_bytes(module, (torch.zeros(1, 3, 8, 8),), opset=17)) == 17


def test_attention_takes_the_first_operators_that_have_it(capfd):
    assert opset(onnx_bytes(Attention().eval(), (torch.zeros(1, 2, 4, 8),))) == 14
    assert capfd.readouterr().out == ""


def test_what_cannot_be_exported_is_named():
    with pytest.raises(MeasureError, match="Unexportable cannot be exported to ONNX"):
        onnx_bytes(Unexportable().eval(), (torch.eye(3),))
