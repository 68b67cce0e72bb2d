"""A device profile corrected by a few networks of one run, without fitting it anew.

Every kernel family's time is multiplied by a factor, and so is the constant. The factors are drawn
towards one that all share, so that two or three networks suffice: they then correct the speed of
the machine, and more of them also what the profile has wrong about one kind of kernel.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from autoprune.errors import ProfileError
from autoprune.latency.heldout import held_out_error, short
from autoprune.latency.profile import DeviceProfile, checked_profile
from autoprune.latency.samples import Origin

#: Fewer networks say nothing about the error of what they correct.
MINIMUM = 3
#: Relative error of a measurement beyond which it is an outlier, and the standard deviation, in log
#: space, of a family's factor around the one that all share.
_NOISE, _SPREAD = 0.03, 0.2
#: Key of the constant among the parts of a prediction.
CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class Row:
    """A network that was predicted and measured.

    Attributes:
        network: What it is called.
        parts_ms: What the profile predicts, by kernel family; :data:`CONSTANT` for what is beyond
            kernels.
        measured_ms: What was measured.
    """

    network: str
    parts_ms: Mapping[str, float]
    measured_ms: float


def recalibrated(
    profile: DeviceProfile, rows: Sequence[Row], *, origin: Origin, date: datetime.date
) -> DeviceProfile:
    """Return the profile that predicts the rows best by one factor per kernel family.

    Its held-out error is that of each network when the others alone decide the factors.

    Args:
        profile: The profile that made the predictions.
        rows: Networks, as predicted and as measured.
        origin: The table that the measurements are from.
        date: Day of the fit.

    Raises:
        ProfileError: There are fewer than :data:`MINIMUM` networks.
    """
    if len(rows) < MINIMUM:
        raise ProfileError(
            f"{len(rows)} measured networks, at least {MINIMUM} are needed to recalibrate a "
            "profile; measure more of the front, or search on"
        )
    families = sorted({family for row in rows for family in row.parts_ms})
    parts = np.array([[row.parts_ms.get(family, 0.0) for family in families] for row in rows])
    measured = np.array([row.measured_ms for row in rows])
    factors = dict(zip(families, factors_of(parts, measured), strict=True))
    predicted = _left_out(parts, measured)
    before = profile.predictor.scales or {}
    content = profile.model_dump(by_alias=True)
    scales = {
        family: short(before.get(family, 1.0) * factor)
        for family, factor in factors.items()
        if family != CONSTANT
    }
    constant_ms = short(profile.predictor.constant_ms * factors.get(CONSTANT, 1.0))
    content["predictor"] |= {"scales": {**before, **scales}, "constant_ms": constant_ms}
    source = {**dataclasses.asdict(origin), "measurements": len(rows), "constant_ms": constant_ms}
    content["provenance"] |= {
        "sources": [*content["provenance"]["sources"], source],
        "date": date,
        "samples": "networks",
        "sample_count": len(rows),
        "split": (
            f"{len(rows)} networks of one run, each predicted by the parameters of "
            f"{profile.name!r} times factors per kernel family from the others"
        ),
        "held_out": held_out_error(predicted, measured),
        "roofline_held_out": None,
        "macs_held_out": None,
        "unseen_family": None,
        "predictions": [
            {
                "network": row.network,
                "source": origin.repository,
                "measured_ms": row.measured_ms,
                "predicted_ms": short(float(guess)),
            }
            for row, guess in zip(rows, predicted, strict=True)
        ],
    }
    name = profile.name.removesuffix("_recalibrated") + "_recalibrated"
    content |= {"name": name, "aliases": ()}
    content["provenance"]["held_out"] = content["provenance"]["held_out"].model_dump()
    return checked_profile(content, repr(name))


def factors_of(
    parts: Float[np.ndarray, "n families"], measured: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " families"]:
    """Return the factor of each part by robust least squares in log space.

    Args:
        parts: Predicted milliseconds by network and kernel family.
        measured: Milliseconds.
    """
    count, log_ms = parts.shape[1], np.log(measured)
    common = float(np.median(log_ms - np.log(parts.sum(axis=1))))

    def residuals(logs: Float[np.ndarray, " p"]) -> Float[np.ndarray, " r"]:
        total = parts @ np.exp(logs[0] + logs[1:])
        return np.concatenate([(np.log(total) - log_ms) / _NOISE, logs[1:] / _SPREAD])

    def loss(squares: Float[np.ndarray, " r"]) -> Float[np.ndarray, "3 r"]:
        rho = np.stack([squares, np.ones_like(squares), np.zeros_like(squares)])
        root = np.sqrt(1 + squares[: len(measured)])
        rho[:, : len(measured)] = [2 * (root - 1), 1 / root, -0.5 / root**3]
        return rho

    start = np.concatenate([[common], np.zeros(count)])
    # The stub asks for a keyword that SciPy passes to its own losses only.
    found = least_squares(residuals, start, loss=loss, max_nfev=200)  # type: ignore[arg-type]
    logs: Float[np.ndarray, " p"] = np.asarray(found.x)
    factors: Float[np.ndarray, " families"] = np.exp(logs[0] + logs[1:])
    return factors


def _left_out(
    parts: Float[np.ndarray, "n families"], measured: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return each network's milliseconds by the factors of all others."""
    predicted = np.empty_like(measured)
    for i in range(len(measured)):
        others = np.arange(len(measured)) != i
        predicted[i] = parts[i] @ factors_of(parts[others], measured[others])
    return predicted
