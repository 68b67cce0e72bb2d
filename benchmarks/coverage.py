"""What can be pruned of every network people use, beside torch-pruning on the same machine.

`python benchmarks/coverage.py` measures every network of `coverage_models.py` that is not yet in
`results/coverage.jsonl`, appends a row for each, and writes `docs/coverage.md` from that file. It
can be stopped and started again. Each network runs twice, once per tool, in a process of its own
with limits of time and memory. Where networks are named (`timm:levit_128s hf:llama`), only they are
measured and the page is left alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from common import RESULTS, machine
from coverage_models import case_named, cases
from coverage_page import write_page
from coverage_sides import SIDES

RESULT_FILE = RESULTS / "coverage.jsonl"
SECONDS = {"ours": 240, "theirs": 120}
LIMIT_BYTES = 9 * 2**30


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names; all by default")
    parser.add_argument("--again", action="store_true", help="measure what is there as well")
    parser.add_argument("--processes", type=int, default=1, help="more disturb each other's times")
    parser.add_argument("--only", choices=sorted(SIDES), help="one of the tools")
    parser.add_argument("--page", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--one", choices=sorted(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure_here(arguments.models[0], arguments.one)
        return
    if not arguments.page:
        names = arguments.models or [case.name for case in cases()]
        sides = [arguments.only] if arguments.only else sorted(SIDES)
        known = set() if arguments.again else set(known_rows())
        todo = [(name, side) for name in names for side in sides if (name, side) not in known]
        print(f"{len(todo)} to do, {len(known)} known", flush=True)
        with ThreadPoolExecutor(arguments.processes) as pool:
            for row in pool.map(lambda work: in_own_process(*work), todo):
                store(row)
                print(json.dumps(row), flush=True)
    if not arguments.models:
        order = [(case.name, case.family) for case in cases()]
        write_page(known_rows(), order, SECONDS, LIMIT_BYTES)


def measure_here(name: str, side: str) -> None:
    """Print the row of one network after every step, so that a limit loses only the rest."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {}
    for row in SIDES[side](case_named(name)):
        print(json.dumps(row), flush=True)


def in_own_process(name: str, side: str) -> dict[str, Any]:
    """Return the row of one network, as far as it came, and why it came no further."""
    command = [sys.executable, __file__, "--one", side, name]
    started = time.perf_counter()
    error = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS[side])
        output, code = done.stdout, done.returncode
        if code:
            lines = done.stderr.strip().splitlines() or [f"exit code {code}"]
            error = lines[-1][:200]
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
        error = f"more than {SECONDS[side]} s"
    row: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            row = json.loads(line)
    if error:
        row["error"] = error
    return row | {
        "model": name,
        "side": side,
        "seconds": round(time.perf_counter() - started, 1),
        "date": time.strftime("%Y-%m-%d"),
        "where": f"{machine(with_load=False)}; torch {torch.__version__}",
    }


def known_rows() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest row of every network and tool."""
    if not RESULT_FILE.exists():
        return {}
    rows = map(json.loads, RESULT_FILE.read_text().splitlines())
    return {(row["model"], row["side"]): row for row in rows}


def store(row: dict[str, Any]) -> None:
    """Append a row."""
    RESULTS.mkdir(exist_ok=True)
    with RESULT_FILE.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
