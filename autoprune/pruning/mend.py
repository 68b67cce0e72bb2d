"""Integer attributes that mirror a tensor's width, brought in line after a cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from autoprune.errors import PruningError

_Conv = nn.modules.conv._ConvNd
_ConvTranspose = nn.modules.conv._ConvTransposeNd


#: Sets the width attributes of the second module, the first one's copy with cut tensors, to what
#: those tensors say.
Mender = Callable[[Any, Any], None]


def mender(module: nn.Module) -> Mender | None:
    """Return how copies of ``module`` are mended, ``None`` where no attribute mirrors a width."""
    return next((mend for kinds, mend in _MENDERS if isinstance(module, kinds)), None)


def set_attribute(root: nn.Module, attribute: str, value: int) -> None:
    """Give a whole-number attribute of a module inside ``root`` a new value.

    Args:
        root: A network of its own, changed in place.
        attribute: Dotted path, with ``[index]`` behind for an item of a tuple or list.
        value: The new value.

    Raises:
        PruningError: There is no such attribute, or it is no whole number.
    """
    path, name, index = _parsed(attribute)
    try:
        module = root.get_submodule(path)
        old = module.__dict__[name]
        number = old if index is None else old[index]
    except (AttributeError, KeyError, IndexError, TypeError):
        number = None
    if type(number) is not int:
        raise PruningError(
            f"the plan sets {attribute!r}, which is no whole number in this network; it was made "
            "for another architecture or another version of it"
        )
    module.__dict__[name] = value if index is None else _with_item(old, index, value)


def _parsed(attribute: str) -> tuple[str, str, int | None]:
    """Return module path, attribute name and index of ``"a.b.name[1]"``."""
    match = re.fullmatch(r"(?:(.*)\.)?([^.\[\]]+)(?:\[(\d+)\])?", attribute)
    if match is None:
        raise PruningError(f"{attribute!r} is no attribute path such as 'blocks.0.attn.num_heads'")
    path, name, index = match.groups()
    return path or "", name, None if index is None else int(index)


def _with_item(sequence: Any, index: int, value: int) -> Any:
    items = [*sequence]
    items[index] = value
    return type(sequence)(items)


def _convolution(original: Any, twin: Any) -> None:
    rows, columns = twin.weight.shape[:2]
    if isinstance(original, _ConvTranspose):
        if original.groups == original.in_channels and original.groups > 1:
            twin.groups = rows
        twin.in_channels, twin.out_channels = rows, columns * twin.groups
        return
    if original.groups == original.in_channels and original.groups > 1:
        twin.groups = rows * original.groups // original.out_channels
    twin.out_channels, twin.in_channels = rows, columns * twin.groups


def _linear(original: Any, twin: Any) -> None:
    twin.out_features, twin.in_features = twin.weight.shape


def _per_channel(original: Any, twin: Any) -> None:
    tensor: Tensor | None = twin.weight if twin.weight is not None else twin.running_mean
    if tensor is not None:
        twin.num_features = len(tensor)


def _layer_norm(original: Any, twin: Any) -> None:
    if twin.weight is not None:
        twin.normalized_shape = tuple(twin.weight.shape)


def _group_norm(original: Any, twin: Any) -> None:
    if twin.weight is not None:
        if original.num_groups == original.num_channels:
            twin.num_groups = len(twin.weight)
        twin.num_channels = len(twin.weight)


def _prelu(original: Any, twin: Any) -> None:
    twin.num_parameters = len(twin.weight)


def _embedding(original: Any, twin: Any) -> None:
    twin.num_embeddings, twin.embedding_dim = twin.weight.shape


def _encoder_layer(original: Any, twin: Any) -> None:
    weight = twin.self_attn.in_proj_weight
    if weight is not None and weight.shape[0] != 3 * weight.shape[1]:
        # Its fused kernel wants all heads together as wide as the input; unfused, code decides.
        twin.activation_relu_or_gelu = 0


def _encoder(original: Any, twin: Any) -> None:
    fused = all(getattr(layer, "activation_relu_or_gelu", 0) for layer in twin.layers)
    twin.use_nested_tensor = twin.use_nested_tensor and fused


_MENDERS: tuple[tuple[Any, Mender], ...] = (
    (_Conv, _convolution),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._NormBase, _per_channel),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.PReLU, _prelu),
    (nn.Embedding, _embedding),
    (nn.TransformerEncoderLayer, _encoder_layer),
    (nn.TransformerEncoder, _encoder),
)
