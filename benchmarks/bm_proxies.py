"""Which realisation to search with: what of a candidate tells its accuracy after fine-tuning.

`AUTOPRUNE_SHARED=... python benchmarks/bm_proxies.py` takes 24 candidates of CIFAR-10's ResNet-20
of one predicted latency, half of the dense one: 18 random ones and 6 that are a few steps off what
the summed damage curves say is best. Each is realised in every way and scored on 2,000 images that
neither calibration nor fine-tuning sees (the checkpoint was trained on them, though), and each is
fine-tuned for 3 epochs and tested. Rows that `benchmarks/results/bm_proxies*.csv` hold are not
measured again; `bm_proxies.md` is written from all.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import RESULTS, write_result
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.evaluation import unit_order
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.criterion import Batches
from autoprune.pruning.importance.obs import damage_by_unit
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.strategy.budget import first_within, project
from autoprune.strategy.damage import Damage
from autoprune.strategy.moves import neighbour
from autoprune.strategy.problem import Problem
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import Candidate, build_space
from autoprune.tasks.cifar10 import cifar10
from autoprune.tasks.classification import ClassificationTask, normalised
from autoprune.tuning.statistics import own_statistics

PROXIES = RESULTS / "bm_proxies.csv"
TUNED = RESULTS / "bm_proxies_tuned.csv"
REALISATIONS = ["slice", "statistics", "merge", "reconstruct"]
RANDOM, PERTURBED = 18, 6
SHARE = 0.5
CALIBRATION = 512
BATCH = 128
RESAMPLES = 2000
#: Options that say how a candidate was fine-tuned.
RECIPE = ("start", "epochs", "images", "peak_lr")


def main() -> None:
    """Measure the candidates that are missing, write what they tell."""
    options = _options()
    torch.set_num_threads(options.threads)
    subject = Subject.of(Path(options.shared) / "bench_data", options.device)
    for number, (kind, candidate) in enumerate(subject.candidates(np.random.default_rng(0))):
        row = {"number": number, "kind": kind, "key": candidate.key}
        wanted = [seed for seed in options.seeds if not _holds(TUNED, row | _recipe(options, seed))]
        if not wanted and _holds(PROXIES, row):
            continue
        scored = _holds(PROXIES, row)
        realised = subject.realised(candidate, [options.start] if scored else REALISATIONS)
        if not scored:
            _store(PROXIES, row | subject.proxies(candidate, realised))
        for seed in wanted:
            model = realised[options.start].model
            _store(TUNED, row | _recipe(options, seed) | _tuned(model, subject, options, seed))
    tuned = _of_recipe(pd.read_csv(TUNED), options)
    write_result(
        "bm_proxies",
        _table(pd.read_csv(PROXIES), tuned),
        command="python benchmarks/bm_proxies.py`, then with `--start merge",
        packages=["torch"],
    )
    _explain(RESULTS / "bm_proxies.md", tuned, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", default=default, help="folder that holds bench_data")
    parser.add_argument("--device", default="raspberry_pi_4_ncnn")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=4_000, help="of an epoch")
    parser.add_argument("--peak-lr", type=float, default=0.03)
    parser.add_argument("--start", choices=REALISATIONS, default="reconstruct")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


@dataclasses.dataclass(frozen=True, eq=False)
class Realised:
    """A network that a candidate was made, with the thread's CPU seconds that it took."""

    model: nn.Module
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained network with all that its candidates share."""

    task: ClassificationTask
    network: Network
    problem: Problem
    damage: Damage
    scores: dict[str, np.ndarray]
    realisers: dict[str, Callable[[PruningPlan], nn.Module]]
    batches: Batches

    @classmethod
    def of(cls, data: Path, device: str) -> Subject:
        """Return ResNet-20 on CIFAR-10, only its widths searched."""
        task = cifar10(
            str(data), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), search_samples=2000
        )
        model, _ = ModelSource.parse(
            f"{data / 'networks.py'}:cifar_resnet(20)",
            weights=data / "cifar10_resnet20.safetensors",
        ).build_with_notes()
        network = verified(trace(model, task.example_inputs()))
        profile = load_profile(device)
        settings = SpaceSettings(version=1, depth=False)
        space = build_space(
            network.groups, network.blocks, settings, alignment=profile.alignment
        )  # fmt: skip
        problem = Problem(space, predictor_for(network.ops, profile).predict)
        batches = task.calibration(CALIBRATION)
        calibrated = Calibrated.of(network, batches)
        scores = {}
        for group in network.groups:
            elimination = calibrated.elimination(group)
            if elimination is None:
                raise ValueError(f"no reader of {group.name} is known")
            scores[group.name] = damage_by_unit(elimination)
        damage = Damage.of_scores(space, scores, cumulative=True)
        realisers = {name: build_realiser(name, network, batches) for name in REALISATIONS}
        return cls(
            task,
            network,
            dataclasses.replace(problem, budget_ms=SHARE * problem.dense_ms),
            damage,
            scores,
            realisers,
            batches,
        )

    @cached_property
    def dense(self) -> Tensor:
        """Log-probabilities of the dense network for the images that candidates are scored on."""
        images, _ = self.task.search.batch(0, self.task.search_samples)
        return _logits(self.network.model, images).log_softmax(1)

    def summed(self, candidate: Candidate) -> float:
        """Return the summed damage of a candidate."""
        space = self.problem.space
        return float(self.damage.at(space, space.widths([candidate]), space.keep([candidate]))[0])

    def candidates(self, rng: np.random.Generator) -> list[tuple[str, Candidate]]:
        """Return all candidates, none twice, each within 2 % of the budget."""
        drawn = itertools.chain(
            (("random", self._random(rng)) for _ in range(10 * RANDOM)),
            (("perturbed", c) for c in self._perturbed(rng, 10 * PERTURBED)),
        )
        found: dict[str, tuple[str, Candidate]] = {}
        missing = {"random": RANDOM, "perturbed": PERTURBED}
        budget = self.problem.budget_ms
        for kind, candidate in drawn:
            ms = self.problem.latency_ms([candidate])[0]
            if missing[kind] and ms > 0.98 * budget and candidate.key not in found:
                found[candidate.key] = (kind, candidate)
                missing[kind] -= 1
        if any(missing.values()):
            raise ValueError(f"not found within 2 % of {budget} ms: {missing}")
        # Both kinds from the start, so that a run which is stopped tells something of both.
        ordered = [row for row in found.values() if row[0] == "random"]
        for place, row in enumerate(row for row in found.values() if row[0] == "perturbed"):
            ordered.insert(4 * place + 3, row)
        return ordered

    def _random(self, rng: np.random.Generator) -> Candidate:
        """Return where a ray of random direction enters the budget."""
        space = self.problem.space
        direction = rng.uniform(size=len(space.dimensions))
        largest = 1.0 - space.smallest_widths / space.sizes

        def ray(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            strength = positions / np.maximum(1.0 - positions, 1e-9)
            ratios = np.minimum(strength[:, None] * direction, 1.0) * largest
            return space.realise(ratios, np.zeros((len(positions), len(space.blocks)), bool))

        point = first_within(self.problem, ray, self.problem.budget_ms) or ray(np.ones(1))
        return project(self.problem, space.candidates(*point)[0])

    def _perturbed(self, rng: np.random.Generator, count: int) -> list[Candidate]:
        """Return candidates 3 random moves off the least summed damage that descent finds."""
        best = project(self.problem, self.problem.space.dense())
        for _ in range(1500):
            other = project(
                self.problem,
                neighbour(self.problem.space, best, rng, moves=int(rng.integers(1, 4))),
            )
            best = min(best, other, key=self.summed)
        return [
            project(self.problem, neighbour(self.problem.space, best, rng, moves=3))
            for _ in range(count)
        ]

    def realised(self, candidate: Candidate, names: Sequence[str]) -> dict[str, Realised]:
        """Return the candidate's networks by the name of the realisation."""
        widths = self.problem.space.widths([candidate])[0]
        kept = {
            group.name: tuple(
                sorted(unit_order(self.scores[group.name], group.size)[:width].tolist())
            )
            for group, width in zip(self.network.groups, widths, strict=True)
            if width < group.size
        }
        plan = Surgeon(self.network).complete(PruningPlan(kept))
        found = {}
        for name in names:
            start = time.thread_time()
            model = self.realisers[name](plan)
            found[name] = Realised(model, time.thread_time() - start)
        return found

    def proxies(self, candidate: Candidate, realised: dict[str, Realised]) -> dict[str, Any]:
        """Return what is known of a candidate without training it."""
        space, ops = self.problem.space, self.network.ops
        widths, keep = space.widths([candidate]), space.keep([candidate])
        row: dict[str, Any] = {
            "widths": " ".join(map(str, widths[0])),
            "latency_ms": round(float(self.problem.predict(widths, keep)[0]), 5),
            "macs": int(ops.macs(widths, keep)[0]),
            "params": int(ops.params(widths, keep)[0]),
            "damage": round(self.summed(candidate), 6),
        }
        images, targets = self.task.search.batch(0, self.task.search_samples)
        for name, made in realised.items():
            start = time.thread_time()
            logits = _logits(made.model, images).log_softmax(1)
            row[f"tempered_{name}"] = round(_tempered(logits, targets), 6)
            row |= {
                f"loss_{name}": round(F.nll_loss(logits, targets).item(), 6),
                f"kl_{name}": round(
                    F.kl_div(logits, self.dense, reduction="batchmean", log_target=True).item(), 6
                ),
                f"accuracy_{name}": round(_right(logits, targets), 4),
                f"realise_s_{name}": round(made.seconds, 3),
                f"evaluate_s_{name}": round(time.thread_time() - start, 3),
            }
        return row


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        parts = images.contiguous(memory_format=torch.channels_last).split(250)
        return torch.cat([model(part) for part in parts])


def _right(logits: Tensor, targets: Tensor) -> float:
    return float((logits.argmax(1) == targets).float().mean())


def _tempered(logits: Tensor, targets: Tensor) -> float:
    """Return the loss at the temperature that makes it lowest.

    A network that is cut hard is wrong with too much confidence, and says little by its loss.
    """
    return min(F.cross_entropy(logits / t, targets).item() for t in np.geomspace(0.5, 20, 40))


def _tuned(
    realised: nn.Module, subject: Subject, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Return how well a network does on the test images after fine-tuning a copy of it."""
    model = copy.deepcopy(realised).requires_grad_(True).to(memory_format=torch.channels_last)
    own_statistics(model, subject.batches)
    start = time.thread_time()
    _fine_tune(model, subject.task, options, np.random.default_rng(seed))
    seconds = time.thread_time() - start
    images, targets = subject.task.test.batch(0, 10_000)
    logits = _logits(model, images)
    return {
        "test_accuracy": round(_right(logits, targets), 4),
        "test_loss": round(F.cross_entropy(logits, targets).item(), 6),
        "seconds": round(seconds, 1),
    }


def _fine_tune(
    model: nn.Module,
    task: ClassificationTask,
    options: argparse.Namespace,
    rng: np.random.Generator,
) -> None:
    """Train a model in place: SGD with warm-up and a cosine, crops and flips, bfloat16."""
    samples = task.training
    pixels = np.pad(samples.pixels[: options.images], ((0, 0), (0, 0), (4, 4), (4, 4)))
    targets = torch.from_numpy(samples.targets[: options.images].astype(np.int64))
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 5e-4},
            {"params": [p for p in model.parameters() if p.ndim <= 1]},
        ],
        lr=options.peak_lr,
        momentum=0.9,
        nesterov=True,
    )
    per_epoch = len(pixels) // BATCH
    steps = options.epochs * per_epoch
    model.train()
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(len(pixels))
        warm = min(1.0, (step + 1) / (0.1 * steps))
        rate = options.peak_lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        inputs = normalised(_augmented(pixels, chosen, rng), samples.mean, samples.std)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(inputs.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        F.cross_entropy(output.float(), targets[chosen]).backward()
        optimizer.step()


def _augmented(pixels: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return random crops of padded images, half of them mirrored."""
    down, right = rng.integers(0, 9, (2, len(chosen), 1))
    along = np.where(rng.random((len(chosen), 1)) < 0.5, np.arange(32), np.arange(31, -1, -1))
    return pixels[
        chosen[:, None, None, None],
        np.arange(3)[:, None, None],
        (down + np.arange(32))[:, None, :, None],
        (right + along)[:, None, None, :],
    ]


def _recipe(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {name: getattr(options, name) for name in RECIPE} | {"seed": seed}


def _of_recipe(tuned: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """Return the rows that were fine-tuned as the options say, from any start, with any seed."""
    chosen = [tuned[name] == getattr(options, name) for name in RECIPE if name != "start"]
    return tuned[np.logical_and.reduce(chosen)]


def _holds(file: Path, row: dict[str, Any]) -> bool:
    if not file.is_file():
        return False
    rows = pd.read_csv(file)
    here = np.logical_and.reduce([rows[name] == value for name, value in row.items()])
    return bool(here.any())


def _store(file: Path, row: dict[str, Any]) -> None:
    new = pd.DataFrame([row])
    rows = pd.concat([pd.read_csv(file), new]) if file.is_file() else new
    RESULTS.mkdir(exist_ok=True)
    rows.to_csv(file, index=False, lineterminator="\n")
    print({name: value for name, value in row.items() if name != "widths"}, flush=True)


def _table(proxies: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Return one row per proxy: how it ranks candidates as fine-tuning does, and what it costs."""
    rows = proxies.set_index("number")
    means = {
        start: part.groupby("number")[["test_accuracy", "test_loss"]].mean()
        for start, part in tuned.groupby("start")
    }
    main = means["reconstruct"]
    random = rows.index[rows["kind"] == "random"].intersection(main.index)
    table = []
    for name, (proxy, realise, evaluate) in _signed(rows).items():
        table.append(
            {
                "proxy": name,
                "Spearman, accuracy": _interval(proxy[main.index], main["test_accuracy"]),
                "of the random ones": _interval(proxy[random], main["test_accuracy"][random]),
                "Spearman, test loss": _interval(proxy[main.index], -main["test_loss"]),
                **{
                    f"accuracy, tuned from {start}": _interval(
                        proxy[other.index], other["test_accuracy"]
                    )
                    for start, other in means.items()
                    if start != "reconstruct"
                },
                "best by it %": f"{100 * main['test_accuracy'][proxy[main.index].idxmax()]:.2f}",
                "realise s": realise,
                "evaluate s": evaluate,
            }
        )
    return pd.DataFrame(table)


def _signed(rows: pd.DataFrame) -> dict[str, tuple[pd.Series, str, str]]:
    """Return each proxy, higher for what should be better, with the seconds it takes."""
    signed = {}
    for name in REALISATIONS:
        seconds = [f"{rows[f'{part}_s_{name}'].mean():.2f}" for part in ("realise", "evaluate")]
        signed[f"loss, {name}"] = (-rows[f"loss_{name}"], *seconds)
        signed[f"loss at its best temperature, {name}"] = (-rows[f"tempered_{name}"], *seconds)
        signed[f"KL to dense, {name}"] = (-rows[f"kl_{name}"], *seconds)
        signed[f"accuracy, {name}"] = (rows[f"accuracy_{name}"], *seconds)
    signed["summed damage"] = (-rows["damage"], "0", "0")
    signed["MACs"] = (rows["macs"], "0", "0")
    signed["parameters"] = (rows["params"], "0", "0")
    return signed


def _interval(proxy: Sequence[float], truth: Sequence[float]) -> str:
    """Return Spearman's coefficient with a bootstrap 90 % interval over candidates."""
    first, second = np.asarray(proxy, float), np.asarray(truth, float)
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(first), (RESAMPLES, len(first)))
    again = [_spearman(first[row], second[row]) for row in chosen]
    low, high = np.nanquantile(again, [0.05, 0.95])
    return f"{_spearman(first, second):.2f} ({low:.2f} to {high:.2f})"


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    ranks = rankdata(first), rankdata(second)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _explain(page: Path, tuned: pd.DataFrame, options: argparse.Namespace) -> None:
    """Add to the page what the numbers are of."""
    main = tuned[tuned["start"] == "reconstruct"]
    means = 100 * main.groupby("number")["test_accuracy"].mean()
    steps = options.epochs * (options.images // BATCH)
    note = (
        f"ResNet-20 on CIFAR-10, {RANDOM} random and {PERTURBED} good candidates, all within 2 % "
        f"of {100 * SHARE:.0f} % of the dense latency predicted for {options.device}; only widths, "
        f"units ranked by obs, {CALIBRATION} calibration images. Proxies are of 2,000 images that "
        "neither calibration nor fine-tuning sees, but that the checkpoint was trained on. "
        f"Fine-tuning is short: {options.epochs} epochs of only the first {options.images} "
        f"training images ({steps} steps), from the reconstructed weights, SGD, peak rate "
        f"{options.peak_lr}, {main['seconds'].mean():.0f} s each; then all 10,000 test images: "
        f"{len(means)} candidates, {means.min():.2f} to {means.max():.2f} %, mean "
        f"{means.mean():.2f}. Seconds are CPU time of one thread per candidate, without what is "
        "prepared once per network. In brackets: bootstrap 90 % interval over candidates. "
        "Correlations are with what is better: low loss, KL and damage, many MACs and parameters. "
        "`best by it` is the accuracy of the candidate that the proxy would choose."
    )
    for start, part in tuned[tuned["start"] != "reconstruct"].groupby("start"):
        other = 100 * part.groupby("number")["test_accuracy"].mean()
        same = other.index.intersection(means.index)
        agreed = _interval(means[same], other[same])
        note += (
            f" From the weights of {start}: {len(other)} candidates, {other.min():.2f} to "
            f"{other.max():.2f} %; both fine-tunings agree by {agreed}."
        )
    page.write_text(f"{page.read_text()}\n{note}\n")


if __name__ == "__main__":
    main()
