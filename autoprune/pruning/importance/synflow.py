"""How much a network without data and signs sends through a unit."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.groups import ChannelGroup
from autoprune.network.inputs import call_model
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters, weight_sites
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.flow import absolute_model, linear_pass, ones_like, outputs_of
from autoprune.pruning.gates import effect_scores
from autoprune.pruning.magnitude import or_magnitude


@CRITERIA.register("synflow")
class SynFlow(Criterion):
    r"""Scores a unit by its synaptic flow [Tanaka2020synflow].

    .. math:: \sum_w |w| \, \frac{\partial R}{\partial |w|}, \qquad
        R = 1^T \Bigl( \prod_l |W_l| \Bigr) 1

    over the weights that write and read the unit, R being the sum of outputs of the network with
    absolute parameters on an input of ones. Normalisations only scale, BatchNorm by its running
    variance too; bounded nonlinearities are passed over (see ``autoprune.pruning.flow``).

    With ``rounds`` above one, units go in rounds as in the paper: after round t of T each group
    keeps the fraction :math:`\rho^{t/T}`, and the flow is computed anew without what went. A unit's
    score then is the number of rounds it outlives plus its share of the group's largest flow in
    its last, and ranks units within a group only. With one round the score is the flow itself.

    **A group through which nothing flows (behind a normalisation written out by hand, say) is
    scored by the L2 magnitude of its weights instead** and is listed in :attr:`notes`.

    References:
        [Tanaka2020synflow] H. Tanaka et al. Pruning neural networks without any data by iteratively
        conserving synaptic flow. NeurIPS 2020.
    """

    name = "synflow"
    needs = "nothing"
    family = "optimisation tools"

    def __init__(self, *, rounds: int = 20, kept: float = 0.1) -> None:
        """Store parameters.

        Args:
            rounds: Rounds T.
            kept: Fraction of each group that is left after the last, rho.

        Raises:
            PruningError: There is no round, or nothing is kept.
        """
        if rounds < 1 or not 0 < kept <= 1:
            raise PruningError(
                f"criterion 'synflow' expected rounds >= 1 and kept in (0, 1], but got {rounds} "
                f"and {kept}"
            )
        self.rounds = rounds
        self.kept = kept

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = absolute_model(network)
        scores = self._flows(network, model)
        dry = {name for name, flow in scores.items() if not flow.any()}
        if self.rounds > 1:
            scores = self._in_rounds(network, model, scores)
        reason = "nothing flows through it"
        found = {name: reason if name in dry else score for name, score in scores.items()}
        final, self.notes = or_magnitude(network, found)
        return final

    def _in_rounds(
        self, network: Network, model: nn.Module, flows: dict[str, Float[np.ndarray, " units"]]
    ) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the rounds that every unit outlives, plus its share of the flow in its last."""
        alive = {group.name: np.ones(group.size, bool) for group in network.groups}
        scores: dict[str, Float[np.ndarray, " units"]] = {}
        for turn in range(1, self.rounds + 1):
            for group in network.groups:
                flow, left = flows[group.name], alive[group.name]
                share = np.where(left, flow / (float(flow.max()) or 1.0), 0.0)
                scores[group.name] = np.where(left, turn - 1 + share, scores.get(group.name, share))
                stay = max(1, round(group.size * self.kept ** (turn / self.rounds)))
                gone = np.argsort(np.where(left, flow, -1.0), kind="stable")[: group.size - stay]
                _close(model, group, gone[left[gone]])
                left[gone] = False
            flows = self._flows(network, model)
        return scores

    def _flows(self, network: Network, model: nn.Module) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the flow of every unit of every group."""
        named = named_parameters(model)
        sites = {group.name: weight_sites(group, named) for group in network.groups}
        weights = {member.path: weight for found in sites.values() for member, weight in found}
        if not weights:
            return {}
        for weight in weights.values():
            weight.requires_grad_(True)
        with linear_pass(model):
            outputs = outputs_of(call_model(model, ones_like(network.inputs)))
            total = torch.stack([output.sum() for output in outputs]).sum()
            gradients = torch.autograd.grad(
                total, list(weights.values()), allow_unused=True, materialize_grads=True
            )
        for weight in weights.values():
            weight.requires_grad_(False)
        flow: dict[str, Tensor] = {
            path: weight.detach() * gradient
            for (path, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        return effect_scores(flow, sites)


def _close(model: nn.Module, group: ChannelGroup, units: Int[np.ndarray, " _"]) -> None:
    """Set every parameter entry of the units to zero."""
    named = named_parameters(model)
    with torch.no_grad():
        for member in group.members:
            if member.path in named:
                places = torch.from_numpy(member.indices[units]).flatten()
                named[member.path].index_fill_(member.dim, places.to(named[member.path].device), 0)
