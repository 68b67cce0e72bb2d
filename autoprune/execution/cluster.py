"""Where evaluations run and what each of them gets: what a search asks of Ray, in plain values."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.network.factory import parse_call

#: Loggers by name, with the package that each needs and what to install for it.
LOGGERS = {
    "mlflow": ("mlflow", "autoprune[mlflow]"),
    "tensorboard": ("tensorboardX", "autoprune[tensorboard]"),
    "wandb": ("wandb", "autoprune[wandb]"),
}

_LOCAL = re.compile(r"local(?::(?P<cpus>[1-9]\d*))?")
_ADDRESS = re.compile(r"(?!local:)(ray://)?[\w.\-\[\]:]+:\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a search asks of Ray.

    Attributes:
        address: ``"local"`` or ``"local:N"`` starts a Ray with N CPUs here, ``"auto"`` joins the
            one of this machine, ``"ray://HOST:PORT"`` and ``"HOST:PORT"`` one elsewhere; ``None``
            joins the one that the environment variable ``RAY_ADDRESS`` names, as inside a job, and
            starts one here where there is none.
        cpus_per_trial: CPUs that one evaluation occupies; it computes in as many threads.
        gpus_per_trial: GPUs likewise; a fraction shares one.
        storage: Folder or address where Tune's files stay, ``s3://...``, ``gs://...`` and whatever
            fsspec knows; ``None`` removes them, but for those of loggers.
        max_failures: How often an evaluation is begun again whose worker died.
        time_limit_s: Seconds after which a worker that does not come back is ended.
        packages: Packages that are sent to the workers.
        files: Files and folders that evaluations read, and every node must have.
        loggers: Names in :data:`LOGGERS`.
    """

    address: str | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    storage: str | None = None
    max_failures: int = 1
    time_limit_s: float | None = None
    packages: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    loggers: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads that one evaluation computes in."""
        return max(1, int(self.cpus_per_trial))

    @property
    def starts_ray(self) -> bool:
        """Whether the address asks for a Ray of the search's own."""
        return self.address is not None and _LOCAL.fullmatch(self.address) is not None

    @property
    def local_cpus(self) -> int | None:
        """CPUs of a Ray that is started here, where the address says how many."""
        found = _LOCAL.fullmatch(self.address or "")
        return int(found["cpus"]) if found and found["cpus"] else None


def check_address(address: str) -> None:
    """Raise unless ``address`` is one that :class:`Cluster` knows.

    Raises:
        SettingsError: It has another form.
    """
    if address != "auto" and not _LOCAL.fullmatch(address) and not _ADDRESS.fullmatch(address):
        raise SettingsError(
            f"ray: expected local, local:N, auto, ray://HOST:PORT or HOST:PORT, got {address!r}"
        )


def check_logger(name: str) -> None:
    """Raise unless there is a logger of that name and what it needs is installed.

    Raises:
        UnknownNameError: There is none.
        SettingsError: A package is missing.
    """
    if name not in LOGGERS:
        raise UnknownNameError("logger", name, LOGGERS)
    module, extra = LOGGERS[name]
    if importlib.util.find_spec(module) is None:
        raise SettingsError(f"the logger {name!r} needs a package more: pip install '{extra}'")


def shipped_packages(specs: Iterable[str | None]) -> list[str]:
    """Return the packages of functions that were named ``package.module:factory``.

    Those that are installed are expected on the workers as well; what lies elsewhere, as on
    ``PYTHONPATH``, has to be sent. A ``file.py:factory`` needs nothing: what came of it travels
    with its code.

    Args:
        specs: Of model and data; ``None`` where an object was given.
    """
    heads = {
        call.head.partition(".")[0]
        for call in (parse_call(spec, error=SettingsError) for spec in specs if spec)
        if call is not None and not call.in_file
    }
    return sorted(head for head in heads if _lies_outside(head))


def _lies_outside(package: str) -> bool:
    """Return whether a package was found outside the folders of installed ones."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # made at run time
        return False
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return False
    return not Path(spec.origin).resolve().is_relative_to(Path(sys.prefix).resolve())
