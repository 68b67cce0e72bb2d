"""Device profiles to predictors for traced networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autoprune.errors import ProfileError
from autoprune.latency.fitting import Fit, Settings
from autoprune.latency.grid import GridCorrection, kernels_from_text
from autoprune.latency.kernels import FAMILIES, KernelTable, fuse
from autoprune.latency.learned import Hull, LearnedCorrection, Model, dimensions
from autoprune.latency.profile import (
    DeviceProfile,
    LearnedParameters,
    RooflineParameters,
    TableParameters,
)
from autoprune.latency.roofline import Correction, Predictor, Roofline, RooflinePredictor
from autoprune.latency.samples import EXACT, shapes_of
from autoprune.network.ops import OpTable

#: Families that a network may have without having been measured as single kernels: they take
#: little of its time. Others may have so much of its multiply-accumulates, as a classifier's head.
_MINOR = ("pool", "pointwise", "copy")
_MINOR_SHARE = 0.1


def predictor_for(ops: OpTable, profile: DeviceProfile) -> Predictor:
    """Return the predictor of ``profile`` for a traced network.

    Its ``notes`` say where the prediction goes beyond what was measured.

    Args:
        ops: The network's operators.
        profile: The device.

    Raises:
        ProfileError: The profile was fitted on single kernels, and the network computes with
            families of kernels it has not seen.
    """
    table = fuse(ops, profile.runtime)
    present = dict.fromkeys(kernel.family for kernel in table.kernels)
    unmeasured = [name for name in present if name not in profile.provenance.measured_families]
    _refuse(table, unmeasured, profile)
    every, scales = rooflines(profile), profile.predictor.scales or {}
    return RooflinePredictor(
        table,
        {family: every[family].scaled(scales.get(family, 1.0)) for family in present},
        bytes_per_element=profile.bytes_per_element,
        overlap=profile.predictor.overlap,
        constant_ms=profile.predictor.constant_ms,
        correction=correction_of(profile),
        notes=tuple(_notes(table, unmeasured, profile)),
    )


def rooflines(profile: DeviceProfile) -> dict[str, Roofline]:
    """Return a profile's parameters by kernel family."""
    limits = {family: profile.predictor.families.of(family) for family in FAMILIES}
    return {
        family: Roofline(
            overhead_ms=limit.overhead_ms,
            peak_gmacs_per_s=limit.peak_gmacs_per_s,
            bandwidth_gb_s=limit.bandwidth_gb_s,
            alignment=limit.alignment or profile.alignment,
            tile=limit.tile,
        )
        for family, limit in limits.items()
    }


def correction_of(profile: DeviceProfile) -> Correction | None:
    """Return what measured kernels add to a profile's rooflines, ``None`` for a bare roofline.

    Raises:
        ProfileError: A file that belongs to the profile is of another form.
    """
    match profile.predictor:
        case RooflineParameters():
            return None
        case LearnedParameters(models=models, processors=processors):
            return LearnedCorrection(
                {family: Model(m.content(), Hull(m.low, m.high)) for family, m in models.items()},
                processors,
            )
        case TableParameters(kernels=kernels):
            settings = Settings(
                alignment=profile.alignment,
                bytes_per_element=profile.bytes_per_element,
                overlap=profile.predictor.overlap,
            )
            try:
                samples = kernels_from_text(kernels.content())
            except ValueError as error:
                raise ProfileError(f"{kernels.file}: {error}; calibrate again") from None
            return GridCorrection(samples, Fit(rooflines(profile), {}, settings))


def _refuse(table: KernelTable, unmeasured: list[str], profile: DeviceProfile) -> None:
    """Raise where a profile of single kernels knows nothing of what the network mostly does."""
    unknown = [family for family in unmeasured if family not in _MINOR]
    if profile.provenance.samples != "kernels" or not unknown:
        return
    macs, _ = shapes_of(table).work(EXACT, 1)
    theirs = sum(
        count for kernel, count in zip(table.kernels, macs, strict=True) if kernel.family in unknown
    )
    if theirs > _MINOR_SHARE * macs.sum():
        examples = {k.family: k.path or k.name for k in table.kernels if k.family in unknown}
        shown = ", ".join(f"{family} ({examples[family]})" for family in unknown)
        raise ProfileError(
            f"profile {profile.name!r} was fitted on "
            f"{', '.join(profile.provenance.measured_families)} kernels alone; the network also "
            f"computes {shown}. Choose a device that was measured with them (`autoprune devices`), "
            "or add rows of them and calibrate again"
        )


def _notes(table: KernelTable, unmeasured: list[str], profile: DeviceProfile) -> Iterator[str]:
    provenance = profile.provenance
    if provenance.samples == "networks" and table.batch != profile.batch:
        yield (
            f"profile {profile.name!r} was measured at batch {profile.batch}; "
            f"batch {table.batch} is extrapolated and its error is unknown"
        )
    if provenance.samples == "kernels":
        yield (
            f"profile {profile.name!r} was fitted on single kernels; its error is that of one "
            "kernel, and what a network takes beyond its kernels is not in it"
        )
    if unmeasured:
        yield (
            f"nothing measured for profile {profile.name!r} has {', '.join(unmeasured)} "
            f"kernels; their time is assumed from the other families"
        )
    if isinstance(profile.predictor, LearnedParameters):
        yield from _outside(table, profile.predictor, profile.name)


def _outside(table: KernelTable, parameters: LearnedParameters, name: str) -> Iterator[str]:
    """Yield that kernels of the unpruned network lie outside the hull of what was measured."""
    shapes = shapes_of(table)
    outside = 0
    hulls: Mapping[str, Hull] = {f: Hull(m.low, m.high) for f, m in parameters.models.items()}
    for index, family in enumerate(FAMILIES):
        mine = shapes.take(shapes.family == index)
        if family in hulls and len(mine):
            outside += int((~hulls[family].contains(dimensions(mine))).sum())
    if outside:
        yield (
            f"{outside} of {len(shapes)} kernels lie outside what was measured for profile "
            f"{name!r}; the bare roofline predicts them"
        )
