from __future__ import annotations

import subprocess
import sys
from collections.abc import Sized

import pytest

from autoprune.errors import ModelError, TaskError
from autoprune.network.factory import (
    FactoryCall,
    call_factory,
    file_modules,
    module_exists,
    nearest,
    parse_call,
)

SOURCE = """
import dataclasses

@dataclasses.dataclass
class Thing:
    size: int = 1

    @classmethod
    def double(cls, size):
        return cls(2 * size)

    def __len__(self):
        return self.size

def make(size=1, *, name="x"):
    return Thing(size)

def fails():
    raise ZeroDivisionError("inside")

def leaves():
    raise SystemExit(3)

def ours():
    from autoprune.errors import TaskError
    raise TaskError("from inside")

def number():
    return 3

constant = 5
instance = Thing()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "things.py"
    path.write_text(SOURCE)
    return path


def _call(spec):
    call = parse_call(spec, error=ModelError)
    assert call is not None
    return call_factory(call, Sized, error=ModelError)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.b:make", FactoryCall("a.b", "make")),
        ("  a.b:C.make  ", FactoryCall("a.b", "C.make")),
        ("dir/a.py:make()", FactoryCall("dir/a.py", "make")),
        ("C:\\nets\\a.py:make", FactoryCall("C:\\nets\\a.py", "make")),
        (
            "a.py:make(1, [2, 'b:c'], x={'y': None}, z=-0.5)",
            FactoryCall("a.py", "make", (1, [2, "b:c"]), {"x": {"y": None}, "z": -0.5}),
        ),
    ],
)
def test_the_forms_of_a_call(spec, expected):
    assert parse_call(spec, error=ModelError) == expected


@pytest.mark.parametrize("spec", ["resnet18", "a.py:", ":make", "a.py:1st", "a.py:make(1) + 2", ""])
def test_other_text_is_no_call(spec):
    assert parse_call(spec, error=ModelError) is None


@pytest.mark.parametrize(
    "arguments",
    ["(open)", "(__import__('os').getcwd())", "(*[1])", "(**{'a': 1})", "(1", "()()", "(1)(2)"],
)
def test_arguments_that_are_no_literals_are_refused_and_never_evaluated(arguments):
    if arguments == "(1":  # unbalanced: not of the form at all
        assert parse_call(f"a.py:make{arguments}", error=ModelError) is None
        return
    with pytest.raises(ModelError, match="not Python literals"):
        parse_call(f"a.py:make{arguments}", error=ModelError)


def test_functions_classes_and_methods_of_files_and_modules_are_called(file):
    assert _call(f"{file}:make(3)").size == 3
    assert _call(f"{file}:Thing").size == 1
    assert _call(f"{file}:Thing.double(4)").size == 8
    assert _call("collections:Counter('aab')") == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mak", "has nothing called 'mak'; did you mean 'make'"),
        ("zzz", "Known: Thing, fails, leaves, make, number, ours"),
        ("constant", "is no function but an int; name a function or class that returns the Sized"),
        ("instance", "is no function but a Thing"),
        ("number", r"number returned an int; expected collections\.abc\.Sized"),
        ("fails", "fails failed: ZeroDivisionError: inside"),
        ("leaves", "leaves failed: SystemExit: 3"),
        ("make(1, 2)", r"takes \(size=1, \*, name='x'\): too many positional arguments"),
        ("make(colour=2)", "unexpected keyword argument 'colour'"),
    ],
)
def test_what_goes_wrong_is_told(file, name, message):
    with pytest.raises(ModelError, match=message):
        _call(f"{file}:{name}")


def test_our_own_errors_pass_unchanged(file):
    with pytest.raises(TaskError, match=r"^from inside$"):
        _call(f"{file}:ours")


@pytest.mark.parametrize(
    ("content", "message"),
    [("def f(:", "SyntaxError"), ("import not_there_at_all", "No module named 'not_there_at_all'"),
     ("1 / 0", "ZeroDivisionError"), ("raise SystemExit", "SystemExit")],
)  # fmt: skip
def test_files_that_do_not_import_leave_nothing_behind(tmp_path, content, message):
    path = tmp_path / "broken.py"
    path.write_text(content)
    before = file_modules()
    with pytest.raises(ModelError, match=rf"importing .*broken\.py failed: .*{message}"):
        _call(f"{path}:f")
    assert file_modules() == before


def test_missing_files_and_modules_are_told(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read the Python file .*gone\.py: No such file"):
        _call(f"{tmp_path / 'gone.py'}:f")
    with pytest.raises(ModelError, match=r"importing 'autoprune\.gone' failed: No module named"):
        _call("autoprune.gone:f")


def test_a_file_is_executed_once_until_its_content_changes(file):
    first = type(_call(f"{file}:make"))
    assert type(_call(f"{file}:make")) is first
    file.write_text(SOURCE.replace("size: int = 1", "size: int = 7"))  # same length, same second
    assert _call(f"{file}:Thing").size == 7


def test_two_files_of_the_same_name_do_not_meet(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(f"def value():\n    return [{value}]\n")
    assert [_call(f"{tmp_path / folder / 'nets.py'}:value") for folder in "ab"] == [[1], [2]]


def test_module_exists_looks_at_the_top_level_only():
    assert module_exists("json")
    assert module_exists("json.no_such_part")
    assert module_exists("__main__")
    assert not module_exists("no_such_package")
    assert not module_exists("not an identifier")
    assert not module_exists("json.")


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("xyz", ["resnet18"]) == ""


@pytest.mark.slow
def test_objects_of_files_reach_other_processes_when_registered_by_value(file, tmp_path):
    from ray import cloudpickle

    thing = _call(f"{file}:make(5)")
    modules = [module for module in file_modules() if module.__file__ == str(file)]
    assert len(modules) == 1
    cloudpickle.register_pickle_by_value(modules[0])
    try:
        data = cloudpickle.dumps(thing)
    finally:
        cloudpickle.unregister_pickle_by_value(modules[0])
    (tmp_path / "thing.bin").write_bytes(data)
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).double(3).size)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "thing.bin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "6", done.stderr
