"""Tables of published whole-network latencies, joined with the networks' layer lists."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autoprune.errors import ProfileError
from autoprune.latency.kernels import KernelTable, from_layers
from autoprune.latency.layers import read_json

_COLUMNS = ("device", "runtime", "precision", "batch", "latency_ms", "repo", "path")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a row was published.

    Attributes:
        repository: ``owner/name`` or an address.
        file: Path inside the repository.
        runtime: Runtime as the table names it.
        fusion: Fusion rules of its rows, see :data:`autoprune.latency.kernels.RUNTIMES`.
    """

    repository: str
    file: str
    runtime: str
    fusion: str


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One whole-network row of a table with its kernels.

    Attributes:
        network: Name in the table.
        origin: Where it was published; rows of one origin share their way of measuring.
        latency_ms: Milliseconds for the whole batch.
        kernels: What the runtime launches.
    """

    network: str
    origin: Origin
    latency_ms: float
    kernels: KernelTable


def family_of(network: str) -> str:
    """Return an architecture's name without folder, version and size.

    >>> family_of("Classification/MobileNetV3-small"), family_of("vgg16_bn")
    ('mobilenet', 'vgg')
    """
    name = network.rsplit("/", 1)[-1].lower()
    found = re.match(r"[a-z]+?(?=_?v?\d|[^a-z]|$)", name)
    return found.group() if found else name


@dataclasses.dataclass(frozen=True)
class Names:
    """What a table leaves out.

    Attributes:
        networks: Table name to layer-list name, where they differ.
        commits: Repository to the commit that was read.
        licences: Repository to the SPDX name of its licence.
    """

    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which rows of a table describe one device.

    Attributes:
        devices: Names of the device in the table.
        runtimes: Names of the runtime in the table, each with the fusion rules of its rows.
        precision: Precision in the table.
        batch: Images per forward pass.
    """

    devices: tuple[str, ...]
    runtimes: Mapping[str, str]
    precision: str
    batch: int = 1


def read_names(path: str | Path) -> Names:
    """Return the names and sources a JSON file adds to a table.

    The file holds ``{"networks": {table name: layer-list name}, "sources": {repository: {"commit":
    ..., "licence": ...}}}``.

    Raises:
        ProfileError: The file is unreadable or of another form.
    """
    content = read_json(path)
    networks, sources = content.get("networks", {}), content.get("sources", {})
    unknown = sorted(set(content) - {"networks", "sources"})
    if unknown or not (_is_text_map(networks) and _is_source_map(sources)):
        raise ProfileError(
            f'{path}: expected {{"networks": {{table name: layer-list name}}, "sources": '
            f'{{repository: {{"commit": text, "licence": text}}}}}}, got keys {sorted(content)}'
        )
    return Names(
        networks,
        {repository: source["commit"] for repository, source in sources.items()},
        {repository: source["licence"] for repository, source in sources.items()},
    )


def read_tables(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the rows of CSV tables, with the network's name in the column ``model``.

    Raises:
        ProfileError: A table is unreadable, lacks columns or has a latency that is no positive
            number; every fault is listed.
    """
    faults: list[str] = []
    frames: list[pd.DataFrame] = []
    for path in paths:
        try:
            frame = pd.read_csv(path)
        except (OSError, ValueError) as error:
            faults.append(f"{path}: {error}")
            continue
        if "network" in frame.columns and "model" not in frame.columns:
            frame = frame.rename(columns={"network": "model"})
        missing = [column for column in (*_COLUMNS, "model") if column not in frame.columns]
        if missing:
            faults.append(f"{path}: no column {', '.join(missing)}")
            continue
        latency = pd.to_numeric(frame["latency_ms"], errors="coerce")
        bad = frame.index[~(latency > 0)].tolist()
        if bad:
            faults.append(f"{path}: latency_ms is no positive number in rows {bad[:5]}")
        frames.append(frame.assign(latency_ms=latency))
    if faults:
        listing = "\n  ".join(faults)
        raise ProfileError(f"tables cannot be used; correct them:\n  {listing}")
    return pd.concat(frames, ignore_index=True)


def runtimes_of(table: pd.DataFrame, runtime: str) -> tuple[str, ...]:
    """Return the table's names for ``runtime``: itself and itself with a version behind ``_``."""
    names = sorted(set(table["runtime"].astype(str)))
    return tuple(n for n in names if n == runtime or n.startswith(f"{runtime}_"))


def select(
    table: pd.DataFrame,
    layers: Mapping[str, Sequence[Sequence[Any]]],
    selection: Selection,
    *,
    names: Names,
) -> tuple[list[Measurement], dict[str, str]]:
    """Return the measurements of one device, and the rows that cannot be used with the reason.

    Args:
        table: Rows from :func:`read_tables`.
        layers: Layer lists by network.
        selection: Which rows.
        names: Names that differ between table and layer lists.

    Raises:
        ProfileError: No row matches the selection, or a layer list is malformed.
    """
    rows = table[
        table["device"].isin(selection.devices)
        & table["runtime"].isin(list(selection.runtimes))
        & (table["precision"] == selection.precision)
        & (table["batch"] == selection.batch)
    ]
    if rows.empty:
        raise ProfileError(
            f"no row of the tables matches {selection}; devices in the tables: "
            f"{', '.join(sorted(set(table['device'].astype(str))))}"
        )
    measurements: list[Measurement] = []
    left_out: dict[str, str] = {}
    fused: dict[tuple[str, str], KernelTable] = {}
    for row in rows.to_dict("records"):
        network = str(row["model"])
        known = names.networks.get(network, network)
        if known not in layers:
            left_out[network] = "no layer list"
            continue
        if (reason := _size_differs(row, layers[known])) is not None:
            left_out[network] = reason
            continue
        rules = selection.runtimes[str(row["runtime"])]
        if (known, rules) not in fused:
            fused[known, rules] = from_layers(
                layers[known], rules, network=known, batch=selection.batch
            )
        origin = Origin(str(row["repo"]), str(row["path"]), str(row["runtime"]), rules)
        kernels = fused[known, rules]
        measurements.append(Measurement(network, origin, float(row["latency_ms"]), kernels))
    return measurements, left_out


def _size_differs(row: Mapping[Any, Any], layers: Sequence[Sequence[Any]]) -> str | None:
    """Return why a layer list was made for another image size, ``None`` when it was not.

    Only a list that starts with a convolution shows its image size. Its first layer may see the
    image folded ``k`` by ``k`` into ``3 * k * k`` channels.
    """
    measured = row.get("img_size")
    if measured is None or pd.isna(measured) or not layers or layers[0][0] != "conv":
        return None
    size, channels, listed = int(measured), layers[0][1], layers[0][6]
    fold = size // listed
    if size == listed or (size == fold * listed and channels == 3 * fold**2):
        return None
    return f"measured at {size} pixels, its layer list is for {listed}"


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_source_map(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text_map(source) and set(source) == {"commit", "licence"} for source in value.values()
    )
