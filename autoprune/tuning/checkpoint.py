"""All that a fine-tuning needs to go on where it stopped, in one safetensors file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from autoprune.errors import RunError
from autoprune.files import atomic_path

FORMAT, VERSION = "autoprune-checkpoint", 1
#: The one key of the file's own metadata.
_KEY = "autoprune"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a fine-tuning stands.

    Attributes:
        facts: Plain values.
        tensors: Tensors by name.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        header = {"format": FORMAT, "version": VERSION, **self.facts}
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.tensors.items()
        }
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, {_KEY: json.dumps(header)})

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Return what :meth:`write` wrote.

        Raises:
            RunError: The file is damaged or of another version.
        """
        way_out = "begin again with --restart"
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise RunError(f"{path} is damaged: {error}; {way_out}") from error
        form = (facts.pop("format", None), facts.pop("version", None))
        if form != (FORMAT, VERSION):
            raise RunError(
                f"{path} is of format {form[0]!r}, version {form[1]!r}; this autoprune reads "
                f"{FORMAT!r}, version {VERSION}; {way_out}"
            )
        return cls(facts, tensors)


def network_tensors(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return every parameter and buffer of a network once, under names that begin with a prefix."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {f"{prefix}/{name}": tensor for name, tensor in named}


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return what the optimiser keeps of each parameter."""
    return {
        f"optimiser/{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def fill_network(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Give a network the stored values, in place; memory layouts stay.

    Raises:
        RunError: They are those of another network.
    """
    own = network_tensors(model, prefix)
    stored = {name for name in tensors if name.startswith(f"{prefix}/")}
    if own.keys() != stored or any(tensors[n].shape != own[n].shape for n in stored):
        raise RunError("the checkpoint is that of another network; begin again with --restart")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def fill_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give an optimiser the stored state, laid out in memory as the parameters are."""
    for name, parameter in parameters.items():
        prefix = f"optimiser/{name}/"
        for key in [key for key in tensors if key.startswith(prefix)]:
            value = tensors[key]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter).copy_(value)
            optimiser.state[parameter][key.removeprefix(prefix)] = value
