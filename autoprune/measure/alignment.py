"""The channel multiple a runtime computes in, from the times of convolutions of many widths."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import nn

from autoprune.files import write_atomically
from autoprune.measure.backend import Backend, Tensors
from autoprune.measure.board import interleaved, pinned
from autoprune.measure.measuring import Folder
from autoprune.measure.shapes import KernelShape
from autoprune.measure.subjects import idle, reference

#: Widths that are timed, as input and output channels; multiples are tried up to their range.
WIDTHS = tuple(range(96, 129))
MULTIPLES = (1, 2, 4, 8, 16, 32)
#: Part of linear growth that makes a wider convolution worth its time, and the part of a multiple's
#: widths that must be worth it.
_GROWTH, _SHARE = 0.5, 0.75
#: Image sizes; the first at which a convolution takes this many times as long as a call is used.
_SIZES, _TIMES = (14, 28, 56, 112, 224), 20
_FILE = "alignment.json"


def alignment_of(backend: Backend, folder: Folder) -> int:
    """Return the multiple that channels are padded to, measured once per folder.

    Args:
        backend: What times.
        folder: Where the answer is kept.

    Raises:
        MeasureError: The runtime cannot run a convolution.
    """
    if backend.assumed_alignment is not None:
        return backend.assumed_alignment
    file = folder.path / _FILE
    if not file.exists():
        times = _times(backend)
        content = {"alignment": best_multiple(times), "milliseconds": times}
        write_atomically(file, json.dumps(content) + "\n")
    return int(json.loads(file.read_text(encoding="utf-8"))["alignment"])


def best_multiple(times: Mapping[int, float]) -> int:
    """Return the finest multiple of channels at which narrower still means faster.

    A width is worth its time if no wider one is nearly as fast: with channels padded to 8, 97 to
    103 are not. Where no multiple has widths that are mostly worth it, time does not depend on
    channels in this range, and 1 is returned.

    >>> best_multiple({c: 1.0 + (-(-c // 8) * 8) ** 2 for c in WIDTHS})
    8

    Args:
        times: Milliseconds by channels.
    """
    worth = {
        width: all(
            longer > own * (1 + _GROWTH * (wider - width) / width)
            for wider, longer in times.items()
            if wider > width
        )
        for width, own in times.items()
    }
    for multiple in MULTIPLES:
        # The widest has nothing to be compared with.
        judged = [worth[width] for width in times if width % multiple == 0 and width < max(times)]
        if judged and sum(judged) >= _SHARE * len(judged):
            return multiple
    return 1


def _times(backend: Backend) -> dict[int, float]:
    """Return milliseconds of a convolution by its input and output channels."""
    with pinned(backend.threads), backend.running():
        call = min(backend.build(*idle())(5))
        size = _SIZES[-1]
        for size in _SIZES:
            if min(backend.build(*_convolution(WIDTHS[-1], size))(3)) >= _TIMES * call:
                break
        timers = {str(width): backend.build(*_convolution(width, size)) for width in WIDTHS}
        timings = interleaved(timers, backend.build(*reference()), backend.rounds)
    return {int(width): timing.latency_ms for width, timing in timings.items.items()}


def _convolution(width: int, size: int) -> tuple[nn.Module, Tensors]:
    return KernelShape("conv", width, width, size, size, kernel=(3, 3)).module()
