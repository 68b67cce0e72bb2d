"""Language modelling: sequences of tokens, of which each token is told from those before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.network.outputs import logits_of
from autoprune.tasks.base import SampledTask, Split
from autoprune.tasks.classification import SEARCH_SAMPLES

#: What stands in a sequence, and among targets, where there is no token.
IGNORED = -100


class LanguageTask(SampledTask):
    """Next-token prediction on token sequences in three splits.

    A network takes tokens ``(n, t)`` in int64 and returns logits ``(n, t, vocabulary)``, each for
    the token that follows. A sample is a sequence: its loss is the mean cross-entropy of its
    tokens in nats, whose exponential is the perplexity where sequences are equally long, and its
    fraction right is the share of tokens that the largest logit tells.

    Attributes:
        name: Short name for reports.
        training: Sequences for calibration.
        search: Sequences the search scores candidates on.
        test: Sequences for reported networks only.
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
        """Store parameters.

        Args:
            name: Short name for reports.
            training: Tokens of each sequence; a shorter sequence ends in ``IGNORED``, which the
                network sees as token 0 and nothing is scored on.
            search: Likewise, in an order whose prefixes are like the whole.
            test: Likewise.
            batch: Deployment batch, the first dimension of the example inputs.
            search_samples: Most sequences of the search split one evaluation uses.
            evaluation_batch: Sequences that go through the network at once.

        Raises:
            TaskError: A split is empty, a sequence has no token to predict, or a number is not
                positive.
        """
        numbers = {
            "batch": batch,
            "search_samples": search_samples,
            "evaluation_batch": evaluation_batch,
        }
        splits = {"training": training, "search": search, "test": test}
        sizes = {f"{name}'s {split} split": len(found) for split, found in splits.items()}
        wrong = [f"{key} = {value}" for key, value in {**numbers, **sizes}.items() if value < 1]
        if wrong:
            raise TaskError(f"the task {name!r} needs at least one of each: {', '.join(wrong)}")
        for split, found in splits.items():
            _check_sequences(f"{name}'s {split} split", found)
        self.name = name
        self.training, self.search, self.test = training, search, test
        self.batch = batch
        self.search_samples = search_samples
        self.evaluation_batch = evaluation_batch

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one deployment batch of training sequences, without their last tokens."""
        tokens, _ = _pair(self.training[np.arange(self.batch) % len(self.training)])
        return (tokens,)

    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return tokens and next tokens of the first ``samples`` training sequences.

        Raises:
            TaskError: ``samples`` is not positive.
        """
        if samples < 1:
            raise TaskError(f"calibration needs at least one sample, not {samples}")
        return list(self._batched(self.training, 0, min(samples, len(self.training))))

    def samples(self, split: Split) -> int:
        """Return how many sequences a network is scored on."""
        return len(self.test) if split == "test" else min(self.search_samples, len(self.search))

    def batches(self, split: Split, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens and next tokens of sequences ``start`` to ``stop``."""
        return self._batched(self.test if split == "test" else self.search, start, stop)

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

    def _batched(
        self, sequences: Int[np.ndarray, "n length"], start: int, stop: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(start, stop, self.evaluation_batch):
            yield _pair(sequences[first : min(first + self.evaluation_batch, stop)])


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


def _pair(
    sequences: Int[np.ndarray, "n length"],
) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
    """Return all tokens but the last, and what follows each."""
    tokens = torch.from_numpy(sequences.astype(np.int64))
    return tokens[:, :-1].clamp(min=0), tokens[:, 1:].contiguous()


def _check_sequences(name: str, sequences: Int[np.ndarray, "n length"]) -> None:
    """Refuse sequences that no token can be predicted of, or with other negative numbers."""
    if sequences.shape[1] < 2 or (sequences[:, :2] < 0).any():
        raise TaskError(f"{name} has a sequence of fewer than two tokens; nothing follows there")
    absent = sequences < 0
    if (sequences[absent] != IGNORED).any() or (absent[:, :-1] & ~absent[:, 1:]).any():
        raise TaskError(f"{name} has negative tokens; {IGNORED} may stand behind the last one only")
