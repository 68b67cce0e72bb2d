"""What tracing a model yields."""

from __future__ import annotations

import dataclasses
from collections import Counter

from torch import nn

from autoprune.network.groups import Block, ChannelGroup
from autoprune.network.inputs import Inputs
from autoprune.network.ops import OpTable


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model with everything that can be removed from it and what it costs.

    Attributes:
        model: The user's model, never modified.
        inputs: Example inputs, one deployment batch: positional arguments in a tuple or keyword
            arguments in a mapping.
        groups: Channel groups that can be cut; a width vector follows this order.
        blocks: Residual blocks that can be dropped; a keep vector follows this order.
        ops: Every operator and parameter with its affine dimensions.
        frozen: What cannot be cut, by name, with the reason.
        unsupported: ATen operators without a rule that met channels, with their count; what they
            touched is frozen.
        unused: Modules with parameters that the forward pass never ran (auxiliary heads).
    """

    model: nn.Module
    inputs: Inputs
    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...]
    ops: OpTable
    frozen: dict[str, str]
    unsupported: Counter[str]
    unused: tuple[str, ...] = ()
