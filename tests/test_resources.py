"""Profiles and search spaces are found in a checkout and in an installed wheel."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from autoprune.resources import data_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["search_spaces", "hardware_profiles"])
def test_a_checkout_reads_its_own_folders(name):
    assert data_folder(name) == ROOT / name


def test_a_wheel_carries_the_folders_where_the_package_looks(tmp_path):
    """Lays the files out as pyproject.toml tells hatchling to, and asks from there."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    ignore = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, tmp_path / target)
    program = (
        "from autoprune.latency.profile import load_profile\n"
        "from autoprune.strategy.settings import load_space_settings\n"
        "import autoprune\n"
        "print(autoprune.__file__, load_profile('jetson').name, load_space_settings('default'))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.startswith(str(tmp_path))
    assert "jetson_nano" in printed


def test_a_broken_installation_says_so():
    with pytest.raises(FileNotFoundError, match="reinstall autoprune"):
        data_folder("nothing")
