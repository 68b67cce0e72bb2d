"""What was measured to a device profile, judged on whole networks that were not fitted."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from autoprune.errors import MeasureError
from autoprune.latency.calibrate import Target, calibrate, settings_of
from autoprune.latency.heldout import (
    choose_kind,
    fit_kind,
    flops_only,
    held_out,
    held_out_error,
    short,
)
from autoprune.latency.kernels import from_layers
from autoprune.latency.layers import ops_from_rows, read_layers
from autoprune.latency.measurements import (
    MINIMUM_NETWORKS,
    Selected,
    Selection,
    read_tables,
    select,
)
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import DeviceProfile, Prediction
from autoprune.latency.samples import Measurement, network_samples
from autoprune.measure.measuring import Folder
from autoprune.measure.subjects import CHECK_EVERY

#: Fewer networks say little about an error.
MINIMUM_CHECKED = 4
#: Folds in which networks alone and networks with kernels are compared.
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A profile and how it was chosen.

    Attributes:
        profile: Its held-out error is that on the networks left for the check.
        remarks: Sentences for the head of its file.
    """

    profile: DeviceProfile
    remarks: tuple[str, ...]


def outcome(
    folder: Folder, target: Target, *, date: datetime.date, failed: Mapping[str, str]
) -> Outcome:
    """Return the profile that a folder's measurements give.

    It is fitted on the networks for the fit, alone or together with the single kernels; whichever
    predicts networks left out of the fit better is taken, and so is the kind of predictor. Then the
    networks for the check, which no fit and no choice has seen, are predicted.

    Args:
        folder: Measurements of one device and runtime.
        target: What the profile says about them.
        date: Day of the fit.
        failed: What could not be measured, with the reason.

    Raises:
        MeasureError: There are too few networks.
        ProfileError: The rows contradict each other or physics.
    """
    present = [path for path in (folder.networks, folder.kernels) if path.exists()]
    tables = read_tables(present).checked()
    layers = read_layers([folder.layers]) if folder.layers.exists() else {}
    fitted, checked = _parted(tables.networks, layers)
    selection = Selection(
        (str(folder.who["device"]),),
        {str(folder.who["runtime"]): target.runtime},
        target.precision,
        target.batch,
    )
    evidence = {
        name: select(
            dataclasses.replace(tables, networks=fitted, kernels=kernels), layers, selection
        )
        for name, kernels in (("networks alone", tables.kernels[:0]), ("both", tables.kernels))
        if name == "networks alone" or len(kernels)
    }
    errors = {name: _cross_validated(chosen, target) for name, chosen in evidence.items()}
    best = min(errors, key=lambda name: errors[name])
    selected = evidence[best]
    if target.kind == "auto":
        samples = selected.samples
        kind = choose_kind(samples, settings_of(target), samples.groups)
        target = dataclasses.replace(target, kind=kind)
    profile = calibrate(selected, target, date=date)
    others = ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items())
    remark = f"Fitted on {best}; a roofline's cross-validated error on networks: {others}."
    judged = _judged(profile, selected, checked, layers)
    provenance = judged.provenance.model_copy(
        update={"left_out": {**judged.provenance.left_out, **failed}}
    )
    judged = judged.model_copy(update={"provenance": provenance})
    return Outcome(judged, (remark,))


def _cross_validated(selected: Selected, target: Target) -> float:
    """Return the mean error of a roofline on networks that it was not fitted on."""
    samples, settings = selected.samples, settings_of(target)
    predicted = held_out(
        samples, samples.groups, lambda part: fit_kind("roofline", part, settings), folds=_FOLDS
    )
    return float(np.mean(np.abs(predicted / samples.latency_ms - 1)[samples.whole]))


def _parted(
    networks: pd.DataFrame, layers: Mapping[str, object]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the networks for the fit and those for the check.

    Small models have few widths, so that candidates can be the same network; those count once.
    """
    different: dict[str, set[str]] = {"fit": set(), "check": set()}
    for row in networks.itertuples():
        different[str(row.role)].add(str(layers.get(str(row.network), row.network)))
    counts = {role: len(kinds) for role, kinds in different.items()}
    if counts["fit"] < MINIMUM_NETWORKS or counts["check"] < MINIMUM_CHECKED:
        raise MeasureError(
            f"{counts['fit']} different networks for the fit and {counts['check']} for the check "
            f"were measured, at least {MINIMUM_NETWORKS} and {MINIMUM_CHECKED} are needed; run "
            "again with more --minutes, which goes on where this run stopped"
        )
    return networks[networks["role"] == "fit"], networks[networks["role"] == "check"]


def _judged(
    profile: DeviceProfile,
    selected: Selected,
    checked: pd.DataFrame,
    layers: Mapping[str, Sequence[Sequence[Any]]],
) -> DeviceProfile:
    """Return the profile with its errors on networks it was not fitted on."""
    names = [str(name) for name in checked["network"]]
    measured = checked["latency_ms"].to_numpy(float)
    predicted = np.array([short(_predicted(profile, layers[name], name)) for name in names])
    origin = selected.samples.origins[0]
    samples = network_samples(
        [
            Measurement(
                name,
                origin,
                float(ms),
                from_layers(layers[name], profile.runtime, network=name, batch=profile.batch),
            )
            for name, ms in zip(names, measured, strict=True)
        ]
    )
    fitted = int(selected.samples.whole.sum())
    provenance = profile.provenance.model_copy(
        update={
            "split": (
                f"{len(names)} networks that nothing was fitted on: of every model the unpruned "
                f"one and every {_ORDINAL[CHECK_EVERY]} one pruned at random; fitted on {fitted} "
                "others of the same models"
            ),
            "held_out": held_out_error(predicted, measured),
            "roofline_held_out": None,
            "macs_held_out": held_out_error(flops_only(selected.samples)(samples), measured),
            "predictions": _predictions(names, origin.repository, measured, predicted),
        }
    )
    return profile.model_copy(update={"provenance": provenance})


_ORDINAL = {2: "second", 3: "third", 4: "fourth"}


def _predicted(profile: DeviceProfile, rows: Sequence[Sequence[Any]], name: str) -> float:
    table = ops_from_rows(rows, network=name, batch=profile.batch)
    predictor = predictor_for(table, profile)
    return float(predictor.predict(table.full_widths, table.full_keep)[0])


def _predictions(
    names: Sequence[str],
    source: str,
    measured: Float[np.ndarray, " n"],
    predicted: Float[np.ndarray, " n"],
) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(network=name, source=source, measured_ms=float(ms), predicted_ms=float(guess))
        for name, ms, guess in zip(names, measured, predicted, strict=True)
    )
