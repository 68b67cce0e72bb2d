"""A pruned network as a folder: ``network.safetensors`` and ``plan.json``.

The folder holds no code and no pickle. Loading builds the original architecture, cuts it as the
plan says, and fills in the weights; what the folder says is checked first, and nothing in it is
ever used as a path.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import pydantic_core
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from autoprune.errors import ExportError, ModelError, PruningError, TraceError, UnknownNameError
from autoprune.files import atomic_path, write_atomically
from autoprune.network.factory import parse_call
from autoprune.network.source import ModelSource
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import replay
from autoprune.version import __version__

#: What ``plan.json`` calls itself.
FORMAT = "autoprune-network"
#: Version of the folder; a reader refuses any other.
VERSION = 1
WEIGHTS_FILE = "network.safetensors"
PLAN_FILE = "plan.json"
#: The one key of the weights' own metadata; safetensors would write several in random order.
METADATA_KEY = "autoprune"

#: Number types an example input may have.
_Dtype = Literal[
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
]
#: An example input of more elements is taken for a damaged file.
_MAX_ELEMENTS = 2**30

_Fraction = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
_NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(ge=0)]


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class InputSpec(_Record):
    """Shape and number type of one example input.

    Attributes:
        shape: Its extents, batch first.
        dtype: Name of its number type as in torch: ``"float32"``.
    """

    shape: tuple[Annotated[int, pydantic.Field(ge=1)], ...]
    dtype: _Dtype

    @pydantic.field_validator("shape")
    @classmethod
    def _plausible(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > _MAX_ELEMENTS:
            raise ValueError(f"more than {_MAX_ELEMENTS} elements")
        return shape

    @classmethod
    def of(cls, tensor: Tensor) -> InputSpec:
        """Return the spec of ``tensor``."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls.model_validate({"shape": tuple(tensor.shape), "dtype": dtype})

    def example(self, generator: torch.Generator) -> Tensor:
        """Return a tensor of this shape: normal noise, or zeros where the type is not floating."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if not dtype.is_floating_point:
            return torch.zeros(self.shape, dtype=dtype)
        return torch.randn(self.shape, generator=generator).to(dtype)


class PackageMetrics(_Record):
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


class PackagePlan(_Record):
    """The content of ``plan.json``.

    Attributes:
        format: Always :data:`FORMAT`.
        version: Always :data:`VERSION`.
        source: Where the architecture comes from, ``"torchvision:resnet50"``; ``None`` where the
            network was given as an object.
        inputs: The example inputs the network was traced with.
        plan: The pruning plan as :meth:`autoprune.pruning.plan.PruningPlan.to_json` writes it.
        metrics: What was known about the network.
        versions: Versions of autoprune and torch that wrote the folder.
        sha256: Hash of ``network.safetensors``.
    """

    format: Literal["autoprune-network"]
    version: Literal[1]
    source: str | None
    inputs: tuple[InputSpec, ...] = pydantic.Field(min_length=1)
    plan: dict[str, pydantic.JsonValue]
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

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return inputs of the recorded shapes and types, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return tuple(spec.example(generator) for spec in self.inputs)


def save_package(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module,
    plan: PruningPlan,
    inputs: Sequence[Any],
    source: str | None,
    metrics: PackageMetrics,
) -> Path:
    """Write a pruned network and return its folder.

    The weights go first and ``plan.json``, with their hash, last: a folder that was half written
    over another does not load instead of loading something else.

    Args:
        directory: The folder, made where it is missing.
        model: The pruned network.
        plan: How it was cut.
        inputs: Example inputs of the original architecture, all tensors, as given to ``trace``.
        source: Where that architecture comes from, ``None`` where it was given as an object.
        metrics: What is known about the network.

    Raises:
        ExportError: The network's state or the inputs cannot be written.
    """
    odd = sorted({type(value).__name__ for value in inputs if not isinstance(value, Tensor)})
    if odd or not inputs:
        raise ExportError(
            f"a package records example inputs that are tensors, got {', '.join(odd) or 'none'}; "
            "wrap the network in a module whose forward takes tensors"
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        _write_weights(model, temporary)
        digest = _sha256(temporary)
    record = PackagePlan(
        format="autoprune-network",
        version=1,
        source=source,
        inputs=tuple(_input_spec(value) for value in inputs),
        plan=plan.to_json(),
        metrics=metrics,
        versions={
            "autoprune": __version__,
            "torch": str(torch.__version__),
        },
        sha256=digest,
    )
    write_atomically(folder / PLAN_FILE, record.model_dump_json(indent=2) + "\n")
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
            it; it is left as it is. By default the recorded source is built.
        trust_source: Run the recorded source even where it is Python code outside autoprune,
            torchvision and timm.

    Raises:
        ExportError: A file is missing, damaged or of another version, the source is not trusted,
            or the architecture does not fit.
    """
    record = read_package(directory)
    architecture = _architecture(record, model, trust_source)
    try:
        tensors = safetensors.torch.load_file(Path(directory) / WEIGHTS_FILE)
    except safetensors.SafetensorError as error:
        raise ExportError(f"{Path(directory) / WEIGHTS_FILE} is damaged: {error}") from error
    architecture = _with_dtypes(architecture, tensors)
    try:
        pruned = replay(architecture, record.example_inputs(), record.pruning_plan)
    except (PruningError, TraceError) as error:
        raise ExportError(
            f"the plan of {directory} does not fit {type(architecture).__name__}: {error}; "
            "pass the architecture it was made on as model="
        ) from error
    _fill(pruned, tensors, directory)
    return pruned.eval()


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
    model: nn.Module | Callable[[], nn.Module] | None,
    trust_source: bool,
) -> nn.Module:
    """Return the unpruned architecture from ``model`` or from the recorded source."""
    if isinstance(model, nn.Module):
        return model
    if model is not None:
        built = model()
        if not isinstance(built, nn.Module):
            raise ExportError(
                f"model= must be a module or a function that returns one; it returned "
                f"{type(built).__name__}"
            )
        return built
    if record.source is None:
        raise ExportError(
            "this network was made from an object, so its architecture is not recorded; "
            "pass the original, unpruned network (or a function that builds it) as model="
        )
    try:
        if not trust_source and not _trusted(record.source):
            raise ExportError(
                f"this network's architecture comes from {record.source!r}, which would run Python "
                "code named by the file; build it yourself and pass it as model=, or pass "
                "trust_source=True if you trust that code"
            )
        return ModelSource.parse(record.source).build()
    except (ModelError, UnknownNameError) as error:
        raise ExportError(f"the architecture {record.source!r} cannot be built: {error}") from error


def _trusted(spec: str) -> bool:
    """Return whether a source runs no foreign code; unlike parsing it, this opens no file."""
    call = parse_call(spec, error=ModelError)
    return spec == "digits" or (call is not None and ModelSource(spec, call=call).trusted)


def _write_weights(model: nn.Module, path: Path) -> None:
    """Write the state of ``model``; of names that share one tensor only the first is written."""
    state = model.state_dict()
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ExportError(
            f"{type(model).__name__} keeps state that is no tensor: {', '.join(odd[:5])}; "
            "a package holds tensors only"
        )
    tied = _tied(state)
    # Cloned, because parts of one storage (views) must lie apart in the file.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if name not in tied
    }
    header = json.dumps({"format": FORMAT, "version": VERSION, "tied": tied})
    try:
        safetensors.torch.save_file(tensors, path, {METADATA_KEY: header})
    except (ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ExportError(f"safetensors cannot write {type(model).__name__}: {error}") from error


def _fill(model: nn.Module, tensors: dict[str, Tensor], directory: str | os.PathLike[str]) -> None:
    """Load the weights; every name must fit, and tied names must be tied in both."""
    tied = _tied(model.state_dict())
    split = [
        alias
        for alias, name in tied.items()
        if alias in tensors and not (name in tensors and torch.equal(tensors[alias], tensors[name]))
    ]
    complete = {alias: tensors[name] for alias, name in tied.items() if name in tensors} | tensors
    try:
        if split:
            raise RuntimeError(f"the architecture shares {', '.join(split)}, the file does not")
        model.load_state_dict(complete, strict=True)
    except RuntimeError as error:
        raise ExportError(
            f"the weights in {directory} do not fit {type(model).__name__}: {str(error)[:1000]}; "
            "pass the architecture the network was made from as model="
        ) from error


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return every name whose tensor is exactly that of an earlier name, and that name."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if not tensor.numel():
            continue  # empty tensors all lie at address 0
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        earlier = first.setdefault(place, name)
        if earlier != name:
            tied[name] = earlier
    return tied


def _with_dtypes(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return ``model``, or a copy of it in the number types of the file where those differ."""
    named = [*model.named_parameters(), *model.named_buffers()]
    wrong = [name for name, own in named if name in tensors and own.dtype != tensors[name].dtype]
    if not wrong:
        return model
    model = copy.deepcopy(model)
    floating = Counter(t.dtype for t in tensors.values() if t.is_floating_point())
    if floating:
        # What the plan drops is not in the file, but takes part in tracing: the usual type.
        model.to(floating.most_common(1)[0][0])
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors:
            own.data = own.data.to(tensors[name].dtype)
    return model


def _input_spec(tensor: Tensor) -> InputSpec:
    try:
        return InputSpec.of(tensor)
    except pydantic.ValidationError as error:
        raise ExportError(
            f"an example input of shape {tuple(tensor.shape)} and type {tensor.dtype} cannot be "
            f"recorded; known types: {', '.join(get_args(_Dtype))}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
