import pytest
import torch

from autoprune.cli.inputs import parsed_inputs
from autoprune.errors import ModelError, SettingsError


def _kinds(inputs):
    """Return shape and type of every tensor, containers as they are."""
    if isinstance(inputs, torch.Tensor):
        return tuple(inputs.shape), str(inputs.dtype).removeprefix("torch.")
    if isinstance(inputs, dict):
        return {name: _kinds(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(map(_kinds, inputs))
    return inputs


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1x3x8x8"], (((1, 3, 8, 8), "float32"),)),
        (["1,3,8,8"], (((1, 3, 8, 8), "float32"),)),
        (["2x4", "2x5:int32"], (((2, 4), "float32"), ((2, 5), "int32"))),
        (["ids:1x128:int64"], {"ids": ((1, 128), "int64")}),
        (["x:2x4:bfloat16", "scale=0.5", "name='a:b'"],
         {"x": ((2, 4), "bfloat16"), "scale": 0.5, "name": "a:b"}),
        (["data.x:2x4", "data.mask:2x4:bool", "y:3"],
         {"data": {"x": ((2, 4), "float32"), "mask": ((2, 4), "bool")}, "y": ((3,), "float32")}),
        (["images.0:3x8x8", "images.1:3x6x9"],
         {"images": [((3, 8, 8), "float32"), ((3, 6, 9), "float32")]}),
        (["z:4:complex64"], {"z": ((4,), "complex64")}),
    ],
)  # fmt: skip
def test_inputs_of_every_form(texts, expected):
    assert _kinds(parsed_inputs(texts, torch.float32)) == expected


def test_numbers_take_the_type_of_the_weights_and_whole_ones_stay_small():
    (half,) = parsed_inputs(["2x4"], torch.bfloat16)
    assert half.dtype is torch.bfloat16
    (ids,) = parsed_inputs(["1x99:int64"], torch.float32)
    assert set(ids.ravel().tolist()) == {0, 1}


FUNCTIONS = """
import torch

def one():
    return torch.zeros(2, 3)

def named(rows):
    return {"x": torch.zeros(rows, 3)}

def listed():
    return [torch.zeros(2, 3)]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "examples.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_function_returns_all_inputs(file):
    assert _kinds(parsed_inputs([f"{file}:one"], torch.float32)) == (((2, 3), "float32"),)
    assert _kinds(parsed_inputs([f"{file}:named(5)"], torch.float32)) == {"x": ((5, 3), "float32")}
    with pytest.raises(ModelError, match="listed returned list; expected a tensor, a tuple"):
        parsed_inputs([f"{file}:listed"], torch.float32)
    with pytest.raises(ModelError, match="has nothing called 'on'"):
        parsed_inputs([f"{file}:on"], torch.float32)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "positive whole numbers as shape, got ''"),
        (["1x-3"], "positive whole numbers"),
        (["1x3:float33"], "the type 'float33'; it is one of float32, "),
        (["1x3:nn"], "the type 'nn'; it is one of"),
        (["x:y"], "positive whole numbers"),
        (["x=torch.zeros(3)"], r"'torch\.zeros\(3\)' is no Python literal"),
        (["x:1x3", "1x3"], "names for all inputs or for none; x have one, 1 others"),
        (["x:1x3", "x:1x4"], "names 'x' twice"),
        (["x=1", "x.y:1x4"], "gives 'x' both a value and entries"),
    ],
)
def test_other_texts_are_refused(texts, message):
    with pytest.raises(SettingsError, match=message):
        parsed_inputs(texts, torch.float32)
