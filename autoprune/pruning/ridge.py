"""Ridge regression towards given weights, from sums that may be added up piece by piece."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

#: Rows that one product in single precision adds up before the sum goes on in double.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class NormalEquations:
    """Sums of least-squares problems with inputs A and wishes Y.

    Attributes:
        rows: How many rows they are of.
        mean: Mean of A, 0 for problems without intercept.
        goal: Mean of Y, likewise.
        square: :math:`A^T A` about the mean.
        cross: :math:`A^T Y` about the means.
    """

    rows: int
    mean: Float[Tensor, "problems unknowns"]
    goal: Float[Tensor, "problems outputs"]
    square: Float[Tensor, "problems unknowns unknowns"]
    cross: Float[Tensor, "problems unknowns outputs"]

    @classmethod
    def of(
        cls,
        inputs: Float[Tensor, "problems rows unknowns"],
        wishes: Float[Tensor, "problems rows outputs"],
        *,
        centred: bool,
    ) -> NormalEquations:
        """Return the sums over all rows, in double precision.

        Args:
            inputs: A.
            wishes: Y.
            centred: Whether there is an intercept; else it is 0.
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
        return cls(inputs.shape[1], mean, goal, torch.as_tensor(square), torch.as_tensor(cross))

    def pooled(self, other: NormalEquations) -> NormalEquations:
        """Return the sums over the rows of both."""
        rows = self.rows + other.rows
        apart, aims = other.mean - self.mean, other.goal - self.goal
        weight = self.rows * other.rows / rows
        return NormalEquations(
            rows,
            self.mean + apart * (other.rows / rows),
            self.goal + aims * (other.rows / rows),
            self.square + other.square + weight * apart[:, :, None] * apart[:, None, :],
            self.cross + other.cross + weight * apart[:, :, None] * aims[:, None, :],
        )

    def smaller(self) -> NormalEquations:
        """Return the sums in single precision, for keeping."""
        return dataclasses.replace(self, square=self.square.float(), cross=self.cross.float())

    def solution(
        self, before: Float[Tensor, "problems outputs unknowns"], *, ridge: float
    ) -> tuple[Float[Tensor, "problems outputs unknowns"], Float[Tensor, "problems outputs"]]:
        r"""Return weights and intercepts.

        They minimise :math:`\lVert A W^T + b - Y \rVert^2 + \lambda m \lVert W - W_0 \rVert^2`
        with m the mean diagonal of :math:`A^T A`.

        Args:
            before: :math:`W_0`.
            ridge: The :math:`\lambda`.
        """
        square, cross = self.square.double(), self.cross.double()
        pull = ridge * square.diagonal(dim1=1, dim2=2).mean(1)[:, None]
        pull = pull.clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        system = square + torch.diag_embed(pull.expand(square.shape[:2]))
        factor = torch.linalg.cholesky(system)
        aim = cross + pull[..., None] * before.double().mT
        solution = torch.cholesky_solve(aim, factor).mT
        return solution, self.goal - (solution @ self.mean[..., None])[..., 0]
