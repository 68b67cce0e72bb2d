"""A Ray to work on: joined or started, and every node of it checked before the search begins."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoprune.errors import RunError
from autoprune.execution.cluster import Cluster
from autoprune.execution.workers import worker_count
from autoprune.version import __version__

#: Seconds that a node has to answer; packages may have to be sent to it first.
_PATIENCE_S = 300.0


@contextlib.contextmanager
def connection(cluster: Cluster, workers: int | None) -> Iterator[int]:
    """Join or start a Ray, and yield how many evaluations run on it side by side.

    A Ray that this process has joined already is used and left as it is.

    Args:
        cluster: What is asked for.
        workers: Most evaluations side by side; ``None`` for as many as there is room for.

    Raises:
        RunError: There is no Ray, it has no room for one evaluation, or one of its nodes lacks
            autoprune, is of another version, or does not have the data.
    """
    ours = not ray.is_initialized()
    try:
        if ours:
            _join(cluster, workers)
        elif cluster.packages:
            raise RunError(
                "packages cannot be sent to a Ray that this process has joined already; give them "
                "to ray.init(runtime_env={'py_modules': ...})"
            )
        nodes = [node for node in ray.nodes() if node["Alive"]]
        room = room_on([node["Resources"] for node in nodes], cluster)
        _check_nodes(nodes, cluster.files)
        yield workers or room
    finally:
        if ours:
            ray.shutdown()


def is_client() -> bool:
    """Return whether this process speaks to a cluster through Ray's client."""
    return bool(ray.util.client.ray.is_connected())


def room_on(resources: Sequence[Mapping[str, float]], cluster: Cluster) -> int:
    """Return how many evaluations fit on nodes.

    Args:
        resources: What each node has.
        cluster: What each evaluation takes.

    Raises:
        RunError: None fits.
    """
    wanted = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}
    wanted = {name: amount for name, amount in wanted.items() if amount}
    room = sum(
        # Shares such as 0.1 are no binary fractions.
        min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items())
        for node in resources
    )
    if room < 1:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        most = ", ".join(
            f"{max((node.get(name, 0.0) for node in resources), default=0.0):g} {name}"
            for name in wanted
        )
        raise RunError(
            f"no node of the Ray cluster has {asked} for one evaluation (at most {most}); ask for "
            "less with --cpus-per-trial and --gpus-per-trial, or add nodes"
        )
    return room


def _join(cluster: Cluster, workers: int | None) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if cluster.starts_ray or (cluster.address is None and "RAY_ADDRESS" not in os.environ):
        per_trial = cluster.cpus_per_trial
        side_by_side = workers or max(1, int(worker_count() / per_trial))
        options["address"] = "local"
        options["num_cpus"] = cluster.local_cpus or math.ceil(side_by_side * per_trial)
        options["include_dashboard"] = False
    elif cluster.address is not None:
        options["address"] = cluster.address
    if cluster.packages:
        options["runtime_env"] = {"py_modules": [_place(name) for name in cluster.packages]}
    try:
        ray.init(**options)
    except (RuntimeError, OSError, ValueError, RayError) as error:
        where = options.get("address", "RAY_ADDRESS")
        if where == "local":
            reason = f"Ray did not start: {error}"
        else:
            reason = f"cannot join the Ray cluster at {where!r}: {error}"
        raise RunError(f"{reason}; the executor 'inline' does without it") from error
    # Ray ends the process on SIGTERM; what a stop means is the caller's to say.
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _place(package: str) -> str:
    """Return the folder, or the file, that holds a package.

    Raises:
        RunError: There is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RunError(f"the package {package!r} cannot be sent to the workers: it has no files")
    file = Path(spec.origin)
    return str(file.parent if spec.submodule_search_locations else file)


def _check_nodes(nodes: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
    """Raise unless every node runs this autoprune and has the files.

    Raises:
        RunError: Some do not; all of them are named.
    """
    # The function is found by name on the node, which tells whether autoprune is there.
    remote = ray.remote(num_cpus=0, max_retries=1)(look)
    answers = [
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote([str(file) for file in files])
        for node in nodes
    ]
    faults: list[str] = []
    for node, answer in zip(nodes, answers, strict=True):
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        try:
            version, missing = ray.get(answer, timeout=_PATIENCE_S)
        except RayError as error:
            faults.append(f"{name}: {_silence(error)}")
            continue
        if version != __version__:
            faults.append(f"{name}: has autoprune {version}, here it is {__version__}")
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            faults.append(f"{name}: has no {', '.join(missing[:3])}{more}")
    if faults:
        raise RunError(
            f"{len(faults)} faults on the nodes of the Ray cluster, nothing was evaluated:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nData lie at the same path on every node: mount or copy them there"
        )


def look(files: Sequence[str]) -> tuple[str, list[str]]:
    """Return the version of autoprune on this machine, and which of the files are not there."""
    return __version__, [file for file in files if not os.path.exists(file)]


def _silence(error: RayError) -> str:
    """Return why a node did not answer."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("No module named 'autoprune'" in line for line in lines):
        return "has no autoprune; install it there or give --ship-package"
    return f"does not answer: {lines[-1] if lines else type(error).__name__}"
