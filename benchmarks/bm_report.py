"""How large the report's page is, how fast it opens, and what a browser objects to.

    python benchmarks/bm_report.py

Reports of made-up searches are opened in headless Chromium, several times each. A page counts as
open when its scripts have run and all is laid out and painted once. Main thread is the processor's
time that the page's own thread took for that, which other programs on the machine do not lengthen.
Axe looks at it with everything unfolded, on a laptop in dark and on a phone in light colours.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import write_result
from playwright.sync_api import Browser

from autoprune.report.data import (
    ChosenNetwork,
    Command,
    DamageCurve,
    GroupWidth,
    Importance,
    KernelTime,
    NetworkFacts,
    NetworkLayers,
    ReportData,
    RunFacts,
    UniformLadder,
    trial_table,
)
from autoprune.report.html import write_report
from autoprune.strategy.pareto import pareto_mask
from autoprune.testing.browser import Scheme, chromium, opened
from autoprune.testing.profiles import made_up_facts

#: As many as ResNet-50 has.
GROUPS, KERNELS = 37, 56
DENSE_MS = 60.0
SCREENS: tuple[tuple[int, Scheme], ...] = ((1280, "dark"), (390, "light"))
#: The page is painted when the second frame after loading begins.
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[30, 2000, 10_000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for trials in arguments.trials:
            rows.append(measured(browser, Path(folder), trials, arguments.repeats))
            print(rows[-1], flush=True)
    write_result(
        "bm_report",
        pd.DataFrame(rows),
        command=f"python benchmarks/bm_report.py --repeats {arguments.repeats}",
        packages=["autoprune", "jinja2", "playwright", "axe-playwright-python"],
    )


def measured(browser: Browser, folder: Path, trials: int, repeats: int) -> dict[str, object]:
    """Return one row of the table."""
    data, file = made_up(trials), folder / f"{trials}.html"
    started = time.perf_counter()
    write_report(data, file)
    written = time.perf_counter() - started
    times = [opening(browser, file) for _ in range(repeats)]
    console, violations, requests = 0, 0, 0
    for width, scheme in SCREENS:
        with opened(browser, file, width=width, scheme=scheme) as view:
            view.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            violations += len(view.violations())
            console += len(view.console)
            requests += len(view.requested)
    return {
        "trials": trials,
        "on the front": len(data.front),
        "size, MB": f"{file.stat().st_size / 1e6:.2f}",
        "written, s": f"{written:.2f}",
        "main thread, s": f"{statistics.median(cpu for _, cpu in times):.2f}",
        "open, s (median)": f"{statistics.median(wall for wall, _ in times):.2f}",
        "fastest, s": f"{min(wall for wall, _ in times):.2f}",
        "console messages": console,
        "axe violations": violations,
        "requests": requests,
    }


def opening(browser: Browser, file: Path) -> tuple[float, float]:
    """Return seconds until a page was open, of the clock and of its main thread."""
    with opened(browser, file) as view:
        session = view.page.context.new_cdp_session(view.page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def worked() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

        before, started = worked(), time.perf_counter()
        view.page.reload()
        view.page.evaluate(PAINTED)
        return time.perf_counter() - started, worked() - before


def made_up(trials: int) -> ReportData:
    """Return a search of so many trials, of a network with as many layers as ResNet-50."""
    rng = np.random.default_rng(0)
    latency_ms = DENSE_MS * rng.uniform(0.1, 1.0, trials)
    reach = 0.76 * (1 - np.exp(-6 * latency_ms / DENSE_MS))
    accuracy = reach - rng.exponential(0.03, trials)
    on_front = pareto_mask(accuracy, latency_ms)
    rows = [
        {
            "number": i,
            "status": "complete",
            "accuracy": accuracy[i],
            "loss": 4 * (1 - accuracy[i]),
            "latency_ms": latency_ms[i],
            "macs": int(4e9 * latency_ms[i] / DENSE_MS),
            "params": int(25e6 * latency_ms[i] / DENSE_MS),
            "seconds": 3.0,
            "on_front": bool(on_front[i]),
        }
        for i in range(trials)
    ]
    names = [f"layer{1 + i // 10}.{i % 10 // 3}.conv{1 + i % 3}" for i in range(KERNELS)]
    kernel_ms = rng.dirichlet(np.full(KERNELS, 5.0)) * DENSE_MS
    share = latency_ms / DENSE_MS
    front = np.flatnonzero(on_front)
    layers = tuple(
        NetworkLayers(
            trial=int(i),
            kept=tuple(
                np.maximum(1, share[i] * rng.uniform(100, 256, GROUPS)).astype(int).tolist()
            ),
            kernel_ms=tuple((kernel_ms * share[i]).tolist()),
            memory_mb=float(100 * share[i]),
        )
        for i in front
    )
    best = layers[int(np.argmax(accuracy[front]))]
    steps = tuple(np.linspace(0.0, 0.9, 33).tolist())
    return ReportData(
        model_name="torchvision:resnet50",
        profile=made_up_facts(error=0.08),
        budget_ms=0.6 * DENSE_MS,
        dense=NetworkFacts(
            accuracy=0.76, loss=0.96, latency_ms=DENSE_MS, macs=4 * 10**9, params=25 * 10**6
        ),
        trials=trial_table(rows),
        hypervolume=tuple(np.maximum.accumulate(rng.uniform(0.1, 0.6, trials)).tolist()),
        chosen=ChosenNetwork(
            trial=best.trial,
            widths=tuple(GroupWidth(names[i], best.kept[i], 256) for i in range(GROUPS)),
            kernels=tuple(
                KernelTime(name=name, kind="conv", dense_ms=float(ms), chosen_ms=after)
                for name, ms, after in zip(names, kernel_ms, best.kernel_ms, strict=True)
            ),
        ),
        run=RunFacts(
            settings={"sampler": "made up"},
            versions={},
            seed=0,
            network_commands=(Command("Export", "autoprune export run --pick {trial}"),),
        ),
        layers=layers,
        dense_memory_mb=100.0,
        uniform=UniformLadder(
            tuple(
                NetworkFacts(accuracy=0.7 * s, loss=1.0, latency_ms=s * DENSE_MS, macs=1, params=1)
                for s in (0.9, 0.5, 0.3)
            ),
            (0.1, 0.3, 0.4),
        ),
        damage=tuple(
            DamageCurve(name, steps, tuple((rng.uniform(0.1, 1) * np.square(steps)).tolist()))
            for name in names[:GROUPS]
        ),
        importance=Importance(
            {f"ratio/{name}": 1 / GROUPS for name in names[:GROUPS]}, trials=min(trials, 256)
        ),
    )


if __name__ == "__main__":
    main()
