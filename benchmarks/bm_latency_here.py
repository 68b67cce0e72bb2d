"""Profiles this machine with ONNX Runtime, then predicts pruned networks it has not seen.

`python benchmarks/bm_latency_here.py` takes about ten minutes and writes
`benchmarks/results/latency_here.md`; stopped, it goes on where it was. The networks are those of
random candidates of four architectures; the profile was fitted on other candidates of the same
architectures. Every fifth network is measured a second time, in a new session, to tell how far the
machine agrees with itself.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import RESULTS, machine, write_result

from autoprune.latency.calibrate import Target
from autoprune.latency.heldout import held_out_error
from autoprune.latency.layers import ops_from_rows, read_layers
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import DeviceProfile, save_profile
from autoprune.measure.alignment import alignment_of
from autoprune.measure.backend import Backend, open_backend
from autoprune.measure.measuring import Folder, Standing, measure
from autoprune.measure.outcome import outcome
from autoprune.measure.subjects import Draw, Sampler, Source
from autoprune.network.source import ModelSource

MODELS = {
    "ResNet-50": "torchvision:resnet50",
    "MobileNetV2": "torchvision:mobilenet_v2",
    "DenseNet-121": "torchvision:densenet121",
    "ViT-Ti": "timm:vit_tiny_patch16_224",
}
#: Of the networks that are drawn for the comparison; the profile's own have seed 0.
SEED = 1
#: One of so many networks is measured again.
AGAIN = 5


def main() -> None:
    """Profile, measure, predict and write."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    backend = open_backend("onnxruntime", threads=1, precision="fp32", clock=options.clock)
    sources = [
        Source(name, ModelSource.parse(spec).build(), image) for name, spec in MODELS.items()
    ]
    profile, noise = _profile(backend, sources, options)
    rows = _compared(backend, sources, profile, options)
    then, now = (
        pd.read_csv(options.work / name / "networks.csv")["reference_ms"].median()
        for name in ("profile", "unseen")
    )
    drift = now / then - 1
    frame = pd.DataFrame([*_by_model(rows), _summary("all", rows)])
    write_result(
        "latency_here",
        frame,
        command=f"python benchmarks/bm_latency_here.py --minutes {options.minutes:g}",
        packages=["torch", "torchvision", "timm", "onnxruntime"],
    )
    error = profile.provenance.held_out
    remarks = [
        "",
        f"One thread, {backend.clock} clock; the reference spread by {100 * noise:.1f} % while "
        f"profiling, and took {100 * drift:+.1f} % longer while comparing. Profile: "
        f"{profile.predictor.kind}, fitted on {profile.provenance.sample_count} networks in "
        f"{options.minutes:g} minutes, its own check "
        f"{100 * error.mape:.1f} % ({profile.provenance.split}).",
        "",
        "repeat: mean difference of networks measured twice, each time in a new session, and the "
        "largest one. Target: 90 % within 10 %, rank correlation 0.98.",
        "",
    ]
    path = RESULTS / "latency_here.md"
    path.write_text(path.read_text() + "\n".join(remarks))
    print("\n".join(remarks))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of profiling")
    parser.add_argument("--networks", type=int, default=60, help="predicted and measured")
    parser.add_argument("--kind", default="auto", help="of predictor")
    parser.add_argument("--clock", default="auto", help="wall, cpu or auto")
    parser.add_argument("--work", type=Path, default=Path("runs/latency_here"))
    return parser.parse_args()


def _folder(backend: Backend, path: Path) -> Folder:
    who = {
        "device": "here",
        "runtime": f"onnxruntime_{backend.version()}",
        "precision": backend.precision,
        "threads": backend.threads,
        "clock": backend.clock,
    }
    return Folder(path, who)


def _profile(
    backend: Backend, sources: list[Source], options: argparse.Namespace
) -> tuple[DeviceProfile, float]:
    """Return the profile of this machine and the spread of the reference."""
    folder = _folder(backend, options.work / "profile")
    alignment = alignment_of(backend, folder)
    # A stopped run that had measured for long enough only needs the fit.
    done = (options.work / "profile.yaml").exists()
    minutes = 0.0 if done else options.minutes
    laps = Sampler(sources, alignment=alignment).laps() if minutes else iter(())
    standing = measure(backend, laps, folder, seconds=60 * minutes, listener=_tell)
    target = Target(
        name="here",
        device=machine(with_load=False),
        runtime=backend.rules,
        runtime_version=f"onnxruntime_{backend.version()}, 1 thread",
        precision=backend.precision,
        alignment=alignment,
        kind=options.kind,
    )
    found = outcome(folder, target, date=datetime.date.today(), failed=standing.failed)
    print(*found.remarks)
    save_profile(found.profile, options.work / "profile.yaml")
    return found.profile, max(run["reference_spread"] for run in folder.noises())


def _compared(
    backend: Backend, sources: list[Source], profile: DeviceProfile, options: argparse.Namespace
) -> pd.DataFrame:
    """Return measured, measured again, and predicted milliseconds of networks never fitted."""
    folders = [_folder(backend, options.work / name) for name in ("unseen", "again")]
    sampler = Sampler(sources, alignment=profile.alignment, kernels=0, seed=SEED)
    draws = list(_unknown(sampler, options))
    for folder, chosen in zip(folders, (draws, draws[::AGAIN]), strict=True):
        measure(backend, [chosen], folder, seconds=600.0, listener=_tell)
    first, second = (
        pd.read_csv(folder.networks).set_index("network")["latency_ms"] for folder in folders
    )
    layers = read_layers([folders[0].layers])
    frame = pd.DataFrame({"measured": first, "again": second})
    frame["predicted"] = [_predicted(layers[name], profile) for name in frame.index]
    return frame


def _unknown(sampler: Sampler, options: argparse.Namespace) -> Iterator[Draw]:
    """Yield pruned networks of all models in turn that are none of those in the profile.

    A candidate that keeps nearly everything can be the same network as another.
    """
    known = read_layers([options.work / "profile" / "layers.json"])
    seen = {str(rows) for rows in known.values()}
    wanted = options.networks
    for draw in itertools.chain.from_iterable(itertools.islice(sampler.laps(), 1, None)):
        layers = str(draw.build().layers)
        if layers not in seen:
            seen.add(layers)
            yield draw
            wanted -= 1
        if not wanted:
            return


def _predicted(rows: list[list[object]], profile: DeviceProfile) -> float:
    table = ops_from_rows(rows)
    return float(predictor_for(table, profile).predict(table.full_widths, table.full_keep)[0])


def _by_model(frame: pd.DataFrame) -> Iterator[dict[str, object]]:
    for name in MODELS:
        yield _summary(name, frame[[index.startswith(f"{name}#") for index in frame.index]])


def _summary(name: str, frame: pd.DataFrame) -> dict[str, object]:
    measured, predicted = frame["measured"].to_numpy(), frame["predicted"].to_numpy()
    error = held_out_error(predicted, measured)
    twice = frame.dropna()
    repeat = np.abs(twice["again"] / twice["measured"] - 1) * 100
    noise = f"{repeat.mean():.1f} %, {repeat.max():.1f} %" if len(repeat) else "none"
    return {
        "networks": f"{name}, {len(frame)}",
        "measured ms": f"{measured.min():.1f} to {measured.max():.1f}",
        "mean error": f"{100 * error.mape:.1f} %",
        "within 5 %": f"{100 * error.within_5:.0f} %",
        "within 10 %": f"{100 * error.within_10:.0f} %",
        "rank correlation": f"{error.spearman:.3f}",
        "repeat": noise,
    }


def _tell(standing: Standing) -> None:
    print(
        f"{standing.seconds:.0f} s: {standing.networks} networks, {standing.kernels} kernels, "
        f"reference spread {100 * standing.noise:.1f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
