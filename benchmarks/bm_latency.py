"""How far predicted milliseconds can be trusted, and how fast they come.

`AUTOPRUNE_SHARED=... python benchmarks/bm_latency.py` takes about ten minutes and writes
`benchmarks/results/bm_latency.md`: the held-out errors that the shipped profiles state, next to
those of counting multiply-accumulates; errors where a whole dimension was held out; errors on
unseen families; and candidates per second. `bm_latency_here.py` measures this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import make_profiles
import numpy as np
import pandas as pd
import torch
from common import markdown, median_seconds, write_result
from make_profiles import chosen

from autoprune.latency.calibrate import Target, calibrate, settings_of
from autoprune.latency.heldout import (
    Model,
    fit_kind,
    flops_only,
    held_out,
    held_out_error,
    held_out_with,
)
from autoprune.latency.measurements import family_of
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import DeviceProfile, HeldOut, load_profile, profile_names
from autoprune.latency.samples import Samples
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace

#: Networks a Raspberry Pi's profile is fitted on in the comparison with published predictors.
TRAINING = 300
CANDIDATES = 100_000

PUBLISHED = """## Published predictors

Errors on other data than these, so only of the same order of size: LitePred (Feng et al.,
MobiSys 2024; github.com/microsoft/Moonlit/tree/main/LitePred) predicts 98.9 % of networks within
10 % on a Xiaomi 11 CPU with ONNX Runtime after 1,400 measurements, and 99.1 % on a Pixel 5
GPU with ncnn after 17,400; NeuSight (Lee et al., ASPLOS 2025, arXiv:2407.13853) states an error of
3.8 % for GPT-3 on an H100 that it was not fitted on.
"""

Row = dict[str, object]


def main() -> None:
    """Measure everything and write one page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/profiles"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = write_result(
        "bm_latency",
        pd.DataFrame(_shipped()),
        command="python benchmarks/bm_latency.py",
        packages=["torch", "lightgbm", "scipy", "numpy"],
    )

    parts = [
        ("Held out by a whole dimension", markdown(pd.DataFrame(_targets(options.work)))),
        ("Families never seen", markdown(pd.DataFrame(_unseen(options.work)))),
        (f"{CANDIDATES:,} candidates of ResNet-50", markdown(pd.DataFrame(_speed(options.work)))),
    ]
    text = "\n".join(f"## {title}\n\n{table}\n" for title, table in parts)
    path.write_text(f"{path.read_text()}\n{text}\n{PUBLISHED}")
    print(text)


def _shipped() -> Iterator[Row]:
    for name in profile_names():
        profile = load_profile(name)
        provenance = profile.provenance
        roofline = provenance.roofline_held_out or provenance.held_out
        macs = provenance.macs_held_out
        yield {
            "profile": name,
            "kind": profile.predictor.kind,
            "measurements": f"{provenance.sample_count} {provenance.samples}",
            "held-out error": _percent(provenance.held_out.mape),
            "within 10 %": f"{100 * provenance.held_out.within_10:.0f} %",
            "rank correlation": f"{provenance.held_out.spearman:.3f}",
            "roofline alone": _percent(roofline.mape),
            "MACs alone": _percent(macs.mape) if macs else "",
            "quality": profile.quality,
        }


# --- whole dimensions held out ------------------------------------------------------------------


def _targets(work: Path) -> Iterator[Row]:
    """Yield the errors that were aimed at, and what came out."""
    nano = load_profile("jetson_nano").provenance
    yield _target(
        "Jetson Nano, TensorRT fp16", "one network", nano.held_out, nano.macs_held_out, 10
    )
    for name in ("v100_tensorrt_fp32", "v100_tensorrt_fp16", "v100_tensorrt_int8"):
        error, macs = _errors(name, work)
        title = f"V100, TensorRT {name.rpartition('_')[2]}"
        yield _target(title, "all kernels of an output-channel count", error, macs, 10)
    yield _raspberry_pi(work)
    yield _xeon(work)
    error, macs = _errors("h200_gemm_bf16", work)
    yield _target("H200, GEMM bf16", "all products of an n", error, macs, 4)


def _errors(name: str, work: Path) -> tuple[HeldOut, HeldOut | None]:
    """Return the held-out error of a profile, shipped or fitted now, and that of MACs alone."""
    profile = load_profile(name) if name in profile_names() else make_profiles.make(name, work)
    return profile.provenance.held_out, profile.provenance.macs_held_out


def _raspberry_pi(work: Path) -> Row:
    """Return the error of a predictor fitted on 300 networks, on all others of NAS-Bench-201."""
    selected, target = chosen("raspberry_pi_4_tflite_fp32", work)
    samples = selected.samples
    order = np.random.default_rng(0).permutation(len(samples))
    seen = np.isin(np.arange(len(samples)), order[:TRAINING])
    fitted, rest = samples.take(seen), samples.take(~seen)
    errors = [
        held_out_error(model(rest), rest.latency_ms)
        for model in (fit_kind("learned", fitted, settings_of(target)), flops_only(fitted))
    ]
    what = f"{len(rest)} networks; {TRAINING} were fitted"
    return _target("Raspberry Pi 4, TFLite, NAS-Bench-201", what, errors[0], errors[1], 8)


def _xeon(work: Path) -> Row:
    selected, target = chosen("xeon_6130_eager_fp32", work)
    samples = selected.samples
    widths = [int(name.split("-")[1]) for name in samples.names]
    error = _cross_validated(samples, widths, "learned", target)
    macs = _cross_validated(samples, widths, None, target)
    return _target("Xeon 6130, blocks, 1 thread", "all blocks of a middle width", error, macs, 1.5)


def _cross_validated(
    samples: Samples, groups: Sequence[Any], kind: str | None, target: Target
) -> HeldOut:
    """Return the error on held-out groups of a kind of predictor, ``None`` for MACs alone."""
    settings = settings_of(target)
    fitting: Callable[[Samples], Model] = (
        functools.partial(fit_kind, kind, settings=settings) if kind else flops_only
    )
    predicted = held_out(samples, groups, fitting)
    held = held_out_with(samples, groups)
    return held_out_error(predicted[held], samples.latency_ms[held])


def _target(title: str, held: str, error: HeldOut, macs: HeldOut | None, percent: float) -> Row:
    return {
        "device": title,
        "held out": held,
        "error": _percent(error.mape),
        "within 10 %": f"{100 * error.within_10:.0f} %",
        "rank correlation": f"{error.spearman:.3f}",
        "MACs alone": _percent(macs.mape) if macs else "",
        "target": f"{percent:g} %",
        "met": "yes" if 100 * error.mape <= percent else "no",
    }


# --- families -----------------------------------------------------------------------------------


def _unseen(work: Path) -> Iterator[Row]:
    """Yield the errors on families held out whole: all kinds beside the roofline."""
    for name in ("jetson_agx_orin", "jetson_nano", "raspberry_pi_4_ncnn"):
        selected, target = chosen(name, work)
        families = [family_of(network) for network in selected.samples.names]
        yield _family(name, "an architecture", selected.samples, families, target)
    selected, target = chosen("v100_tensorrt_fp16", work)
    samples = selected.samples
    taps = samples.shapes["taps"].tolist()
    yield _family("v100_tensorrt_fp16", "a kernel size", samples, taps, target)


def _family(name: str, held: str, samples: Samples, families: Sequence[Any], target: Target) -> Row:
    learned, roofline = (
        _cross_validated(samples, families, kind, target) for kind in ("learned", "roofline")
    )
    macs = _cross_validated(samples, families, None, target)
    return {
        "measurements": name,
        "held out": f"{held}, {len(set(families))} in all",
        "learned": _percent(learned.mape),
        "roofline": _percent(roofline.mape),
        "MACs alone": _percent(macs.mape) if macs else "",
        "learned no worse": "yes" if learned.mape <= roofline.mape else "no",
    }


# --- speed --------------------------------------------------------------------------------------


def _speed(work: Path) -> Iterator[Row]:
    model = ModelSource.parse("torchvision:resnet50").build()
    table = trace(model, (torch.randn(1, 3, 224, 224),)).ops
    rng = np.random.default_rng(0)
    sixteenths = rng.integers(1, 17, (CANDIDATES, table.full_widths.shape[1]))
    drawn = {
        "widths in sixteenths": np.ceil(table.full_widths * sixteenths / 16).astype(np.int64),
        "any widths": rng.integers(1, table.full_widths + 1, sixteenths.shape),
    }
    keep = np.broadcast_to(table.full_keep, (CANDIDATES, table.full_keep.shape[1])).copy()
    for kind, profile in _kinds(work):
        make = functools.partial(predictor_for, table, profile)
        row: Row = {"kind": kind, "profile": profile.name}
        row["made in"] = f"{1000 * median_seconds(make, repeats=3):.1f} ms"
        for name, widths in drawn.items():
            # A new one, that has not seen any of these kernels.
            predict = functools.partial(make().predict, widths, keep)
            seconds = median_seconds(predict, repeats=1, warm_up=0)
            row[f"candidates per second, {name}"] = f"{CANDIDATES / seconds:,.0f}"
        yield row


def _kinds(work: Path) -> Iterator[tuple[str, DeviceProfile]]:
    yield "roofline", load_profile("jetson_nano")
    selected, target = chosen("v100_tensorrt_fp16", work)
    for kind in ("learned", "table"):
        made = dataclasses.replace(target, kind=kind)
        yield kind, calibrate(selected, made, date=datetime.date.today())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
