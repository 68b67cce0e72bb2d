import sys

import pytest

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.execution.cluster import Cluster, check_address, check_logger, shipped_packages


@pytest.mark.parametrize(
    ("address", "starts", "cpus"),
    [("local", True, None), ("local:6", True, 6), ("auto", False, None), (None, False, None)],
)
def test_local_addresses_start_a_ray_with_so_many_cpus(address, starts, cpus):
    cluster = Cluster(address=address)
    assert (cluster.starts_ray, cluster.local_cpus) == (starts, cpus)


def test_evaluations_compute_in_as_many_threads_as_they_have_whole_cpus():
    assert [Cluster(cpus_per_trial=cpus).threads for cpus in (0.25, 1.0, 2.5)] == [1, 1, 2]


@pytest.mark.parametrize(
    "address", ["auto", "local", "local:4", "ray://head:10001", "10.0.0.2:6379", "[::1]:6379"]
)
def test_addresses_that_ray_knows(address):
    check_address(address)


@pytest.mark.parametrize("address", ["", "local:0", "local:x", "ray://head", "http://head:1", "my"])
def test_other_addresses_are_refused(address):
    with pytest.raises(SettingsError, match="ray: expected local"):
        check_address(address)


def test_logger_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"'wandb'.*pip install 'autoprune\[wandb\]'"):
        check_logger("wandb")
    with pytest.raises(UnknownNameError, match="did you mean 'mlflow'"):
        check_logger("mflow")


def test_packages_that_are_not_installed_are_sent(tmp_path, monkeypatch):
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "__init__.py").write_text("")
    (tmp_path / "my_data.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    specs = ["my_nets.big:net(3)", "my_data:photos", "torchvision:resnet18", "nets.py:net", None]
    assert shipped_packages(specs) == ["my_data", "my_nets"]
    assert shipped_packages(["digits", "image-folder:/photos", "no_such_package:net"]) == []
    assert "my_nets" not in sys.modules
