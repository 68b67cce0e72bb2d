"""A pruned network as a folder: ``network.safetensors`` and ``plan.json``.

The folder holds no code and no pickle. Loading builds the original architecture, cuts its tensors
as the folder says, and fills in the weights; nothing is traced. What the folder says is checked
first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
import torch
from torch import Tensor, nn

from autoprune.errors import ExportError, PruningError
from autoprune.export.inputs import InputsSpec, Record
from autoprune.export.reference import built, moved, portable
from autoprune.export.weights import fill, read_weights, write_weights
from autoprune.files import atomic_path, write_atomically
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import Inputs, call_model
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.recipe import Cut, Recipe
from autoprune.version import __version__

#: What ``plan.json`` calls itself.
FORMAT = "autoprune-network"
#: Version of the folder; a reader refuses any other.
VERSION = 2
WEIGHTS_FILE = "network.safetensors"
PLAN_FILE = "plan.json"

_Fraction = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
_NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(ge=0)]
_Number = Annotated[int, pydantic.Field(ge=-(2**62), le=2**62)]
_Width = tuple[_Number, _Number] | None


class PackageMetrics(Record):
    """What was known about the network when it was saved.

    Attributes:
        accuracy: Fraction right on the search split.
        test_accuracy: Fraction right on the test split, where it was computed.
        loss: Mean cross-entropy on the search split.
        latency_ms: Predicted latency of one batch.
        latency_error: The profile's relative held-out error as a fraction.
        profile: Name of the device profile.
        macs: Multiply-accumulates of one batch.
        params: Parameter elements.
    """

    accuracy: _Fraction | None
    loss: _NonNegative | None
    latency_ms: _NonNegative
    latency_error: _NonNegative
    profile: str
    macs: _Count
    params: _Count
    test_accuracy: _Fraction | None = None


class CutRecord(Record):
    """What stays of the same dimension of some tensors.

    Attributes:
        size: Extent before the cut.
        kept: Sorted positions that stay.
        places: Name and dimension of every parameter or buffer that is cut so.
    """

    size: Annotated[int, pydantic.Field(ge=1)]
    kept: tuple[_Count, ...] = pydantic.Field(min_length=1)
    places: tuple[tuple[str, _Count], ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _sorted(self) -> CutRecord:
        if list(self.kept) != sorted(set(self.kept)) or self.kept[-1] >= self.size:
            raise ValueError("kept positions are sorted, distinct and below size")
        return self


class RecipeRecord(Record):
    """:class:`~autoprune.pruning.recipe.Recipe` in the file.

    Attributes:
        cuts: What stays of every tensor that is cut.
        dropped: Modules that are replaced by the identity.
        attributes: New values of whole-number attributes, by dotted path.
        guards: By module path, name and numbers (dense and new, or null) of reshaping calls.
    """

    cuts: tuple[CutRecord, ...]
    dropped: tuple[Annotated[str, pydantic.Field(min_length=1)], ...]
    attributes: dict[str, _Number]
    guards: dict[str, tuple[tuple[str, tuple[_Width, ...]], ...]]

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeRecord:
        """Return the record of ``recipe``."""
        cuts = tuple(CutRecord(size=c.size, kept=c.kept, places=c.places) for c in recipe.cuts)
        return cls(
            cuts=cuts,
            dropped=recipe.dropped,
            attributes=recipe.attributes,
            guards=recipe.guards,
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        cuts = tuple(Cut(cut.size, cut.kept, cut.places) for cut in self.cuts)
        return Recipe(cuts, self.dropped, dict(self.attributes), dict(self.guards))


class PackagePlan(Record):
    """The content of ``plan.json``.

    Attributes:
        format: Always :data:`FORMAT`.
        version: Always :data:`VERSION`.
        source: Where the architecture comes from, ``"torchvision:resnet50"``; ``None`` where the
            network was given as an object.
        inputs: Form of the example inputs the network was traced with.
        plan: The pruning plan as :meth:`autoprune.pruning.plan.PruningPlan.to_json` writes it: what
            was decided. Loading does not read it.
        recipe: The same in terms of tensors: what loading does.
        metrics: What was known about the network.
        versions: Versions of autoprune and torch that wrote the folder.
        sha256: Hash of ``network.safetensors``.
    """

    format: Literal["autoprune-network"]
    version: Literal[2]
    source: str | None
    inputs: InputsSpec
    plan: dict[str, pydantic.JsonValue]
    recipe: RecipeRecord
    metrics: PackageMetrics
    versions: dict[str, str]
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")

    @pydantic.field_validator("plan")
    @classmethod
    def _is_plan(cls, plan: dict[str, Any]) -> dict[str, Any]:
        try:
            PruningPlan.from_json(plan)
        except PruningError as error:
            raise ValueError(str(error)) from error
        return plan

    @property
    def pruning_plan(self) -> PruningPlan:
        """The plan as an object."""
        return PruningPlan.from_json(self.plan)

    def example_inputs(self) -> Inputs:
        """Return inputs of the recorded form, the same at every call."""
        return self.inputs.example()


def save_package(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module,
    network: Network,
    plan: PruningPlan,
    source: str | None,
    metrics: PackageMetrics,
) -> Path:
    """Write a pruned network and return its folder.

    The weights go first and ``plan.json``, with their hash, last: a folder that was half written
    over another does not load instead of loading something else.

    Args:
        directory: The folder, made where it is missing.
        model: The pruned network.
        network: The traced network it was cut from.
        plan: How it was cut.
        source: Where that architecture comes from, ``None`` where it was given as an object.
        metrics: What is known about the network.

    Raises:
        ExportError: The network's state or the example inputs cannot be written.
        PruningError: The plan does not fit ``network``.
    """
    folder = Path(directory)
    inputs, recipe = InputsSpec.of(network.inputs), RecipeRecord.of(Recipe.of(network, plan))
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        write_weights(model, temporary, {"format": FORMAT, "version": VERSION})
        digest = _sha256(temporary)
    record = PackagePlan(
        format="autoprune-network",
        version=2,
        source=None if source is None else portable(source, folder),
        inputs=inputs,
        plan=plan.to_json(),
        recipe=recipe,
        metrics=metrics,
        versions={
            "autoprune": __version__,
            "torch": str(torch.__version__),
        },
        sha256=digest,
    )
    write_atomically(folder / PLAN_FILE, record.model_dump_json() + "\n")
    return folder


def load(
    directory: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    trust_source: bool = False,
) -> nn.Module:
    """Return the pruned network of a folder, on the CPU and in eval mode.

    Args:
        directory: A folder that :func:`save_package` wrote.
        model: The original, unpruned architecture, or a function without arguments that builds
            it; it is left as it is, and its weights do not matter. By default the recorded source
            is built.
        trust_source: Run the recorded source even where it is Python code outside autoprune,
            torchvision and timm.

    Raises:
        ExportError: A file is missing, damaged or of another version, the source is not trusted,
            or the architecture does not fit.
    """
    record = read_package(directory)
    architecture = _architecture(record, Path(directory), model, trust_source)
    tensors = read_weights(Path(directory) / WEIGHTS_FILE)
    try:
        pruned = _rebuilt(architecture, record, tensors)
    except (ExportError, PruningError) as error:
        # What a model makes in its first pass is missing from one that never ran.
        try:
            pruned = _rebuilt(_run_once(architecture, record), record, tensors)
        except Exception:  # noqa: BLE001 - whatever the model raises; the first reason counts
            raise ExportError(
                f"the network in {directory} does not fit {type(architecture).__name__}: {error}; "
                "pass the architecture it was made from as model="
            ) from error
    # Models that keep something computed from their weights in eval mode drop it in train mode.
    return pruned.train().eval()


def copy_package(directory: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a copy of a package into another folder, which exists.

    Raises:
        ExportError: A file is missing, damaged or of another version.
    """
    old, new = Path(directory), Path(target)
    record = read_package(old)
    if record.source is not None:
        record = record.model_copy(update={"source": moved(record.source, old, new)})
    write_atomically(new / WEIGHTS_FILE, (old / WEIGHTS_FILE).read_bytes())
    write_atomically(new / PLAN_FILE, record.model_dump_json() + "\n")


def read_package(directory: str | os.PathLike[str]) -> PackagePlan:
    """Return the checked content of a folder's ``plan.json``; the weights' hash is checked too.

    Raises:
        ExportError: A file is missing, damaged or of another version; all faults are listed.
    """
    folder = Path(directory)
    missing = [name for name in (PLAN_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"{folder} lacks {' and '.join(missing)}; "
            "expected a folder that autoprune wrote, such as RUN/network"
        )
    record = _parsed(folder / PLAN_FILE)
    digest = _sha256(folder / WEIGHTS_FILE)
    if digest != record.sha256:
        raise ExportError(
            f"{folder / WEIGHTS_FILE} is not the file that was saved: its SHA-256 is {digest}, "
            f"{PLAN_FILE} says {record.sha256}; copy the folder again, or export the run again"
        )
    return record


def _parsed(path: Path) -> PackagePlan:
    content = path.read_bytes()
    try:
        raw = pydantic_core.from_json(content)
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}; export the run again") from error
    header = (raw.get("format"), raw.get("version")) if isinstance(raw, dict) else (None, None)
    if header != (FORMAT, VERSION):
        raise ExportError(
            f"{path} is of format {header[0]!r}, version {header[1]!r}; this autoprune reads "
            f"{FORMAT!r}, version {VERSION}: use the autoprune that wrote it, or export again"
        )
    try:
        return PackagePlan.model_validate_json(content)
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise ExportError(f"{path} is damaged: {faults}; export the run again") from error


def _architecture(
    record: PackagePlan,
    folder: Path,
    model: nn.Module | Callable[[], nn.Module] | None,
    trust_source: bool,
) -> nn.Module:
    """Return the unpruned architecture from ``model`` or from the recorded source."""
    if isinstance(model, nn.Module):
        return model
    if model is not None:
        made = model()
        if not isinstance(made, nn.Module):
            raise ExportError(
                f"model= must be a module or a function that returns one; it returned "
                f"{type(made).__name__}"
            )
        return made
    if record.source is None:
        raise ExportError(
            "this network was made from an object, so its architecture is not recorded; "
            "pass the original, unpruned network (or a function that builds it) as model="
        )
    return built(record.source, folder, trusted=trust_source)


def _rebuilt(
    architecture: nn.Module, record: PackagePlan, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return a cut copy of the architecture with the file's values."""
    pruned = record.recipe.recipe.apply(architecture)
    fill(pruned, tensors)
    return pruned


def _run_once(architecture: nn.Module, record: PackagePlan) -> nn.Module:
    """Return a copy that has run on the example inputs."""
    twin = deep_copy(architecture).eval()
    with torch.no_grad():
        call_model(twin, record.example_inputs())
    return twin


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
