r"""Sequential least-squares reconstruction of a pruned network, without labels or gradients.

The pruned network is run once over calibration images. From the first weight that lost inputs on,
every weight that runs is solved for anew: from the inputs that the network, as repaired so far,
really gives it, towards what the dense network has at that place. Where its output is added to a
residual stream, the target is the dense *sum* less the pruned stream, so that it also repairs the
errors which earlier layers left there. The solution is ridged towards the weights the network had;
means go into the bias or into the running mean of the BatchNorm behind. Only then does the network
run on.

Everything the dense network has to say is gathered once, at sampled positions, and serves all
candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.network.groups import ParamSlice, kept_positions
from autoprune.network.inputs import evaluating
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import bias_of, endings
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.reads import Convolution, Product, Read, Reader, readers
from autoprune.pruning.statistics import ACTIVATION_FACTOR
from autoprune.pruning.trails import Ending, Follower, Operator, Trail

#: Least ridge towards the weights that are there, as a share of the mean square of the inputs.
RIDGE = 1e-4

#: The ridge is so many times the unknowns of an output per row, so that few rows (pooled features,
#: few images) change little. From 1 to 10 the accuracy of a ResNet-56 is the same; random networks
#: with few images want 10.
RIDGE_PER_UNKNOWN = 10.0

#: Rows of a least-squares problem: at least so many, and so many per unknown of an output.
ROWS, ROWS_PER_UNKNOWN = 16_384, 4

#: A problem with more unknowns per output than this is left to merging.
MOST_UNKNOWNS = 8192

#: Channels that are multiplied by less on their way to a stream are not asked to repair it.
SMALLEST_SCALE = 1e-6

#: Rows that one product in single precision adds up before the sum goes on in double.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What the dense network has behind one weight, at sampled positions.

    Attributes:
        reader: The weight.
        ending: What follows it.
        positions: Sampled positions of its output: per image ``[n, positions]`` in the flattened
            space of a convolution, ``[rows]`` of a product.
        layout: Extents of the output that hold positions; must be equal in the pruned network.
        output: Its output, a row per position.
        stream: What its output is added to, likewise; ``None`` where nothing is added.
    """

    reader: Reader
    ending: Ending
    positions: Int[Tensor, "..."]
    layout: tuple[int, ...]
    output: Float[Tensor, "rows outputs"]
    stream: Float[Tensor, "rows outputs"] | None = None


class Reconstruction:
    """Repairs pruned versions of one network; what the dense network says is gathered once."""

    def __init__(
        self,
        network: Network,
        batches: Batches,
        *,
        ridge: float = RIDGE,
        ridge_per_unknown: float = RIDGE_PER_UNKNOWN,
        rows: int = ROWS,
        everywhere: bool = True,
        memory_mb: int = 2048,
    ) -> None:
        """Run the dense network over the calibration images and keep the targets.

        Args:
            network: The traced network; its model is not changed.
            batches: Calibration data, of one shape; targets are not read. As many images are used
                as fit in the memory.
            ridge: Least pull towards the weights that are there.
            ridge_per_unknown: The pull for each unknown per row.
            rows: Sampled positions of one problem, more where it has many unknowns.
            everywhere: Solve every known weight that runs after the first change, because all of
                them get other inputs than in the dense network; else only those that lost inputs.
            memory_mb: Bound on the activations of one pass, estimated from the size of its
                images, and again on the targets.
        """
        self.network, self.everywhere = network, everywhere
        self.ridge, self.ridge_per_unknown = ridge, ridge_per_unknown
        self.images = _images(network.model, batches, memory_mb * 2**20)
        known = {
            reader.path: reader for group in network.groups for reader in readers(network, group)
        }
        self._slices: dict[tuple[str, int], list[tuple[str, ParamSlice]]] = {}
        for group in network.groups:
            for member in group.members:
                self._slices.setdefault((member.path, member.dim), []).append((group.name, member))
        usable = {
            path: ending
            for path, ending in endings(network, sorted(known)).items()
            if not known[path].transposed
        }
        named = named_parameters(network.model)
        outputs = sum(named[path].shape[_output_dim(known[path])] for path in usable)
        most = memory_mb * 2**20 // (8 * outputs) if outputs else rows
        dense = _Dense(network.model, known, usable, rows=rows, most=most)
        with evaluating(network.model), torch.no_grad(), dense:
            network.model(self.images)
        self._targets, self._means = dense.targets, dense.means

    def repair(self, model: nn.Module, plan: PruningPlan) -> int:
        """Solve the weights of ``model`` anew, in place, from the first that lost inputs on.

        Variances of BatchNorm stay those of the dense network: what least squares predicts varies
        less, and must not be blown up again. Means take the intercept behind a solved weight;
        elsewhere they move as far as those of the calibration images move from the dense to the
        pruned network. Nothing of this may be recomputed afterwards.

        Args:
            model: The network pruned by ``plan``, in eval mode afterwards as before.
            plan: What was cut.

        Returns:
            How many weights were solved.
        """
        present = named_parameters(model)
        jobs = {
            path: self._sliced(self._targets[path], plan)
            for path in self._concerned(plan)
            if path in present
        }
        means = {
            path: mean[self._kept(f"{path}.running_mean", 0, len(mean), plan)]
            for path, mean in self._means.items()
        }
        repairing = _Repairing(model, jobs, means, ridge=self._ridge)
        with evaluating(model), torch.no_grad():
            with repairing:
                model(self.images)
            after = {path: repairing.stored(path) for path in repairing.norms.values()}
        # The pass above puts every buffer back; these are meant to stay.
        for path, mean in after.items():
            model.get_buffer(f"{path}.running_mean").copy_(mean)
        return repairing.solved

    def _ridge(self, rows: int, unknowns: int) -> float:
        """Return the pull towards the weights that are there for a problem of that size."""
        return max(self.ridge, self.ridge_per_unknown * unknowns / rows)

    def _concerned(self, plan: PruningPlan) -> list[str]:
        """Return the weights to solve, in the order in which they run."""
        order = list(self._targets)
        loses = [path for path in order if self._loses(path, self._targets[path].reader.dim, plan)]
        if not self.everywhere:
            return loses
        gone = tuple(f"{name}." for name in plan.dropped)
        changed = [*loses, *(path for path in order if gone and path.startswith(gone))]
        first = min(map(order.index, changed), default=len(order))
        return order[first:]

    def _loses(self, path: str, dim: int, plan: PruningPlan) -> bool:
        """Return whether a plan cuts a dimension of a parameter."""
        return any(
            name in plan.kept and len(plan.kept[name]) < len(member.indices)
            for name, member in self._slices.get((path, dim), ())
        )

    def _kept(self, path: str, dim: int, size: int, plan: PruningPlan) -> Tensor:
        cut = [
            (member, np.array(plan.kept[name], np.int64))
            for name, member in self._slices.get((path, dim), ())
            if name in plan.kept
        ]
        return torch.from_numpy(kept_positions(size, cut)).to(self.images.device)

    def _sliced(self, target: Target, plan: PruningPlan) -> Target:
        """Return a target with the outputs that a plan keeps."""
        reader = target.reader
        kept = self._kept(reader.path, _output_dim(reader), target.output.shape[1], plan)
        stream = None if target.stream is None else target.stream[:, kept]
        return dataclasses.replace(target, output=target.output[:, kept], stream=stream)


def _images(model: nn.Module, batches: Batches, memory_bytes: int) -> Tensor:
    """Return the calibration images in one batch, as many as fit in the memory."""
    images = torch.cat([inputs for inputs, _ in batches])
    needed = images[0].numel() * images.element_size() * ACTIVATION_FACTOR
    images = images[: max(2, memory_bytes // needed)]
    device = next((parameter.device for parameter in model.parameters()), images.device)
    layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    return images.to(device).contiguous(memory_format=layout)


def _output_dim(reader: Reader) -> int:
    """Return the dimension of a reader's weight that holds its outputs."""
    return 1 if reader.dim == 0 else 0


class _Dense(Follower):
    """Gathers targets and means while the dense network runs."""

    def __init__(
        self,
        model: nn.Module,
        known: Mapping[str, Reader],
        endings: Mapping[str, Ending],
        *,
        rows: int,
        most: int,
    ) -> None:
        """Store what to gather: targets of the weights in ``endings``, at most ``most`` rows."""
        super().__init__(model, sorted(endings))
        self.known, self.endings = known, endings
        self.rows, self.most = rows, most
        self.generator = torch.Generator().manual_seed(0)
        self.targets: dict[str, Target] = {}
        self.means: dict[str, Tensor] = {}

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Sample the output of a weight."""
        output = super().on_read(read, run)
        reader = self.known[read.path]
        unknowns = read.input.shape[1] * _taps(read, run)
        if not _solvable(read, output, reader) or unknowns > MOST_UNKNOWNS:
            return output
        rows = min(max(self.rows, ROWS_PER_UNKNOWN * unknowns), self.most)
        positions = _drawn(output, read.how, rows, self.generator)
        self.targets[read.path] = Target(
            reader,
            self.endings[read.path],
            positions,
            _layout(output),
            _at(output, positions),
        )
        return output

    def on_norm(self, path: str, run: Operator) -> None:
        """Note the mean of what a BatchNorm gets."""
        self.means[path] = _mean(run.args[0])

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """Sample what the output of a weight is added to, in the layout of that output."""
        for place, trail in enumerate(trails):
            target = None if trail is None else self.targets.get(trail.path)
            if trail is None or target is None or not target.ending.added:
                continue
            stream = _at(trail.undone(run.args[1 - place]), target.positions)
            self.targets[trail.path] = dataclasses.replace(target, stream=stream)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
    """A weight that waits to be solved until its output is added to a stream."""

    read: Read
    run: Operator
    target: Target


class _Repairing(Follower):
    """Solves weights while the pruned network runs."""

    def __init__(
        self,
        model: nn.Module,
        jobs: Mapping[str, Target],
        means: Mapping[str, Tensor],
        *,
        ridge: Callable[[int, int], float],
    ) -> None:
        """Store what is to be solved for, the dense network's means, and the ridge.

        ``ridge`` takes the rows and the unknowns of a problem.
        """
        super().__init__(model, sorted(jobs))
        self.model, self.jobs, self.means, self.ridge = model, jobs, means, ridge
        self.named = named_parameters(model)
        self.solved = 0
        self._pending: dict[str, _Pending] = {}
        self._settled = {job.ending.norm for job in jobs.values() if job.ending.norm is not None}

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Solve a weight, or let it wait for the stream that its output is added to."""
        output = super().on_read(read, run)
        target = self.jobs[read.path]
        if _layout(output) != target.layout or output.shape[1] != target.output.shape[1]:
            self._settled.discard(target.ending.norm)
            return output
        if target.stream is not None:
            self._pending[read.path] = _Pending(read, run, target)
            return output
        self._solve(read, run, target, target.output)
        return super().on_read(read, run)

    def on_norm(self, path: str, run: Operator) -> None:
        """Move the mean as far as that of the images moved, but behind a solved weight."""
        if path not in self._settled and path in self.means:
            mean = run.args[3]
            mean += (_mean(run.args[0]) - self.means[path]).to(mean.dtype)

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """Solve the weight that waited, and put its new output in the place of the old."""
        for place, trail in enumerate(trails):
            pending = None if trail is None else self._pending.pop(trail.path, None)
            if trail is None or pending is None or pending.target.stream is None:
                continue
            positions, tip = pending.target.positions, run.args[place]
            missing = pending.target.stream - _at(trail.undone(run.args[1 - place]), positions)
            scale = _at(trail.scale(tip), positions[:1])[0]
            # A channel that the BatchNorm has switched off can repair nothing.
            usable = scale.abs() > SMALLEST_SCALE
            wish = torch.where(usable, missing / torch.where(usable, scale, 1.0), 0.0)
            self._solve(pending.read, pending.run, pending.target, pending.target.output + wish)
            tip.copy_(trail.redone(super().on_read(pending.read, pending.run)))

    def stored(self, path: str) -> Tensor:
        """Return a copy of the running mean that a BatchNorm has now."""
        return self.model.get_buffer(f"{path}.running_mean").clone()

    def _solve(
        self, read: Read, run: Operator, target: Target, wish: Float[Tensor, "rows outputs"]
    ) -> None:
        """Give a weight the values by which its output comes nearest to ``wish``."""
        reader = target.reader
        weight, bias = self.named[reader.path], bias_of(reader, self.named)
        norm = target.ending.norm
        inputs = _inputs(read, tuple(weight.shape[2:]), target.positions)
        before = weight.movedim(reader.dim, -1).reshape(len(inputs), -1, inputs.shape[-1])
        wishes = wish.reshape(len(wish), len(inputs), -1).transpose(0, 1)
        solution, intercept = ridge_towards(
            inputs,
            wishes,
            before,
            ridge=self.ridge(*inputs.shape[1:]),
            centred=bias is not None or norm is not None,
        )
        moved = weight.movedim(reader.dim, -1)
        moved.copy_(solution.reshape(moved.shape))
        shift = intercept.flatten().to(weight.dtype)
        if bias is not None:
            bias.copy_(shift if _includes_bias(read, run) else bias + shift)
        elif norm is not None:
            self.model.get_buffer(f"{norm}.running_mean").sub_(shift)
        self.solved += 1


def ridge_towards(
    inputs: Float[Tensor, "problems rows unknowns"],
    wishes: Float[Tensor, "problems rows outputs"],
    before: Float[Tensor, "problems outputs unknowns"],
    *,
    ridge: float,
    centred: bool,
) -> tuple[Float[Tensor, "problems outputs unknowns"], Float[Tensor, "problems outputs"]]:
    r"""Return the weights and intercepts of a ridge regression towards given weights.

    Minimises :math:`\lVert A W^T + b - Y \rVert^2 + \lambda m \lVert W - W_0 \rVert^2` with m
    the mean diagonal of :math:`A^T A`, in double precision.

    Args:
        inputs: A.
        wishes: Y.
        before: :math:`W_0`.
        ridge: The :math:`\lambda`.
        centred: Whether there is an intercept b; else it is 0.
    """
    if centred:
        mean, goal = inputs.mean(1).double(), wishes.mean(1).double()
    else:
        mean = inputs.new_zeros(inputs[:, 0].shape, dtype=torch.float64)
        goal = wishes.new_zeros(wishes[:, 0].shape, dtype=torch.float64)
    square: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    shift, aim = (each[:, None].to(inputs.dtype) for each in (mean, goal))
    for rows, aims in zip(inputs.split(_BLOCK, 1), wishes.split(_BLOCK, 1), strict=True):
        rows = rows - shift
        square = square + (rows.mT @ rows).double()
        cross = cross + (rows.mT @ (aims - aim)).double()
    square, cross = torch.as_tensor(square), torch.as_tensor(cross)
    pull = ridge * square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    pull = pull.clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    system = square + pull * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    factor = torch.linalg.cholesky(system)
    solution = torch.cholesky_solve(cross + pull * before.double().mT, factor).mT
    return solution, goal - (solution @ mean[..., None])[..., 0]


def _mean(inputs: Float[Tensor, "n channels ..."]) -> Float[Tensor, " channels"]:
    """Return the mean of each channel."""
    return inputs.float().mean([dim for dim in range(inputs.ndim) if dim != 1])


def _solvable(read: Read, output: Tensor, reader: Reader) -> bool:
    """Return whether a weight is used in the plain way that a least-squares problem is made for."""
    plain = isinstance(read.how, Convolution) or (output.ndim == 2 and not read.turned)
    return read.whole and plain and read.how.dim == reader.dim


def _includes_bias(read: Read, run: Operator) -> bool:
    """Return whether an operator adds the bias itself."""
    if isinstance(read.how, Convolution):
        return isinstance(run.args[2], Tensor)
    return run.name in ("addmm", "baddbmm") or len(run.args) > 2


def _taps(read: Read, run: Operator) -> int:
    """Return how many kernel taps a weight has, 1 in a product."""
    return int(run.args[1][0, 0].numel()) if isinstance(read.how, Convolution) else 1


def _layout(output: Tensor) -> tuple[int, ...]:
    """Return all extents but that of the channels."""
    return (output.shape[0], *output.shape[2:])


def _drawn(
    output: Tensor, how: Product | Convolution, rows: int, generator: torch.Generator
) -> Int[Tensor, "..."]:
    """Return random positions of an output, about ``rows``, or all where there are not more."""
    if isinstance(how, Product):
        count = len(output)
        drawn = torch.randperm(count, generator=generator)[:rows]
        return drawn.sort().values.to(output.device)
    area = output[0, 0].numel()
    each = -(-rows // len(output))
    if each >= area:
        return torch.arange(area, device=output.device).repeat(len(output), 1)
    # With replacement: a permutation for each image would take longer than the solution.
    drawn = torch.randint(area, (len(output), each), generator=generator)
    return drawn.sort(1).values.to(output.device)


def _at(
    tensor: Float[Tensor, "..."], positions: Int[Tensor, "..."]
) -> Float[Tensor, "rows channels"]:
    """Return what a tensor of an output's layout has at positions, in at least single precision."""
    if positions.ndim == 1:
        rows = tensor[positions]
    else:
        image = torch.arange(len(positions), device=positions.device)[:, None]
        rows = tensor.flatten(2)[image, :, positions].flatten(0, 1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _inputs(
    read: Read, kernel: tuple[int, ...], positions: Int[Tensor, "..."]
) -> Float[Tensor, "problems rows unknowns"]:
    """Return the inputs behind sampled outputs, a row for each, by group of a convolution.

    Args:
        read: What is read, and how.
        kernel: Extents of the kernel.
        positions: Where the output was sampled.
    """
    if isinstance(read.how, Product):
        return _at(read.input, positions)[None]
    how = read.how
    padded = F.pad(read.input, [pad for pad in reversed(how.padding) for _ in range(2)])
    extents = [
        (size - step * (taps - 1) - 1) // stride + 1
        for size, step, taps, stride in zip(
            padded.shape[2:], how.dilation, kernel, how.stride, strict=True
        )
    ]
    places = torch.unravel_index(positions, extents)
    taps = torch.unravel_index(torch.arange(int(np.prod(kernel)), device=positions.device), kernel)
    flat = torch.zeros((), dtype=torch.long, device=positions.device)
    for dim, (place, tap) in enumerate(zip(places, taps, strict=True)):
        along = place[..., None] * how.stride[dim] + tap * how.dilation[dim]
        flat = flat * padded.shape[2 + dim] + along
    image = torch.arange(len(positions), device=positions.device)[:, None, None]
    rows = padded.movedim(1, -1).flatten(1, -2)[image, flat]
    groups, width = how.groups, rows.shape[-1] // how.groups
    by_group = rows.reshape(-1, rows.shape[-2], groups, width).movedim(2, 0)
    by_group = by_group.flatten(2)
    return by_group.to(torch.promote_types(by_group.dtype, torch.float32))
