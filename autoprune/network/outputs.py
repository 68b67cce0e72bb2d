"""What models return."""

from __future__ import annotations

from torch import Tensor


def logits_of(output: object) -> Tensor | None:
    """Return the logits of a model, ``None`` where its output is nothing of that kind.

    Args:
        output: One tensor, or an object that has one as ``logits``, as models of transformers
            return.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else None
