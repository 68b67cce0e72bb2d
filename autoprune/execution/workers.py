"""How many evaluations run side by side on this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def worker_count() -> int:
    """Return the physical cores this process may use, at least one.

    Each worker computes in one thread, so hyper-threads of one core would only share it. A
    container's CPU quota counts where the kernel shows one.
    """
    usable = _usable_cpus()
    cores = {_siblings(cpu) for cpu in usable}
    return max(1, min(len(cores), _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """Return a name of the physical core that ``cpu`` belongs to."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return topology.read_text().strip()
    except OSError:  # no Linux, or a kernel that hides it: every CPU counts as a core
        return str(cpu)


def _quota(file: Path) -> int:
    """Return the whole CPUs that a control group grants, a large number where it sets no limit."""
    try:
        quota, period = file.read_text().split()
        return max(1, math.floor(int(quota) / int(period)))
    except (OSError, ValueError):  # no control groups, or "max 100000"
        return 1_000_000
