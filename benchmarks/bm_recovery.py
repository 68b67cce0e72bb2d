"""Fine-tuning of ResNet-56 on CIFAR-10 at 2.1 and 2.6 times fewer MACs, next to torch-pruning's.

`AUTOPRUNE_SHARED=... python benchmarks/bm_recovery.py` makes three networks per target: the best of
ten that our knapsack proposes with MACs as the cost, repaired by `reconstruct`; and torch-pruning's
with the same ratio everywhere by L2 norm, and by group L2 norm ranked over all layers. All are
fine-tuned by the same schedule and scored on the way; the last score counts, none is chosen.

The checkpoint was trained on all training images and has learned them by heart, so the search
scores on the first test images, and every figure is of others. Peak learning rate and what
BatchNorm normalises by are those with which torch-pruning's network ended best. Rows that
`results/bm_recovery.csv` holds are not made again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import torch
import torch_pruning
from common import RESULTS, write_result
from realise_subjects import SHARED
from torch import nn

from autoprune.evaluation import Evaluator
from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.criterion import build_criterion
from autoprune.pruning.verify import verified
from autoprune.run.preparation import measured_damage
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import build_space
from autoprune.tasks.cifar10 import cifar10
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.tasks.numerics import numerics_for
from autoprune.tuning.loop import Tuner
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.tune import ready

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "autoprune"

ROWS = RESULTS / "bm_recovery.csv"
TARGETS = (2.1, 2.6)
SEEDS = (0, 1, 2)
OURS, UNIFORM, GLOBAL = "autoprune", "torch-pruning, L2, uniform", "torch-pruning, group L2, global"
FIRST = "autoprune, first proposal"
#: Networks that the search scores, the calibration images, and what it scores on.
EVALUATIONS, CALIBRATION, SEARCHED = 10, 512, 2000
#: Test images of every figure; the first ones are the search's.
SCORED = slice(SEARCHED, SEARCHED + 3000)
SCHEDULE = TuneSettings(steps=200, batch=64, original_lr=0.1, original_batch=128, checks=4)
#: Peak learning rates that were tried, as fractions of the original one, each with either of what
#: BatchNorm can normalise by.
FRACTIONS = (0.05, 0.2, 0.8)
STATISTICS = ("batch", "stored")
STYLES = {
    (OURS, True): ("tab:red", "--"),
    (OURS, False): ("tab:red", "-"),
    (UNIFORM, False): ("tab:blue", "-"),
    (GLOBAL, False): ("tab:green", "-"),
}


class Rate(NamedTuple):
    """What was tried for the schedule: peak learning rate, and BatchNorm's statistics."""

    lr_fraction: float
    statistics: str


class Case(NamedTuple):
    """One fine-tuning, as its rows name it."""

    target: float
    method: str
    distilled: bool
    lr_fraction: float
    statistics: str
    seed: int


UNTRAINED = Rate(0.0, "untrained")


def main() -> None:
    """Fine-tune what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds bench_data")
    parser.add_argument("--table", action="store_true", help="only write table and plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not options.table:
        Bench(options.shared / "bench_data").run()
    rows = pd.read_csv(ROWS)
    table(rows)
    plot(rows)


class Bench:
    """The network, its data, and what was made of it."""

    def __init__(self, data: Path) -> None:
        """Load both."""
        whole = cifar10(str(data), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        self.searched = scoring_on(whole, slice(SEARCHED))
        self.task = scoring_on(whole, SCORED)
        source = ModelSource.parse(
            f"{data / 'networks.py'}:cifar_resnet(56)",
            weights=data / "cifar10_resnet56.safetensors",
        )
        self.network = verified(trace(source.build(), whole.example_inputs()))
        self.numerics = numerics_for("auto", self.network.model, self.network.inputs)
        self.build = functools.cache(self._build)

    def run(self) -> None:
        """Fine-tune what has no rows: first for the learning rate, then seed by seed."""
        self._score("unpruned", 1.0, self.network.model)
        for rate in itertools.product(FRACTIONS, STATISTICS):
            for method in (GLOBAL, OURS):
                self._tune(Case(TARGETS[0], method, False, *rate, 0))
        rate = best_rate(pd.read_csv(ROWS))
        for seed in SEEDS:
            for target in TARGETS:
                for method, distilled in STYLES:
                    self._tune(Case(target, method, distilled, *rate, seed))
        for target in TARGETS:
            self._score(FIRST, target, self.build(FIRST, target))

    def _score(self, method: str, target: float, model: nn.Module) -> None:
        """Add a row of a network that is not fine-tuned."""
        case = Case(target, method, False, *UNTRAINED, 0)
        if case in known():
            return
        with self.numerics.applied(model):
            score = self.task.evaluate(model, "search")
        store(case, macs(model, self.network), [(0, score.accuracy, score.loss)], 0.0)

    def _tune(self, case: Case) -> None:
        """Fine-tune a network and add its scores."""
        if case in known():
            return
        begun, start = self.build(case.method, case.target), time.thread_time()
        settings = SCHEDULE.model_copy(
            update={
                "lr_fraction": case.lr_fraction,
                "statistics": case.statistics,
                "distill": 0.5 if case.distilled else 0.0,
                "seed": case.seed,
            }
        )
        history = Tuner(begun, self.network.model, self.task, settings=settings).run().history
        seconds = time.thread_time() - start
        scores = [(check.step, check.accuracy, check.loss) for check in history]
        store(case, macs(begun, self.network), scores, seconds)

    def _build(self, method: str, target: float) -> nn.Module:
        if method in (OURS, FIRST):
            first, best = self.searched_networks(target)
            return ready(first if method == FIRST else best, self.task)
        return theirs(target, self.network, everywhere=method == GLOBAL)

    @functools.cache  # noqa: B019 - there is one bench, which lives as long as the process
    def searched_networks(self, target: float) -> tuple[nn.Module, nn.Module]:
        """Return what the knapsack proposes first, and the best of what it proposes."""
        network, batches = self.network, self.task.calibration(CALIBRATION)
        settings = SpaceSettings(version=1, depth=False)
        space = build_space(network.groups, network.blocks, settings, alignment=1)
        scores = build_criterion("obs").score(network, batches)

        def cost(widths: np.ndarray, keep: np.ndarray) -> np.ndarray:
            return network.ops.macs(space.network_widths(widths), keep) / 1e6

        dense = macs(network.model, network) / 1e6
        damage = Damage.of_scores(space, scores, cumulative=True)
        problem = Problem(
            space,
            cost,
            dense / target,
            ops=network.ops,
            scores=scores,
            damage=measured_damage(damage, network, space, scores, batches, "reconstruct"),
            guess_loss=float(np.log(10)),
        )
        evaluator = Evaluator(
            network,
            self.searched,
            problem=problem,
            scores=scores,
            calibration_samples=CALIBRATION,
            realise="reconstruct",
            numerics=self.numerics,
        )
        study = optuna.create_study(directions=["minimize", "minimize"])
        study.sampler = build_sampler("knapsack", problem, seed=0)
        study.add_trial(
            optuna.trial.create_trial(
                params=space.params(space.dense()),
                distributions=space.distributions(),
                values=[evaluator(space.dense()).loss, dense],
                user_attrs={"dense": True},
            )
        )
        found = []
        for _ in range(EVALUATIONS):
            trial = study.ask(space.distributions())
            evaluation = evaluator(space.snap(space.candidate(trial.params)))
            study.tell(trial, [evaluation.loss, evaluation.latency_ms])
            found.append(evaluation)
            print(target, evaluation.loss, evaluation.accuracy, evaluation.macs, flush=True)
        best = min(found, key=lambda evaluation: evaluation.loss)
        return evaluator.build(found[0].candidate), evaluator.build(best.candidate)


def scoring_on(task: ClassificationTask, images: slice) -> ClassificationTask:
    """Return a task whose search split are some of the test images."""
    assert isinstance(task.test, ArraySamples)
    part = dataclasses.replace(
        task.test, pixels=task.test.pixels[images], targets=task.test.targets[images]
    )
    return ClassificationTask(
        task.name,
        task.classes,
        training=task.training,
        search=part,
        test=part,
        search_samples=len(part),
    )


def theirs(target: float, network: Network, *, everywhere: bool) -> nn.Module:
    """Return torch-pruning's network, its ratio found by bisection.

    Only the channels between the two convolutions of a block are cut: along the padded shortcuts of
    this network torch-pruning 1.6.1 removes channel i of the wider stage for channel i of the
    narrower one, which is channel i + 8 there, and the result classifies no better than chance.
    """
    dense = macs(network.model, network)
    low, high, best = 0.0, 0.95, None
    importance = torch_pruning.importance
    for _ in range(8):
        ratio = (low + high) / 2
        twin = copy.deepcopy(network.model)
        inner = [module for name, module in twin.named_modules() if name.endswith(".conv1")]
        others = [m for m in twin.modules()
                  if isinstance(m, nn.Conv2d | nn.Linear) and m not in inner]  # fmt: skip
        torch_pruning.pruner.MetaPruner(
            twin,
            network.inputs,
            importance=importance.GroupMagnitudeImportance(p=2)
            if everywhere
            else importance.MagnitudeImportance(p=2, group_reduction="first"),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95 if everywhere else 1.0,
            ignored_layers=others,
        ).step()
        if macs(twin, network) * target > dense:
            low = ratio
        else:
            high, best = ratio, twin
    if best is None:
        raise ValueError(f"no ratio gives {target} times fewer MACs")
    return best


def macs(model: nn.Module, network: Network) -> int:
    """Return the multiply-accumulates of one image, counted alike for all."""
    return int(trace(model, network.inputs).ops.macs()[0])


def known() -> set[Case]:
    """Return which fine-tunings have rows."""
    if not ROWS.is_file():
        return set()
    return {Case(*row) for row in pd.read_csv(ROWS)[list(Case._fields)].itertuples(index=False)}


def store(case: Case, count: int, scores: list[tuple[int, float, float]], seconds: float) -> None:
    """Add the rows of one fine-tuning."""
    rows = pd.DataFrame(
        {
            **case._asdict(),
            **{"macs": count, "step": step, "accuracy": accuracy, "loss": round(loss, 5)},
            "cpu_seconds": round(seconds, 1),
        }
        for step, accuracy, loss in scores
    )
    ROWS.parent.mkdir(exist_ok=True)
    rows.to_csv(ROWS, mode="a", header=not ROWS.is_file(), index=False, lineterminator="\n")
    print(*case, [round(accuracy, 4) for _, accuracy, _ in scores], f"{seconds:.0f} s", flush=True)


def best_rate(rows: pd.DataFrame) -> Rate:
    """Return the rate with which torch-pruning's network ended best."""
    ends = tried(rows).query("method == @GLOBAL")
    return Rate(*ends.set_index(list(Rate._fields))["accuracy"].idxmax())


def tried(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last rows of what the rate was chosen by."""
    ends = rows[(rows["step"] == SCHEDULE.steps) & ~rows["distilled"] & (rows["seed"] == 0)]
    return ends[(ends["target"] == TARGETS[0]) & ends["method"].isin([GLOBAL, OURS])]


def main_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the chosen rate, and of networks that are not fine-tuned."""
    rates = pd.MultiIndex.from_frame(rows[list(Rate._fields)])
    return rows[rates.isin([UNTRAINED, best_rate(rows)])]


def table(rows: pd.DataFrame) -> None:
    """Write accuracies by step, and what they are of."""
    lines = []
    for (target, method, distilled), part in main_rows(rows).groupby(
        ["target", "method", "distilled"], sort=True
    ):
        ends = part.groupby("step")["accuracy"].agg(["mean", "std"])
        steps = {f"step {step}": "" for step in points()}
        steps |= {f"step {step}": _percent(*row) for step, row in ends.iterrows()}
        lines.append(
            {
                "fewer MACs": f"{target:g}x",
                "network": f"{method}{', distilled' if distilled else ''}",
                "M MACs": f"{part['macs'].iloc[0] / 1e6:.1f}",
                "seeds": part["seed"].nunique(),
                **steps,
                "CPU s": f"{part['cpu_seconds'].mean():.0f}",
            }
        )
    page = write_result(
        "bm_recovery",
        pd.DataFrame(lines),
        command="python benchmarks/bm_recovery.py",
        packages=["torch", "torch-pruning"],
    )
    page.write_text(f"{page.read_text()}\n{_notes(rows)}\n")


def points() -> list[int]:
    """Return after how many steps networks are scored."""
    steps, checks = SCHEDULE.steps or 0, SCHEDULE.checks
    return [round(steps * n / checks) for n in range(checks + 1)]


def _notes(rows: pd.DataFrame) -> str:
    rate, (first, last) = best_rate(rows), (SCORED.start, SCORED.stop)
    rates = "\n".join(
        f"| {_peak(fraction):g} | {statistics} | "
        f"{_percent(part[GLOBAL])} | {_percent(part[OURS])} |"
        for (fraction, statistics), part in tried(rows)
        .pivot(index=list(Rate._fields), columns="method", values="accuracy")
        .iterrows()
    )
    images = (SCHEDULE.steps or 0) * SCHEDULE.batch
    return f"""\
Accuracy in % on test images {first} to {last}, which no search saw, mean ± standard deviation over
seeds of the fine-tuning; one standard error of {last - first} images is about 0.5. Step 0 is before
any step: torch-pruning's networks as cut, ours repaired from {CALIBRATION} unlabelled images.

- autoprune: widths only, MACs as the cost; the lowest loss on the first {SEARCHED} test images
  among the knapsack's first {EVALUATIONS} proposals. The first proposal needs no score at all.
- torch-pruning: channels inside blocks only; along the padded shortcuts of this network it removes
  other channels of the wider stage than of the narrower one.
- All: {SCHEDULE.steps} steps of {SCHEDULE.batch} training images ({images / 45000:.2f} epochs),
  SGD with Nesterov momentum, peak learning rate {_peak(rate.lr_fraction):g}, BatchNorm by the
  statistics {"of the batch" if rate.statistics == "batch" else "that are stored"}, warm-up and
  cosine, moving average, bfloat16 where the processor has it, one thread. "distilled": half of the
  loss is the divergence from the unpruned network; the others learn from labels alone.
- Of what was tried at {TARGETS[0]}x with seed 0 the best for torch-pruning's network was taken, not
  for ours. Accuracy after the last step:

| peak learning rate | statistics | {GLOBAL} | {OURS} |
|---|---|---|---|
{rates}

{_compared(main_rows(rows))}
{_progress(rows)}

This is no full fine-tuning: a processor has no time for the hundreds of epochs after which DepGraph
is published with 93.77 % at 2.13x and 93.64 % at 2.57x fewer MACs, and AMC with 91.90 % at 2x.

![](bm_recovery.svg)"""


def _compared(rows: pd.DataFrame) -> str:
    """Return what the curves say in words."""
    sentences = []
    for target in sorted(set(rows["target"]) - {1.0}):
        part = rows[rows["target"] == target]
        ours = part[part["method"] == OURS].groupby("step")["accuracy"].mean()
        ends = part[part["method"].isin([UNIFORM, GLOBAL]) & (part["step"] == SCHEDULE.steps)]
        best = ends.groupby("method")["accuracy"].mean().max()
        sentences.append(
            f"At {target:g}x ours has {100 * ours[0]:.1f} before any step, and the better of "
            f"torch-pruning's {100 * best:.1f} after all of them."
        )
    return "\n".join(sentences)


def _progress(rows: pd.DataFrame) -> str:
    """Return how many of the fine-tunings that are compared are done."""
    rate = best_rate(rows)
    wanted = {
        Case(target, *style, *rate, seed)
        for target in TARGETS
        for style in STYLES
        for seed in SEEDS
    }
    return f"{len(wanted & known())} of {len(wanted)} fine-tunings are done; the command goes on."


def _peak(fraction: float) -> float:
    return round(SCHEDULE.model_copy(update={"lr_fraction": fraction}).peak_lr, 6)


def _percent(mean: float, spread: float = np.nan) -> str:
    return f"{100 * mean:.2f}" + ("" if np.isnan(spread) else f" ± {100 * spread:.2f}")


def plot(rows: pd.DataFrame) -> None:
    """Draw accuracy by step, a panel for each target."""
    targets = [target for target in TARGETS if target in set(rows["target"])]
    figure, panels = plt.subplots(1, len(targets), figsize=(9, 3.6), sharey=True, squeeze=False)
    dense = 100 * rows.loc[rows["method"] == "unpruned", "accuracy"].iloc[0]
    for axes, target in zip(panels[0], targets, strict=True):
        axes.axhline(dense, color="0.6", linewidth=1, label="unpruned")
        for (method, distilled), (colour, line) in STYLES.items():
            chosen = main_rows(rows).query("target == @target and method == @method")
            curves = chosen[chosen["distilled"] == distilled].groupby("step")["accuracy"]
            if not len(curves):
                continue
            low, mean, high = (100 * curves.agg(kind) for kind in ("min", "mean", "max"))
            label = f"{method}{', distilled' if distilled else ''}"
            axes.plot(mean.index, mean, color=colour, linestyle=line, label=label)
            axes.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(f"{target:g} times fewer MACs", fontsize=10)
        axes.set_xlabel(f"steps of {SCHEDULE.batch} images")
    panels[0][0].set_ylabel("accuracy in %")
    # What networks have that are only cut lies far below; the table says it.
    panels[0][0].set_ylim(bottom=100 * main_rows(rows).query("step > 0")["accuracy"].min() // 5 * 5)
    panels[0][0].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(RESULTS / "bm_recovery.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
