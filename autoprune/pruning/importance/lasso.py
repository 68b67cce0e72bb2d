"""Which units a sparse regression of the next layer's output keeps longest."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from autoprune.network.network import Network
from autoprune.pruning.contributions import contribution_moments
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.magnitude import or_magnitude

#: Penalties tried, as a share of the one from which on all units are gone: falling powers.
PENALTIES = np.geomspace(1, 1e-2, 33)[1:]

#: Steps of the search for the factors at one penalty, at most, for each unit.
_STEPS = 8


@CRITERIA.register("lasso")
class Lasso(Criterion):
    r"""Scores a unit by the penalty at which a LASSO drops it [He2017channel].

    With one factor per unit, the outputs of a reader are regressed on the contributions of units,

    .. math:: \min_\beta \frac{1}{2N} \Bigl\lVert Y - \sum_c \beta_c X_c W_c^T \Bigr\rVert^2 +
        \lambda \lVert \beta \rVert_1

    on random output entries: image, position and output channel. The paper searches the
    :math:`\lambda` that leaves as many units as wanted; the score is the largest :math:`\lambda` of
    a grid at which :math:`\beta_c \ne 0`, as a share of the smallest one that leaves none, so every
    width is ranked at once. Units that appear at the same one are told apart by
    :math:`|\beta_c|`; those that are still gone at a hundredth of it rank below, by how near they
    are to appearing. Several readers count alike.

    **Groups whose readers are not all known, or never ran, are scored by the L2 magnitude of their
    weights** and listed in :attr:`notes`.

    References:
        [He2017channel] Y. He et al. Channel Pruning for Accelerating Very Deep Neural Networks.
        ICCV 2017.
    """

    name = "lasso"
    needs = "inputs"
    family = "activation-based"

    def __init__(self, *, samples: int = 32, seed: int = 0) -> None:
        """Store parameters.

        Args:
            samples: Output entries per image and reader.
            seed: Determines which.
        """
        self.samples = samples
        self.seed = seed

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        moments = contribution_moments(network, batches, samples=self.samples, seed=self.seed)
        found = {
            name: moment if isinstance(moment, str) else dropping_penalties(moment)
            for name, moment in moments.items()
        }
        scores, self.notes = or_magnitude(network, found)
        return scores


def dropping_penalties(gram: Float[np.ndarray, "units units"]) -> Float[np.ndarray, " units"]:
    """Return for every unit the share of the largest penalty at which it appears.

    Args:
        gram: Second moments of contributions; the target is their sum. NaN everywhere comes back
            where a number is not finite.
    """
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    target = gram.sum(1)
    largest = np.abs(target).max()
    factors, scores = np.zeros(len(gram)), np.zeros(len(gram))
    above = 1.0
    for share in PENALTIES if largest else ():
        factors = lasso(gram, target, share * largest, factors)
        size = np.abs(factors)
        new = (scores == 0) & (size > 0)
        # Within the step of the grid, in the order of their factors.
        scores[new] = share + (above - share) * size[new] / (1 + size[new])
        above = share
    if largest:  # what has not appeared yet is ranked by how near it is
        slope = np.abs(target - gram @ factors) / (above * largest)
        scores = np.where(scores == 0, 0.99 * above * np.minimum(slope, 1.0), scores)
    return scores


def lasso(
    gram: Float[np.ndarray, "units units"],
    target: Float[np.ndarray, " units"],
    penalty: float,
    start: Float[np.ndarray, " units"],
) -> Float[np.ndarray, " units"]:
    r"""Return what minimises :math:`\beta^T G \beta / 2 - t^T \beta + \lambda \lVert\beta\rVert_1`.

    By a search over signs [Lee2006sign]: factors that are not zero are solved for as their signs
    are; on the way there, the first that would change its sign becomes zero instead. When none
    does, the zero that most wants to leave is let go. The number of steps has a bound.

    Args:
        gram: G, positive semidefinite.
        target: t.
        penalty: Lambda, positive.
        start: Factors to start from.

    References:
        [Lee2006sign] H. Lee et al. Efficient sparse coding algorithms. NeurIPS 2006.
    """
    factors, signs = start.copy(), np.sign(start)
    for _ in range(_STEPS * len(gram)):
        kept = np.flatnonzero(signs)
        wanted = _with_signs(gram, target - penalty * signs, kept)
        old = factors[kept]
        turning = np.flatnonzero(wanted * signs[kept] < 0)
        if len(turning):
            shares = old[turning] / (old[turning] - wanted[turning])
            first = turning[np.argmin(shares)]
            factors[kept] = old + shares.min() * (wanted - old)
            factors[kept[first]] = signs[kept[first]] = 0.0
            continue
        factors[kept] = wanted
        slope = target - gram @ factors
        slope[kept] = 0.0
        worst = int(np.argmax(np.abs(slope)))
        if abs(slope[worst]) <= penalty * (1 + 1e-9):
            break
        signs[worst] = np.sign(slope[worst])
    return factors


def _with_signs(
    gram: Float[np.ndarray, "units units"],
    pull: Float[np.ndarray, " units"],
    kept: Int[np.ndarray, " kept"],
) -> Float[np.ndarray, " kept"]:
    """Return the factors of some units that balance their pull, all others being zero."""
    part = gram[np.ix_(kept, kept)]
    try:
        return np.linalg.solve(part, pull[kept])
    except np.linalg.LinAlgError:  # copies of a unit share its factor
        shared: Float[np.ndarray, " kept"] = np.linalg.lstsq(part, pull[kept], rcond=None)[0]
        return shared
