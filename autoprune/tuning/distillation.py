"""The loss of fine-tuning: the task's own, and how far answers are from the unpruned network's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(
    student: Float[Tensor, "n *positions classes"],
    teacher: Float[Tensor, "n *positions classes"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the divergence of softened answers times the squared temperature [Hinton2015].

    That is ``T^2 KL(p_T || q_T)`` in nats, averaged over samples and positions, where p_T is the
    softmax of the teacher's logits divided by T. The factor keeps its gradient comparable with the
    task's loss whatever T is.

    Args:
        student: Log-probabilities, or logits.
        teacher: Likewise.
        temperature: T.

    References:
        [Hinton2015] G. Hinton, O. Vinyals, J. Dean. Distilling the Knowledge in a Neural Network.
        arXiv:1503.02531, 2015.
    """
    soft, target = (F.log_softmax(each / temperature, dim=-1) for each in (student, teacher))
    rows = soft.flatten(0, -2), target.flatten(0, -2)
    return F.kl_div(*rows, reduction="batchmean", log_target=True) * temperature**2
