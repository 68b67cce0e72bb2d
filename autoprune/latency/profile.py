"""Device profiles: one YAML file per device, runtime and precision, with where it came from."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.files import write_atomically
from autoprune.latency.kernels import RUNTIMES
from autoprune.resources import data_folder

VERSION = 1

#: Bytes one tensor element occupies.
BYTES_PER_ELEMENT = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


#: The safe loader, compiled where PyYAML is: dozens of profiles are read to resolve an alias.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: A strong profile has at most this held-out error on at least so many samples; a moderate one the
#: other error on any number.
STRONG_MAPE, STRONG_KERNELS, STRONG_NETWORKS = 0.05, 200, 50
MODERATE_MAPE = 0.12


def _known_runtime(name: str) -> str:
    if name not in RUNTIMES:
        raise ValueError(f"no fusion rules for runtime {name!r}; known: {', '.join(RUNTIMES)}")
    return name


def _plain_file_name(name: str) -> str:
    if not name or Path(name).name != name or "\\" in name:
        raise ValueError(f"must be the name of a file beside the profile, got {name!r}")
    return name


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FamilyRoofline(_Section):
    """What limits one kernel family.

    Attributes:
        overhead_ms: Milliseconds of one kernel however small its work.
        peak_gmacs_per_s: Attainable 10^9 multiply-accumulates per second.
        bandwidth_gb_s: Attainable 10^9 bytes per second.
        alignment: Channels are padded to a multiple of this; ``None``: to the profile's.
        tile: Output channels are padded to a multiple of this; ``None``: like the others.
    """

    overhead_ms: Milliseconds
    peak_gmacs_per_s: PositiveFloat
    bandwidth_gb_s: PositiveFloat
    alignment: PositiveInt | None = None
    tile: PositiveInt | None = None


class Families(_Section):
    """One roofline per kernel family; see :data:`autoprune.latency.kernels.FAMILIES`."""

    conv: FamilyRoofline
    dwconv: FamilyRoofline
    gconv: FamilyRoofline
    linear: FamilyRoofline
    matmul: FamilyRoofline
    pool: FamilyRoofline
    pointwise: FamilyRoofline
    copied: FamilyRoofline = Field(alias="copy")

    def of(self, family: str) -> FamilyRoofline:
        """Return the parameters of a kernel family."""
        found: FamilyRoofline = getattr(self, "copied" if family == "copy" else family)
        return found


class Attachment(_Section):
    """A text file that lies beside the profile.

    Attributes:
        file: Its name, without folder.
        sha256: Of its bytes.
        text: What it holds; ``None`` until it is read. Not written into the profile's YAML.
    """

    file: Annotated[str, AfterValidator(_plain_file_name)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    text: Annotated[str | None, Field(repr=False)] = None

    @classmethod
    def of(cls, file: str, text: str) -> Attachment:
        """Return the attachment that holds ``text``."""
        return cls(file=file, sha256=_sha256(text), text=text)

    @model_validator(mode="after")
    def _untouched(self) -> Attachment:
        if self.text is not None and _sha256(self.text) != self.sha256:
            raise ValueError(
                f"{self.file} is not the file the profile was written with; calibrate again"
            )
        return self

    def content(self) -> str:
        """Return the text.

        Raises:
            ProfileError: It was not read.
        """
        if self.text is None:
            raise ProfileError(f"{self.file} was not read; load the profile with load_profile")
        return self.text


class _Limits(_Section):
    """What all kinds of predictors share.

    Attributes:
        overlap: ``"full"``: a kernel takes the longer of computing and moving data; ``"none"``: it
            takes both.
        constant_ms: Milliseconds of a network beyond its kernels.
        families: Parameters by kernel family.
        scales: Factors on the time of kernel families, found when the profile was recalibrated on
            networks of one run; ``None`` for none.
    """

    overlap: Literal["none", "full"]
    constant_ms: Milliseconds
    families: Families
    scales: dict[str, PositiveFloat] | None = None

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Files that belong to the parameters."""
        return ()


class RooflineParameters(_Limits):
    """Parameters of :class:`autoprune.latency.roofline.RooflinePredictor`.

    Attributes:
        kind: Selects the predictor.
    """

    kind: Literal["roofline"]


class LearnedModel(Attachment):
    """Trees that correct the roofline of one kernel family, in LightGBM's own text.

    Attributes:
        low: Least measured value of each dimension, see :data:`autoprune.latency.learned.HULL`.
        high: Greatest measured value.
    """

    low: dict[str, float]
    high: dict[str, float]


class LearnedParameters(_Limits):
    """Parameters of a roofline with :class:`autoprune.latency.learned.LearnedCorrection`.

    Attributes:
        kind: Selects the predictor.
        features: Version of what the trees see of a kernel.
        processors: Multiprocessors of the device, which the trees know.
        models: Trees by kernel family.
    """

    kind: Literal["learned"]
    features: Literal[1] = 1
    processors: PositiveInt = 1
    models: dict[str, LearnedModel]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Files that belong to the parameters."""
        return tuple(self.models.values())


class TableParameters(_Limits):
    """Parameters of a roofline with :class:`autoprune.latency.grid.GridCorrection`.

    Attributes:
        kind: Selects the predictor.
        kernels: The measured kernels, CSV.
    """

    kind: Literal["table"]
    kernels: Attachment

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Files that belong to the parameters."""
        return (self.kernels,)


PredictorParameters = Annotated[
    RooflineParameters | LearnedParameters | TableParameters, Field(discriminator="kind")
]


class Power(_Section):
    """What the device draws while it computes.

    Attributes:
        watts: Mean over the measured networks; times milliseconds it is millijoules.
        source: How and by whom it was measured.
    """

    watts: PositiveFloat
    source: Text


class Source(_Section):
    """Where measurements were published.

    Attributes:
        repository: ``owner/name`` or an address.
        commit: The commit that was read.
        licence: SPDX name of its licence.
        file: Path inside the repository.
        runtime: Runtime as the source names it.
        fusion: Fusion rules of its rows.
        measurements: Rows used.
        constant_ms: Fitted milliseconds per network of its way of measuring.
    """

    repository: Text
    commit: Text
    licence: Text
    file: Text
    runtime: Text
    fusion: Annotated[str, AfterValidator(_known_runtime)]
    measurements: PositiveInt
    constant_ms: Milliseconds


class HeldOut(_Section):
    """Error on networks the parameters were not fitted on; fractions, not percent.

    Attributes:
        mape: Mean absolute percentage error.
        within_5: Share of networks predicted within 5 %.
        within_10: Share within 10 %.
        within_20: Share within 20 %.
        spearman: Rank correlation of predicted and measured latency.
    """

    mape: Annotated[float, Field(gt=0)]
    within_5: Share
    within_10: Share
    within_20: Share
    spearman: Annotated[float, Field(ge=-1, le=1)]


class Prediction(_Section):
    """One held-out network.

    Attributes:
        network: Name in the table.
        source: Repository it was measured by.
        measured_ms: What the table says.
        predicted_ms: What parameters fitted without it say.
    """

    network: Text
    source: Text
    measured_ms: PositiveFloat
    predicted_ms: PositiveFloat


class Provenance(_Section):
    """Where a profile's numbers came from; a profile without it cannot exist.

    Attributes:
        sources: Published tables.
        date: Day of the fit.
        samples: What was measured and held out: networks, or single kernels.
        sample_count: Different networks (after fusion) it was fitted on, or rows of kernels.
        kernel_count: Rows of kernels it was fitted on, beside networks too.
        split: How the held-out error was found.
        held_out: That error.
        roofline_held_out: The error of the bare roofline on the same split, for other kinds.
        macs_held_out: The error of multiply-accumulates alone on the same split.
        unseen_family: The error when all networks of one family (all ResNets, ...) are held out
            together; ``None`` with a single family.
        measured_families: Kernel families that occur in the measured networks; the parameters of
            the others are the average ones.
        predictions: The held-out predictions.
        left_out: Table rows that were not used, with the reason.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    date: datetime.date
    samples: Literal["networks", "kernels"] = "networks"
    sample_count: PositiveInt
    kernel_count: Annotated[int, Field(ge=0)] = 0
    split: Text
    held_out: HeldOut
    roofline_held_out: HeldOut | None = None
    macs_held_out: HeldOut | None = None
    unseen_family: HeldOut | None = None
    measured_families: tuple[str, ...]
    predictions: tuple[Prediction, ...] = ()
    left_out: dict[str, str] = {}


class Setup(_Section):
    """How a machine was measured, enough to measure it again.

    Attributes:
        machine: What the machine calls itself, its processor or board.
        backend: Name of the measuring runtime, as ``autoprune profile --runtime`` takes it.
        threads: Threads within an operator.
        clock: ``wall``, or ``cpu`` for the time that the thread ran.
    """

    machine: Text
    backend: Text
    threads: PositiveInt
    clock: Literal["wall", "cpu"]


class DeviceProfile(_Section):
    """Everything a latency prediction for one device, runtime and precision needs.

    Attributes:
        version: Version of the file format.
        name: The profile's name, also its file's.
        aliases: Other names it answers to.
        device: The device in words.
        runtime: Key of :data:`autoprune.latency.kernels.RUNTIMES`, decides the fusion rules.
        runtime_version: Version in the measurements, in words.
        precision: Key of :data:`BYTES_PER_ELEMENT`.
        batch: Images per forward pass in the measurements.
        alignment: Channels are padded to a multiple of this.
        capabilities: What else the device can do.
        predictor: Kind and parameters of the predictor.
        provenance: Where they came from.
        power: What it draws, where that was measured.
        setup: How it was measured, where ``autoprune profile`` did so.
    """

    version: Literal[1]
    name: Text
    aliases: tuple[Text, ...] = ()
    device: Text
    runtime: Annotated[str, AfterValidator(_known_runtime)]
    runtime_version: Text
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
    batch: PositiveInt
    alignment: PositiveInt
    capabilities: tuple[Literal["tensor_cores", "int8", "sparsity_2_4"], ...] = ()
    predictor: PredictorParameters
    provenance: Provenance
    power: Power | None = None
    setup: Setup | None = None

    @property
    def bytes_per_element(self) -> int:
        """Bytes of one tensor element."""
        return BYTES_PER_ELEMENT[self.precision]

    @property
    def quality(self) -> Literal["strong", "moderate", "coarse"]:
        """How far the numbers may be trusted, by the rule in ``docs/formats.md``."""
        provenance, mape = self.provenance, self.provenance.held_out.mape
        enough = STRONG_KERNELS if provenance.samples == "kernels" else STRONG_NETWORKS
        if mape <= STRONG_MAPE and provenance.sample_count >= enough:
            return "strong"
        return "moderate" if mape <= MODERATE_MAPE else "coarse"

    @property
    def error_text(self) -> str:
        """The held-out error as it is shown beside every prediction: ``±12 %``."""
        return f"±{100 * self.provenance.held_out.mape:.0f} %"

    def latency_text(self, latency_ms: float) -> str:
        """Return a prediction with three digits and its error: ``9.41 ms (±12 %)``."""
        decimals = max(0, 2 - math.floor(math.log10(latency_ms))) if latency_ms > 0 else 0
        return f"{latency_ms:.{decimals}f} ms ({self.error_text})"


def profile_names() -> list[str]:
    """Return the names of all shipped profiles, sorted; aliases are left out."""
    return sorted(_shipped())


def load_profile(name_or_path: str | os.PathLike[str]) -> DeviceProfile:
    """Return a device profile.

    Args:
        name_or_path: A shipped profile's name or alias, or the path of a file that ends in
            ``.yaml`` or ``.yml``.

    Raises:
        UnknownNameError: No shipped profile has this name; the message offers the nearest.
        ProfileError: The file is unreadable or incomplete; every fault is listed.
    """
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")):
        return _read(Path(text))
    shipped = _shipped()
    if text in shipped:
        return _read(shipped[text])
    profiles = [_read(path) for path in shipped.values()]
    aliases = {alias: profile for profile in profiles for alias in profile.aliases}
    if text in aliases:
        return aliases[text]
    raise UnknownNameError("device profile", text, [*shipped, *aliases])


def checked_profile(content: Mapping[str, Any], place: str) -> DeviceProfile:
    """Return the profile that plain data describe.

    Args:
        content: The fields.
        place: Where they come from, for the message.

    Raises:
        ProfileError: Fields are missing, unknown or out of range; every fault is listed.
    """
    try:
        return DeviceProfile.model_validate(content)
    except ValidationError as error:
        raise ProfileError(_faults(place, error)) from None


def save_profile(
    profile: DeviceProfile, path: str | os.PathLike[str], *, comment: str = ""
) -> None:
    """Write a profile as YAML, and the files that belong to it beside it.

    Args:
        profile: The profile.
        path: The file; its folder must exist.
        comment: Text for the head of the file, such as the command that makes it.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    for attachment in profile.predictor.attachments:
        write_atomically(Path(path).parent / attachment.file, attachment.content())
    content = without_texts(profile.model_dump(mode="json", exclude_none=True, by_alias=True))
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    write_atomically(path, head + body)


def without_texts(content: dict[str, Any]) -> dict[str, Any]:
    """Return a dumped profile without the texts of its attachments, which can be large.

    >>> without_texts({"predictor": {"kernels": {"file": "a.csv", "text": "..."}}})
    {'predictor': {'kernels': {'file': 'a.csv'}}}
    """
    return {
        key: without_texts(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key != "text"
    }


def _shipped() -> dict[str, Path]:
    """Return the shipped profiles' files by name."""
    return {path.stem: path for path in sorted(data_folder("hardware_profiles").glob("*.yaml"))}


def _read(path: Path) -> DeviceProfile:
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise ProfileError(
            f"cannot read device profile {path}: {error.strerror}; give an existing file, or one "
            f"of the names {', '.join(profile_names())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"device profile {path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"device profile {path}: expected a mapping, got {content!r:.60}")
    return _with_texts(checked_profile(content, str(path)), path)


def _with_texts(profile: DeviceProfile, path: Path) -> DeviceProfile:
    """Return the profile with the files beside it read and compared with their hashes."""
    if not profile.predictor.attachments:
        return profile
    texts = {}
    for attachment in profile.predictor.attachments:
        place = path.parent / attachment.file
        try:
            texts[attachment.file] = place.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(
                f"device profile {path} needs {place}, which cannot be read ({error}); keep the "
                "files of a profile together"
            ) from None
    content = profile.model_dump(by_alias=True)
    predictor = content["predictor"]
    for part in (*predictor.get("models", {}).values(), predictor.get("kernels", {})):
        if part:
            part["text"] = texts[part["file"]]
    return checked_profile(content, str(path))


def _faults(place: str, error: ValidationError) -> str:
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
        for fault in error.errors(include_url=False)
    ]
    listing = "\n  ".join(faults)
    return (
        f"device profile {place} is refused; every profile states its sources, its number of "
        f"networks and its held-out error (`autoprune calibrate` writes them). Faults:\n  {listing}"
    )
