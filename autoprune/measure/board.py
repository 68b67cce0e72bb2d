"""Measures the networks of a kit; needs Python 3.8 or newer and onnxruntime, or only trtexec.

`autoprune profile kit` copies this file into a kit as ``run.py``; it imports nothing of autoprune.
Everything is timed in rounds: one visit to each item per round, so that drift meets all of them
alike. A reference is timed before and after every round; where it is slower than usual the round
does not count and is repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Columns of both tables: who measured, and how well.
WHO = ("device", "runtime", "precision", "batch", "threads", "clock")
HOW = ("latency_ms", "iqr", "rounds", "reference_ms")
KERNEL_COLUMNS = (
    *WHO,
    *("op", "cin", "cout", "kernel", "stride", "groups", "h", "w", "m", "n", "k"),
    *HOW,
)
NETWORK_COLUMNS = (*WHO, "network", "role", *HOW)

#: Names of the files of a kit and of what it writes.
KIT_FILE, KERNELS_FILE, NETWORKS_FILE = "kit.json", "kernels.csv", "networks.csv"
LAYERS_FILE, NOISE_FILE = "layers.json", "noise.json"

#: Milliseconds of each of some passes.
if sys.version_info >= (3, 9):  # noqa: UP036  # boards have older ones than autoprune
    Timer = Callable[[int], "list[float]"]


@dataclass(frozen=True)
class Rounds:
    """How often items are timed.

    Attributes:
        warm_up: Passes of each item before the first round.
        count: Rounds that count.
        most: Rounds in all, repeated ones included.
        visit_ms: Least milliseconds of one visit; short items make several passes.
        steady: Spread (interquartile range over median) of an item, and slowness of the reference,
            beyond which rounds are repeated.
    """

    warm_up: int = 3
    count: int = 7
    most: int = 15
    visit_ms: float = 2.0
    steady: float = 0.05


#: trtexec takes seconds to start, and makes many passes each time.
TENSORRT_ROUNDS = Rounds(warm_up=1, count=3, most=5, visit_ms=200.0)


@dataclass(frozen=True)
class Timing:
    """What the rounds say about one item.

    Attributes:
        latency_ms: Median of the rounds that count.
        iqr: Their interquartile range over the median.
        rounds: How many they are.
        reference_ms: Median of the reference in the rounds of the item and its neighbours.
    """

    latency_ms: float
    iqr: float
    rounds: int
    reference_ms: float = math.nan


@dataclass(frozen=True)
class Timings:
    """What the rounds say about all items.

    Attributes:
        items: By name.
        reference_ms: The reference, once per round.
        repeated: Rounds beyond those planned.
    """

    items: Mapping[str, Timing]
    reference_ms: Sequence[float]
    repeated: int


def interleaved(
    timers: Mapping[str, Timer],
    reference: Timer,
    rounds: Rounds,
    *,
    over: Callable[[], bool] = lambda: False,
) -> Timings:
    """Return the timings of all items, each visited once per round.

    Rounds in which the reference is slow do not count. Items that have too few rounds or spread too
    much are visited again, alone, until they are steady or the rounds are used up.

    Args:
        timers: By name.
        reference: Something short that should always take as long.
        rounds: How often.
        over: Whether time is up; three rounds are made in any case.
    """
    passes = {name: _passes(timer, rounds) for name, timer in timers.items()}
    reference_passes = _passes(reference, rounds)
    values: dict[str, dict[int, float]] = {name: {} for name in timers}
    references: list[float] = []
    pending = list(timers)
    while pending and len(references) < rounds.most and not (len(references) >= 3 and over()):
        number = len(references)
        before = _visit(reference, reference_passes)
        # Every other round goes backwards, so that no item always follows the same one.
        for name in pending if number % 2 == 0 else reversed(pending):
            values[name][number] = _visit(timers[name], passes[name])
        references.append(max(before, _visit(reference, reference_passes)))
        if len(references) >= rounds.count:
            good = _undisturbed(references, rounds.steady)
            kept = {name: _counted(values[name], good) for name in timers}
            pending = [name for name, of in kept.items() if _is_unsteady(of, rounds)]
    good = _undisturbed(references, rounds.steady)
    usual = statistics.median(references[i] for i in good)
    items = {name: _timing(_counted(of, good), usual) for name, of in values.items()}
    return Timings(items, references, max(0, len(references) - rounds.count))


def spread(values: Iterable[float]) -> float:
    """Return the interquartile range over the median, 0 for fewer than two values."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return 0.0
    low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return (high - low) / statistics.median(ordered)


def without_call(timing: Timing, idle: Timing) -> Timing | None:
    """Return a kernel's timing without what calling the runtime takes; ``None`` if that hides it.

    Args:
        timing: Of the kernel, called alone.
        idle: Of a call that does next to nothing.
    """
    own = timing.latency_ms - idle.latency_ms
    if own < idle.latency_ms / 4:
        return None
    iqr = timing.iqr * timing.latency_ms / own
    return Timing(own, iqr, timing.rounds, timing.reference_ms)


def _visit(timer: Timer, passes: int) -> float:
    """Return the median of some passes, after one that brings the item back into the caches."""
    return statistics.median(list(timer(passes + 1))[1:])


def _passes(timer: Timer, rounds: Rounds) -> int:
    """Return how many passes fill a visit, after warming up."""
    warm = list(timer(max(1, rounds.warm_up)))
    return max(1, min(1000, math.ceil(rounds.visit_ms / max(min(warm), 1e-6))))


def _undisturbed(references: Sequence[float], steady: float) -> set[int]:
    """Return the rounds in which the reference was as fast as in the faster half of all."""
    usual = statistics.median(sorted(references)[: (len(references) + 1) // 2])
    return {i for i, value in enumerate(references) if value <= (1 + steady) * usual}


def _counted(values: Mapping[int, float], good: Iterable[int]) -> list[float]:
    """Return the values of good rounds; all where fewer than three are good."""
    kept = [values[i] for i in good if i in values]
    return kept if len(kept) >= 3 else list(values.values())


def _is_unsteady(values: Sequence[float], rounds: Rounds) -> bool:
    return len(values) < rounds.count or spread(values) > rounds.steady


def _timing(values: Sequence[float], reference_ms: float) -> Timing:
    return Timing(statistics.median(values), spread(values), len(values), reference_ms)


def timed(
    action: Callable[[], object], clock: Callable[[], float], finish: Callable[[], object]
) -> Timer:
    """Return a timer of an action.

    Args:
        action: One pass.
        clock: Seconds.
        finish: Waits until the passes are done.
    """

    def timer(passes: int) -> list[float]:
        milliseconds = []
        for _ in range(passes):
            started = clock()
            action()
            finish()
            milliseconds.append((clock() - started) * 1e3)
        return milliseconds

    return timer


def nothing() -> None:
    """Wait for nothing."""


def clock_of(name: str) -> Callable[[], float]:
    """Return a clock in seconds: ``wall``, or ``cpu`` for the time this thread was running."""
    return time.thread_time if name == "cpu" else time.perf_counter


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on as many processors as it has threads, where the system can do that.

    The last ones: the first one serves most interrupts.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# --- ONNX Runtime --------------------------------------------------------------------------------


def onnx_timer(model: Any, *, provider: str, threads: int, clock: str) -> Timer:
    """Return a timer of an ONNX file in ONNX Runtime, on random inputs.

    Args:
        model: Path of a file, or its content.
        provider: Execution provider, with the processor's behind it for what it cannot run.
        threads: Threads within an operator.
        clock: See :func:`clock_of`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Random weights let activations fade to numbers on which processors are slow.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} did not start; got {session.get_providers()}")
    inputs = {value.name: _random(value.type, value.shape) for value in session.get_inputs()}
    if provider == "CPUExecutionProvider":
        return timed(lambda: session.run(None, inputs), clock_of(clock), nothing)
    binding = session.io_binding()
    for name, array in inputs.items():
        placed = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        binding.bind_ortvalue_input(name, placed)
    for value in session.get_outputs():
        binding.bind_output(value.name, "cuda")
    # Running with a binding waits for the device; inputs and outputs stay on it.
    return timed(lambda: session.run_with_iobinding(binding), clock_of(clock), nothing)


def _random(kind: str, shape: Sequence[int]) -> Any:
    """Return a random tensor of one of ONNX Runtime's types."""
    import numpy

    generator = numpy.random.default_rng(0)
    if "float" in kind:
        types = {"tensor(float16)": "float16", "tensor(double)": "float64"}
        return generator.standard_normal(shape).astype(types.get(kind, "float32"))
    types = {"tensor(int32)": "int32", "tensor(bool)": "bool"}
    return generator.integers(0, 2, shape).astype(types.get(kind, "int64"))


# --- TensorRT ------------------------------------------------------------------------------------


def find_trtexec() -> str | None:
    """Return the path of trtexec: on the PATH, or where NVIDIA's packages put it."""
    known = "/usr/src/tensorrt/bin/trtexec"
    return shutil.which("trtexec") or (known if os.access(known, os.X_OK) else None)


def trtexec_timer(trtexec: str, model: Path, *, precision: str) -> Timer:
    """Return a timer of an ONNX file in TensorRT; the engine is built beside it.

    Args:
        trtexec: The program.
        model: An ONNX file.
        precision: ``fp32`` (without TF32), ``tf32``, ``fp16`` or ``int8`` (without calibration,
            which changes no latency).

    Raises:
        RuntimeError: trtexec fails; its last lines are told.
    """
    engine = model.with_suffix("." + precision + ".engine")
    flags = {"fp32": ["--noTF32"], "tf32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}
    if not engine.exists():
        save = [f"--saveEngine={engine}", "--iterations=1", "--duration=0", "--warmUp=0"]
        _call([trtexec, f"--onnx={model}", *flags[precision], *save])
    times = model.with_suffix(".times.json")

    def timer(passes: int) -> list[float]:
        exact = [f"--iterations={max(passes, 10)}", "--duration=0", "--warmUp=200"]
        export = ["--useSpinWait", f"--exportTimes={times}"]
        _call([trtexec, f"--loadEngine={engine}", *exact, *export])
        found = re.findall(r'"computeMs"\s*:\s*([0-9.eE+-]+)', times.read_text(encoding="utf-8"))
        times.unlink()
        if not found:
            raise RuntimeError("trtexec wrote no computeMs; is it older than TensorRT 7?")
        return [float(text) for text in found]

    return timer


def trtexec_version(trtexec: str) -> str:
    """Return TensorRT's version as trtexec prints it, ``8.2.1``."""
    done = subprocess.run([trtexec, "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"TensorRT[ .]?v?(\d+)", done.stdout + done.stderr)
    digits = found.group(1) if found else ""
    if len(digits) == 6:  # 100300: from version 10 on, two digits each
        return ".".join(str(int(digits[i : i + 2])) for i in (0, 2, 4))
    if len(digits) == 4:  # 8201
        return ".".join([digits[0], digits[1], str(int(digits[2:]))])
    return digits or "unknown"


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-8:]
        listing = "\n  ".join(lines)
        raise RuntimeError(f"{' '.join(command)} failed:\n  {listing}")


# --- tables --------------------------------------------------------------------------------------


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, which begins with the names of its columns.

    A line that a crash cut off is removed first.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if not text:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def row_of(who: Mapping[str, Any], item: Mapping[str, Any], timing: Timing) -> dict[str, Any]:
    """Return a table's row of one item."""
    return {
        **who,
        **item,
        "latency_ms": f"{timing.latency_ms:.6g}",
        "iqr": f"{timing.iqr:.4f}",
        "rounds": timing.rounds,
        "reference_ms": f"{timing.reference_ms:.6g}",
    }


def device_name() -> str:
    """Return what the machine calls itself: the board's model, or its processor."""
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


# --- the kit's command ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the kit holds, and return an exit code."""
    options = _options(arguments)
    kit = json.loads((options.kit / KIT_FILE).read_text(encoding="utf-8"))
    runtime = options.runtime or _detected()
    if runtime is None:
        print("neither onnxruntime nor trtexec found; pip install onnxruntime", file=sys.stderr)
        return 2
    try:
        _measure(kit, options, runtime)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the networks and kernels of this kit.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--kit", type=Path, default=here, help="the kit's folder")
    parser.add_argument("-o", "--output", type=Path, help="where tables go; default: KIT/results")
    parser.add_argument("--device", help="name of the device in the tables")
    parser.add_argument("--runtime", choices=("onnxruntime", "tensorrt"), help="default: detected")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime")
    parser.add_argument("--precision", choices=("fp32", "tf32", "fp16", "int8"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("auto", "wall", "cpu"), default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time")
    options = parser.parse_args(arguments)
    if options.runtime == "onnxruntime" and options.precision != "fp32":
        parser.error("the kit's networks are fp32; other precisions need --runtime tensorrt")
    if options.threads < 1 or options.rounds < 1 or options.minutes <= 0:
        parser.error("--threads, --rounds and --minutes take positive numbers")
    return options


def _detected() -> str | None:
    if find_trtexec():
        return "tensorrt"
    try:
        import onnxruntime  # noqa: F401  # only to see whether it is there
    except ImportError:
        return None
    return "onnxruntime"


def _measure(kit: dict[str, Any], options: argparse.Namespace, runtime: str) -> None:
    output = options.output or options.kit / "results"
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    timer, who = _tools(options, runtime)
    done = _done(output, who)
    items = [item for item in kit["items"] if item["name"] not in done]
    rounds = Rounds(count=options.rounds, most=2 * options.rounds + 1)
    rounds = TENSORRT_ROUNDS if runtime == "tensorrt" else rounds
    references: list[float] = []
    with pinned(options.threads):
        steady, nothing_ms = timer(options.kit / kit["reference"]), timer(options.kit / kit["idle"])
        # Items lie in the kit so that every few of them are of all sorts.
        for start in range(0, len(items), kit["chunk"]):
            if time.monotonic() - started > 60 * options.minutes:
                print("time is up; run again to go on")
                break
            chunk = items[start : start + kit["chunk"]]
            timers = _timers(chunk, options.kit, timer)
            result = interleaved({"idle": nothing_ms, **timers}, steady, rounds)
            references.extend(result.reference_ms)
            for item in chunk:
                if item["name"] in timers:
                    _append(output, who, item, result.items)
            print(f"{start + len(chunk)}/{len(items)}", flush=True)
    shutil.copyfile(str(options.kit / LAYERS_FILE), str(output / LAYERS_FILE))
    noise = spread(references)
    content = json.dumps([{"reference_spread": noise, "rounds": len(references)}])
    (output / NOISE_FILE).write_text(content + "\n", encoding="utf-8")
    if noise > rounds.steady:
        print(f"warning: the reference spread by {noise:.0%}; is the machine busy or hot?")
    print(f"tables are in {output}")


def _timers(
    items: Iterable[Mapping[str, Any]], kit: Path, timer: Callable[[Path], Timer]
) -> dict[str, Timer]:
    """Return timers by name; what the runtime cannot run is told and left out."""
    timers = {}
    for item in items:
        try:
            timers[item["name"]] = timer(kit / item["file"])
        except Exception as error:  # noqa: BLE001  # the runtimes' errors have no common base
            print(f"not measured: {item['name']}: {error}", file=sys.stderr, flush=True)
    return timers


def _tools(options: argparse.Namespace, runtime: str) -> tuple[Callable[[Path], Timer], Any]:
    """Return what makes a timer of a file, and the columns that say who measured."""
    clock = options.clock
    if clock == "auto":
        on_thread = runtime == "onnxruntime" and options.provider == "CPUExecutionProvider"
        clock = "cpu" if on_thread and options.threads == 1 else "wall"
    who = {
        "device": options.device or device_name(),
        "precision": options.precision,
        "threads": options.threads,
        "clock": clock,
    }
    if runtime == "tensorrt":
        trtexec = find_trtexec()
        if trtexec is None:
            raise RuntimeError("trtexec is not on the PATH; it comes with TensorRT")
        path = trtexec
        who["runtime"] = "tensorrt_" + trtexec_version(path)
        return lambda file: trtexec_timer(path, file, precision=options.precision), who
    import onnxruntime

    kinds = {"CPUExecutionProvider": "", "CUDAExecutionProvider": "-cuda"}
    kind = kinds.get(options.provider, "-" + options.provider.replace("ExecutionProvider", ""))
    who["runtime"] = f"onnxruntime{kind.lower()}_{onnxruntime.__version__}"
    threads, provider = options.threads, options.provider
    return (
        lambda file: onnx_timer(str(file), provider=provider, threads=threads, clock=clock)
    ), who


def _done(output: Path, who: Mapping[str, Any]) -> set[str]:
    """Return the items that were measured under the same conditions."""
    rows = [*read_rows(output / KERNELS_FILE), *read_rows(output / NETWORKS_FILE)]
    same = [row for row in rows if all(row[key] == str(value) for key, value in who.items())]
    return {row.get("network") or kernel_name(row) for row in same}


def kernel_name(row: Mapping[str, Any]) -> str:
    """Return what distinguishes a row of a kernel table, ``conv batch=1 cin=3 ...``."""
    dims = ("batch", "cin", "cout", "kernel", "stride", "groups", "h", "w", "m", "n", "k")
    given = [f"{key}={row[key]}" for key in dims if row.get(key) not in (None, "")]
    return " ".join([str(row["op"]), *given])


def _append(
    output: Path, who: Mapping[str, Any], item: Mapping[str, Any], timings: Mapping[str, Timing]
) -> None:
    if item["kind"] == "network":
        rows = [row_of(who, item["columns"], timings[item["name"]])]
        append_rows(output / NETWORKS_FILE, NETWORK_COLUMNS, rows)
        return
    timing = without_call(timings[item["name"]], timings["idle"])
    if timing is not None:
        rows = [row_of(who, item["columns"], timing)]
        append_rows(output / KERNELS_FILE, KERNEL_COLUMNS, rows)


if __name__ == "__main__":
    sys.exit(main())
