"""Language modelling: sequences of tokens, of which each token is told from those before it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.network.outputs import logits_of
from autoprune.tasks.split_task import SEARCH_SAMPLES, Samples, SplitTask

#: What stands in a sequence, and among targets, where there is no token.
IGNORED = -100


@dataclasses.dataclass(frozen=True, eq=False)
class TokenSamples(Samples):
    """Sequences of one split.

    Attributes:
        tokens: Of each sequence; a shorter one ends in ``IGNORED``.
    """

    tokens: Int[np.ndarray, "n length"]

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, start: int, stop: int) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        """Return all tokens but the last, and what follows each."""
        tokens = torch.from_numpy(self.tokens[start:stop].astype(np.int64))
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:].contiguous()

    def augmented(
        self, positions: Int[np.ndarray, " m"], rng: np.random.Generator
    ) -> tuple[Int[Tensor, "m t"], Int[Tensor, "m t"]]:
        """Return what :meth:`batch` does of the sequences at ``positions``."""
        return TokenSamples(self.tokens[positions]).batch(0, len(positions))


class LanguageTask(SplitTask):
    """Next-token prediction on token sequences in three splits.

    A network takes tokens ``(n, t)`` in int64 and returns logits ``(n, t, vocabulary)``, each for
    the token that follows. A sample is a sequence: its loss is the mean cross-entropy of its
    tokens in nats, whose exponential is the perplexity where sequences are equally long, and its
    fraction right is the share of tokens that the largest logit tells.
    """

    def __init__(
        self,
        name: str,
        *,
        training: Int[np.ndarray, "n length"],
        search: Int[np.ndarray, "m other"],
        test: Int[np.ndarray, "k another"],
        batch: int = 1,
        search_samples: int = SEARCH_SAMPLES,
        evaluation_batch: int = 16,
    ) -> None:
        """Store parameters, which are the attributes of :class:`SplitTask`.

        Args:
            name: Short name for reports.
            training: Tokens of each sequence; a shorter sequence ends in ``IGNORED``, which the
                network sees as token 0 and nothing is scored on.
            search: Likewise, in an order whose prefixes are like the whole.
            test: Likewise.
            batch: Deployment batch.
            search_samples: Most sequences of the search split one evaluation uses.
            evaluation_batch: Sequences that go through the network at once.

        Raises:
            TaskError: A split is empty, a sequence has no token to predict, or a number is not
                positive.
        """
        super().__init__(
            name,
            training=TokenSamples(training),
            search=TokenSamples(search),
            test=TokenSamples(test),
            batch=batch,
            search_samples=search_samples,
            evaluation_batch=evaluation_batch,
        )
        for split, found in (("training", training), ("search", search), ("test", test)):
            _check_sequences(f"{name}'s {split} split", found)

    def sample_scores(
        self, outputs: object, targets: Tensor
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return the mean cross-entropy of each sequence's tokens, and the share that is right.

        Raises:
            TaskError: The outputs are no finite logits for each token.
        """
        losses, correct = token_scores(outputs, targets)
        scored = (targets != IGNORED).sum(dim=1)
        return losses.sum(dim=1) / scored, correct.sum(dim=1) / scored

    def log_probabilities(self, outputs: object) -> Float[Tensor, "n t vocabulary"]:
        """Return the logarithms of the tokens' probabilities."""
        return _logits(outputs).float().log_softmax(dim=-1)


def token_scores(
    outputs: object, targets: Int[Tensor, "n t"]
) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Return the cross-entropy of each token in nats, and 1 where the largest logit is right.

    Both are 0 where the target is ``IGNORED``.

    Args:
        outputs: Should be logits ``(n, t, vocabulary)``, or hold them as ``logits``.
        targets: The token that follows each position.

    Raises:
        TaskError: The outputs are no finite logits for these tokens.
    """
    logits = _logits(outputs)
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise TaskError(
            f"language modelling needs logits of shape {(*targets.shape, 'vocabulary')} for "
            f"{len(targets)} sequences of {targets.shape[1]} tokens, but the network returned "
            f"{tuple(logits.shape)}"
        )
    if int(targets.max()) >= logits.shape[2]:
        raise TaskError(
            f"the text has the token {int(targets.max())}, but the network has "
            f"{logits.shape[2]} outputs; give the tokenizer that belongs to it"
        )
    if not torch.isfinite(logits).all():
        raise TaskError(
            f"the network's outputs are not finite on a batch of {len(targets)} sequences; "
            "check its weights"
        )
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(targets.shape), (logits.argmax(dim=2) == targets).float()


def _logits(outputs: object) -> Float[Tensor, "..."]:
    """Return the tensor of logits that a model returned, alone or as transformers do."""
    logits = logits_of(outputs)
    if logits is None:
        raise TaskError(
            "language modelling needs a network that returns logits, one tensor or an object "
            f"with such an attribute, but it returned {type(outputs).__name__}; take a model "
            "with a language-modelling head, or wrap it in a module that picks the logits"
        )
    return logits


def _check_sequences(name: str, sequences: Int[np.ndarray, "n length"]) -> None:
    """Refuse sequences that no token can be predicted of, or with other negative numbers."""
    if sequences.shape[1] < 2 or (sequences[:, :2] < 0).any():
        raise TaskError(f"{name} has a sequence of fewer than two tokens; nothing follows there")
    absent = sequences < 0
    if (sequences[absent] != IGNORED).any() or (absent[:, :-1] & ~absent[:, 1:]).any():
        raise TaskError(f"{name} has negative tokens; {IGNORED} may stand behind the last one only")
