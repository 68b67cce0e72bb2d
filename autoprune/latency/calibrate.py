"""Measured samples to a device profile with its held-out error."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.fitting import Settings
from autoprune.latency.grid import GridCorrection, kernels_to_text
from autoprune.latency.heldout import (
    FOLDS,
    KINDS,
    MOST_SINGLE,
    Corrected,
    choose_kind,
    fit_kind,
    flops_only,
    held_out,
    held_out_error,
    held_out_with,
    kinds_for,
    nested,
    short,
)
from autoprune.latency.learned import LearnedCorrection, Model
from autoprune.latency.measurements import Selected, family_of
from autoprune.latency.profile import (
    BYTES_PER_ELEMENT,
    VERSION,
    Attachment,
    DeviceProfile,
    HeldOut,
    LearnedModel,
    checked_profile,
)
from autoprune.latency.samples import Samples

#: Held-out networks that a profile lists one by one.
_MOST_LISTED = 200


@dataclasses.dataclass(frozen=True)
class Target:
    """What the profile will say about the device; see :class:`DeviceProfile`.

    Attributes:
        alignment: Channels are padded to a multiple of this; ``None`` finds it per family from
            single kernels.
        processors: Multiprocessors of a GPU, which the learned kind makes use of.
        kind: One of :data:`~autoprune.latency.heldout.KINDS`, or ``"auto"``.
    """

    name: str
    device: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int = 1
    alignment: int | None = 1
    overlap: Literal["none", "full"] = "none"
    processors: int = 1
    kind: str = "roofline"
    capabilities: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def calibrate(selected: Selected, target: Target, *, date: datetime.date) -> DeviceProfile:
    """Return a device profile fitted on measured networks, kernels, or both.

    The held-out error is that of fits without the network in question (networks that fuse to
    identical kernels, such as vgg16 and vgg16_bn, are held out together), or without all kernels of
    that number of output channels. With ``kind="auto"`` each of these fits chooses its kind anew,
    from what it may see.

    Args:
        selected: What was measured.
        target: What the profile says about the device.
        date: Day of the fit.

    Raises:
        ProfileError: An origin without commit or licence, a kind that the measurements do not
            allow, or a target that no profile can state.
        UnknownNameError: The precision or the kind is unknown.
    """
    samples = selected.samples
    _refuse(samples, target)
    settings = settings_of(target)
    groups = samples.groups
    held = held_out_with(samples, groups)
    kind = target.kind
    if kind == "auto":
        predicted = nested(samples, groups, settings)
        kind = choose_kind(samples, settings, groups)
    else:
        predicted = held_out(samples, groups, lambda part: fit_kind(kind, part, settings))
    model = fit_kind(kind, samples, settings)
    predicted = _rounded(predicted)
    whole = bool(samples.whole[held].all())
    content = {
        "version": VERSION,
        **_stated(target, model),
        "predictor": _predictor(model, target),
        "provenance": {
            "sources": _sources(samples, model),
            "date": date,
            "samples": "networks" if whole else "kernels",
            "sample_count": _count(samples, held) if whole else int(held.sum()),
            "kernel_count": int((~samples.whole).sum()),
            "split": _split(samples, groups, held, auto=target.kind == "auto"),
            "held_out": held_out_error(predicted[held], samples.latency_ms[held]),
            **_besides(samples, groups, settings, kind),
            "unseen_family": _unseen_family(samples, settings, kind),
            "measured_families": samples.families,
            "predictions": _predictions(samples, predicted) if whole else [],
            "left_out": dict(selected.left_out),
        },
    }
    return checked_profile(content, repr(target.name))


def settings_of(target: Target) -> Settings:
    """Return what a target decides before the fit.

    Raises:
        UnknownNameError: The precision is unknown.
    """
    if target.precision not in BYTES_PER_ELEMENT:
        raise UnknownNameError("precision", target.precision, BYTES_PER_ELEMENT)
    return Settings(
        alignment=target.alignment,
        bytes_per_element=BYTES_PER_ELEMENT[target.precision],
        overlap=target.overlap,
        processors=target.processors,
    )


def _refuse(samples: Samples, target: Target) -> None:
    """Raise for what no honest profile can be made from, naming every fault."""
    if target.kind not in (*KINDS, "auto"):
        raise UnknownNameError("kind", target.kind, (*KINDS, "auto"))
    faults = [
        f"no {what} for {origin.repository}; give it in the table or under sources in a --names "
        "file"
        for origin in {o.repository: o for o in samples.origins}.values()
        for what, known in (("commit", origin.commit), ("licence", origin.licence))
        if not known
    ]
    if target.kind not in (*kinds_for(samples), "auto"):
        faults.append(
            f"kind {target.kind!r} interpolates between single kernels, and there are none in the "
            f"tables; choose {' or '.join(kinds_for(samples))}, or add kernel rows"
        )
    held = held_out_with(samples, samples.groups)
    distinct = len({g for g, mine in zip(samples.groups, held, strict=True) if mine})
    if distinct < 2:
        faults.append(
            "all kernels have one number of output channels, so nothing can be held out; measure "
            "others as well"
        )
    if faults:
        raise ProfileError("cannot calibrate:\n  " + "\n  ".join(faults))


def _stated(target: Target, model: Corrected) -> dict[str, object]:
    content = dataclasses.asdict(target)
    del content["overlap"], content["kind"], content["processors"]
    if target.alignment is None:
        content["alignment"] = max(r.alignment for r in model.fitted.rooflines.values())
    return content


def _count(samples: Samples, held: np.ndarray) -> int:
    return len({g for g, mine in zip(samples.groups, held, strict=True) if mine})


def _split(samples: Samples, groups: Sequence[Hashable], held: np.ndarray, *, auto: bool) -> str:
    """Return how the held-out error was found, in words."""
    whole = bool(samples.whole[held].all())
    distinct = _count(samples, held)
    what = "network" if whole else "number of output channels"
    one_by_one = distinct <= MOST_SINGLE and not auto
    folds = f"leave-one-{'network' if whole else 'output-channel-count'}-out"
    if not one_by_one:
        folds = f"{5 if auto else FOLDS} folds of whole {what}s"
    detail = (
        "networks that fuse to identical kernels are held out together"
        if whole
        else f"{distinct} numbers of output channels, each held out with all its rows"
    )
    choice = "; every fold chose the kind of predictor from the others" if auto else ""
    mixed = "; kernels were never held out" if whole and not samples.whole.all() else ""
    return f"{folds}; {detail}{choice}{mixed}"


def _besides(
    samples: Samples, groups: Sequence[Hashable], settings: Settings, kind: str
) -> Mapping[str, HeldOut]:
    """Return the errors of simpler predictors on the same split."""
    held = held_out_with(samples, groups)
    found = {"macs_held_out": held_out(samples, groups, flops_only)}
    if kind != "roofline":
        found["roofline_held_out"] = held_out(
            samples, groups, lambda part: fit_kind("roofline", part, settings)
        )
    return {
        name: held_out_error(_rounded(values[held]), samples.latency_ms[held])
        for name, values in found.items()
    }


def _unseen_family(samples: Samples, settings: Settings, kind: str) -> HeldOut | None:
    families = [
        family_of(name) if whole else ""
        for name, whole in zip(samples.names, samples.whole, strict=True)
    ]
    distinct = {f for f, whole in zip(families, samples.whole, strict=True) if whole}
    if len(distinct) < 2 or len(distinct) > MOST_SINGLE:
        return None
    predicted = held_out(samples, families, lambda part: fit_kind(kind, part, settings))
    held = held_out_with(samples, families)
    if not samples.whole[held].all():
        return None
    return held_out_error(_rounded(predicted[held]), samples.latency_ms[held])


def _predictor(model: Corrected, target: Target) -> dict[str, object]:
    fitted = model.fitted
    keep_alignment = target.alignment is None
    families = {
        family: {
            "overhead_ms": short(limit.overhead_ms),
            "peak_gmacs_per_s": short(limit.peak_gmacs_per_s),
            "bandwidth_gb_s": short(limit.bandwidth_gb_s),
            **({"alignment": limit.alignment, "tile": limit.tile} if keep_alignment else {}),
        }
        for family, limit in fitted.rooflines.items()
    }
    content: dict[str, object] = {
        "kind": "roofline",
        "overlap": target.overlap,
        # The leanest way of measuring is closest to the device's own time.
        "constant_ms": short(min(fitted.constants_ms.values(), default=0.0)),
        "families": families,
    }
    match model.correction:
        case LearnedCorrection() as correction:
            content["kind"] = "learned"
            content["processors"] = target.processors
            content["models"] = {
                family: _learned(f"{target.name}.{family}.lgb.txt", learned)
                for family, learned in correction.models.items()
            }
        case GridCorrection() as correction:
            content["kind"] = "table"
            text = kernels_to_text(correction.samples)
            content["kernels"] = Attachment.of(f"{target.name}.kernels.csv", text)
    return content


def _learned(file: str, model: Model) -> LearnedModel:
    text = Attachment.of(file, model.text)
    return LearnedModel(
        file=file,
        sha256=text.sha256,
        text=model.text,
        low=dict(model.hull.low),
        high=dict(model.hull.high),
    )


def _sources(samples: Samples, model: Corrected) -> list[dict[str, object]]:
    counts = np.bincount(samples.origin, minlength=len(samples.origins))
    constants = model.fitted.constants_ms
    return [
        {
            "repository": origin.repository,
            "commit": origin.commit,
            "licence": origin.licence,
            "file": origin.file,
            "runtime": origin.runtime,
            "fusion": origin.fusion,
            "measurements": int(count),
            "constant_ms": short(constants.get(origin, 0.0)),
        }
        for origin, count in zip(samples.origins, counts, strict=True)
        if count
    ]


def _predictions(
    samples: Samples, predicted: Float[np.ndarray, " samples"]
) -> list[dict[str, object]]:
    """Return the held-out networks, where there are few enough to be read."""
    networks = np.flatnonzero(samples.whole)
    if len(networks) > _MOST_LISTED:
        return []
    return [
        {
            "network": samples.names[i],
            "source": samples.origins[samples.origin[i]].repository,
            "measured_ms": float(samples.latency_ms[i]),
            "predicted_ms": float(predicted[i]),
        }
        for i in networks
    ]


def _rounded(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.array([short(float(value)) for value in values])
