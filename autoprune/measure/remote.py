"""Runs a kit on another machine over plain ssh and scp."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from autoprune.errors import MeasureError
from autoprune.measure.board import KIT_FILE
from autoprune.measure.kit import SCRIPT

_HOST = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_.-]*@)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
#: Last lines of what ssh says that an error repeats.
_LINES = 6


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine that ssh reaches without a password.

    Attributes:
        address: ``user@host`` or a name in ssh's configuration.
        config: Another configuration file than ssh's own, for ports and keys.
        python: Python on the machine.
    """

    address: str
    config: Path | None = None
    python: str = "python3"

    def __post_init__(self) -> None:
        """Raise MeasureError unless the address is one, and no option or command."""
        if not _HOST.fullmatch(self.address):
            raise MeasureError(
                f"--ssh takes user@host or host (letters, digits, dots, dashes), got "
                f"{self.address!r}; ports and keys belong into ~/.ssh/config or --ssh-config"
            )
        if self.config is not None and not self.config.is_file():
            raise MeasureError(f"there is no ssh configuration {self.config}")


def run_remotely(kit: Path, host: Host, arguments: Sequence[str]) -> Path:
    """Copy a kit to a machine, run it there, and return the folder of the fetched results.

    The copy there is named after the kit's content: where the connection breaks, another call goes
    on with what was measured. It is removed when all has been fetched.

    Args:
        kit: The kit.
        host: Where it runs; what the script prints is shown as it comes.
        arguments: For the script.

    Raises:
        MeasureError: ssh is missing, the machine is not reached, or the script fails.
    """
    for program in ("ssh", "scp"):
        if shutil.which(program) is None:
            raise MeasureError(f"{program} is not installed; on Debian: apt install openssh-client")
    digest = hashlib.sha256((kit / KIT_FILE).read_bytes()).hexdigest()[:12]
    # Letters, digits and dashes alone: nothing here can mean anything to the shell over there.
    there = f"autoprune-kit-{digest}"
    ssh, scp = [*_program("ssh", host), "--", host.address], _program("scp", host)
    _quietly([*ssh, f"mkdir -p {there}"])
    files = [str(path) for path in sorted(kit.iterdir()) if path.name != "results"]
    _quietly([*scp, "-r", "--", *files, f"{host.address}:{there}/"])
    words = [host.python, SCRIPT, *arguments]
    command = f"cd {there} && {' '.join(map(shlex.quote, words))}"
    done = subprocess.run([*ssh, command], check=False)
    if done.returncode:
        raise MeasureError(
            f"{SCRIPT} ended with exit code {done.returncode} on {host.address}; what it measured "
            f"is kept there in ~/{there}, and another call goes on with it"
        )
    _quietly([*scp, "-r", "--", f"{host.address}:{there}/results", str(kit)])
    _quietly([*ssh, f"rm -r {there}"])
    return kit / "results"


def _program(name: str, host: Host) -> list[str]:
    """Return a program with the options that ssh and scp share."""
    config = [] if host.config is None else ["-F", str(host.config)]
    return [name, *config, "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]


def _quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        listing = "\n  ".join(done.stderr.strip().splitlines()[-_LINES:])
        raise MeasureError(f"{shlex.join(command)} failed:\n  {listing}")
