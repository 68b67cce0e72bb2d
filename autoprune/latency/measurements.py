"""Tables of measured latencies: whole networks and single kernels, CSV or Parquet.

Everything that is wrong with tables and layer lists is found before anything is fitted, and told at
once with file and line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from autoprune.errors import ProfileError
from autoprune.latency.fitting import Settings, fit, predict
from autoprune.latency.kernels import FAMILIES, KernelTable, from_layers, fusion_rules
from autoprune.latency.layers import chain_faults, read_json
from autoprune.latency.samples import (
    COLUMNS,
    EXACT,
    Measurement,
    Origin,
    Samples,
    Shapes,
    joined,
    network_samples,
)

#: Columns every table needs, and those of each sort.
_ALWAYS = ("device", "runtime", "precision", "batch", "latency_ms")
_PRODUCT = ("m", "n", "k")
_SLIDING = ("cin", "cout", "kernel", "stride", "groups", "h", "w")
#: Whole numbers a table may carry, with what an absent or empty cell means.
_DEFAULTS = {"groups": 1, "adds": 0, "stride": 1, "kernel": 1}

#: Operators of a kernel table, with their family.
OPS = {
    **dict.fromkeys(("conv", "dwconv", "gconv"), "conv"),
    **dict.fromkeys(("linear", "gemm", "fc"), "linear"),
    "matmul": "matmul",
    **dict.fromkeys(("maxpool", "avgpool", "globalpool"), "pool"),
    **dict.fromkeys(("eltwise", "add", "mul", "sub", "div"), "pointwise"),
    **dict.fromkeys(
        ("relu", "relu6", "leaky_relu", "prelu", "elu", "gelu", "silu", "swish", "hswish"),
        "pointwise",
    ),
    **dict.fromkeys(("hardswish", "hardsigmoid", "sigmoid", "tanh", "mish", "clamp"), "pointwise"),
    **dict.fromkeys(("bn", "layernorm", "groupnorm", "softmax"), "pointwise"),
    **dict.fromkeys(("copy", "cat", "slice"), "copy"),
}
_TWO_INPUTS = ("eltwise", "add", "mul", "sub", "div")

#: Rows of one sort with the same conditions may differ by this factor; more is a contradiction.
DISAGREEMENT = 1.5
#: Fewer cannot tell overhead, computing and moving data apart.
MINIMUM_NETWORKS = 8
MINIMUM_KERNELS = 30
#: Rows of one file that a message lists before it only counts.
_MOST_LISTED = 20

_Faults: TypeAlias = list[str]


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
    """Which rows of the tables describe one device.

    Attributes:
        devices: Names of the device in the tables.
        runtimes: Names of the runtime in the tables, each with the fusion rules of its rows.
        precision: Precision in the tables.
        batch: Images per forward pass of networks; kernels are used at every batch.
    """

    devices: tuple[str, ...]
    runtimes: Mapping[str, str]
    precision: str
    batch: int = 1


@dataclasses.dataclass(frozen=True)
class Tables:
    """Valid rows, with the columns ``file`` and ``line`` they came from.

    Attributes:
        kernels: One operator per row.
        networks: One network per row, named in the column ``network``.
        faults: What is wrong with other rows.
    """

    kernels: pd.DataFrame
    networks: pd.DataFrame
    faults: tuple[str, ...] = ()

    def runtimes(self) -> list[str]:
        """Return the runtimes that occur, sorted."""
        both = [f["runtime"].astype(str) for f in (self.kernels, self.networks) if len(f)]
        return sorted(set(pd.concat(both))) if both else []

    def checked(self) -> Tables:
        """Return the tables where nothing is wrong.

        Raises:
            ProfileError: Something is; every fault is listed.
        """
        if self.faults:
            raise _refusal(self.faults)
        return self


@dataclasses.dataclass(frozen=True)
class Selected:
    """The rows of one device.

    Attributes:
        samples: Networks first, then kernels.
        left_out: Networks that were not used, with the reason.
    """

    samples: Samples
    left_out: Mapping[str, str]


def family_of(network: str) -> str:
    """Return an architecture's name without where it is from, version and size.

    >>> family_of("Classification/MobileNetV3-small"), family_of("torchvision:vgg16_bn")
    ('mobilenet', 'vgg')
    """
    name = re.split("[/:]", network)[-1].lower()
    found = re.match(r"[a-z]+?(?=_?v?\d|[^a-z]|$)", name)
    return found.group() if found else name


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


def read_tables(paths: Sequence[str | Path]) -> Tables:
    """Return the rows of CSV and Parquet tables; a table with a column ``op`` holds kernels.

    Nothing is raised here, so that faults of the selected rows can be told together with them.
    """
    faults: _Faults = []
    kernels: list[pd.DataFrame] = []
    networks: list[pd.DataFrame] = []
    for path in map(Path, paths):
        frame = _read(path, faults)
        if frame is None:
            continue
        is_kernels = "op" in frame.columns
        missing = _missing(frame, is_kernels)
        if missing:
            faults.append(f"{path}: no column {', '.join(missing)}")
            continue
        (kernels if is_kernels else networks).append(_valid(frame, is_kernels, faults))
    return Tables(_together(kernels), _together(networks), tuple(faults))


def select(
    tables: Tables,
    layers: Mapping[str, Sequence[Sequence[Any]]],
    selection: Selection,
    *,
    names: Names | None = None,
    faults: Sequence[str] = (),
) -> Selected:
    """Return the samples of one device.

    Args:
        tables: From :func:`read_tables`.
        layers: Layer lists by network.
        selection: Which rows.
        names: Names that differ between table and layer lists, and sources.
        faults: What else is known to be wrong, to be told together.

    Raises:
        ProfileError: No row matches the selection, or anything about the tables or the layer lists
            that matter is wrong; every fault is listed.
        UnknownNameError: A runtime has no fusion rules.
    """
    for rules in selection.runtimes.values():
        fusion_rules(rules)
    names = names or Names()
    found: _Faults = [*tables.faults, *faults]
    chosen = _chosen(tables.networks, selection, batch=selection.batch)
    kernels = _chosen(tables.kernels, selection, batch=None)
    if chosen.empty and kernels.empty:
        if not found:
            found.append(_nothing(tables, selection))
        raise _refusal(found)
    found.extend(_disagreements(chosen, ("network", "img_size", "repo", "path")))
    found.extend(_disagreements(kernels, (*_KERNEL_KEY, "repo", "path")))
    measured, lines, left_out = _networks(chosen, layers, selection, names, found)
    parts = []
    if measured:
        parts.append(network_samples(measured))
    if len(kernels):
        parts.append(kernel_samples(kernels, selection, names))
        lines += [_place(row) for row in kernels[["file", "line"]].itertuples(index=False)]
    distinct = len(set(parts[0].groups)) if measured else 0
    found.extend(_too_few(distinct, len(kernels)))
    if parts:
        together = joined(parts)
        found.extend(_beyond_physics(together, lines, selection.precision))
        if len(together) >= MINIMUM_NETWORKS:
            found.extend(_off_by_thousand(together, lines))
    if found:
        raise _refusal(found)
    return Selected(together, left_out)


def kernel_samples(
    frame: pd.DataFrame, selection: Selection, names: Names | None = None
) -> Samples:
    """Return the rows of a kernel table; those of one number of output channels are one group.

    Args:
        frame: Rows of :attr:`Tables.kernels`.
        selection: Gives the fusion rules of the rows' runtimes.
        names: Sources.
    """
    names = names or Names()
    shapes = kernel_shapes(frame)
    count = len(frame)
    said = [c for c in ("runtime", "repo", "path", "commit", "licence", "file") if c in frame]
    sources = frame[said].drop_duplicates()
    keys = [_origin(row, selection, names) for row in sources.to_dict("records")]
    origins = tuple(dict.fromkeys(keys))
    number = np.array([origins.index(key) for key in keys], np.intp)
    source = frame[said].merge(sources.assign(number=number), "left", said)["number"]
    labels = zip(frame["op"], shapes["cin"], shapes["cout"], strict=True)
    return Samples(
        shapes,
        np.arange(count),
        frame["latency_ms"].to_numpy(float),
        source.to_numpy(np.intp),
        origins,
        np.zeros(count, bool),
        tuple(f"{op} {cin:.0f}x{cout:.0f}" for op, cin, cout in labels),
        tuple(int(channels) for channels in shapes["cout"] / _heads(shapes)),
    )


def kernel_shapes(frame: pd.DataFrame) -> Shapes:
    """Return the kernels of valid rows; what they read and write as a runtime's kernels do."""
    family = frame["op"].map(OPS)
    product = family.isin(["linear", "matmul"]) & frame["m"].notna()
    batch, groups = frame["batch"].to_numpy(float), frame["groups"].to_numpy(float)
    m, n, k = (frame[name].to_numpy(float) for name in _PRODUCT)
    heads = np.where(family == "matmul", groups, 1.0)
    cin = np.where(product, k * heads, frame["cin"].to_numpy(float))
    cout = np.where(product, n * heads, frame["cout"].to_numpy(float))
    h, w = (np.where(product, x, frame[s].to_numpy(float)) for s, x in (("h", m), ("w", 1.0)))
    kernel, stride = (_pairs(frame[name]) for name in ("kernel", "stride"))
    kernel[frame["op"] == "globalpool"] = np.column_stack([h, w])[frame["op"] == "globalpool"]
    out = [np.ceil(size / step) for size, step in zip((h, w), stride.T, strict=True)]
    whole = frame["op"] == "globalpool"
    ho, wo = (np.where(whole, 1.0, size) for size in out)
    taps = np.where(family.isin(["conv", "pool"]), kernel.prod(axis=1), 1.0)
    inputs, outputs = h * w, ho * wo
    is_conv, is_linear = (family == "conv").to_numpy(), (family == "linear").to_numpy()
    is_matmul = (family == "matmul").to_numpy()
    macs = np.where(is_conv | is_linear | is_matmul, batch * taps * outputs, 0.0)
    weights = np.where(is_conv | is_linear, taps, np.where(is_matmul, batch, 0.0))
    tensors = np.where(frame["op"].isin(_TWO_INPUTS), 2.0, 1.0)
    reads = batch * np.minimum(inputs, outputs * taps) * tensors
    writes = batch * outputs * (1.0 + frame["adds"].to_numpy(float))
    merged = ~(is_conv | is_matmul | (family == "pool").to_numpy())
    values = {
        "cin": cin,
        "cout": cout,
        "groups": np.where(is_conv | is_matmul, groups, 1.0),
        "macs": macs,
        "weights": weights,
        "reads": reads,
        "writes": writes,
        "taps": taps,
        "stride": np.where(is_conv | (family == "pool"), stride.prod(axis=1), 1.0),
        "inputs": np.where(merged, batch * inputs, inputs),
        "outputs": np.where(merged, batch * outputs, outputs),
        "batch": np.where(merged, 1.0, batch),
    }
    named = family.to_numpy(dtype=object)
    named[is_conv & (groups > 1)] = "gconv"
    named[is_conv & (groups > 1) & (groups == cin)] = "dwconv"
    index = np.array([FAMILIES.index(name) for name in named], np.intp)
    return Shapes(index, np.column_stack([values[name] for name in COLUMNS]))


_KERNEL_KEY = ("op", "batch", *_SLIDING, *_PRODUCT, "adds")


def _heads(shapes: Shapes) -> Float[np.ndarray, " kernels"]:
    return np.where(shapes.family == FAMILIES.index("matmul"), shapes["groups"], 1.0)


# --- reading -------------------------------------------------------------------------------------


def _read(path: Path, faults: _Faults) -> pd.DataFrame | None:
    """Return a table with the columns ``file`` and ``line``, ``None`` where it is unreadable."""
    try:
        is_parquet = path.suffix.lower() in (".parquet", ".pq")
        frame = pd.read_parquet(path) if is_parquet else pd.read_csv(path)
    except (OSError, ValueError) as error:
        faults.append(f"{path}: {str(error).splitlines()[0]}")
        return None
    if "network" not in frame.columns and "model" in frame.columns:
        frame = frame.rename(columns={"model": "network"})
    # The head of a CSV file is its first line; a Parquet file has rows alone.
    first = 0 if is_parquet else 2
    return frame.reset_index(drop=True).assign(
        file=str(path), line=np.arange(first, first + len(frame))
    )


def _missing(frame: pd.DataFrame, is_kernels: bool) -> list[str]:
    missing = [column for column in _ALWAYS if column not in frame.columns]
    if not is_kernels:
        return missing + ([] if "network" in frame.columns else ["network"])
    if not {"m", "n", "k"} <= set(frame.columns):
        needed = ("cin", "cout", "h", "w")
        missing += [column for column in needed if column not in frame.columns]
    return missing


def _valid(frame: pd.DataFrame, is_kernels: bool, faults: _Faults) -> pd.DataFrame:
    """Return the rows without a fault, numbers as numbers; tell the others."""
    given = frame["latency_ms"]
    frame = frame.assign(latency_ms=pd.to_numeric(given, errors="coerce"))
    wrong = pd.Series(False, index=frame.index)

    def tell(bad: pd.Series, reason: Callable[[Any], str]) -> None:
        nonlocal wrong
        faults.extend(_told(frame[bad & ~wrong], reason))
        wrong |= bad

    latency = frame["latency_ms"]
    tell(
        ~(latency > 0) | ~np.isfinite(latency),
        lambda row: f"latency_ms must be a positive number, got {given[row.Index]}",
    )
    counts = ["batch"]
    if is_kernels:
        frame = _with_columns(frame)
        tell(
            ~frame["op"].isin(list(OPS)),
            lambda row: f"unknown op {row.op!r}; known: {', '.join(OPS)}",
        )
        counts += ["groups"]
    for name in counts:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        tell(~_are_counts(numbers), _reason(name, "a positive whole number"))
        frame = frame.assign(**{name: numbers})
    if is_kernels:
        for bad, reason in _dimension_faults(frame):
            tell(bad, reason)
        numeric = [*_PRODUCT, "cin", "cout", "h", "w", "adds"]
        frame = frame.assign(
            **{name: pd.to_numeric(frame[name], errors="coerce") for name in numeric}
        )
    return frame[~wrong]


def _with_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a kernel table with every column that may be left out."""
    absent = [c for c in (*_SLIDING, *_PRODUCT, "adds") if c not in frame.columns]
    frame = frame.assign(**dict.fromkeys(absent, np.nan))
    for name, value in _DEFAULTS.items():
        if frame[name].isna().any():
            frame = frame.assign(**{name: frame[name].where(frame[name].notna(), value)})
    depthwise = (frame["op"] == "dwconv") & (pd.to_numeric(frame["groups"], "coerce") == 1)
    return frame.assign(groups=frame["groups"].where(~depthwise, frame["cin"]))


def _dimension_faults(
    frame: pd.DataFrame,
) -> Iterator[tuple[pd.Series, Callable[[Any], str]]]:
    """Yield which rows lack dimensions of their operator, or state impossible ones."""
    family = frame["op"].map(OPS)
    product = family.isin(["linear", "matmul"]) & frame["m"].notna()
    for name in _PRODUCT:
        yield (
            product & ~_are_counts(pd.to_numeric(frame[name], "coerce")),
            _reason(name, "a positive whole number"),
        )
    for name in ("cin", "cout", "h", "w"):
        yield (
            ~product & ~_are_counts(pd.to_numeric(frame[name], "coerce")),
            _reason(name, "a positive whole number"),
        )
    for name in ("kernel", "stride"):
        bad = ~frame[name].astype(str).str.fullmatch(r"0*[1-9]\d*(\.0)?(x0*[1-9]\d*)?")
        yield bad, _reason(name, "a whole number or HEIGHTxWIDTH")
    groups = pd.to_numeric(frame["groups"], "coerce")
    cin, cout = (pd.to_numeric(frame[name], "coerce") for name in ("cin", "cout"))
    uneven = (family == "conv") & ((cin % groups != 0) | (cout % groups != 0))
    yield (
        uneven,
        lambda row: (
            f"{row.groups:.0f} groups divide neither {row.cin:.0f} nor {row.cout:.0f} channels "
            "evenly"
        ),
    )
    adds = pd.to_numeric(frame["adds"], "coerce")
    yield ~(adds >= 0), _reason("adds", "a number of tensors")


def _reason(name: str, expected: str) -> Callable[[Any], str]:
    return lambda row: f"{name} must be {expected}, got {getattr(row, name)}"


def _are_counts(numbers: pd.Series) -> pd.Series:
    return (numbers > 0) & (numbers % 1 == 0)


def _pairs(column: pd.Series) -> Float[np.ndarray, "rows 2"]:
    """Return height and width of cells like ``3`` and ``3x5``."""
    parts = column.astype(str).str.partition("x")
    height = parts[0].astype(float)
    width = height.where(parts[2] == "", pd.to_numeric(parts[2], errors="coerce"))
    return np.column_stack([height, width])


def _told(rows: pd.DataFrame, reason: Callable[[Any], str]) -> list[str]:
    """Return a line per faulty row; past a limit, how many more there are."""
    lines = [f"{_place(row)}: {reason(row)}" for row in rows.head(_MOST_LISTED).itertuples()]
    more = len(rows) - _MOST_LISTED
    if more > 0:
        lines.append(f"{rows['file'].iloc[0]}: and {more} more rows with the same fault")
    return lines


def _place(row: Any) -> str:
    word = "row" if str(row.file).lower().endswith((".parquet", ".pq")) else "line"
    return f"{row.file}, {word} {row.line}"


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


# --- choosing ------------------------------------------------------------------------------------


def _chosen(frame: pd.DataFrame, selection: Selection, *, batch: int | None) -> pd.DataFrame:
    if frame.empty:
        return frame
    rows = (
        frame["device"].isin(selection.devices)
        & frame["runtime"].isin(list(selection.runtimes))
        & (frame["precision"] == selection.precision)
    )
    if batch is not None:
        rows &= frame["batch"] == batch
    return frame[rows]


def _nothing(tables: Tables, selection: Selection) -> str:
    present = [f for f in (tables.kernels, tables.networks) if len(f)]
    devices = sorted({str(device) for f in present for device in f["device"]})
    return (
        f"no row of the tables matches {selection}; devices in the tables: {', '.join(devices)}; "
        f"runtimes: {', '.join(tables.runtimes())}"
    )


def _disagreements(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[str]:
    """Yield the rows that state another latency than an equal row above them."""
    if frame.empty:
        return
    present = ["device", "runtime", *(c for c in columns if c in frame.columns)]
    grouped = frame.groupby(present, dropna=False)
    number, latency = grouped.ngroup(), grouped["latency_ms"]
    low, high = latency.transform("min"), latency.transform("max")
    wrong = frame.assign(number=number, low=low, high=high)[high > DISAGREEMENT * low]
    for _, same in wrong.groupby("number"):
        places = "; ".join(_place(row) for row in same.head(_MOST_LISTED).itertuples())
        yield (
            f"{places}: {len(same)} equal rows disagree by more than a factor {DISAGREEMENT}: "
            f"{same['low'].iloc[0]:.4g} to {same['high'].iloc[0]:.4g} ms; keep the right one"
        )


def _networks(
    rows: pd.DataFrame,
    layers: Mapping[str, Sequence[Sequence[Any]]],
    selection: Selection,
    names: Names,
    faults: _Faults,
) -> tuple[list[Measurement], list[str], dict[str, str]]:
    """Return the usable networks with their places, and the others with the reason."""
    measured: list[Measurement] = []
    lines: list[str] = []
    left_out: dict[str, str] = {}
    fused: dict[tuple[str, str], KernelTable | None] = {}
    for row in rows.to_dict("records"):
        network = str(row["network"])
        known = names.networks.get(network, network)
        if known not in layers:
            left_out[network] = "no layer list"
            continue
        if (reason := _size_differs(row, layers[known])) is not None:
            left_out[network] = reason
            continue
        origin = _origin(row, selection, names)
        key = known, origin.fusion
        if key not in fused:
            fused[key] = _fused(known, layers[known], origin.fusion, selection.batch, faults)
        kernels = fused[key]
        if kernels is not None:
            measured.append(Measurement(network, origin, float(row["latency_ms"]), kernels))
            lines.append(_place(pd.Series(row)))
    return measured, lines, left_out


def _fused(
    network: str, rows: Sequence[Sequence[Any]], rules: str, batch: int, faults: _Faults
) -> KernelTable | None:
    try:
        table = from_layers(rows, rules, network=network, batch=batch)
    except ProfileError as error:
        faults.append(str(error))
        return None
    broken = chain_faults(rows)
    if broken:
        listing = "\n    ".join(broken)
        faults.append(f"the layer list of {network!r} does not chain:\n    {listing}")
        return None
    return table


def _origin(row: Mapping[Any, Any], selection: Selection, names: Names) -> Origin:
    """Return where a row is from; a table that does not say is its owner's own."""
    rules = selection.runtimes[str(row["runtime"])]
    repository = _text(row.get("repo"))
    if not repository:
        path = Path(str(row["file"]))
        return Origin(
            "own measurements", path.name, str(row["runtime"]), rules, _digest(path), "unpublished"
        )
    commit = names.commits.get(repository, _text(row.get("commit")))
    licence = names.licences.get(repository, _text(row.get("licence")))
    path_inside = _text(row.get("path")) or Path(str(row["file"])).name
    return Origin(repository, path_inside, str(row["runtime"]), rules, commit, licence)


_DIGESTS: dict[Path, str] = {}


def _digest(path: Path) -> str:
    """Return a fingerprint of a table in place of a commit."""
    if path not in _DIGESTS:
        _DIGESTS[path] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    return _DIGESTS[path]


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _size_differs(row: Mapping[Any, Any], layers: Sequence[Sequence[Any]]) -> str | None:
    """Return why a layer list was made for another image size, ``None`` when it was not.

    Only a list that starts with a convolution shows its image size. Its first layer may see the
    image folded ``k`` by ``k`` into ``3 * k * k`` channels.
    """
    measured = row.get("img_size")
    first = layers[0] if layers else ()
    if measured is None or pd.isna(measured) or len(first) < 10 or first[0] != "conv":
        return None
    size, channels, listed = int(measured), first[1], first[6]
    fold = size // listed
    if size == listed or (size == fold * listed and channels == 3 * fold**2):
        return None
    return f"measured at {size} pixels, its layer list is for {listed}"


# --- judging -------------------------------------------------------------------------------------


def _too_few(networks: int, kernels: int) -> Iterator[str]:
    if kernels == 0 and networks < MINIMUM_NETWORKS:
        yield (
            f"{networks} different networks with a layer list, at least {MINIMUM_NETWORKS} are "
            "needed; add tables or layer lists"
        )
    if 0 < kernels < MINIMUM_KERNELS and networks < MINIMUM_NETWORKS:
        yield (
            f"{kernels} rows of kernels, at least {MINIMUM_KERNELS} are needed (or "
            f"{MINIMUM_NETWORKS} networks, there are {networks}); measure more"
        )


#: No device computes (10^9 multiply-accumulates per second, by precision) or moves (10^9 bytes per
#: second, caches included) more; the slowest microcontroller computes more than the last number.
_MOST_GMACS = {"fp32": 2e5, "tf32": 1e6, "fp16": 3e6, "bf16": 3e6, "int8": 1e7, "fp8": 1e7}
_MOST_GB = 1e5
_LEAST_GMACS = 1e-4
#: Latencies off by a factor in this range are taken to be in another unit.
_LEAST_FACTOR, _MOST_FACTOR = 300.0, 3000.0


def _beyond_physics(samples: Samples, lines: Sequence[str], precision: str) -> Iterator[str]:
    """Yield rows faster than any device, or that all rows are slower than any."""
    macs, moved = samples.shapes.work(EXACT, 1)
    total_macs, total_moved = (
        np.bincount(samples.sample, part, len(samples)) * 1e-6 for part in (macs, moved)
    )
    gmacs, gbytes = total_macs / samples.latency_ms, total_moved / samples.latency_ms
    most = _MOST_GMACS.get(precision, max(_MOST_GMACS.values()))
    fast = (gmacs > most) | (gbytes > _MOST_GB)
    yield from _listed(
        fast,
        lines,
        lambda i: (
            f"{samples.latency_ms[i]:.4g} ms means {gmacs[i]:.3g} GMAC/s and {gbytes[i]:.3g} "
            f"GB/s, which no device reaches; is it in seconds? latency_ms is in milliseconds"
        ),
    )
    computing = total_macs > 1
    if computing.any() and float(gmacs[computing].max()) < _LEAST_GMACS:
        yield (
            f"all {len(samples)} rows: the fastest computes {gmacs.max():.3g} GMAC/s, less than "
            "any device; are they in microseconds? latency_ms is in milliseconds"
        )


def _off_by_thousand(samples: Samples, lines: Sequence[str]) -> Iterator[str]:
    """Yield rows whose latency is about 1000 times what the other rows suggest, or a 1000th."""
    fitted = fit(samples, Settings(alignment=1, bytes_per_element=1))
    ratio = samples.latency_ms / predict(samples, fitted)
    ratio /= np.median(ratio)
    yield from _in_another_unit(samples, ratio, "times", "microseconds", lines)
    yield from _in_another_unit(samples, 1 / ratio, "times less than", "seconds", lines)


def _in_another_unit(
    samples: Samples,
    off: Float[np.ndarray, " samples"],
    word: str,
    unit: str,
    lines: Sequence[str],
) -> Iterator[str]:
    suspect = (off > _LEAST_FACTOR) & (off < _MOST_FACTOR)
    yield from _listed(
        suspect,
        lines,
        lambda i: (
            f"{samples.latency_ms[i]:.4g} ms is {off[i]:.0f} {word} what the other rows suggest; "
            f"is it in {unit}? latency_ms is in milliseconds"
        ),
    )


def _listed(
    suspect: Bool[np.ndarray, " samples"], lines: Sequence[str], reason: Callable[[int], str]
) -> Iterator[str]:
    rows = np.flatnonzero(suspect).tolist()
    for i in rows[:_MOST_LISTED]:
        yield f"{lines[i]}: {reason(i)}"
    if len(rows) > _MOST_LISTED:
        yield f"and {len(rows) - _MOST_LISTED} more rows with the same fault"


def _refusal(faults: Iterable[str]) -> ProfileError:
    listing = "\n  ".join(faults)
    return ProfileError(f"cannot calibrate; correct this:\n  {listing}")


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_source_map(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text_map(source) and set(source) == {"commit", "licence"} for source in value.values()
    )
