"""Repair of BatchNorm statistics after channels are gone.

Cutting channels shifts the mean and variance of every later activation, so the stored statistics no
longer fit. They are replaced by those of calibration images, layer by layer: each layer sees inputs
that the layers before it have already normalised with their new statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.errors import PruningError
from autoprune.pruning.criterion import Batches

#: Bytes of the activations alive at once, as a multiple of the image's own bytes: input and output
#: of the widest layer come to 11 (ResNet), 16 (MobileNetV2) and 43 (VGG) times an RGB image.
ACTIVATION_FACTOR = 64


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Batches, *, memory_mb: int = 2048) -> int:
    """Replace the running statistics of every BatchNorm by those of ``batches``, in place.

    All images go through the network as one batch where their activations fit in ``memory_mb``:
    one forward pass in which each layer normalises by its exact batch statistics (biased variance)
    and stores them (unbiased variance, as PyTorch does in training). More images are cut into equal
    parts. Each part is then normalised by its own statistics, an approximation, and the stored ones
    are the moments pooled over all parts. A module that runs several times in one pass is pooled
    over its runs in the same way.

    Only ``running_mean`` and ``running_var`` change. Everything but BatchNorm runs in eval mode;
    training flags, momentum and batch counters are put back. A layer that does not run keeps its
    statistics, and one without running statistics has none to repair.

    Args:
        model: The pruned copy.
        batches: Calibration data; targets are not read.
        memory_mb: Bound on the activations of one part, estimated from the size of its images.

    Returns:
        How many layers were repaired; 0 without a forward pass for a network without BatchNorm.

    Raises:
        PruningError: There are no batches, or a layer gets only one value per channel; the
            statistics are then as before.
    """
    recorders = [
        _Recorder(module, module.running_mean, module.running_var)
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
    ]
    if not recorders:
        return 0
    if not batches:
        raise PruningError(
            "BatchNorm statistics need calibration images and got none; pass "
            "task.calibration(samples)"
        )
    device = recorders[0].mean.device
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for recorder in recorders:
            stack.enter_context(recorder.recording())
        for images in _parts([inputs for inputs, _ in batches], memory_mb * 2**20):
            model(images.to(device))
    return sum(recorder.store() for recorder in recorders)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and unbiased variance per channel.

    Attributes:
        count: Values per channel they were taken over.
        mean: Mean of each channel.
        variance: Unbiased variance of each channel.
    """

    count: int
    mean: Float[Tensor, " channels"]
    variance: Float[Tensor, " channels"]

    def pooled(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together, exactly."""
        count = self.count + other.count
        shift = other.mean - self.mean
        squares = (
            self.variance * (self.count - 1)
            + other.variance * (other.count - 1)
            + shift**2 * (self.count * other.count / count)
        )
        return Moments(count, self.mean + shift * (other.count / count), squares / (count - 1))


class _Recorder:
    """Pools the statistics that one BatchNorm layer computes over its runs."""

    def __init__(self, layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
        """Store the layer and its statistics, which stay as they are until :meth:`store`."""
        self.layer, self.mean, self.variance = layer, mean, variance
        self.scratch = torch.zeros_like(mean), torch.ones_like(variance)
        self.moments: Moments | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let the layer run in training mode on scratch statistics that hold its latest run."""
        layer = self.layer
        before = layer.training, layer.momentum, layer.num_batches_tracked
        hooks = layer.register_forward_pre_hook(_check), layer.register_forward_hook(self._add)
        try:
            layer.training, layer.momentum, layer.num_batches_tracked = True, 1.0, None
            layer.running_mean, layer.running_var = self.scratch
            yield
        finally:
            layer.training, layer.momentum, layer.num_batches_tracked = before
            layer.running_mean, layer.running_var = self.mean, self.variance
            for hook in hooks:
                hook.remove()

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Pool what the layer has just computed (a forward hook)."""
        mean, variance = (scratch.clone() for scratch in self.scratch)
        latest = Moments(inputs[0].numel() // inputs[0].shape[1], mean, variance)
        self.moments = latest if self.moments is None else self.moments.pooled(latest)

    def store(self) -> bool:
        """Write the pooled moments to the layer and return whether it ran at all."""
        if self.moments is None:
            return False
        self.mean.copy_(self.moments.mean)
        self.variance.copy_(self.moments.variance)
        return True


def _check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless the layer gets at least two values per channel (a forward pre-hook)."""
    if inputs[0].numel() <= inputs[0].shape[1]:
        raise PruningError(
            "BatchNorm statistics need at least two values per channel, but a layer got an "
            f"input of shape {tuple(inputs[0].shape)}; give at least two calibration images"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode and every module's flag back afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _parts(images: Sequence[Tensor], memory_bytes: int) -> Iterator[Tensor]:
    """Yield all images as one batch, or as the fewest equal parts that fit in ``memory_bytes``.

    Batches of different shapes cannot become one and are yielded as they come.
    """
    if len({(batch.shape[1:], batch.dtype, batch.device) for batch in images}) > 1:
        yield from images
        return
    together = torch.cat(list(images)) if len(images) > 1 else images[0]
    needed = together.numel() * together.element_size() * ACTIVATION_FACTOR
    yield from together.tensor_split(min(len(together) // 2 or 1, -(-needed // memory_bytes)))
