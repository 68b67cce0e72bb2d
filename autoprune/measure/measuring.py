"""Times what is drawn until the time is up, and keeps every row at once.

A folder holds what was measured: the tables and layer lists that ``autoprune calibrate`` reads, and
what the reference said. A second run in the same folder goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import MeasureError
from autoprune.files import write_atomically
from autoprune.measure.backend import Backend
from autoprune.measure.board import (
    KERNEL_COLUMNS,
    KERNELS_FILE,
    LAYERS_FILE,
    NETWORK_COLUMNS,
    NETWORKS_FILE,
    NOISE_FILE,
    Timer,
    Timing,
    append_rows,
    interleaved,
    kernel_name,
    pinned,
    read_rows,
    row_of,
    spread,
    without_call,
)
from autoprune.measure.subjects import Draw, Subject, idle, reference

#: Most subjects, and elements of their tensors, that are held ready at a time.
MOST_SUBJECTS, MOST_ELEMENTS = 24, 1 << 26

_IDLE = "idle"


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far the measuring is.

    Attributes:
        networks: Measured so far, earlier runs included.
        kernels: The same.
        seconds: Since this run began.
        noise: Spread of the reference over the rounds of this run, a fraction.
        failed: What the runtime cannot run, with the reason.
    """

    networks: int
    kernels: int
    seconds: float
    noise: float
    failed: Mapping[str, str]


Listener = Callable[[Standing], None]


class Folder:
    """Where measurements are kept."""

    def __init__(self, path: Path, who: Mapping[str, Any]) -> None:
        """Read what is there.

        Args:
            path: The folder; made where it is not there, inside one that is.
            who: What every row says of the measuring: device, runtime, precision, threads, clock.

        Raises:
            MeasureError: The folder holds measurements of another machine or way of measuring.
        """
        self.path, self.who = path, who
        path.mkdir(exist_ok=True)
        networks, kernels = read_rows(self.networks), read_rows(self.kernels)
        self._check([*networks, *kernels])
        self.network_names = {row["network"] for row in networks}
        self.kernel_names = {kernel_name(row) for row in kernels}
        self._layers: dict[str, list[list[Any]]] = {}
        if self.layers.exists():
            self._layers = json.loads(self.layers.read_text(encoding="utf-8"))

    @property
    def networks(self) -> Path:
        """The table of networks."""
        return self.path / NETWORKS_FILE

    @property
    def kernels(self) -> Path:
        """The table of kernels."""
        return self.path / KERNELS_FILE

    @property
    def layers(self) -> Path:
        """The layer lists."""
        return self.path / LAYERS_FILE

    @property
    def noise(self) -> Path:
        """What the reference said in each run."""
        return self.path / NOISE_FILE

    def has(self, draw: Draw) -> bool:
        """Return whether a draw was measured."""
        return draw.name in (self.network_names if draw.kind == "network" else self.kernel_names)

    def keep(self, subjects: Sequence[Subject], items: Mapping[str, Timing]) -> None:
        """Write what was measured; layer lists first, so that no row is without."""
        networks: list[dict[str, Any]] = []
        kernels: list[dict[str, Any]] = []
        for subject in subjects:
            timing = items.get(subject.name)
            if timing is None:
                continue
            row = row_of(self.who, subject.columns, timing)
            (networks if subject.kind == "network" else kernels).append(row)
            names = self.network_names if subject.kind == "network" else self.kernel_names
            names.add(subject.name)
            if subject.layers is not None:
                self._layers[subject.name] = subject.layers
        lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(r)}" for n, r in self._layers.items())
        write_atomically(self.layers, f"{{{lines}}}\n")
        append_rows(self.networks, NETWORK_COLUMNS, networks)
        append_rows(self.kernels, KERNEL_COLUMNS, kernels)

    def keep_noise(self, references: Sequence[float]) -> None:
        """Add what the reference said in this run."""
        runs = self.noises()
        if references:
            runs.append({"reference_spread": spread(references), "rounds": len(references)})
            write_atomically(self.noise, json.dumps(runs) + "\n")

    def noises(self) -> list[dict[str, float]]:
        """Return what the reference said in each run."""
        if not self.noise.exists():
            return []
        runs: list[dict[str, float]] = json.loads(self.noise.read_text(encoding="utf-8"))
        return runs

    def _check(self, rows: Iterable[Mapping[str, str]]) -> None:
        for row in rows:
            other = {key: row.get(key) for key, own in self.who.items() if row.get(key) != str(own)}
            if other:
                mine = {key: self.who[key] for key in other}
                raise MeasureError(
                    f"{self.path} holds measurements with {other}, this would add others with "
                    f"{mine}; choose another output, or delete the folder"
                )


def measure(
    backend: Backend,
    laps: Iterable[Sequence[Draw]],
    folder: Folder,
    *,
    seconds: float,
    listener: Listener,
    now: Callable[[], float] = time.monotonic,
) -> Standing:
    """Measure until the time is up or there is nothing left, and return how far that was.

    Args:
        backend: What times.
        laps: What to time; a lap is of all sorts, so that any number of laps can be fitted.
        folder: Where rows are kept.
        seconds: Wall-clock time. What is under way is finished, but nothing is begun that would
            probably take longer.
        listener: Hears of every step.
        now: Returns seconds; for tests.

    Raises:
        MeasureError: The runtime cannot run an unpruned model.
    """
    started = now()
    references: list[float] = []
    failed: dict[str, str] = {}

    def standing() -> Standing:
        counts = len(folder.network_names), len(folder.kernel_names)
        return Standing(*counts, now() - started, spread(references), dict(failed))

    chunks = _chunks(draw for lap in laps for draw in lap if not folder.has(draw))
    longest = 0.0
    with pinned(backend.threads), backend.running():
        steady = backend.build(*reference())
        nothing = backend.build(*idle())
        # What is begun should end in time.
        while (begun := now()) + longest <= started + seconds:
            chunk = next(chunks, [])
            timers = _timers(backend, chunk, failed)
            if not timers:
                break
            timings = interleaved(
                {_IDLE: nothing, **timers},
                steady,
                backend.rounds,
                over=lambda: now() > started + seconds,
            )
            measured = [subject for subject in chunk if subject.name in timers]
            folder.keep(measured, _own(measured, timings.items))
            references.extend(timings.reference_ms)
            longest = max(longest, now() - begun)
            listener(standing())
    folder.keep_noise(references)
    if failed and not folder.network_names | folder.kernel_names:
        name, reason = next(iter(failed.items()))
        raise MeasureError(f"nothing could be measured; {name}: {reason}")
    return standing()


def _timers(
    backend: Backend, subjects: Sequence[Subject], failed: dict[str, str]
) -> dict[str, Timer]:
    """Return timers by name; what the runtime cannot run goes to ``failed`` with the reason."""
    timers = {}
    for subject in subjects:
        try:
            timers[subject.name] = backend.build(subject.module, subject.inputs)
        except MeasureError as error:
            failed[subject.name] = str(error)
    return timers


def _chunks(draws: Iterable[Draw]) -> Iterator[list[Subject]]:
    """Yield subjects, as many at a time as are held ready."""
    chunk: list[Subject] = []
    for draw in draws:
        chunk.append(draw.build())
        elements = sum(subject.elements for subject in chunk)
        if len(chunk) >= MOST_SUBJECTS or elements >= MOST_ELEMENTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _own(subjects: Sequence[Subject], items: Mapping[str, Timing]) -> dict[str, Timing]:
    """Return timings by name, those of kernels without what a call takes."""
    own: dict[str, Timing] = {}
    for subject in subjects:
        timing: Timing | None = items[subject.name]
        if subject.kind == "kernel":
            timing = without_call(items[subject.name], items[_IDLE])
        if timing is not None:
            own[subject.name] = timing
    return own
