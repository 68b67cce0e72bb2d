"""First and second order of the loss in every weight, as for large language models."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.errors import PruningError
from autoprune.network.network import Network
from autoprune.pruning.aggregate import (
    checked_reducer,
    combine,
    named_parameters,
    unit_sums,
    weight_sites,
)
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    GradientCriterion,
    Loss,
    cross_entropy,
    gradient_copy,
    mean_gradients,
)


@CRITERIA.register("llm_pruner")
class LLMPruner(GradientCriterion):
    r"""Scores a unit by what the loss loses with its weights, site by site [Ma2023llmpruner].

    With g the gradient of the mean loss and :math:`\overline{g^2}` the mean square over images,

    .. math:: t_w = w g_w \quad (\text{first}), \qquad
        t_w = w g_w - \tfrac{1}{2} w^2 \, \overline{g_w^2} \quad (\text{mixed}).

    At each weight that writes or reads the unit a site scores :math:`\sum_w |t_w|` (``element``) or
    :math:`|\sum_w t_w|` (``vector``); sites are added up, all of them, queries and keys too.

    References:
        [Ma2023llmpruner] X. Ma et al. LLM-Pruner: On the Structural Pruning of Large Language
        Models. NeurIPS 2023.
    """

    name = "llm_pruner"

    def __init__(
        self,
        *,
        grain: str = "element",
        order: str = "first",
        reduce: str = "sum",
        images: int = 32,
        loss: Loss = cross_entropy,
    ) -> None:
        """Store parameters.

        Args:
            grain: Whether absolute values are taken weight by weight or of the sum of a site.
            order: Whether squared gradients, one image at a time, count as well.
            reduce: How sites become one, a name in ``aggregate.REDUCERS``.
            images: Images of one backward pass for the first order.
            loss: Mean loss of a batch, from the model's output and the targets.

        Raises:
            PruningError: Another grain or order.
            UnknownNameError: No such reducer.
        """
        super().__init__(images=images, loss=loss)
        if grain not in ("element", "vector") or order not in ("first", "mixed"):
            raise PruningError(
                f"criterion 'llm_pruner' expected grain 'element' or 'vector' and order 'first' or "
                f"'mixed', but got {grain!r} and {order!r}"
            )
        self.grain = grain
        self.order = order
        self.reduce = checked_reducer(reduce)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = gradient_copy(network)
        named = named_parameters(model)
        sites = {group.name: weight_sites(group, named) for group in network.groups}
        weights = {member.path: weight for found in sites.values() for member, weight in found}
        mean = mean_gradients(model, weights, batches, loss=self.loss, images=self.images)
        terms = {path: weights[path] * gradient for path, gradient in mean.items()}
        if self.order == "mixed":
            squares = mean_gradients(model, weights, batches, loss=self.loss, images=1, power=2)
            for path, square in squares.items():
                terms[path] = terms[path] - weights[path].square() * square / 2
        if self.grain == "element":
            terms = {path: values.abs() for path, values in terms.items()}
        return {
            name: combine(
                [np.abs(unit_sums(terms[member.path], member)) for member, _ in found],
                normaliser="none",
                reduce=self.reduce,
            )
            for name, found in sites.items()
        }
