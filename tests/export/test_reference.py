from __future__ import annotations

import pytest

from autoprune.errors import ExportError
from autoprune.export.reference import built, portable

FACTORY = """
from torch import nn
def net(width):
    return nn.Linear(width, 2)
"""


@pytest.mark.parametrize("source", ["digits", "timm:resnet18(num_classes=3)", "pkg.nets:make"])
def test_names_are_recorded_as_they_are(source, tmp_path):
    assert portable(source, tmp_path) == source


def test_a_file_is_recorded_by_its_path_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert portable("nets.py:net(3)", tmp_path / "runs" / "a") == "../../nets.py:net(3)"
    assert portable(f"{tmp_path}/src/nets.py:net", tmp_path) == "src/nets.py:net"


def test_a_file_that_moved_is_found_by_name_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    model = built("../../elsewhere/nets.py:net(5)", tmp_path / "package", trusted=True)

    assert model.in_features == 5


def test_a_file_that_is_nowhere_is_named_with_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ExportError, match=r"no Python file .*package/a/nets\.py or .*/nets\.py"):
        built("a/nets.py:net(5)", tmp_path / "package", trusted=True)


def test_foreign_code_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(FACTORY)

    with pytest.raises(ExportError, match="trust_source=True"):
        built("nets.py:net(5)", tmp_path, trusted=False)
    assert built("nets.py:net(5)", tmp_path, trusted=True).in_features == 5
