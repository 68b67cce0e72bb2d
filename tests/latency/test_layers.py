import json

import pytest

from autoprune.errors import ProfileError
from autoprune.latency.layers import ops_from_rows, read_layers, rows_from_ops
from autoprune.network.ops import Affine, Op, OpTable

CHAIN = [
    ["conv", 3, 8, 3, 2, 1, 32, 32, 16, 16],
    ["bn", 8, 8, 1, 1, 1, 16, 16, 16, 16],
    ["relu", 8, 8, 1, 1, 1, 16, 16, 16, 16],
    ["dwconv", 8, 8, 3, 1, 8, 16, 16, 16, 16],
    ["globalpool", 8, 8, 16, 1, 1, 16, 16, 1, 1],
    ["fc", 8, 10, 1, 1, 1, 1, 1, 1, 1],
]


def test_chain_reads_the_row_before():
    ops = ops_from_rows(CHAIN).ops
    assert [op.inputs for op in ops] == [(), (0,), (1,), (2,), (3,), (4,)]
    assert [op.kind for op in ops] == ["conv", "norm", "pointwise", "conv", "pool", "linear"]
    assert ops[3].groups == Affine(8)


def test_chain_breaks_where_the_shapes_do_not_fit():
    branch = [*CHAIN[:3], ["conv", 3, 8, 1, 2, 1, 32, 32, 16, 16]]
    assert ops_from_rows(branch).ops[3].inputs == ()


def test_counts_are_those_of_the_layers():
    assert ops_from_rows(CHAIN, batch=2).macs()[0] == 2 * (3 * 8 * 9 * 256 + 8 * 9 * 256 + 8 * 10)


def test_rows_survive_a_round_trip_with_their_graph():
    ops = (
        Op("conv", "aten.convolution", "a", (), Affine(3), Affine(0, ((0, 2),)), in_size=(4, 4)),
        Op("norm", "aten.native_batch_norm", "b", (0,), Affine(8), Affine(8)),
        Op("norm", "aten.native_layer_norm", "c", (1,), Affine(8), Affine(8)),
        Op("pointwise", "aten.add_", "d", (1, 2), Affine(8), Affine(8)),
        Op("other", "aten.view", "", (3,), Affine(8), Affine(8)),
        Op("other", "aten._safe_softmax", "", (4,), Affine(8), Affine(8)),
        Op("matmul", "aten.bmm", "", (5, 4), Affine(8), Affine(8), groups=Affine(2)),
        Op("cat", "aten.cat", "", (6, 3), Affine(16), Affine(16)),
        Op("conv", "aten.convolution", "", (7,), Affine(16), Affine(4), kernel=(1, 7),
           transposed=True),
    )  # fmt: skip
    rows = rows_from_ops(OpTable(ops, (), (4,), 0))
    words = ["conv", "bn", "layernorm", "add", "view", "softmax", "matmul", "cat", "deconv"]
    assert [row[0] for row in rows] == words
    assert rows[0][2] == 8
    again = ops_from_rows(json.loads(json.dumps(rows)))
    assert rows_from_ops(again) == rows
    assert [op.inputs for op in again.ops] == [op.inputs for op in ops]
    assert again.ops[8].kernel == (1, 7)
    assert again.ops[8].transposed


def test_all_faults_are_listed_at_once():
    rows = [
        ["conv", 3, 8],
        ["conv", 3, 8, 3, 1, 2, 4, 4, 4, 4],
        ["conv", 3, 0, 3, 1, 1, 4, 4, 4, 4],
        ["conv", 3, 8, [3], 1, 1, 4, 4, 4, 4],
        ["conv", 3, 8, 3, 1, 1, 4, 4, 4, 4, [7]],
    ]
    with pytest.raises(ProfileError) as caught:
        ops_from_rows(rows, network="broken")
    message = str(caught.value)
    assert "'broken'" in message
    for number in range(5):
        assert f"row {number}:" in message


def test_later_layer_file_wins(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps({"x": CHAIN, "y": CHAIN}))
    second.write_text(json.dumps({"y": CHAIN[:1]}))
    layers = read_layers([first, second])
    assert len(layers["x"]) == 6
    assert len(layers["y"]) == 1


@pytest.mark.parametrize("content", ["[]", "{", '{"x": 3}'])
def test_unreadable_layer_file_is_named(tmp_path, content):
    path = tmp_path / "layers.json"
    path.write_text(content)
    with pytest.raises(ProfileError, match=r"layers\.json"):
        read_layers([path])


def test_missing_layer_file_is_named(tmp_path):
    with pytest.raises(ProfileError, match="cannot read"):
        read_layers([tmp_path / "none.json"])
