"""One process, or several with a part of each batch each; this alone imports accelerate."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn

from autoprune.errors import SettingsError

T = TypeVar("T")


class World(ABC):
    """The processes that train one network together.

    Attributes:
        rank: Number of this one; 0 writes files.
        size: How many there are.
        device: Where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @abstractmethod
    def prepared(self, model: nn.Module) -> nn.Module:
        """Return what to call in place of ``model``, which keeps the parameters."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over all processes."""

    @abstractmethod
    def agreed(self, value: T) -> T:
        """Return the value of process 0 in all."""


class Single(World):
    """This process alone."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        """Store the device."""
        self.device = device

    def prepared(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        torch.autograd.backward(loss)

    def agreed(self, value: T) -> T:
        """Return the value itself."""
        return value


class Accelerated(World):
    """Several processes that ``accelerate launch`` started, by Hugging Face Accelerate."""

    def __init__(self, *, cpu: bool) -> None:
        """Join the other processes.

        Args:
            cpu: Compute on processors though there are GPUs.

        Raises:
            SettingsError: Accelerate is not installed.
        """
        try:
            from accelerate import Accelerator
        except ModuleNotFoundError as error:
            raise SettingsError(
                'several processes need accelerate: pip install "autoprune[parallel]"'
            ) from error
        # Number formats and batches are ours.
        self._accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device

    def prepared(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped, so that gradients are averaged."""
        wrapped = self._accelerator.prepare_model(model)
        assert isinstance(wrapped, nn.Module)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over all processes."""
        self._accelerator.backward(loss)

    def agreed(self, value: T) -> T:
        """Return the value of process 0 in all."""
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]


def this_world(device: str = "auto") -> World:
    """Return the processes that this one is part of.

    Args:
        device: ``"auto"`` for a GPU where there is one, ``"cpu"``, or what PyTorch calls another;
            each of several processes has a GPU of its own.

    Raises:
        SettingsError: There is no such device, or accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device not in ("auto", "cpu"):
            raise SettingsError(
                f"each of several processes has a device of its own, so {device!r} cannot be "
                "given; take auto or cpu"
            )
        return Accelerated(cpu=device == "cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"cannot train on {device!r}: {reason}; take auto or cpu") from None
    return Single(torch.device(device))
