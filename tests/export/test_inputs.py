from __future__ import annotations

import json

import pydantic
import pytest
import torch

from autoprune.errors import ExportError
from autoprune.export.inputs import InputsSpec


def again(inputs):
    """Return the example of a form that has been through JSON."""
    return InputsSpec.model_validate_json(InputsSpec.of(inputs).model_dump_json()).example()


def test_nested_inputs_come_back_in_their_form():
    inputs = {
        "images": torch.randn(2, 3, 4, dtype=torch.float16),
        "sizes": [(4, 4.5), (None, True)],
        "mode": "fast",
        "past": ({"keys": torch.zeros(1, 2)}, ()),
    }
    made = again(inputs)

    assert list(made) == list(inputs)
    assert (made["images"].shape, made["images"].dtype) == ((2, 3, 4), torch.float16)
    assert made["sizes"] == inputs["sizes"]
    assert [type(value) for value in made["sizes"][1]] == [type(None), bool]
    assert made["mode"] == "fast"
    assert isinstance(made["past"], tuple)
    assert torch.equal(made["past"][0]["keys"], torch.zeros(1, 2))
    assert made["past"][1] == ()


def test_positional_inputs_stay_a_tuple():
    (made,) = again((torch.randn(2, 3),))

    assert made.shape == (2, 3)
    assert made.std() > 0.1


def test_token_numbers_stay_in_their_range():
    tokens = torch.randint(5, 9, (40, 20))
    (made,) = again((tokens,))

    assert made.dtype == torch.int64
    assert set(made.unique().tolist()) == {5, 6, 7, 8}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 2),
        torch.full((2,), -1e9),
        torch.ones(2, 2, dtype=torch.bool),
        torch.full((2, 1), 255, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.bfloat16),
    ],
)
def test_what_has_one_value_everywhere_keeps_it(tensor):
    (made,) = again((tensor,))

    assert made.dtype == tensor.dtype
    assert torch.equal(made, tensor)


def test_examples_repeat_themselves():
    spec = InputsSpec.of((torch.randn(2, 3), torch.randint(9, (4,))))

    for first, second in zip(spec.example(), spec.example(), strict=True):
        assert torch.equal(first, second)


def test_numbers_too_large_to_draw_from_are_left_out():
    (made,) = again((torch.tensor([-(2**63), 2**63 - 1]),))

    assert torch.equal(made, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (object(), r"inputs\[0\] is object"),
        (torch.zeros(2, dtype=torch.complex64), r"inputs\[0\] is Tensor torch.complex64"),
        (torch.zeros(0, 2), r"inputs\[0\] is Tensor"),
        ({1: 2}, r"inputs\[0\] is dict"),
        ([float("nan")], r"inputs\[0\]\[0\] is float nan"),
        ("a" * 1001, r"inputs\[0\] is str"),
    ],
)
def test_what_cannot_be_recorded_is_named(value, where):
    with pytest.raises(ExportError, match=f"an example input cannot be recorded: {where}"):
        InputsSpec.of((value,))


def test_too_many_levels_or_values_are_refused():
    deep = (1,)
    for _ in range(9):
        deep = (deep,)
    with pytest.raises(ExportError, match="more than 8 levels"):
        InputsSpec.of(deep)
    with pytest.raises(ExportError, match="1000 values"):
        InputsSpec.of(([1] * 600, [1] * 600))
    with pytest.raises(ExportError, match="not empty"):
        InputsSpec.of(())


def tensor(**changes):
    return {"kind": "tensor", "shape": [2, 3], "dtype": "int64", **changes}


@pytest.mark.parametrize(
    "item",
    [
        tensor(shape=[2**20, 2**20]),
        tensor(shape=[0]),
        tensor(shape=[2.0]),
        tensor(dtype="object"),
        tensor(low=1),
        tensor(low=3, high=2),
        tensor(low=0.5, high=2.5),
        tensor(dtype="uint8", low=0, high=256),
        tensor(dtype="bool", low=0, high=2),
        tensor(dtype="float32", low=0.0, high=1.0),
        tensor(dtype="float32", low=1e999, high=1e999),
        tensor(size=3),
        {"kind": "value", "value": {}},
        {"kind": "value", "value": float("inf")},
        {"kind": "list", "items": {}},
        {"kind": "module", "items": []},
        {"kind": "tuple", "items": [tensor(shape=[2**29]), tensor(shape=[2**29 + 1])]},
        [],
        None,
    ],
)
def test_a_form_that_makes_no_sense_is_refused(item):
    content = {"kind": "tuple", "items": [item]}

    with pytest.raises(pydantic.ValidationError):
        InputsSpec.model_validate_json(json.dumps(content))


def test_a_form_nested_beyond_reason_is_refused():
    content = '{"kind": "tuple", "items": [' * 150 + "]}" * 150

    with pytest.raises(pydantic.ValidationError, match=r"levels|recursion"):
        InputsSpec.model_validate_json(content)


@pytest.mark.parametrize("kind", ["list", "value", "tensor"])
def test_the_outermost_value_is_a_tuple_or_a_dict(kind):
    with pytest.raises(pydantic.ValidationError):
        InputsSpec.model_validate_json(json.dumps({"kind": kind, "items": [tensor()]}))
