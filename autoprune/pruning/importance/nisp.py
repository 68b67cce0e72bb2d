"""How much a unit matters for the network's answers, passed back from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.inputs import call_model, evaluating
from autoprune.network.network import Network
from autoprune.pruning.activations import Readers, known_readers
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.flow import absolute_model, linear_pass, ones_like, outputs_of
from autoprune.pruning.gates import Heard, folded, input_gradients
from autoprune.pruning.gram import pieces
from autoprune.pruning.magnitude import or_magnitude
from autoprune.pruning.reads import Weights

#: More answers than this are weighted by their standard deviation alone.
MANY = 2048


@CRITERIA.register("nisp")
class NISP(Criterion):
    r"""Scores a unit by the importance of the answers it leads to [Yu2018nisp].

    The importance of what a layer reads is :math:`s^l = |W^{l+1}|^T s^{l+1}`, from the importance
    of the network's answers backwards; a unit has that of all its positions, at all weights that
    read it. It is passed through the network with absolute weights, in which normalisations only
    scale (see ``autoprune.pruning.flow``). Answers are weighted by infinite feature selection:
    with :math:`A_{ij} = \alpha \max(\sigma_i, \sigma_j) + (1 - \alpha) (1 - |\rho_{ij}|)` from
    their standard deviations over images, as shares of the largest, and rank correlations, answer i
    weighs :math:`\sum_j [(I - r A)^{-1} - I]_{ij}`, r being 0.9 over the largest eigenvalue of A.

    **Groups whose readers are not all known, or that nothing is passed back to (they choose where
    others look), are scored by the L2 magnitude of their weights** and listed in :attr:`notes`;
    the note of all groups says so where there are more answers than the selection can take, which
    are then weighted by their standard deviation.

    References:
        [Yu2018nisp] R. Yu et al. NISP: Pruning Networks using Neuron Importance Score Propagation.
        CVPR 2018.
    """

    name = "nisp"
    needs = "inputs"
    family = "activation-based"

    def __init__(self, *, alpha: float = 0.5) -> None:
        """Store parameters.

        Args:
            alpha: Share of the spread of answers, against how little they repeat each other.
        """
        self.alpha = alpha

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        known = known_readers(network)
        answers = _answers(network, batches)
        many = answers.shape[1] > MANY
        weights = answers.std(0) if many else answer_weights(answers, self.alpha)
        positions = _passed_back(network, known, weights)
        found: dict[str, Float[np.ndarray, " units"] | str] = {}
        for name, everyone in known.items():
            sites = [positions[r.path][r.indices].sum(1) for r in everyone if r.path in positions]
            if not everyone or len(sites) < len(everyone):
                found[name] = "not all readers are known"
            elif not np.any(sites):
                found[name] = "nothing is passed back to it"
            else:
                found[name] = np.sum(sites, axis=0)
        scores, notes = or_magnitude(network, found)
        wide = f"more than {MANY} answers, weighted by their standard deviation"
        self.notes = dict.fromkeys(found, wide) | notes if many else notes
        return scores


def _answers(network: Network, batches: Batches) -> Float[np.ndarray, "images answers"]:
    """Return what the network answers, the mean over positions where there are any."""
    rows = []
    with evaluating(network.model), torch.no_grad():
        for part in pieces(network.model, batches):
            output = outputs_of(network.model(part))[0]
            rows.append(_one_row(output, len(part)).double().cpu())
    found: Float[np.ndarray, "images answers"] = torch.cat(rows).numpy()
    return found


def _one_row(output: Float[Tensor, "..."], images: int) -> Float[Tensor, "images answers"]:
    """Return one row of answers per image: channels of maps, the last dimension of sequences."""
    if output.ndim < 2:
        return output.reshape(images, -1)
    if output.ndim == 3:
        return output.mean(1)
    return output.flatten(2).mean(2) if output.ndim > 3 else output


def answer_weights(
    answers: Float[np.ndarray, "images answers"], alpha: float
) -> Float[np.ndarray, " answers"]:
    """Return the weight of every answer by infinite feature selection [Roffo2015inf].

    Args:
        answers: One row per image.
        alpha: Share of the spread, against one minus the rank correlation.

    References:
        [Roffo2015inf] G. Roffo et al. Infinite Feature Selection. ICCV 2015.
    """
    if not np.isfinite(answers).all():
        return np.full(answers.shape[1], np.nan)
    spread = answers.std(0)
    spread = spread / (float(spread.max()) or 1.0)
    ranks = answers.argsort(0).argsort(0).astype(float)
    ranks -= ranks.mean(0)
    length = np.sqrt((ranks**2).sum(0))
    length[length == 0] = 1.0
    repeated = np.abs(ranks.T @ ranks) / np.outer(length, length)
    graph = alpha * np.maximum.outer(spread, spread) + (1 - alpha) * (1 - repeated)
    largest = float(np.abs(np.linalg.eigvalsh(graph)).max()) or 1.0
    one = np.eye(len(graph))
    paths = np.linalg.solve(one - 0.9 / largest * graph, one) - one
    weights: Float[np.ndarray, " answers"] = paths.sum(1)
    return weights


def _passed_back(
    network: Network, known: Readers, weights: Float[np.ndarray, " answers"]
) -> dict[str, Float[np.ndarray, " positions"]]:
    """Return the importance of every position in the input dimension of every reader."""
    model = absolute_model(network)
    named = named_parameters(model)
    dims = {reader.path: reader.dim for found in known.values() for reader in found}
    leaves = [parameter for parameter in named.values() if parameter.is_floating_point()]
    for parameter in leaves:
        parameter.requires_grad_(True)
    with linear_pass(model):
        output = outputs_of(call_model(model, ones_like(network.inputs)))[0]
        by_answer = _one_row(output, len(output)).mean(0)
        total = (by_answer * torch.from_numpy(weights).to(by_answer)).sum()
        heard = input_gradients(total, Weights(model, dims), leaves) if dims else {}
    return {
        path: _by_position(found, named[path].shape[dims[path]]) for path, found in heard.items()
    }


def _by_position(heard: list[Heard], width: int) -> Float[np.ndarray, " positions"]:
    """Return the gradients that came back, added up by position in the input dimension."""
    total: Any = 0.0
    for _, gradient, _ in heard:
        rows = gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient
        total = total + folded(rows, width).sum(0)
    positions: Float[np.ndarray, " positions"] = total.cpu().numpy()
    return positions
