r"""Sequential least-squares reconstruction of a pruned network, without labels or gradients.

The pruned network is run once over calibration images. From the first weight that lost inputs on,
every weight that runs is solved for anew: from the inputs that the network, as repaired so far,
really gives it, towards what the dense network has at that place. Where its output is added to a
residual stream, the target is the dense *sum* less the pruned stream, so that it also repairs the
errors which earlier layers left there. The solution is ridged towards the weights the network had;
means go into the bias or into the running mean of the BatchNorm behind. Only then does the network
run on.

Everything the dense network has to say is gathered once, at sampled positions, and serves all
candidates. Images that do not fit in the memory at once come in parts: each part adds its rows to
the problems of those before, and every weight is solved again before the part runs on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree

from autoprune.network.groups import ParamSlice, kept_positions
from autoprune.network.inputs import evaluating
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import bias_of, endings
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.positions import at, drawn, inputs_at, layout_of
from autoprune.pruning.prefixes import Prefixes, State, States
from autoprune.pruning.reads import Convolution, Read, Reader, readers
from autoprune.pruning.ridge import NormalEquations
from autoprune.pruning.statistics import ACTIVATION_FACTOR
from autoprune.pruning.trails import Ending, Follower, Operator, Trail

#: Least ridge towards the weights that are there, as a share of the mean square of the inputs.
RIDGE = 1e-4

#: The ridge is so many times the unknowns of an output per row, so that few rows (pooled features,
#: few images) change little. From 1 to 10 the accuracy of a ResNet-56 is the same; random networks
#: with few images want 10.
RIDGE_PER_UNKNOWN = 10.0

#: Rows of a least-squares problem; at least and at most so many per unknown of an output.
ROWS, LEAST_ROWS_PER_UNKNOWN, MOST_ROWS_PER_UNKNOWN = 16_384, 4, 256

#: A problem with more unknowns per output is left to merging.
MOST_UNKNOWNS = 8192

#: Channels that are multiplied by less on their way to a stream are not asked to repair it.
SMALLEST_SCALE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """What the dense network has behind one weight, at sampled positions of a part of the images.

    Attributes:
        reader: The weight.
        ending: What follows it.
        positions: Sampled positions of its output: per image ``[n, positions]`` in the flattened
            space of a convolution, ``[rows]`` of a product.
        layout: Extents of the output that hold positions; must be equal in the pruned network.
        output: Its output with the bias, a row per position.
        stream: What its output is added to, likewise; ``None`` where nothing is added.
    """

    reader: Reader
    ending: Ending
    positions: Int[Tensor, "..."]
    layout: tuple[int, ...]
    output: Float[Tensor, "rows outputs"]
    stream: Float[Tensor, "rows outputs"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Images of one pass, and what the dense network says about them.

    Attributes:
        images: The images.
        targets: By parameter name, in the order in which the weights run.
        means: Of what every BatchNorm gets, by its path.
    """

    images: Tensor
    targets: Mapping[str, Target]
    means: Mapping[str, Tensor]


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
        most_unknowns: int = MOST_UNKNOWNS,
        everywhere: bool = True,
        memory_mb: int = 2048,
        cache_mb: int = 256,
    ) -> None:
        """Run the dense network over the calibration images and keep the targets.

        Args:
            network: The traced network; its model is not changed.
            batches: Calibration data, of one shape; targets are not read.
            ridge: Least pull towards the weights that are there.
            ridge_per_unknown: The pull for each unknown per row.
            rows: Sampled positions of one problem, more where it has many unknowns.
            most_unknowns: A problem with more unknowns per output is left to merging.
            everywhere: Solve every known weight that runs after the first change, because all of
                them get other inputs than in the dense network; else only those that lost inputs.
            memory_mb: Bound on the memory: half for the activations of one pass, estimated from
                the size of its images, and half for the targets. More images come in parts, and
                more rows than fit are left out.
            cache_mb: Bound on the solved weights that are kept for candidates which are the same
                up to there.
        """
        self.network, self.everywhere = network, everywhere
        self.ridge, self.ridge_per_unknown = ridge, ridge_per_unknown
        known = _known(network)
        self._slices: dict[tuple[str, int], list[tuple[str, ParamSlice]]] = {}
        for group in network.groups:
            for member in group.members:
                self._slices.setdefault((member.path, member.dim), []).append((group.name, member))
        usable = endings(network, sorted(known))
        named = named_parameters(network.model)
        half = memory_mb * 2**19
        row_bytes = sum(
            (8 if ending.added else 4) * named[path].shape[_output_dim(known[path])]
            for path, ending in usable.items()
        )
        most = half // row_bytes if row_bytes else rows
        images = _parts(network.model, batches, half)
        total = sum(map(len, images))
        generator = torch.Generator().manual_seed(0)
        self._parts: list[_Part] = []
        with evaluating(network.model), torch.no_grad():
            for part in images:
                dense = _Dense(
                    network.model,
                    known,
                    usable,
                    rows=_Rows(rows, most, len(part) / total, most_unknowns),
                    generator=generator,
                )
                with dense:
                    network.model(_laid_out(part))
                self._parts.append(_Part(part, dense.targets, dense.means))
        self._prefixes = Prefixes(network, usable)
        self._states = States(cache_mb * 2**20)

    @property
    def images(self) -> list[int]:
        """How many images each pass takes."""
        return [len(part.images) for part in self._parts]

    def repair(self, model: nn.Module, plan: PruningPlan) -> int:
        """Solve the weights of ``model`` anew, in place, from the first that lost inputs on.

        Variances of BatchNorm stay those of the dense network: what least squares predicts varies
        less, and must not be blown up again. Means take the intercept behind a solved weight;
        elsewhere they move as far as those of the calibration images move from the dense to the
        pruned network. Nothing of this may be recomputed afterwards.

        What an earlier candidate that is the same up to some weight has solved is not solved again.

        Args:
            model: The network pruned by ``plan``, in eval mode afterwards as before.
            plan: What was cut, with all that follows from it.

        Returns:
            How many weights have got other values.
        """
        keys = self._prefixes.keys(plan)
        known = {
            path: states
            for path, key in keys.items()
            if (states := self._states.get(path, key)) is not None
        }
        concerned = [path for path in self._concerned(plan) if path in named_parameters(model)]
        targets = self._parts[0].targets
        settled = {targets[path].ending.norm for path in concerned} - {None}
        unsolved = [path for path in concerned if path not in known]
        repairing = _Repairing(model, unsolved, settled, known, ridge=self._ridge)
        with evaluating(model), torch.no_grad():
            for number, part in enumerate(self._parts):
                repairing.start(
                    number,
                    {path: self._sliced(part.targets[path], plan) for path in unsolved},
                    {path: self._mean(path, mean, plan) for path, mean in part.means.items()},
                    last=number == len(self._parts) - 1,
                )
                with repairing:
                    model(_laid_out(part.images))
            after = repairing.states()
        # The passes above put every buffer back; these are meant to stay.
        for path, states in after.items():
            self._states.put(path, keys[path], states)
        with torch.no_grad():
            _write(model, [states[-1] for states in after.values()])
        return sum(path in concerned for path in after)

    def _ridge(self, rows: int, unknowns: int) -> float:
        """Return the pull towards the weights that are there for a problem of that size."""
        return max(self.ridge, self.ridge_per_unknown * unknowns / rows)

    def _concerned(self, plan: PruningPlan) -> list[str]:
        """Return the weights to solve, in the order in which they run."""
        order = list(self._parts[0].targets)
        loses = [path for path in order if self._loses(path, plan)]
        if not self.everywhere:
            return loses
        gone = tuple(f"{name}." for name in plan.dropped)
        changed = [*loses, *(path for path in order if gone and path.startswith(gone))]
        first = min(map(order.index, changed), default=len(order))
        return order[first:]

    def _loses(self, path: str, plan: PruningPlan) -> bool:
        """Return whether a plan cuts inputs of a weight."""
        dim = self._parts[0].targets[path].reader.dim
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
        return torch.from_numpy(kept_positions(size, cut)).to(self._parts[0].images.device)

    def _mean(self, path: str, mean: Tensor, plan: PruningPlan) -> Tensor:
        """Return the mean of the channels of a BatchNorm that a plan keeps."""
        return mean[self._kept(f"{path}.running_mean", 0, len(mean), plan)]

    def _sliced(self, target: Target, plan: PruningPlan) -> Target:
        """Return a target with the outputs that a plan keeps."""
        reader = target.reader
        kept = self._kept(reader.path, _output_dim(reader), target.output.shape[1], plan)
        stream = None if target.stream is None else target.stream[:, kept]
        return dataclasses.replace(target, output=target.output[:, kept], stream=stream)


def _known(network: Network) -> dict[str, Reader]:
    """Return the weights whose role is known, but transposed convolutions, by parameter name.

    Besides the readers of groups these are the linear layers and convolutions that read no group:
    depthwise ones, and those whose inputs are frozen.
    """
    known = {reader.path: reader for group in network.groups for reader in readers(network, group)}
    named = named_parameters(network.model)
    for path, module in network.model.named_modules():
        plain = isinstance(module, (nn.Linear, _ConvNd))
        weight = f"{path}.weight" if path else "weight"
        if plain and weight not in known and weight in named:
            nothing = ParamSlice(weight, 1, np.zeros((0, 1), np.int64))
            conv_groups = module.groups if isinstance(module, _ConvNd) else 1
            known[weight] = Reader(
                nothing, conv_groups, transposed=isinstance(module, _ConvTransposeNd)
            )
    return {path: reader for path, reader in known.items() if not reader.transposed}


def _parts(model: nn.Module, batches: Batches, memory_bytes: int) -> list[Tensor]:
    """Return the calibration images in one batch, or in the fewest parts that fit in the memory."""
    images = torch.cat([inputs for inputs, _ in batches]) if len(batches) > 1 else batches[0][0]
    needed = images.numel() * images.element_size() * ACTIVATION_FACTOR
    device = next((parameter.device for parameter in model.parameters()), images.device)
    most = max(1, len(images) // 2)
    return list(images.to(device).tensor_split(min(most, -(-needed // memory_bytes))))


def _laid_out(images: Tensor) -> Tensor:
    """Return images in the memory layout in which patches lie together."""
    layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    return images.contiguous(memory_format=layout)


def _output_dim(reader: Reader) -> int:
    """Return the dimension of a reader's weight that holds its outputs."""
    return 1 if reader.dim == 0 else 0


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How many rows of a problem come from one part of the images.

    Attributes:
        wanted: Rows of a problem of middling size.
        most: Rows that fit in the memory.
        share: Share of the images that the part has.
        unknowns: Most unknowns per output of a problem that is solved.
    """

    wanted: int
    most: int
    share: float
    unknowns: int

    def of(self, unknowns: int) -> int:
        """Return the rows of a problem with so many unknowns per output."""
        rows = min(self.wanted, MOST_ROWS_PER_UNKNOWN * unknowns)
        rows = min(max(rows, LEAST_ROWS_PER_UNKNOWN * unknowns), self.most)
        return math.ceil(rows * self.share)


class _Dense(Follower):
    """Gathers targets and means while the dense network runs."""

    def __init__(
        self,
        model: nn.Module,
        known: Mapping[str, Reader],
        endings: Mapping[str, Ending],
        *,
        rows: _Rows,
        generator: torch.Generator,
    ) -> None:
        """Store what to gather: targets of the weights in ``endings``."""
        super().__init__(model, sorted(endings))
        self.known, self.endings = known, endings
        self.rows, self.generator = rows, generator
        self.named = named_parameters(model)
        self.targets: dict[str, Target] = {}
        self.means: dict[str, Tensor] = {}

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Sample the output of a weight."""
        output = super().on_read(read, run)
        reader = self.known[read.path]
        unknowns = _unknowns(read, run)
        if not _solvable(read, output, reader) or unknowns > self.rows.unknowns:
            return output
        positions = drawn(output, read.how, self.rows.of(unknowns), self.generator)
        rows = at(output, positions)
        bias = bias_of(reader, self.named)
        if bias is not None and not _includes_bias(read, run):
            rows = rows + bias
        self.targets[read.path] = Target(
            reader, self.endings[read.path], positions, layout_of(output), rows
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
            stream = at(trail.undone(run.args[1 - place]), target.positions)
            self.targets[trail.path] = dataclasses.replace(target, stream=stream)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
    """A weight that waits to be solved until its output is added to a stream."""

    read: Read
    run: Operator
    target: Target


class _Repairing(Follower):
    """Solves weights while the pruned network runs over one part of the images after another."""

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        settled: Collection[str | None],
        known: Mapping[str, Sequence[State]],
        *,
        ridge: Callable[[int, int], float],
    ) -> None:
        """Store what is solved already, for every part of the images.

        Args:
            model: The pruned network.
            paths: The weights to solve.
            settled: The BatchNorm layers behind all weights that are or will be solved.
            known: States of weights and of BatchNorm layers, by path.
            ridge: Takes the rows and the unknowns of a problem.
        """
        super().__init__(model, sorted(paths))
        self.model, self.known, self.ridge = model, known, ridge
        self.named = named_parameters(model)
        self.jobs: Mapping[str, Target] = {}
        self.means: Mapping[str, Tensor] = {}
        self._last = True
        self._states: dict[str, list[State]] = {path: [] for path in known}
        self._before: dict[str, Tensor] = {}
        self._sums: dict[str, NormalEquations] = {}
        self._moved: dict[str, tuple[int, Tensor]] = {}
        self._settled = set(settled)
        self._pending: dict[str, _Pending] = {}

    def start(
        self,
        number: int,
        jobs: Mapping[str, Target],
        means: Mapping[str, Tensor],
        *,
        last: bool,
    ) -> None:
        """Turn to a part of the images.

        Args:
            number: Which one.
            jobs: What to solve for.
            means: The dense network's.
            last: Whether sums need not be kept for another.
        """
        self.jobs, self.means, self._last = jobs, means, last
        self._pending.clear()
        for path, states in self.known.items():
            self._states[path].append(states[number])
        _write(self.model, [states[number] for states in self.known.values()])

    def states(self) -> dict[str, tuple[State, ...]]:
        """Return the states of all weights and BatchNorm layers after each part, by path."""
        return {path: tuple(states) for path, states in self._states.items() if states}

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Solve a weight, or let it wait for the stream that its output is added to."""
        target = self.jobs[read.path]
        shape = _shape(run)
        if shape != (*target.layout[:1], target.output.shape[1], *target.layout[1:]):
            self._settled.discard(target.ending.norm)
        elif target.stream is not None:
            self._pending[read.path] = _Pending(read, run, target)
        else:
            self._solve(read, target, target.output)
        return super().on_read(read, run)

    def on_norm(self, path: str, run: Operator) -> None:
        """Move the mean as far as that of the images moved, but behind a solved weight."""
        if path in self._settled or path in self.known or path not in self.means:
            return
        mean, images = run.args[3], len(run.args[0])
        first = self._first(f"{path}.running_mean", mean)
        count, moved = self._moved.get(path, (0, torch.zeros_like(first)))
        apart = (_mean(run.args[0]) - self.means[path]).to(mean.dtype)
        moved = moved + (apart - moved) * (images / (count + images))
        self._moved[path] = count + images, moved
        mean.copy_(first + moved)
        self._states.setdefault(path, []).append({f"{path}.running_mean": mean.clone()})

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """Solve the weight that waited, and put its new output in the place of the old."""
        for place, trail in enumerate(trails):
            pending = None if trail is None else self._pending.pop(trail.path, None)
            if trail is None or pending is None or pending.target.stream is None:
                continue
            positions, tip = pending.target.positions, run.args[place]
            missing = pending.target.stream - at(trail.undone(run.args[1 - place]), positions)
            scale = at(trail.scale(tip), positions[:1])[0]
            # A channel that the BatchNorm has switched off can repair nothing.
            usable = scale.abs() > SMALLEST_SCALE
            wish = torch.where(usable, missing / torch.where(usable, scale, 1.0), 0.0)
            self._solve(pending.read, pending.target, pending.target.output + wish)
            tip.copy_(trail.redone(super().on_read(pending.read, pending.run)))

    def _first(self, name: str, tensor: Tensor) -> Tensor:
        """Return the value that a tensor had before the first part of the images."""
        if name not in self._before:
            self._before[name] = tensor.clone()
        return self._before[name]

    def _solve(self, read: Read, target: Target, wish: Float[Tensor, "rows outputs"]) -> None:
        """Give a weight the values by which its output comes nearest to ``wish``."""
        reader = target.reader
        weight, bias = self.named[reader.path], bias_of(reader, self.named)
        norm = target.ending.norm
        inputs = inputs_at(read, tuple(weight.shape[2:]), target.positions)
        sums = NormalEquations.of(
            inputs,
            wish.reshape(len(wish), len(inputs), -1).transpose(0, 1),
            centred=bias is not None or norm is not None,
        )
        if reader.path in self._sums:
            sums = self._sums.pop(reader.path).pooled(sums)
        if not self._last:
            self._sums[reader.path] = sums.smaller()
        before = self._first(reader.path, weight).movedim(reader.dim, -1)
        solution, intercept = sums.solution(
            before.reshape(len(inputs), -1, inputs.shape[-1]),
            ridge=self.ridge(sums.rows, inputs.shape[-1]),
        )
        weight.movedim(reader.dim, -1).copy_(solution.reshape(before.shape))
        state = {reader.path: weight.detach().clone()}
        shift = intercept.flatten().to(weight.dtype)
        if bias is not None:
            bias.copy_(shift)
            state[next(key for key, tensor in self.named.items() if tensor is bias)] = bias.clone()
        elif norm is not None:
            name = f"{norm}.running_mean"
            mean = self.model.get_buffer(name)
            mean.copy_(self._first(name, mean) - shift)
            state[name] = mean.clone()
        self._states.setdefault(reader.path, []).append(state)


def _write(model: nn.Module, states: Sequence[State]) -> None:
    """Give parameters and buffers of a model their values."""
    tensors = {**named_parameters(model), **dict(model.named_buffers(remove_duplicate=False))}
    for state in states:
        for name, value in state.items():
            tensors[name].copy_(value)


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


def _shape(run: Operator) -> tuple[int, ...]:
    """Return the shape of what an operator would return, without running it on values."""
    args, kwargs = _pytree.tree_map_only(
        Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), (run.args, run.kwargs)
    )
    return tuple(run.func(*args, **kwargs).shape)


def _unknowns(read: Read, run: Operator) -> int:
    """Return how many inputs, times kernel taps, an output of a weight has."""
    if isinstance(read.how, Convolution):
        return int(run.args[1][0].numel())
    return read.input.shape[1]
