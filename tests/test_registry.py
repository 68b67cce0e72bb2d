"""Names lead to plug-ins, and unknown names to a hint."""

import sys

import pytest

from autoprune.errors import UnknownNameError
from autoprune.registry import Registry


def test_a_package_is_imported_on_the_first_look_up(tmp_path, monkeypatch):
    folder = tmp_path / "plugins_of_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from autoprune.registry import Registry\nTHINGS = Registry('thing', package=__name__)\n"
    )
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(
            f"from plugins_of_test import THINGS\nTHINGS.register('{name}')('{name.upper()}')\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import plugins_of_test

    assert "plugins_of_test.one" not in sys.modules
    assert plugins_of_test.THINGS["one"] == "ONE"
    assert plugins_of_test.THINGS.names() == ["one", "two"]


def test_an_unknown_name_offers_the_nearest():
    things: Registry[int] = Registry("thing")
    things.register("jetson")(1)
    with pytest.raises(UnknownNameError, match="no thing named 'jetsn'; did you mean 'jetson'"):
        things["jetsn"]


def test_a_name_is_taken_once_but_the_same_object_may_return():
    things: Registry[int] = Registry("thing")
    assert things.register("a")(1) == 1
    assert things.register("a")(1) == 1
    with pytest.raises(ValueError, match="registered twice"):
        things.register("a")(2)


def test_of_many_names_the_nearest_are_listed():
    known = [f"net{number}" for number in range(100)]
    message = str(UnknownNameError("network", "net1x", known))
    assert "did you mean 'net1" in message
    assert "(100 in all)" in message
    assert message.count("net") < 20
