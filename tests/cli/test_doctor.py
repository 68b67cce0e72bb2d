import importlib.metadata
import json

import pytest

from autoprune.cli import doctor
from autoprune.cli.main import main

REQUIRES = [
    "numpy>=1.0",
    "no-such-package>=2",
    "scipy>=1000",
    "torch>=2; python_version < '3'",
    "rich; extra == 'pretty'",
    "no-such-extra; extra == 'pretty'",
    "typer[plain]>=0; extra == 'pretty'",
    "click[plain]>=0; extra == 'pretty'",
    "no-such-tool; extra == 'dev'",
]
TYPER = ["click", "absent-a; extra == 'plain'", "absent-b; extra == 'other'"]


@pytest.fixture
def required(monkeypatch):
    """autoprune as if it asked for other packages."""
    real = importlib.metadata.metadata

    class Metadata:
        def get_all(self, name):
            return ["pretty", "dev"]

    monkeypatch.setattr(importlib.metadata, "requires", {"autoprune": REQUIRES, "typer": TYPER}.get)
    monkeypatch.setattr(
        importlib.metadata,
        "metadata",
        lambda name: Metadata() if name == "autoprune" else real(name),
    )


def test_packages_are_those_that_are_asked_for(required):
    found = {(f.topic, f.name): f for f in doctor.packages()}
    assert {key: f.state for key, f in found.items()} == {
        ("needed", "numpy"): "ok",
        ("needed", "no-such-package"): "bad",
        ("needed", "scipy"): "bad",
        ("extra pretty", "rich"): "ok",
        ("extra pretty", "no-such-extra"): "missing",
        ("extra pretty", "typer[plain]"): "missing",
        ("extra pretty", "click"): "ok",
    }
    assert found["needed", "numpy"].told == importlib.metadata.version("numpy")
    assert found["needed", "no-such-package"].way_out == "pip install 'no-such-package>=2'"
    assert "but >=1000 is asked for" in found["needed", "scipy"].told
    assert found["extra pretty", "typer[plain]"].told.endswith("without absent-a")
    assert found["extra pretty", "no-such-extra"].way_out == "pip install 'autoprune[pretty]'"


def test_exit_code_is_one_where_something_needed_is_missing(required, capsys, monkeypatch):
    for topic in ("machine", "runtimes", "data"):
        monkeypatch.setattr(doctor, topic, lambda: [])
    assert main(["doctor"]) == 1
    words = " ".join(capsys.readouterr().out.split())
    assert "no-such-package bad not installed pip install 'no-such-package>=2'" in words
    assert "no-such-extra missing not installed pip install 'autoprune[pretty]'" in words


def test_this_machine(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "packages", lambda: [])
    assert main(["doctor", "--json"]) == 0
    found = {(f["topic"], f["name"]): f for f in json.loads(capsys.readouterr().out)}
    for name in ("Python", "processor", "torch", "disk here", "temporary files"):
        assert found["machine", name]["state"] == "ok"
    assert found["runtimes", "torch"]["state"] == "ok"
    assert found["runtimes", "onnxruntime"]["state"] == "ok"
    missing = [f for f in found.values() if f["state"] == "missing"]
    assert all(f["way_out"] for f in missing)
    assert found["data", "device profiles"]["state"] == "ok"


def test_broken_data_are_found(monkeypatch):
    def broken(name):
        raise FileNotFoundError("autoprune's data folder is missing; reinstall autoprune")

    monkeypatch.setattr("autoprune.strategy.settings.load_space_settings", broken)
    (finding,) = doctor.data()
    assert finding.state == "bad"
    assert "reinstall" in finding.told


def test_not_installed_by_pip(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    (finding,) = doctor.packages()
    assert finding.state == "missing"
