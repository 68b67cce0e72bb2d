"""Two processes on this processor train as one with the whole batch does."""

import os
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from autoprune.errors import SettingsError
from autoprune.tuning.parallel import Single, this_world

#: Trains a network without BatchNorm, whose gradient is the mean of those of the parts of a batch.
PROGRAM = """
import sys

import safetensors.torch
import torch
from torch import nn

from autoprune.testing.tasks import taught_images
from autoprune.tuning.loop import Tuner
from autoprune.tuning.parallel import this_world
from autoprune.tuning.settings import TuneSettings

torch.set_num_threads(1)


def net(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


teacher = net(0)
task = taught_images(teacher, classes=5, shape=(2, 3, 8, 8))
settings = TuneSettings(steps=6, batch=32, checks=2, precision="fp32", original_lr=0.1)
world = this_world("cpu")
tuned = Tuner(net(1), teacher, task, settings=settings, world=world).run()
tensors = {f"p/{name}": p.detach().contiguous() for name, p in tuned.model.named_parameters()}
scores = torch.tensor([[check.accuracy, check.loss] for check in tuned.history])
safetensors.torch.save_file(
    {**tensors, "scores": scores, "world": torch.tensor([world.rank, world.size])},
    f"{sys.argv[1]}/{world.rank}.safetensors",
)
"""


def processes(folder, size):
    """Start them as a launcher does, and return what each has written."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        launched = {
            "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        environment = os.environ | (launched if size > 1 else {})
        command = [sys.executable, str(program), str(folder)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    return [safetensors.torch.load_file(folder / f"{rank}.safetensors") for rank in range(size)]


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    (alone,) = processes(tmp_path / "alone", 1)
    first, second = processes(tmp_path / "both", 2)
    assert first.pop("world").tolist() == [0, 2]
    assert second.pop("world").tolist() == [1, 2]
    assert alone.pop("world").tolist() == [0, 1]
    # The images have no augmentation, so both see halves of the same batches.
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name])


def test_a_process_of_its_own_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = this_world("cpu")
    assert isinstance(world, Single)
    assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
    with pytest.raises(SettingsError, match=r"cannot train on 'tpu'.*take auto or cpu"):
        this_world("tpu")


def test_one_of_several_processes_cannot_be_given_a_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="a device of its own"):
        this_world("cuda:0")
