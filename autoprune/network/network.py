"""What tracing a model yields."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from torch import nn

from autoprune.network.groups import Block, ChannelGroup
from autoprune.network.inputs import Inputs
from autoprune.network.ops import OpTable
from autoprune.network.reshapes import Reshape


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
        reshapes: By module path, the numbers its code hands to reshaping calls, as they follow the
            groups.
        guards: Modules whose own code gets such numbers wrong after a cut, found by trial cuts.
        checked: What trial cuts compared: ``"nothing"`` before them, ``"values"``, or only
            ``"shapes"`` where the weights have no values.
    """

    model: nn.Module
    inputs: Inputs
    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...]
    ops: OpTable
    frozen: dict[str, str]
    unsupported: Counter[str]
    unused: tuple[str, ...] = ()
    reshapes: Mapping[str, tuple[Reshape, ...]] = dataclasses.field(default_factory=dict)
    guards: tuple[str, ...] = ()
    checked: Literal["nothing", "values", "shapes"] = "nothing"
