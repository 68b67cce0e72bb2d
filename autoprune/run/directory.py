"""The run directory: what is asked for, what has happened, and what came out."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import optuna
import pydantic

from autoprune.errors import AutopruneError, RunError
from autoprune.files import write_atomically
from autoprune.latency.profile import DeviceProfile
from autoprune.run.settings import RunSettings
from autoprune.run.storage import Say, masked, open_storage
from autoprune.strategy.settings import SpaceSettings
from autoprune.version import __version__

#: What ``run.json`` calls itself, and the version of the whole directory.
FORMAT, VERSION = "autoprune-run", 1

RECORD_FILE = "run.json"
JOURNAL_FILE = "study.journal"
REPORT_FILE = "report.html"
NETWORK_FOLDER = "network"
RUNGS_FOLDER = "rungs"
EXPORT_FOLDER = "exported"
#: Fine-tuned networks by trial, and the table of them.
FINETUNED_FOLDER, FINETUNED_FILE = "finetuned", "finetuned.csv"
SCRATCH_FOLDER = "ray"

_PACKAGES = ("torch", "numpy", "optuna", "ray")


class ModelRecord(pydantic.BaseModel):
    """Where the model comes from.

    Attributes:
        name: What it is called in reports.
        weights_sha256: Hash of the weights file, ``None`` where none was given.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    weights_sha256: str | None


class RunRecord(pydantic.BaseModel):
    """The content of ``run.json``: all that a run needs to be continued.

    Attributes:
        format: Always ``"autoprune-run"``.
        version: Version of the run directory.
        created: When, in UTC, ISO 8601.
        settings: What was asked for.
        model: Where the model comes from.
        space: The search space, as it was.
        profile: The device profile, as it was.
        driver: Identity among the drivers of a shared study; empty in runs of older versions.
        profiles: Profiles of other devices by the names that objectives and limits give them.
        versions: Versions of autoprune, Python and the packages that compute.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format: Literal["autoprune-run"] = "autoprune-run"
    version: Literal[1] = 1
    created: str
    settings: RunSettings
    model: ModelRecord
    space: SpaceSettings
    profile: DeviceProfile
    driver: str = ""
    profiles: dict[str, DeviceProfile] = {}
    versions: dict[str, str]


class RunDirectory:
    """A folder on disk that belongs to one run.

    Attributes:
        path: The folder, absolute.
        record: What ``run.json`` says.
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        """Store parameters."""
        self.path = path
        self.record = record

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Return the run that lies in ``path``.

        Raises:
            RunError: There is no run, or one of another version, or it is damaged.
        """
        folder = Path(path).absolute()
        file = folder / RECORD_FILE
        if not file.is_file():
            what = "has no run.json" if folder.is_dir() else "is no folder"
            raise RunError(
                f"{folder} {what}; give the folder that `autoprune search` wrote, "
                "as its first and last lines name it"
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunError(f"{file} cannot be read: {error}") from None
        _check_version(content, file)
        try:
            return cls(folder, RunRecord.model_validate(content))
        except (pydantic.ValidationError, AutopruneError) as error:
            raise RunError(f"{file} is damaged: {error}") from None

    def write_record(self) -> None:
        """Write ``run.json``."""
        write_atomically(
            self.path / RECORD_FILE, self.record.model_dump_json(indent=2, by_alias=True) + "\n"
        )

    def study(self, sampler: optuna.samplers.BaseSampler, *, say: Say) -> optuna.Study:
        """Return the study of the run, made where there is none yet.

        Args:
            sampler: Proposes its trials.
            say: Hears what was mended.

        Raises:
            RunError: The storage cannot be reached, or is damaged.
        """
        settings = self.record.settings
        where = f"journal:{self.path / JOURNAL_FILE}"
        try:
            if settings.study_storage is None:
                # Left by a process that was killed while it wrote; the run is ours alone.
                (self.path / f"{JOURNAL_FILE}.lock").unlink(missing_ok=True)
            else:
                where = settings.study_storage
            storage = open_storage(where, say=say)
            return optuna.create_study(
                storage=storage,
                study_name=settings.study_name,
                directions=["minimize"] * len(settings.objective),
                sampler=sampler,
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise RunError(
                f"{masked(where)} is damaged: {type(error).__name__}: {error}"
            ) from error

    @property
    def resume_command(self) -> str:
        """What to type to continue the run."""
        return f"autoprune search --resume {shown(self.path)}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the directory.

        Raises:
            RunError: Another process does.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is searching in {self.path}; wait for it, or stop it first"
                ) from None
            yield
        finally:
            os.close(descriptor)


def new_folder(output: str | os.PathLike[str] | None, model: str) -> Path:
    """Make the folder of a new run and return it.

    Args:
        output: Where; ``None`` is ``runs/<UTC time>-<model>`` in the working directory.
        model: The model's name, for the default.

    Raises:
        RunError: The folder holds something already, or cannot be made or written.
    """
    if output is None:
        plain = "".join(letter if letter.isalnum() else "-" for letter in model)[-40:].strip("-")
        now = datetime.datetime.now(datetime.UTC)
        output = Path("runs") / f"{now:%Y%m%d-%H%M%S}-{plain}"
    folder = Path(output).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = next(folder.iterdir(), None)
        if held is not None:
            way_out = "continue it with --resume" if (folder / RECORD_FILE).exists() else "empty it"
            raise RunError(
                f"the output folder {folder} is not empty (it holds {held.name}); "
                f"{way_out}, or give another --output"
            )
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"cannot write the output folder {folder}: {error.strerror}; give another --output"
        ) from None
    return folder


def versions() -> dict[str, str]:
    """Return the versions of autoprune, Python and the packages that decide the results."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"autoprune": __version__, "python": platform.python_version(), **found}


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_version(content: Any, file: Path) -> None:
    """Raise unless ``content`` is of this version's format."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f'{file} is no run of autoprune: it lacks "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        writer = content.get("versions", {})
        wrote = writer.get("autoprune", "unknown") if isinstance(writer, dict) else "unknown"
        raise RunError(
            f"{file} is of version {content.get('version')!r}, written by autoprune {wrote}; "
            f"autoprune {__version__} reads version {VERSION}. Continue it with the "
            "autoprune that wrote it, or start a new run"
        )


def shown(path: Path) -> str:
    """Return the path as it can be typed from here, as short as it goes."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
