"""Scores that were computed once, kept on disk for other runs."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.errors import RunError
from autoprune.evaluation import Evaluation, Evaluator
from autoprune.pruning.plan import PruningPlan
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import Score, needs_samples
from autoprune.tasks.racing import RUNGS, Bar, clearly_worse
from autoprune.version import __version__

FORMAT, VERSION = "autoprune-cache", 1


class EvaluationCache:
    """Scores of networks by plan, in one file per context, which processes may share.

    The context is everything else that scores depend on; see :func:`context_of`. Lines are appended
    whole under a lock; a line that a killed process left half written is passed over.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: str | os.PathLike[str], context: Mapping[str, str]) -> None:
        """Open the file of a context, made where there is none yet.

        Args:
            folder: Where the files lie; made where it is missing.
            context: Names and values; another value is another file.

        Raises:
            RunError: The folder cannot be written.
        """
        text = json.dumps(dict(context), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = Path(folder).expanduser() / f"{digest}.jsonl"
        self._scores: dict[str, tuple[Score, ...]] = {}
        self._read = 0
        header = {"format": FORMAT, "version": VERSION, "context": dict(context)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(json.dumps(header), once=True)
        except OSError as error:
            raise RunError(
                f"cannot write the cache {self.path}: {error.strerror}; give another --cache"
            ) from None

    def find(self, key: str) -> tuple[Score, ...]:
        """Return the scores after each rung of the network called ``key``; empty where unknown.

        Where several were stored, those on the most samples.
        """
        with self.path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]  # another process may be writing the rest
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self._scores.get(key, ())

    def add(self, key: str, scores: Iterable[Score]) -> None:
        """Store scores of the network called ``key``."""
        values = [dataclasses.astuple(score) for score in scores]
        self._append(json.dumps({"plan": key, "rungs": values}))

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            key, scores = values["plan"], tuple(Score(*rung) for rung in values["rungs"])
        except (ValueError, KeyError, TypeError):
            return  # the header, or half a line
        if len(scores) > len(self._scores.get(key, ())):
            self._scores[key] = scores

    def _append(self, line: str, *, once: bool = False) -> None:
        """Append a line; with ``once`` only to an empty file."""
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if once and size:
                return
            file.seek(max(0, size - 1))
            half = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if half else b"") + line.encode() + b"\n")


class CachedEvaluator:
    """Looks scores up before an evaluator computes them; results are the same either way.

    What is stored are the scores after each rung, so that a network is stopped where it would have
    been. Failures are not stored.
    """

    def __init__(self, evaluator: Evaluator, cache: EvaluationCache) -> None:
        """Store parameters.

        Args:
            evaluator: Scores what is not known yet; its task scores sample by sample.
            cache: Of the context of this evaluator.

        Raises:
            TaskError: The task does not score sample by sample.
        """
        self.evaluator, self.cache = evaluator, cache
        self._whole = needs_samples(evaluator.task, "a cache").samples("search")

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``, at no cost where they are known.

        Args:
            candidate: The candidate.
            bar: What another network scored on the first samples.
        """
        if candidate.rung:  # a plan does not say how long its network was trained
            return self.evaluator(candidate, bar)
        started = time.perf_counter()
        try:
            key = key_of(self.evaluator.plan(candidate))
            known = self._raced(self.cache.find(key), bar)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the trial's result
            return self.failed(candidate, f"{type(error).__name__}: {error}")
        if known:
            seconds = time.perf_counter() - started
            evaluation = self.evaluator.scored(candidate, known)
            return dataclasses.replace(evaluation, seconds=seconds, cached=True)
        evaluation = self.evaluator(candidate, bar)
        if evaluation.status != "failed":
            self.cache.add(key, evaluation.rungs)
        return evaluation

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return the evaluation of a candidate whose scores could not be computed."""
        return self.evaluator.failed(candidate, reason)

    def _raced(self, scores: tuple[Score, ...], bar: Bar) -> tuple[Score, ...]:
        """Return the scores up to where a race ends; empty where it would go on beyond them."""
        for count, score in enumerate(scores, start=1):
            if clearly_worse(score, bar) or score.samples == self._whole:
                return scores[:count]
        return ()


def key_of(plan: PruningPlan) -> str:
    """Return the name of a plan: what is kept, and how."""
    text = json.dumps(plan.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def context_of(
    evaluator: Evaluator, *, calibration_samples: int, **settings: str
) -> dict[str, str]:
    """Return everything that scores depend on beside the plan, by name.

    The values of all tensors count: weights, calibration samples, the search split.

    Args:
        evaluator: The evaluator.
        calibration_samples: Training samples that candidates are realised with.
        **settings: What else it was made with, such as the realisation and the metric.

    Raises:
        TaskError: The task does not score sample by sample.
    """
    task, model = needs_samples(evaluator.task, "a cache"), evaluator.network.model
    pairs = task.batches("search", 0, task.samples("search"))
    return {
        "autoprune": __version__,
        "torch": torch.__version__,
        "model": _digest_of_model(model),
        "task": f"{type(task).__module__}.{type(task).__qualname__} {task.name}",
        "calibration": digest(t for pair in task.calibration(calibration_samples) for t in pair),
        "search": digest(tensor for pair in pairs for tensor in pair),
        "rungs": json.dumps(RUNGS),
        **settings,
    }


def _digest_of_model(model: nn.Module) -> str:
    kind = type(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    text = f"{kind.__module__}.{kind.__qualname__} {model!r} {[name for name, _ in named]}"
    return digest((tensor for _, tensor in named), text)


def digest(tensors: Iterable[Tensor], text: str = "") -> str:
    """Return a hash of the values, shapes and types of tensors, and of a text."""
    found = hashlib.sha256(text.encode())
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()
