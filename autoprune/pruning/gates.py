r"""Gradients of the loss by weights, and by gates on units.

A gate :math:`m_c = 1` multiplies unit c wherever a weight reads it, so that closing it is removing
the unit. At one reader its gradient is the sum of :math:`x_c \, \partial L / \partial x_c` over
positions, the second factor being what comes back through this reader alone. It is read off the
backward pass, for all groups and all images of a batch at once: whichever module multiplied, the
recorded operation knows its input, its weight and the gradient it returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import Node

from autoprune.errors import PruningError
from autoprune.network.groups import ParamSlice
from autoprune.network.inputs import evaluating
from autoprune.network.network import Network
from autoprune.network.outputs import logits_of
from autoprune.pruning.activations import Readers
from autoprune.pruning.aggregate import named_parameters, parameter_sites, unit_sums, widened
from autoprune.pruning.criterion import Batches, Criterion, Family, Needs
from autoprune.pruning.reads import Convolution, Product, Weights

#: Mean loss of a batch, from the model's output and the targets.
Loss = Callable[[Any, Tensor], Tensor]

#: Why a gate may be elsewhere than at the readers of a group.
EVERYWHERE = "not all readers are known; the gate is on every parameter of the unit"


def cross_entropy(output: Any, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits, of classes or of the next tokens of sequences.

    Args:
        output: Logits, or what holds them as ``logits``; classes come last where all that is in
            front of them has a target, else behind the batch.
        targets: Class indices; -100 is no target.

    Raises:
        PruningError: The model's output is no logits.
    """
    logits = logits_of(output)
    if logits is None:
        raise PruningError(
            f"expected the model to return a tensor of logits, but got a "
            f"{type(output).__name__}; pass loss=..., a function of (output, targets)"
        )
    if logits.shape[:-1] == targets.shape:
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    return F.cross_entropy(logits, targets)


class GradientCriterion(Criterion):
    """Scores units by gradients of the loss."""

    needs: ClassVar[Needs] = "labels"
    family: ClassVar[Family] = "optimisation tools"

    def __init__(self, *, images: int = 32, loss: Loss = cross_entropy) -> None:
        """Store parameters.

        Args:
            images: Images of one backward pass; larger batches are split.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        self.images = images
        self.loss = loss


def gradient_copy(network: Network) -> nn.Module:
    """Return a copy of the model that may take gradients: nothing the user holds can change."""
    return copy.deepcopy(network.model).eval().requires_grad_(False)


def labelled(batches: Batches, images: int, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets in pieces of at most ``images``, on the device of ``model``."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for inputs, targets in batches:
        pieces = zip(inputs.split(images), targets.split(images), strict=True)
        for part, labels in pieces:
            yield part.to(device), labels.to(device)


def gradients(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss of one batch by each of ``weights``.

    Args:
        model: From :func:`gradient_copy`.
        weights: Parameters of it by name; zeros come back for one that the loss does not read.
        inputs: One batch.
        targets: Its targets.
        loss: Mean loss.
    """
    if not weights:
        return {}
    for weight in weights.values():
        weight.requires_grad_(True)
    with evaluating(model), torch.enable_grad():
        found = torch.autograd.grad(
            loss(model(inputs), targets),
            list(weights.values()),
            allow_unused=True,
            materialize_grads=True,
        )
    for weight in weights.values():
        weight.requires_grad_(False)
    return dict(zip(weights, found, strict=True))


def mean_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Batches,
    *,
    loss: Loss,
    images: int,
    power: int = 1,
) -> dict[str, Tensor]:
    """Return the mean over the data of a power of the gradient by each of ``weights``.

    Args:
        model: From :func:`gradient_copy`.
        weights: Parameters of it by name.
        batches: Inputs and targets.
        loss: Mean loss of a batch.
        images: Images of one gradient; for the first power it makes no difference.
        power: Of the gradient of each piece; 2 with one image per piece is the mean square over
            images.
    """
    seen = 0
    mean = {path: torch.zeros_like(widened(weight)) for path, weight in weights.items()}
    for inputs, targets in labelled(batches, images, model):
        seen += len(inputs)
        for path, gradient in gradients(model, weights, inputs, targets, loss).items():
            mean[path] += len(inputs) / seen * (widened(gradient) ** power - mean[path])
    return mean


def effect_scores(
    effect: Mapping[str, Tensor], sites: Mapping[str, Sequence[tuple[ParamSlice, Tensor]]]
) -> dict[str, Float[np.ndarray, " units"]]:
    """Return for every unit the sum of ``effect`` over all entries of its sites, by group name.

    Args:
        effect: A number for each entry of each parameter, by parameter name.
        sites: The sites of every group.
    """
    return {
        name: np.sum([unit_sums(effect[member.path], member) for member, _ in found], axis=0)
        for name, found in sites.items()
    }


#: For each group by name, one matrix for every reader of its own.
GateRows = dict[str, list[Float[Tensor, "images units"]]]


def gate_rows(
    network: Network, known: Readers, batches: Batches, *, loss: Loss, images: int
) -> Iterator[GateRows]:
    """Yield the gradients of each image's loss by the gates at every reader of every group.

    One forward and one backward pass per piece of ``images`` give all of them. Which rows of an
    operation belong to which image is found out by passes of single images first. Where it cannot
    be (a kernel that is not seen, rows that images share), each image gets a pass of its own, in
    which the gate's gradient is the sum of ``w * dL/dw`` over the weights of its column.

    Args:
        network: A traced network; its model stays as it is.
        known: The readers of every group; one without any has one gate, on every parameter.
        batches: Inputs and targets.
        loss: Mean loss of a batch.
        images: Images of one pass.
    """
    model = gradient_copy(network)
    named = named_parameters(model)
    sites = {
        group.name: [reader.member for reader in known[group.name]]
        or [member for member, _ in parameter_sites(group, named)]
        for group in network.groups
    }
    known_sites = [(r.path, r.dim) for found in known.values() for r in found]
    unknown_sites = [
        (member.path, member.dim)
        for name, found in sites.items()
        if not known[name]
        for member in found
    ]
    passes = _Passes(model, loss, dict.fromkeys(known_sites), dict.fromkeys(unknown_sites))
    for inputs, targets in labelled(batches, images, model):
        rows = passes.rows(inputs, targets)
        yield {
            name: [_by_unit(rows[site.path, site.dim], site.indices) for site in found]
            if known[name]
            else [torch.stack([_by_unit(rows[s.path, s.dim], s.indices) for s in found]).sum(0)]
            for name, found in sites.items()
        }


def _by_unit(rows: Float[Tensor, "images positions"], indices: Any) -> Tensor:
    """Return rows with the positions of each unit added up."""
    return rows[:, torch.from_numpy(indices).to(rows.device)].sum(2)


#: A dimension of a parameter.
_Site = tuple[str, int]


class _Passes:
    """Takes gate gradients of batches, by every position of some dimensions of some weights."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        read: Mapping[_Site, None],
        other: Mapping[_Site, None],
    ) -> None:
        self.model = model
        self.loss = loss
        self.read = list(read)
        self.other = list(other)
        self.named = named_parameters(model)
        self.order: dict[_Site, Literal["major", "minor"]] | None = None

    def rows(
        self, inputs: Tensor, targets: Tensor
    ) -> dict[_Site, Float[Tensor, "images positions"]]:
        """Return one row per image for every site."""
        alone = [*self.read, *self.other]
        found: dict[_Site, Tensor] = {}
        if len(inputs) > 1 and self.read:
            together = self._together(inputs, targets)
            if self.order is None:
                self.order = self._ordered(together, inputs, targets)
            found = {
                site: _per_image(together[site], len(inputs), order)
                for site, order in self.order.items()
                if len(together[site]) % len(inputs) == 0
            }
            alone = [site for site in alone if site not in found]
        return found | self._alone(alone, inputs, targets)

    def _together(self, inputs: Tensor, targets: Tensor) -> dict[_Site, Tensor]:
        """Return ``x * dL/dx`` of every row of all operations that read, added up by site."""
        paths = [path for path, _ in self.read]
        leaves = _leaves(self.named, paths)
        with evaluating(self.model), torch.enable_grad():
            total = len(inputs) * self.loss(self.model(inputs), targets)
            heard = input_gradients(total, Weights(self.model, paths), leaves)
        for parameter in self.named.values():
            parameter.requires_grad_(False)
        found: dict[_Site, Tensor] = {}
        for path, dim in self.read:
            width = self.named[path].shape[dim]
            parts = [
                _gate_products(values, gradient, how, width)
                for values, gradient, how in heard.get(path, [])
                if how.dim == dim
            ]
            same = bool(parts) and len({len(part) for part in parts}) == 1
            found[path, dim] = torch.stack(parts).sum(0) if same else inputs.new_zeros(0, width)
        return found

    def _ordered(
        self, together: Mapping[_Site, Tensor], inputs: Tensor, targets: Tensor
    ) -> dict[_Site, Literal["major", "minor"]]:
        """Return how the rows of each site are ordered, where two single images agree with it."""
        last = len(inputs) - 1
        expected = {
            image: self._alone(self.read, inputs[image : image + 1], targets[image : image + 1])
            for image in (0, last)
        }
        found: dict[_Site, Literal["major", "minor"]] = {}
        for site, rows in together.items():
            orders: tuple[Literal["major", "minor"], ...] = ("major", "minor")
            for order in orders if len(rows) % len(inputs) == 0 else ():
                per_image = _per_image(rows, len(inputs), order)
                agree = [_close(per_image[i], one[site][0]) for i, one in expected.items()]
                if all(agree) and site not in found:
                    found[site] = order
        return found

    def _alone(
        self, sites: Sequence[_Site], inputs: Tensor, targets: Tensor
    ) -> dict[_Site, Float[Tensor, "images positions"]]:
        """Return one row per image, from ``w * dL/dw`` of passes of single images."""
        rows: dict[_Site, list[Tensor]] = {site: [] for site in sites}
        weights = {path: self.named[path] for path, _ in sites}
        for image in range(len(inputs) if sites else 0):
            one = slice(image, image + 1)
            found = gradients(self.model, weights, inputs[one], targets[one], self.loss)
            for path, dim in sites:
                effect = widened(weights[path].detach()) * found[path]
                others = [d for d in range(effect.ndim) if d != dim]
                rows[path, dim].append(effect.sum(others) if others else effect)
        return {site: torch.stack(found) for site, found in rows.items()}


def _leaves(named: Mapping[str, Tensor], paths: Sequence[str]) -> list[Tensor]:
    """Return parameters that a backward pass is run to, and let all take part in it.

    A weight keeps what it reads only where it could take a gradient; none is computed for those
    that read, but for the first where there are no others.
    """
    read = {id(named[path]) for path in paths}
    everyone = [p for p in named.values() if p.is_floating_point()]
    for parameter in everyone:
        parameter.requires_grad_(True)
    return [p for p in everyone if id(p) not in read] or everyone


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two rows agree but for rounding."""
    size = float(expected.abs().max())
    return bool(((found - expected).abs() <= 1e-3 * size + 1e-12).all())


def _per_image(
    rows: Float[Tensor, "rows positions"], images: int, order: Literal["major", "minor"]
) -> Float[Tensor, "images positions"]:
    """Return rows added up by image; ``"major"`` where the rows of one image follow each other."""
    if order == "major":
        return (
            rows.unflatten(0, (images, -1)).sum(1)
            if len(rows)
            else rows.new_zeros(images, rows.shape[1])
        )
    found: Tensor = rows.unflatten(0, (-1, images)).sum(0)
    return found


def _gate_products(
    values: Tensor, gradient: Tensor, how: Product | Convolution, width: int
) -> Float[Tensor, "rows positions"]:
    """Return ``x * dL/dx`` by row and by position in the weight's input dimension."""
    effect = widened(values.detach()) * gradient
    return folded(effect.flatten(2).sum(2) if effect.ndim > 2 else effect, width)


def folded(rows: Float[Tensor, "rows channels"], width: int) -> Float[Tensor, "rows positions"]:
    """Return rows with the same position in each group of a grouped convolution added up."""
    found: Tensor = rows.unflatten(1, (-1, width)).sum(1)
    return found


#: What a weight read: the input, the gradient that came back for it, and how.
Heard = tuple[Tensor, Tensor, Product | Convolution]


def input_gradients(
    total: Float[Tensor, ""], weights: Weights, leaves: Sequence[Tensor]
) -> dict[str, list[Heard]]:
    """Return what each weight read and the gradient of ``total`` through that reading alone.

    Args:
        total: What the backward pass starts from.
        weights: Those to listen for; they must require gradients, or their inputs are not kept.
        leaves: Where the backward pass ends; what leads to none of them has no gradient.

    Returns:
        By parameter name, for every operation that multiplied by the weight: its input as rows
        (``[rows, channels]`` or ``[n, channels, *spatial]``), the gradient of the same shape, and
        the operation.
    """
    heard: dict[str, list[Heard]] = {}
    for node in _nodes(total):
        factors = _factors(node)
        if factors is not None:
            _listen(node, *factors, weights, heard)
    torch.autograd.grad(total, list(leaves), allow_unused=True)
    return heard


def _nodes(total: Tensor) -> Iterator[Node]:
    """Yield every recorded operation that ``total`` depends on."""
    waiting = [total.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(before for before, _ in node.next_functions)


def _factors(node: Any) -> tuple[str, tuple[Any, ...], int] | None:
    """Return what a recorded operation multiplied, ``None`` for another kind of operation.

    Returns:
        The operator's name, its arguments, and the place of the first factor among the gradients
        that the node returns.
    """
    name = type(node).__name__.removesuffix("Backward0")
    if name == "Convolution":
        ends = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
        rest = [getattr(node, f"_saved_{end}") for end in ends]
        return "convolution", (node._saved_input, node._saved_weight, None, *rest), 0
    saved = {"Mm": ("self", 0), "Bmm": ("self", 0), "Addmm": ("mat1", 1), "Baddbmm": ("batch1", 1)}
    if name not in saved:
        return None
    first, place = saved[name]
    second = "batch2" if first == "batch1" else "mat2"
    left, right = getattr(node, f"_saved_{first}"), getattr(node, f"_saved_{second}")
    return "mm", (left, right), place


def _listen(
    node: Any,
    name: str,
    args: tuple[Any, ...],
    place: int,
    weights: Weights,
    heard: dict[str, list[Heard]],
) -> None:
    """Note in ``heard`` what comes back for the input of a node, if a known weight is in it."""
    if args[0] is None or args[1] is None:  # a factor that no gradient needs
        return
    read = weights.read(name, args)
    if read is None:
        return
    # The weight is the right factor, or else the left one, and all is transposed.
    right = args[1]
    swapped = name == "mm" and (
        weights.read("mm", (right.new_empty(1, right.shape[-2]), right)) is None
    )

    def hook(returned: Sequence[Tensor | None], _: Any) -> None:
        gradient = returned[place + swapped]
        if gradient is None:
            return
        if name == "mm":
            gradient = gradient.mT if swapped else gradient
            gradient = gradient.reshape(-1, gradient.shape[-1])
        heard.setdefault(read.path, []).append((read.input.detach(), gradient, read.how))

    node.register_hook(hook)
