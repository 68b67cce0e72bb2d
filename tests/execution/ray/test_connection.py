import pytest

from autoprune.errors import RunError
from autoprune.execution.cluster import Cluster
from autoprune.execution.ray import connection
from autoprune.version import __version__


def room(nodes, **wanted):
    resources = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]
    return connection.room_on(resources, Cluster(**wanted))


def test_room_is_counted_node_by_node():
    assert room([(4.0, 0.0), (3.0, 0.0)]) == 7
    assert room([(4.0, 0.0), (3.0, 0.0)], cpus_per_trial=2.0) == 3
    assert room([(8.0, 1.0), (8.0, 0.0)], gpus_per_trial=0.25) == 4
    assert room([(2.0, 1.0)], gpus_per_trial=0.25) == 2
    assert room([(1.0, 0.0)], cpus_per_trial=0.1) == 10


def test_no_room_says_what_was_asked_and_what_there_is():
    match = r"no node.*has 4 CPU and 0\.5 GPU.*at most 2 CPU, 0 GPU.*--cpus-per-trial"
    with pytest.raises(RunError, match=match):
        room([(2.0, 0.0)], cpus_per_trial=4.0, gpus_per_trial=0.5)


def test_a_node_tells_its_version_and_what_it_lacks(tmp_path):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    assert connection.look([str(there), str(gone)]) == (__version__, [str(gone)])


def test_package_is_found_as_folder_or_file(tmp_path, monkeypatch):
    (tmp_path / "one_file.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert connection._place("one_file") == str(tmp_path / "one_file.py")
    assert connection._place("autoprune").endswith("/autoprune")
    with pytest.raises(RunError, match="'no_such_package' cannot be sent"):
        connection._place("no_such_package")


def test_node_without_autoprune_is_told_from_one_that_does_not_answer():
    from ray.exceptions import RayError

    text = "failed to import\nModuleNotFoundError: No module named 'autoprune'\n"
    assert "--ship-package" in connection._silence(RayError(text))
    assert connection._silence(RayError("lost\n the node \n")) == "does not answer: the node"
