"""``autoprune doctor``: what this machine has, what is missing, and how to install it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import AutopruneError

#: Extras that only who works on autoprune itself needs.
_DEVELOPERS = ("dev",)
#: Bytes of free memory and disk under which a search is likely to fail.
_LITTLE = 1 << 30
_MARKS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "bad": "[bold red]bad[/]"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: What it belongs to.
        name: What it is.
        state: ``"ok"``; ``"missing"`` where something optional is not there; ``"bad"`` where
            autoprune cannot work.
        told: What was found.
        way_out: What to do about it; empty where all is well.
    """

    topic: str
    name: str
    state: Literal["ok", "missing", "bad"]
    told: str
    way_out: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Print versions, devices and data, what is missing and how to install it.

    Exit code 0 if a search can run here, 1 if something that it needs is missing.

    \b
    autoprune doctor
    """  # noqa: D301 - click keeps lines after a backspace as they are
    findings = [*machine(), *packages(), *runtimes(), *data()]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def machine() -> Iterator[Finding]:
    """Yield what computes here, and what room there is."""
    from autoprune.execution.workers import worker_count
    from autoprune.measure.board import device_name

    topic = "machine"
    python = f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield Finding(topic, "Python", "ok", f"{python}, {sys.executable}")
    cores = worker_count()
    yield Finding(topic, "processor", "ok", f"{device_name()}, {cores} cores for evaluations")
    yield from _torch(topic)
    for name, folder in (("disk here", Path.cwd()), ("temporary files", _temporary())):
        yield _room(topic, name, folder)
    address = os.environ.get("RAY_ADDRESS")
    told = f"RAY_ADDRESS={address}: searches join it" if address else "started by each search"
    yield Finding(topic, "Ray cluster", "ok", told)


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _room(topic: str, name: str, folder: Path) -> Finding:
    """Return how much can be written in a folder."""
    free = shutil.disk_usage(folder).free
    told = f"{free / 2**30:.0f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(topic, name, "missing", f"{folder} cannot be written", "give --output DIR")
    if free < _LITTLE:
        return Finding(topic, name, "missing", told, "make room; a run takes some megabytes to GB")
    return Finding(topic, name, "ok", told)


def _torch(topic: str) -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(topic, "torch", "bad", str(error), "pip install torch")
        return
    from autoprune.tasks.numerics import native_bfloat16

    formats = "bfloat16 and fp32" if native_bfloat16() else "fp32"
    threads = f"{torch.get_num_threads()} threads"
    yield Finding(topic, "torch", "ok", f"{torch.__version__}, {threads}, evaluates in {formats}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    if count:
        yield Finding(topic, "GPU", "ok", names)
    else:
        told = "none that torch sees; searches run on the processor"
        yield Finding(topic, "GPU", "missing", told, "needs an NVIDIA GPU and torch with CUDA")


def packages() -> Iterator[Finding]:
    """Yield what the installed autoprune asks for, extra by extra."""
    try:
        texts = importlib.metadata.requires("autoprune") or []
    except importlib.metadata.PackageNotFoundError:
        way_out = "pip install . in its folder"
        yield Finding("packages", "autoprune", "missing", "is not installed by pip", way_out)
        return
    requirements = [Requirement(text) for text in texts]
    own = [each for each in requirements if _applies(each, "")]
    yield from (_package(each, "needed", "pip install " + _quoted(each)) for each in own)
    extras = importlib.metadata.metadata("autoprune").get_all("Provides-Extra") or []
    for extra in sorted(set(extras) - set(_DEVELOPERS)):
        needs = [r for r in requirements if not _applies(r, "") and _applies(r, extra)]
        for each in needs:
            way_out = f"pip install 'autoprune[{extra}]'"
            yield _package(each, f"extra {extra}", way_out)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _quoted(requirement: Requirement) -> str:
    return f"'{requirement.name}{requirement.specifier}'"


def _package(requirement: Requirement, topic: str, way_out: str) -> Finding:
    """Return whether a package is there in a version that does."""
    state: Literal["missing", "bad"] = "bad" if topic == "needed" else "missing"
    name = requirement.name
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(topic, name, state, "not installed", way_out)
    if not requirement.specifier.contains(version, prereleases=True):
        told = f"{version}, but {requirement.specifier} is asked for"
        return Finding(topic, name, state, told, way_out)
    lacking = sorted(_lacking(requirement))
    if lacking:
        told = f"{version} without {', '.join(lacking)}"
        return Finding(
            topic, f"{name}[{','.join(sorted(requirement.extras))}]", state, told, way_out
        )
    return Finding(topic, name, "ok", version)


def _lacking(requirement: Requirement) -> Iterator[str]:
    """Yield the packages that are not there of those that a package's own extras ask for."""
    asked = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or []]
    for each in asked:
        wanted = any(_applies(each, extra) for extra in requirement.extras)
        if wanted and not _applies(each, "") and not _installed(each.name):
            yield each.name


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def runtimes() -> Iterator[Finding]:
    """Yield in which runtimes networks can be measured here."""
    from autoprune.measure.backend import BACKENDS

    for name in BACKENDS.names():
        try:
            way_out = BACKENDS[name].missing()
        except (ImportError, OSError) as error:  # a package that is there and cannot be loaded
            way_out = f"it cannot be loaded: {error}"
        state: Literal["ok", "missing"] = "missing" if way_out else "ok"
        told = "not here" if way_out else "networks can be measured in it"
        yield Finding("runtimes", name, state, told, way_out or "")


def data() -> Iterator[Finding]:
    """Yield whether what travels with autoprune is there and whole."""
    from autoprune.latency.profile import load_profile, profile_names
    from autoprune.strategy.settings import load_space_settings

    topic = "data"
    try:
        load_space_settings("default")
        names = profile_names()
        for name in names:
            load_profile(name)
    except (AutopruneError, OSError) as error:
        yield Finding(topic, "profiles, search spaces", "bad", str(error), "reinstall autoprune")
        return
    yield Finding(topic, "device profiles", "ok", f"{len(names)}; `autoprune devices` lists them")
    shared = os.environ.get("AUTOPRUNE_SHARED")
    told = "not set; only benchmarks and some tests read it"
    if shared:
        told = shared if Path(shared).is_dir() else f"{shared} is no folder"
    yield Finding(topic, "AUTOPRUNE_SHARED", "ok", told)


def _show(findings: Iterable[Finding]) -> None:
    from autoprune.version import __version__

    console = Console(highlight=False)
    console.print(f"autoprune {__version__}")
    table = Table.grid(padding=(0, 2, 0, 0))
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            table.add_row("", "", "")
            table.add_row(f"[bold]{topic}[/]", "", "")
        told = escape(finding.told)
        if finding.way_out:
            told += f"\n[dim]{escape(finding.way_out)}[/]"
        table.add_row(f"  {escape(finding.name)}", _MARKS[finding.state], told)
    console.print(table)
