from __future__ import annotations

import re
import subprocess
import sys

import pytest

from autoprune.errors import TaskError, UnknownNameError
from autoprune.tasks.classification import ClassificationTask
from autoprune.tasks.load import absolute_spec, load_task
from autoprune.tasks.registry import TASKS

FACTORY = """
from autoprune.tasks.digits import digits

def small(batch=2):
    return digits(batch=batch)

def nothing():
    return None

def fails():
    raise KeyError("labels.csv")
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_the_registry_knows_the_shipped_tasks():
    assert {"cifar10", "digits", "image-folder", "text"} <= set(TASKS.names())


def test_registered_tasks_take_their_defaults_unless_told():
    task = load_task("digits")
    assert (task.name, task.batch, task.search_samples) == ("digits", 64, 2048)
    assert load_task("digits", batch=5, search_samples=10).batch == 5
    assert load_task("digits", options={"batch": "7"}).batch == 7


def test_options_may_follow_a_question_mark():
    task = load_task("digits?search_samples=3&batch=6", batch=5)
    assert (task.batch, task.search_samples) == (5, 3)
    with pytest.raises(TaskError, match="colour = 'red'"):
        load_task("digits?colour=red")
    with pytest.raises(TaskError, match="there is no folder /none"):
        load_task("image-folder:/none?mean=0.5,0.5,0.5&size=32")
    with pytest.raises(TaskError, match=r"mean.*\['0.5', '0.5'\]"):
        load_task("image-folder:/none?mean=0.5,0.5")


def test_a_path_may_hold_a_question_mark(tmp_path):
    with pytest.raises(TaskError, match=re.escape(str(tmp_path / "what?"))):
        load_task(f"cifar10:{tmp_path / 'what?'}")
    with pytest.raises(TaskError, match=re.escape(str(tmp_path / "what?"))):
        load_task(f"cifar10:{tmp_path / 'what?'}?batch=3")


def test_an_absolute_description_keeps_its_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("digits?batch=3") == "digits?batch=3"
    assert absolute_spec("image-folder:a?size=32&mean=0,0,0") == (
        f"image-folder:{tmp_path / 'a'}?size=32&mean=0,0,0"
    )


def test_what_follows_the_name_may_hold_colons(tmp_path):
    with pytest.raises(TaskError, match=re.escape(str(tmp_path / "a:b"))):
        load_task(f"cifar10:{tmp_path / 'a:b'}")


def test_wrong_options_are_listed_together():
    with pytest.raises(TaskError) as error:
        load_task("digits", batch=0, options={"colour": 1})
    assert "batch = 0" in str(error.value)
    assert "colour = 1" in str(error.value)


def test_wrong_lengths_of_a_normalisation_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"mean.*\[0.5\]"):
        load_task(f"cifar10:{tmp_path}", options={"mean": [0.5]})


@pytest.mark.parametrize("spec", ["digit", "image_folder:data", "no_such_package.tasks:make"])
def test_unknown_names_offer_the_nearest(spec):
    with pytest.raises(UnknownNameError, match="digits, image-folder"):
        load_task(spec)


def test_near_name_is_offered():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_task("digit")


def test_a_function_in_a_file_makes_a_task(factory):
    assert isinstance(load_task(f"{factory}:small"), ClassificationTask)
    assert load_task(f"{factory}:small").batch == 2
    assert load_task(f"{factory}:small(3)").batch == 3
    assert load_task(f"{factory}:small", batch=4).batch == 4


def test_a_function_of_a_package_makes_a_task():
    assert load_task("autoprune.tasks.digits:digits").name == "digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned a NoneType; expected autoprune.tasks.base.Task"),
        ("fails", "failed: KeyError: 'labels.csv'"),
        ("smal", "did you mean 'small'"),
        ("small(page=3)", "unexpected keyword argument 'page'"),
    ],
)
def test_what_goes_wrong_in_a_factory_is_a_task_error(factory, name, message):
    with pytest.raises(TaskError, match=message):
        load_task(f"{factory}:{name}")


def test_options_a_factory_does_not_take_are_refused(factory):
    with pytest.raises(TaskError, match="unexpected keyword argument 'batch'"):
        load_task(f"{factory}:nothing", batch=3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"cannot read the Python file .*gone\.py"):
        load_task(f"{tmp_path / 'gone.py'}:make")


def test_listing_the_tasks_loads_no_optional_package():
    code = (
        "import sys; from autoprune.tasks.registry import TASKS; TASKS.names();"
        "print([name for name in ('PIL', 'timm', 'torchvision', 'sklearn', 'ray')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_spec_made_absolute_holds_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("image-folder:photos") == f"image-folder:{tmp_path / 'photos'}"
    assert absolute_spec("mine.py:task(3)") == f"{tmp_path / 'mine.py'}:task(3)"
    assert absolute_spec("digits") == "digits"
    assert absolute_spec("package.module:task") == "package.module:task"
