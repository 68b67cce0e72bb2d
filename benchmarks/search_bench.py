"""A real network, its data and a device, prepared once for every search that is compared on it.

Candidates are scored on search images and, where that is asked for, on images that no search sees:
the checkpoints have learned all training images by heart, so both are parts of the test images.
Evaluations are deterministic and kept in a cache, so that whoever proposes the same candidate gets
the same scores without waiting.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from realise_subjects import load_subject
from torch import Tensor, nn

from autoprune.evaluation import Evaluator
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.network import Network
from autoprune.pruning.criterion import build_criterion
from autoprune.pruning.verify import verified
from autoprune.run.preparation import measured_damage
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import wanted_damage
from autoprune.strategy.settings import load_space_settings
from autoprune.strategy.space import Candidate, build_space
from autoprune.tasks.base import Score, run_batches, total_score
from autoprune.tasks.calibrated import calibrated_score
from autoprune.tasks.classification import ClassificationTask

#: In place of a device: millions of multiply-accumulates stand for milliseconds.
MACS = "macs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What decides the scores of a candidate.

    Attributes:
        network: Key of :data:`realise_subjects.SUBJECTS`.
        device: Device profile, or :data:`MACS`.
        shared: Folder that holds ``bench_data``.
        realise: How a cut network is repaired.
        calibration: Training images for that, and for the ranking of units.
        images: Test images that searches score on, the first ones.
        unseen: Test images that no search sees, the last ones.
        space: Search space.
    """

    network: str
    device: str
    shared: Path
    realise: str = "reconstruct"
    calibration: int = 256
    images: int = 512
    unseen: int = 2000
    space: str = "default"

    @property
    def key(self) -> str:
        """What tells apart scores of the same candidate."""
        return f"{self.network}/{self.realise}/{self.calibration}/{self.images}/{self.unseen}"


class Bench:
    """One network for one device, with everything that all searches share.

    Attributes:
        problem: Space, latency, operators, scores of the ranking; no damage and no budget.
        network: The traced network.
        task: Its data.
        guess_loss: Loss of guessing, in nats.
    """

    def __init__(self, settings: BenchSettings, *, cache: Path) -> None:
        """Load the network and prepare what candidates share.

        Args:
            settings: What is searched, and how it is scored.
            cache: SQLite file of scores; made where it is missing.
        """
        subject = load_subject(settings.network, settings.shared)
        assert isinstance(subject.task, ClassificationTask)
        self.settings, self.task = settings, subject.task
        self.network: Network = verified(subject.network)
        self.guess_loss = float(np.log(self.task.classes))
        self._batches = self.task.calibration(settings.calibration)
        scores = build_criterion("obs").score(self.network, self._batches)
        self.problem = self._problem(scores)
        self.evaluator = Evaluator(
            self.network,
            self.task,
            problem=self.problem,
            scores=scores,
            calibration_samples=settings.calibration,
            realise=settings.realise,
        )
        self._cache = Cache(cache, settings.key)

    def _problem(self, scores: dict[str, Float[np.ndarray, " _"]]) -> Problem:
        settings = self.settings
        ops = self.network.ops
        if settings.device == MACS:
            alignment = 1

            def cost(
                widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
            ) -> Float[np.ndarray, " n"]:
                return ops.macs(widths, keep) / 1e6
        else:
            profile = load_profile(settings.device)
            alignment = profile.alignment
            cost = predictor_for(ops, profile).predict
        space = build_space(
            self.network.groups,
            self.network.blocks,
            load_space_settings(settings.space),
            alignment=alignment,
        )
        return Problem(space, cost, None, ops=ops, scores=scores, guess_loss=self.guess_loss)

    def with_damage(self, sampler: str) -> Problem:
        """Return the problem with the damage curves of the criterion that a sampler wants."""
        return dataclasses.replace(self.problem, damage=self._damage(_criterion(sampler))[0])

    def preparing_s(self, sampler: str) -> float:
        """Return the seconds of CPU time that the damage took which a sampler wants."""
        return self._damage(_criterion(sampler))[1]

    @functools.cache  # noqa: B019 - there is one bench, which lives as long as the process
    def _damage(self, criterion: str) -> tuple[Damage, float]:
        start = time.process_time()
        scores = self.problem.scores
        if criterion != "obs":
            scores = build_criterion(criterion).score(self.network, self._batches)
        space, realise = self.problem.space, self.settings.realise
        damage = Damage.of_scores(space, scores, cumulative=criterion == "obs")
        if criterion == "obs":
            damage = measured_damage(damage, self.network, space, scores, self._batches, realise)
        return damage, time.process_time() - start

    def score(self, candidate: Candidate, *, unseen: bool = False) -> tuple[float, float, float]:
        """Return calibrated loss, accuracy and the seconds they took when they were computed."""
        key = f"unseen/{candidate.key}" if unseen else candidate.key
        known = self._cache.get(key)
        if known is None:
            start = time.perf_counter()
            model = self.evaluator.build(candidate)
            loss, accuracy = self.scores(model, unseen=unseen)
            known = loss, accuracy, time.perf_counter() - start
            self._cache.put(key, known)
        return known

    def scores(
        self, model: nn.Module, *, unseen: bool, calibrated: bool = True
    ) -> tuple[float, float]:
        """Return loss and accuracy, in bfloat16 and channels last.

        Args:
            model: Any network for the task.
            unseen: On which images.
            calibrated: Whether the loss is that at the network's best temperature.
        """
        count = len(self.task.test)
        first = min(self.settings.images, count)
        bounds = (max(count - self.settings.unseen, first), count) if unseen else (0, first)
        batches = (
            (images.contiguous(memory_format=torch.channels_last), classes)
            for images, classes in self.task.batches("test", *bounds)
        )
        scored = calibrated_score if calibrated else _plain_score
        with torch.autocast("cpu", torch.bfloat16):
            score = scored(self.task, model.to(memory_format=torch.channels_last), batches)
        return score.loss, score.accuracy

    def coded(self, candidate: Candidate) -> str:
        """Return a candidate as ratios and dropped blocks in one short string."""
        ratios = " ".join(f"{ratio:.4g}" for ratio in candidate.ratios)
        return f"{ratios}|{''.join('01'[gone] for gone in candidate.dropped)}"

    def decoded(self, coded: str) -> Candidate:
        """Return the candidate that :meth:`coded` made a string of."""
        ratios, _, gone = coded.partition("|")
        candidate = Candidate(tuple(map(float, ratios.split())), tuple(x == "1" for x in gone))
        return self.problem.space.snap(candidate)


def _criterion(sampler: str) -> str:
    """Return the criterion whose damage curves a sampler is given."""
    return wanted_damage(sampler) or "obs"


def _plain_score(
    task: ClassificationTask, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
) -> Score:
    return total_score(run_batches(model, batches, task.sample_scores))


class Cache:
    """Scores by key in one SQLite file that several processes may share."""

    def __init__(self, path: Path, prefix: str) -> None:
        """Open or make the file; `prefix` tells apart what else decides a score."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.connection.execute(
            "create table if not exists scores (key text primary key, value text)"
        )
        self.prefix = prefix

    def get(self, key: str) -> tuple[float, float, float] | None:
        """Return what is known."""
        row = self.connection.execute(
            "select value from scores where key = ?", (f"{self.prefix}/{key}",)
        ).fetchone()
        return None if row is None else tuple(json.loads(row[0]))

    def put(self, key: str, value: tuple[float, float, float]) -> None:
        """Keep a score."""
        self.connection.execute(
            "insert or replace into scores values (?, ?)",
            (f"{self.prefix}/{key}", json.dumps(value)),
        )
