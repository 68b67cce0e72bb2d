"""How well damage curves foretell the loss of candidates that nobody has evaluated yet.

`AUTOPRUNE_SHARED=... python benchmarks/bm_curves.py` draws 100 candidates of every network over the
whole range of latencies, as the random sampler does, once with widths alone and once with dropped
blocks too, and takes the loss of each. Rows that `benchmarks/results/bm_curves.csv` holds are not
measured again; `bm_curves.md` is written from all. The networks have learned their training images
by heart, so losses are those of test images; calibration images are training images.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import RESULTS, write_result
from jaxtyping import Float
from realise_subjects import load_subject
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.evaluation import Planner
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches, build_criterion
from autoprune.pruning.importance.obs import damage_by_unit
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.verify import verified
from autoprune.run.preparation import measured_damage
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import Candidate, SearchSpace, build_space

ROWS = RESULTS / "bm_curves.csv"
#: A candidate still works whose loss is less than this many times the dense network's.
WORKS = 4.0
#: Candidates below which no correlation is written.
FEWEST = 12
KINDS = {"widths": False, "widths and blocks": True}
#: How the table calls the curves; what a row's column is called.
CURVES = {
    "structured OBS, measured": "measured",
    "structured OBS": "obs",
    "Taylor, cumulated": "taylor",
    "Fisher, cumulated": "fisher",
    "square of the ratio": "quadratic",
    "ratio": "linear",
    "MACs that go": "macs",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of a network's data is used.

    Attributes:
        calibration: Samples that the network is measured and realised with.
        scored: Test samples that candidates are scored on.
        mixed: Whether bfloat16 scores them.
    """

    calibration: int
    scored: int
    mixed: bool = True


#: Networks of `realise_subjects.py`.
NETWORKS = {
    "ResNet-20": Sizes(512, 1000),
    "stories260K": Sizes(64, 9, mixed=False),
    "ResNet-56": Sizes(256, 500),
    "MobileNetV2-1.0": Sizes(128, 128, mixed=False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A trained network with its data.

    Attributes:
        network: Traced and verified.
        calibration: What it is measured and realised with.
        scored: Inputs and targets that candidates are scored on.
        sizes: How many they are.
    """

    network: Network
    calibration: Batches
    scored: list[tuple[Tensor, Tensor]]
    sizes: Sizes

    @classmethod
    def of(cls, name: str, shared: Path) -> Loaded:
        """Load a network by its name."""
        sizes, subject = NETWORKS[name], load_subject(name, shared)
        return cls(
            verified(subject.network),
            subject.task.calibration(sizes.calibration),
            list(subject.task.batches("test", 0, sizes.scored)),
            sizes,
        )

    @cached_property
    def targets(self) -> Tensor:
        """All that is to be told of the scored samples, one after the other."""
        targets = torch.cat([targets.flatten() for _, targets in self.scored])
        return targets[targets >= 0]

    def log_probabilities(self, model: nn.Module) -> Float[Tensor, "n classes"]:
        """Return what a network says of them."""
        model.eval()
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.sizes.mixed):
            for inputs, targets in self.scored:
                if inputs.ndim == 4:
                    inputs = inputs.contiguous(memory_format=torch.channels_last)
                logits = model(inputs).float().flatten(0, -2)
                found.append(logits[targets.flatten() >= 0].log_softmax(1))
        return torch.cat(found)


def main() -> None:
    """Measure what is asked for and missing; write all."""
    options = _options()
    torch.set_num_threads(options.threads)
    for name in options.networks:
        _measure(name, options)
    rows = pd.read_csv(ROWS)
    page = write_result(
        "bm_curves", _table(rows), command="python benchmarks/bm_curves.py", packages=["torch"]
    )
    page.write_text(f"{page.read_text()}\n{_note(rows, options.device)}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", default=default, help="folder that holds bench_data")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--realise", nargs="+", default=["merge"])
    parser.add_argument("--candidates", type=int, default=100, help="of each kind")
    parser.add_argument("--device", default="raspberry_pi_4_ncnn")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> None:
    """Measure the missing candidates of one network, both kinds in turn."""
    known, loaded = _known(name), Loaded.of(name, Path(options.shared))
    problems = {
        kind: _problem(loaded.network, options.device, depth=d) for kind, d in KINDS.items()
    }
    rngs = {kind: np.random.default_rng(0) for kind in KINDS}
    drawn = [
        (kind, number, random_candidate(problems[kind], rngs[kind]))
        for number in range(options.candidates)
        for kind in KINDS
    ]
    missing = [
        (kind, number, candidate, realise)
        for kind, number, candidate in drawn
        for realise in options.realise
        if (kind, number, candidate.key, realise) not in known
    ]
    if not missing:
        return
    space = problems["widths and blocks"].space
    scores, curves = _curves(loaded, space)
    measured = {
        realise: measured_damage(
            curves["obs"], loaded.network, space, scores, loaded.calibration, realise
        )
        for realise in options.realise
    }
    realisers = {
        realise: build_realiser(realise, loaded.network, loaded.calibration)
        for realise in options.realise
    }
    dense = loaded.log_probabilities(loaded.network.model)
    zero = round(F.nll_loss(dense, loaded.targets).item(), 6)
    for kind, number, candidate, realise in missing:
        plan = Planner(loaded.network, problems[kind].space, scores)(candidate)
        row = {"network": name, "kind": kind, "number": number, "key": candidate.key}
        row |= _sums(candidate, problems[kind], {"measured": measured[realise], **curves})
        row |= _scored(realisers[realise], plan, loaded, dense)
        _store(row | {"realise": realise, "loss_dense": zero})


def _problem(network: Network, device: str, *, depth: bool) -> Problem:
    profile = load_profile(device)
    settings = SpaceSettings(version=1, depth=depth)
    space = build_space(network.groups, network.blocks, settings, alignment=profile.alignment)
    return Problem(space, predictor_for(network.ops, profile).predict, ops=network.ops)


def _curves(loaded: Loaded, space: SearchSpace) -> tuple[dict[str, np.ndarray], dict[str, Damage]]:
    """Return the scores that units go by, and all curves."""
    calibrated = Calibrated.of(loaded.network, loaded.calibration)
    scores = {}
    for group in loaded.network.groups:
        elimination = calibrated.elimination(group)
        if elimination is None:
            raise ValueError(f"no reader of {group.name} is known")
        scores[group.name] = damage_by_unit(elimination)
    curves = {"obs": Damage.of_scores(space, scores, cumulative=True)}
    for name in ("taylor", "fisher"):
        found = build_criterion(name).score(loaded.network, loaded.calibration)
        curves[name] = Damage.of_scores(space, found, cumulative=False)
    curves["quadratic"] = Damage.quadratic(space)
    linear = tuple(np.sqrt(curve) for curve in curves["quadratic"].groups)
    curves["linear"] = Damage(linear, curves["quadratic"].blocks)
    return scores, curves


def _sums(candidate: Candidate, problem: Problem, curves: Mapping[str, Damage]) -> dict[str, Any]:
    """Return what is known of a candidate before it is built."""
    space = problem.space
    widths, keep = space.widths([candidate]), space.keep([candidate])
    dense = space.widths([space.dense()]), space.keep([space.dense()])
    return {
        "widths": " ".join(map(str, widths[0])),
        "dropped": " ".join(map(str, np.flatnonzero(~keep[0]))),
        "latency": round(float(problem.predict(widths, keep)[0]) / problem.dense_ms, 5),
        "macs": round(
            1.0 - float(problem.ops.macs(widths, keep)[0] / problem.ops.macs(*dense)[0]), 5
        ),
        "measured_blocks": float(f"{((~keep) @ curves['measured'].blocks)[0]:.6g}"),
    } | {name: float(f"{damage.at(space, widths, keep)[0]:.6g}") for name, damage in curves.items()}


def _scored(
    realiser: Callable[[PruningPlan], nn.Module], plan: PruningPlan, loaded: Loaded, dense: Tensor
) -> dict[str, Any]:
    """Return how a candidate does once it is built; seconds are the thread's CPU time."""
    start = time.thread_time()
    model = realiser(plan)
    built = time.thread_time()
    found = loaded.log_probabilities(model)
    return {
        "loss": round(F.nll_loss(found, loaded.targets).item(), 6),
        "kl": round(F.kl_div(found, dense, reduction="batchmean", log_target=True).item(), 6),
        "accuracy": round(float((found.argmax(1) == loaded.targets).float().mean()), 4),
        "realise_s": round(built - start, 3),
        "evaluate_s": round(time.thread_time() - built, 3),
    }


def _known(network: str) -> set[tuple[str, int, str, str]]:
    if not ROWS.is_file():
        return set()
    rows = pd.read_csv(ROWS)
    rows = rows[rows["network"] == network]
    return set(zip(*(rows[name] for name in ("kind", "number", "key", "realise")), strict=True))


def _store(row: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    first = not ROWS.is_file()
    pd.DataFrame([row]).to_csv(ROWS, mode="a", header=first, index=False, lineterminator="\n")
    told = ("network", "kind", "number", "realise", "latency", "measured", "loss", "realise_s")
    print(*(row[name] for name in told), flush=True)


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network, realisation and curve."""
    table = []
    for (network, realise), part in rows.groupby(["network", "realise"], sort=False):
        for title, curve in CURVES.items():
            row = {"network": network, "realise": realise, "curve": title}
            for kind, depth in KINDS.items():
                row |= _told(part[part["kind"] == kind], curve, "both" if depth else kind)
            table.append(row)
    return pd.DataFrame(table)


def _note(rows: pd.DataFrame, device: str) -> str:
    """Return what the numbers are of."""
    counts = rows.groupby(["network", "realise", "kind"], sort=False).size()
    told = "; ".join(
        f"{network}, {realise}: {part.iloc[0]} and {part.iloc[-1]} candidates"
        for (network, realise), part in counts.groupby(["network", "realise"], sort=False)
    )
    sizes = "; ".join(
        f"{name} {size.calibration} and {size.scored}" for name, size in NETWORKS.items()
    )
    return (
        "Spearman's coefficient between a sum that is known before a candidate is built and its "
        "loss once it is: over all candidates, and in each third of them by latency. R² is that of "
        "log(loss / loss of the dense network) fitted by a straight line in the sum. `widths`: no "
        "block is dropped; `both`: up to half of the removable blocks are. Units go by obs "
        "whatever the curve. Measured is what searches go by: each group and each block costs what "
        "halving or dropping it alone does to the answers. Else OBS, Taylor and Fisher add all "
        "units of a dropped block's groups, the square and the ratio add 1, MACs are counted. The "
        "loss is as it is, not that at a network's best temperature, which searches minimise: that "
        "of a ResNet-56 falls where blocks are dropped although accuracy falls too. "
        f"Latency: {device}. {told}. Samples for calibration and for the loss: {sizes}.\n\n"
        f"Of the measured sums where the loss is below {WORKS:g} times the dense one:\n\n"
        + "\n".join(_usable(rows))
    )


def _told(rows: pd.DataFrame, curve: str, kind: str) -> dict[str, str]:
    """Return how well a sum foretells the loss."""
    titles = [f"{kind}: {what}" for what in ("all", "fast, middle, slow third", "R²")]
    if len(rows) < FEWEST:
        return dict.fromkeys(titles, "")
    loss, foretold = _log_loss(rows), rows[curve].to_numpy()
    thirds = np.array_split(np.argsort(rows["latency"].to_numpy(), kind="stable"), 3)
    values = (
        f"{_spearman(foretold, loss):.3f}",
        ", ".join(f"{_spearman(foretold[third], loss[third]):.2f}" for third in thirds),
        f"{_fit(loss, foretold)[1]:.3f}",
    )
    return dict(zip(titles, values, strict=True))


def _log_loss(rows: pd.DataFrame) -> Float[np.ndarray, " n"]:
    return np.log(rows["loss"] / rows["loss_dense"]).to_numpy()


def _fit(
    loss: Float[np.ndarray, " n"], *terms: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], float]:
    """Return the slopes of a linear fit, and its R²."""
    matrix = np.stack([np.ones(len(loss)), *terms], axis=1)
    weights = np.linalg.lstsq(matrix, loss, rcond=None)[0]
    return weights[1:], 1.0 - np.var(loss - matrix @ weights) / np.var(loss)


def _usable(rows: pd.DataFrame) -> list[str]:
    """Return a sentence about each network's candidates that still work."""
    told = []
    for (network, realise), part in rows.groupby(["network", "realise"], sort=False):
        works = part[part["loss"] < WORKS * part["loss_dense"]]
        widths, both = (works[works["kind"] == kind] for kind in KINDS)
        line = f"- {network}, {realise}: {len(widths)} candidates of widths"
        if len(widths) >= FEWEST:
            line += f", Spearman {_spearman(widths['measured'].to_numpy(), _log_loss(widths)):.2f}"
        line += f"; {len(both)} with blocks"
        if len(both) >= FEWEST:
            parts = [both[name].to_numpy() for name in ("measured", "obs", "measured_blocks")]
            loss, groups = _log_loss(both), parts[0] - parts[2]
            (per_group, per_block), fitted = _fit(loss, groups, parts[2])
            line += (
                f", {_spearman(parts[0], loss):.2f}, structured OBS as it is "
                f"{_spearman(parts[1], loss):.2f}; with slopes of their own "
                f"(R² {fitted:.2f}, {_fit(loss, parts[0])[1]:.2f} with one) damage of blocks "
                f"weighs {per_block / per_group:.1f} times that of groups"
            )
        told.append(line)
    return told


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


if __name__ == "__main__":
    main()
