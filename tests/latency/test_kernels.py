import pytest

from autoprune.errors import UnknownNameError
from autoprune.latency.kernels import FAMILIES, RUNTIMES, from_layers, fuse
from autoprune.network.ops import Affine, Op, OpTable

W = Affine(0, ((0, 1),))


def conv(inputs, cin=W, cout=W, *, kernel=3, size=8, **more):
    return Op(
        "conv", "aten.convolution", "m", inputs, cin, cout,
        kernel=(kernel, kernel), in_size=(size, size), out_size=(size, size), **more,
    )  # fmt: skip


def pointwise(name, inputs, channels=W, *, size=8, **more):
    sizes = {"in_size": (size, size), "out_size": (size, size)}
    return Op("pointwise", f"aten.{name}", "m", inputs, channels, channels, **sizes, **more)


def norm(inputs, channels=W, *, size=8, name="native_batch_norm"):
    sizes = {"in_size": (size, size), "out_size": (size, size)}
    return Op("norm", f"aten.{name}", "m", inputs, channels, channels, **sizes)


def pool(inputs, channels=W, *, size=8, out=1):
    window = (size // out, size // out)
    return Op("pool", "aten.mean", "m", inputs, channels, channels,
              kernel=window, in_size=(size, size), out_size=(out, out))  # fmt: skip


def cat(inputs, channels, *, size=8):
    return Op("cat", "aten.cat", "m", inputs, channels, channels,
              in_size=(size, size), out_size=(size, size))  # fmt: skip


def fused(*ops, runtime="tensorrt"):
    return fuse(OpTable(ops, (), (16,), 1), runtime).kernels


def names(kernels):
    return [kernel.name for kernel in kernels]


CBR = (conv((), Affine(3)), norm((0,)), pointwise("relu_", (1,)))


def test_convolution_takes_in_norm_and_relu():
    (kernel,) = fused(*CBR)
    assert kernel.name == "convolution+native_batch_norm+relu"
    assert (kernel.family, kernel.cin, kernel.cout) == ("conv", Affine(3), W)
    assert (kernel.macs, kernel.weights, kernel.reads, kernel.writes) == (9 * 64, 9, 64, 64)


def test_eager_launches_every_operator():
    kernels = fused(*CBR, runtime="eager")
    assert [k.family for k in kernels] == ["conv", "pointwise", "pointwise"]


def test_residual_add_is_fused_and_reads_one_more_tensor():
    kernels = fused(*CBR, conv((2,)), norm((3,)), pointwise("add", (4, 2)), pointwise("relu", (5,)))
    assert names(kernels)[1] == "convolution+native_batch_norm+add+relu"
    assert kernels[1].writes == 2 * kernels[0].writes


def test_add_of_two_convolutions_goes_into_the_later_one():
    kernels = fused(*CBR, conv((2,)), conv((2,), kernel=1), pointwise("add", (3, 4)))
    assert names(kernels)[1:] == ["convolution", "convolution+add"]
    assert kernels[2].writes == 2 * 64


def test_nothing_is_fused_behind_an_activation():
    kernels = fused(*CBR, pointwise("add", (2,)))
    assert names(kernels) == ["convolution+native_batch_norm+relu", "add"]


def test_nothing_is_fused_into_a_tensor_that_others_read():
    kernels = fused(conv((), Affine(3)), norm((0,)), pointwise("relu", (1,)), conv((1,)))
    assert names(kernels) == ["convolution+native_batch_norm", "relu", "convolution"]


def test_norm_in_front_of_a_convolution_is_a_pointwise_kernel():
    kernels = fused(pool((), out=8), norm((0,)), pointwise("relu", (1,)), conv((2,)))
    assert [k.family for k in kernels] == ["pool", "pointwise", "conv"]
    assert kernels[1].name == "native_batch_norm+relu"
    assert (kernels[1].reads, kernels[1].writes) == (64, 64)


def test_layer_norm_does_not_fold():
    kernels = fused(conv((), Affine(3)), norm((0,), name="native_layer_norm"))
    assert [k.family for k in kernels] == ["conv", "pointwise"]


def test_sigmoid_like_activation_is_its_own_kernel():
    kernels = fused(conv((), Affine(3)), norm((0,)), pointwise("silu", (1,)))
    assert names(kernels) == ["convolution+native_batch_norm", "silu"]


def test_pointwise_chain_is_one_kernel_in_tensorrt_only():
    chain = (conv((), Affine(3)), pointwise("sigmoid", (0,)), pointwise("mul", (1, 0)))
    assert names(fused(*chain)) == ["convolution", "sigmoid+mul"]
    assert fused(*chain)[1].writes == 2 * 64
    assert len(fused(*chain, runtime="onnxruntime")) == 3


def test_squeeze_and_excite_stays_apart():
    kernels = fused(
        *CBR,
        pool((2,)),
        conv((3,), kernel=1, size=1),
        pointwise("relu", (4,), size=1),
        conv((5,), kernel=1, size=1),
        pointwise("sigmoid", (6,), size=1),
        pointwise("mul", (7, 2)),
    )
    assert names(kernels)[1:] == ["mean", "convolution+relu", "convolution", "sigmoid", "mul"]
    assert kernels[-1].reads == 64 + 1


TWO = Affine(0, ((0, 2),))


def test_concatenation_is_free_in_tensorrt_and_a_copy_in_onnxruntime():
    net = (*CBR, conv((2,)), conv((2,)), cat((3, 4), TWO), conv((5,), TWO))
    assert [k.family for k in fused(*net)] == ["conv"] * 4
    copy = fused(*net, runtime="onnxruntime")[3]
    assert (copy.family, copy.cin, copy.reads, copy.writes) == ("copy", TWO, 64, 64)


def test_early_tensorrt_copies_what_others_read_too():
    net = (*CBR, conv((2,)), cat((2, 3), TWO), conv((4,), TWO))
    kernels = fused(*net, runtime="tensorrt_early")
    assert [k.family for k in kernels] == ["conv", "conv", "copy", "conv"]
    assert kernels[2].cin == W


def test_early_tensorrt_copies_the_network_input_into_a_concatenation():
    joined = Affine(3, ((0, 1),))
    kernels = fused(conv((), Affine(3)), cat((0,), joined), runtime="tensorrt_early")
    assert [(k.family, k.cin) for k in kernels] == [("conv", Affine(3)), ("copy", Affine(3))]


def test_slice_of_channels_is_a_copy():
    half = Affine(0, ((0, 1),))
    net = (conv((), Affine(3), TWO), conv((0,), half, half), conv((0,), half, half))
    assert "+".join(names(fused(*net))) == "convolution+slice+convolution+slice+convolution"
    assert len(fused(*net, runtime="eager")) == 3


def test_views_are_looked_through():
    view = Op("other", "aten.view", "", (0,), W, W)
    assert len(fused(conv((), Affine(3)), view, norm((1,)))) == 1


def test_data_movement_is_memory_traffic():
    move = Op("other", "aten.clone", "", (0,), W, W, in_size=(8, 8), out_size=(8, 8))
    kernels = fused(conv((), Affine(3)), move, conv((1,)))
    assert [(k.family, k.reads, k.writes) for k in kernels][1] == ("copy", 64, 64)


def attention():
    tokens = {"in_size": (4, 1), "out_size": (4, 1)}
    d, scores = Affine(0, ((0, 1),)), Affine(8)
    return (
        Op("linear", "aten.addmm", "", (), Affine(16), Affine(0, ((0, 3),)), **tokens),
        Op("pointwise", "aten.mul", "", (0,), d, d, **tokens),
        Op("matmul", "aten.bmm", "", (1, 0), d, scores, groups=Affine(2), **tokens),
        Op("other", "aten._softmax", "", (2,), Affine(2), Affine(2), in_size=(4, 4),
           out_size=(4, 4)),
        Op("matmul", "aten.bmm", "", (3, 0), scores, d, groups=Affine(2), **tokens),
        Op("other", "aten.clone", "", (4,), d, d, **tokens),
        Op("linear", "aten.addmm", "", (5,), d, Affine(16), **tokens),
    )  # fmt: skip


def test_attention_is_its_products_in_tensorrt():
    kernels = fused(*attention())
    assert [k.family for k in kernels] == ["linear", "matmul", "matmul", "linear"]


def test_attention_is_unfused_elsewhere():
    families = [k.family for k in fused(*attention(), runtime="eager")]
    assert families == ["linear", "pointwise", "matmul", "pointwise", "matmul", "copy", "linear"]


def test_matmul_reads_its_second_operand_per_image():
    op = Op("matmul", "aten.bmm", "", (), W, W, out_size=(4, 1), in_size=(4, 1), batch=5)
    assert fused(op)[0].weights == 5
    assert fused(conv((), batch=5))[0].weights == 9


def test_families_of_convolutions():
    kernels = fused(
        conv((), groups=W), conv((), groups=Affine(4)), conv((), Affine(3), kernel=1, size=8)
    )
    assert [k.family for k in kernels] == ["dwconv", "gconv", "conv"]


def test_strided_pointwise_convolution_reads_what_it_needs():
    op = Op("conv", "aten.convolution", "", (), W, W, stride=(2, 2), in_size=(8, 8),
            out_size=(4, 4))  # fmt: skip
    assert fused(op)[0].reads == 16


def test_transposed_convolution_works_on_its_input():
    op = Op("conv", "aten.convolution", "", (), W, W, kernel=(2, 2), stride=(2, 2),
            in_size=(4, 4), out_size=(8, 8), transposed=True)  # fmt: skip
    assert fused(op)[0].macs == 4 * 16


def test_kernel_keeps_the_block_of_its_convolution():
    assert [k.block for k in fused(*CBR, conv((2,), block=0))] == [-1, 0]


ROWS = [
    ["conv", 3, 8, 3, 1, 1, 8, 8, 8, 8],
    ["bn", 8, 8, 1, 1, 1, 8, 8, 8, 8],
    ["fc", 8, 8, 1, 1, 1, 1, 1, 1, 1],
]


def test_equal_work_has_equal_signatures():
    plain = from_layers([ROWS[0], ROWS[2]], "tensorrt", network="plain")
    with_norm = from_layers(ROWS, "tensorrt", network="with norm")
    assert plain.kernels != with_norm.kernels
    assert plain.signature == with_norm.signature
    assert plain.signature != from_layers(ROWS, "eager").signature
    assert plain.signature != from_layers([ROWS[0], ROWS[2]], "tensorrt", batch=2).signature


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_kernel_has_a_known_family(runtime):
    assert {k.family for k in fused(*attention(), *CBR, runtime=runtime)} <= set(FAMILIES)


def test_unknown_runtime_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt'"):
        fused(*CBR, runtime="tensort")


@pytest.mark.parametrize(
    ("row", "saving"),
    [
        (["conv", 8, 8, 3, 1, 1, 8, 8, 8, 8], 2.25),
        (["conv", 8, 8, 1, 1, 1, 8, 8, 8, 8], 1),
        (["conv", 8, 8, 5, 1, 1, 8, 8, 8, 8], 1),
        (["conv", 8, 8, 3, 2, 1, 8, 8, 4, 4], 1),
        (["gconv", 8, 8, 3, 1, 2, 8, 8, 8, 8], 1),
        (["dwconv", 8, 8, 3, 1, 8, 8, 8, 8, 8], 1),
        (["deconv", 8, 8, 3, 1, 1, 8, 8, 8, 8], 1),
        (["fc", 8, 8, 1, 1, 1, 1, 1, 1, 1], 1),
    ],
)
def test_ncnn_multiplies_less_in_dense_3x3_convolutions_that_step_by_one(row, saving):
    (plain,), (fast,) = (from_layers([row], runtime).kernels for runtime in ("tflite", "ncnn"))
    assert plain.macs / fast.macs == saving
    assert plain.weights == fast.weights


def test_only_ncnn_computes_a_swish_with_its_convolution():
    ops = (conv(()), pointwise("swish", (0,)))
    assert names(fused(*ops, runtime="ncnn")) == ["convolution+swish"]
    assert len(fused(*ops, runtime="tflite")) == 2
    assert len(fused(*ops, runtime="compile")) == 2


def test_compile_merges_elementwise_chains_and_tflite_does_not():
    ops = (conv(()), pointwise("silu", (0,)), pointwise("mul", (1,)))
    assert len(fused(*ops, runtime="compile")) == 2
    assert len(fused(*ops, runtime="tflite")) == 3
