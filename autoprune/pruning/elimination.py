"""Structured optimal brain surgeon: which units of a group to remove, in which order, at what cost.

All weights that read a group are least-squares problems in the same units: a reader's outputs shall
be kept when units go, with the columns of the remaining ones free to change. Removing a unit costs
what its best replacement by the others leaves over. One elimination gives a nested ranking, and the
accumulated costs are the damage at every width.

References:
    [Hassibi1993obs] B. Hassibi, D. G. Stork. Second order derivatives for network pruning: Optimal
    Brain Surgeon. NeurIPS 1993.
    [Kurtic2023ziplm] E. Kurtic, E. Frantar, D. Alistarh. ZipLM: Inference-Aware Structured Pruning
    of Language Models. NeurIPS 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Ridge of every least-squares problem, as a share of the mean second moment.
RIDGE = 1e-2


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One reader's outputs as a quadratic in the units, in double precision.

    Attributes:
        gram: Moments of the inputs that the units occupy, unit by unit.
        weight: :math:`W^T W` over all outputs and kernel taps, of the same inputs.
        energy: Mean square of the reader's whole output, which costs are divided by.
    """

    gram: Float[Tensor, "channels channels"]
    weight: Float[Tensor, "channels channels"]
    energy: float


@dataclasses.dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which the units of a group go, and what that costs.

    Attributes:
        order: Units, the first to go first.
        damage: ``damage[k]`` is the error that removing the first k leaves in the outputs of all
            readers, each relative to its output, summed; from 0, never falling.
    """

    order: Int[np.ndarray, " units"]
    damage: Float[np.ndarray, " widths"]


def eliminate(problems: Sequence[Problem], units: int, *, ridge: float = RIDGE) -> Elimination:
    r"""Return the order in which units go, cheapest first, and the accumulated cost.

    With :math:`P = (G + \lambda \bar g I)^{-1}` the cost of unit u is :math:`\sum_j tr(W_u
    P_{uu}^{-1} W_u^T) / E_j` over the readers; then the unit is projected out of P and W. A unit
    may occupy several inputs (a head, a flattened map); its block of P is inverted.

    Args:
        problems: One per reader, or per group of a grouped convolution; at least one.
        units: Units of the group; each occupies ``channels / units`` neighbouring inputs.
        ridge: The :math:`\lambda`, a share of the mean diagonal :math:`\bar g`.
    """
    states = [_State(problem, units, ridge) for problem in problems]
    alive = torch.ones(units, dtype=torch.bool, device=problems[0].gram.device)
    order, costs = [], [0.0]
    for _ in range(units):
        scores = torch.stack([state.scores() for state in states]).sum(0)
        unit = int(scores.masked_fill(~alive, torch.inf).argmin())
        costs.append(float(scores[unit]))
        alive[unit] = False
        order.append(unit)
        for state in states:
            state.remove(unit)
    return Elimination(np.array(order, np.int64), np.maximum.accumulate(np.cumsum(costs)))


class _State:
    """One reader during the elimination."""

    def __init__(self, problem: Problem, units: int, ridge: float) -> None:
        """Invert the moments."""
        gram = regularised(problem.gram, ridge)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(gram).L)
        self.weight = problem.weight.clone()
        self.energy = problem.energy or 1.0
        self.size = len(gram) // units
        self.units = units

    def scores(self) -> Float[Tensor, " units"]:
        """Return the cost of every unit; that of a unit which is gone means nothing."""
        if self.size == 1:
            diagonal = self.inverse.diagonal()
            return self.weight.diagonal() / diagonal / self.energy
        blocks = [self._blocks(matrix) for matrix in (self.inverse, self.weight)]
        solved = torch.linalg.solve_ex(*blocks).result
        scores: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1) / self.energy
        return scores

    def _blocks(self, matrix: Tensor) -> Float[Tensor, "units size size"]:
        split = matrix.reshape(self.units, self.size, self.units, self.size)
        return split.diagonal(dim1=0, dim2=2).movedim(-1, 0)

    def remove(self, unit: int) -> None:
        """Project a unit out: the others take over what they can of it."""
        here = slice(unit * self.size, (unit + 1) * self.size)
        columns = self.inverse[:, here]
        # The share of the unit that each input takes over; its own is taken away.
        share = torch.linalg.solve_ex(columns[here], columns.T).result.T
        cross = self.weight[:, here] @ share.T
        self.weight -= cross + cross.T - share @ self.weight[here, here] @ share.T
        self.inverse -= share @ columns.T
        # What is gone takes no further part; the unit block keeps every division defined.
        for matrix in (self.inverse, self.weight):
            matrix[here] = 0.0
            matrix[:, here] = 0.0
        self.inverse[here, here] = torch.eye(self.size, dtype=columns.dtype, device=columns.device)


def regularised(
    gram: Float[Tensor, "*batch channels channels"], ridge: float
) -> Float[Tensor, "*batch channels channels"]:
    """Return ``gram`` plus ``ridge`` times its mean diagonal; a floor keeps zeros invertible."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    floor = torch.finfo(gram.dtype).eps * diagonal.amax(-1, keepdim=True)
    added = (ridge * mean + floor).clamp_min(torch.finfo(gram.dtype).tiny ** 0.5)
    return gram + torch.diag_embed(added.expand(diagonal.shape))
