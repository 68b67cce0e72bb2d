"""What every benchmark shares: medians, the machine it ran on, and a result file."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).resolve().parent / "results"


def median_seconds(action: Callable[[], object], *, repeats: int, warm_up: int = 1) -> float:
    """Return the median wall-clock seconds of ``action``.

    Args:
        action: What is measured; its result is dropped.
        repeats: Measured calls.
        warm_up: Calls before the first measured one.
    """
    for _ in range(warm_up):
        action()
    gc.collect()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine(*, with_load: bool = True) -> str:
    """Return one line that names the processor and the operating system.

    Args:
        with_load: Add the load average, for a page that is written when all is done.
    """
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    line = f"{model}, {os.cpu_count()} cores, {platform.system()}"
    return f"{line}, load average {os.getloadavg()[0]:.1f} at the end" if with_load else line


def write_result(name: str, frame: pd.DataFrame, *, command: str, packages: list[str]) -> Path:
    """Write ``frame`` as a Markdown table with its provenance, print it, and return the file.

    Args:
        name: File name without extension.
        frame: The table.
        command: What to type to run it again.
        packages: Distributions whose versions matter.
    """
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    lines = [
        f"# {name}",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}",
        "",
        f"{machine()}; Python {platform.python_version()}, {versions}",
        "",
        markdown(frame),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text("\n".join(lines))
    print(path.read_text())
    return path


def markdown(frame: pd.DataFrame) -> str:
    """Return a table for a Markdown page."""
    header = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + "---|" * len(frame.columns)
    rows = ["| " + " | ".join(str(value) for value in row) + " |" for row in frame.to_numpy()]
    return "\n".join([header, rule, *rows])
