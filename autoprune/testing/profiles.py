"""A device that does not exist, for tests of everything that needs latencies but no real board."""

from __future__ import annotations

from typing import Any

from autoprune.latency.kernels import FAMILIES
from autoprune.latency.profile import DeviceProfile
from autoprune.report.data import ProfileFacts


def made_up_profile(**changes: Any) -> DeviceProfile:
    """Return the profile of a board on which every kernel family is equally fast.

    Args:
        **changes: Fields of :class:`~autoprune.latency.profile.DeviceProfile` that differ.
    """
    limits = {"overhead_ms": 0.01, "peak_gmacs_per_s": 5.0, "bandwidth_gb_s": 1.0}
    error = {"mape": 0.1, "within_5": 0.3, "within_10": 0.6, "within_20": 0.9, "spearman": 0.95}
    source = {
        "repository": "made/up",
        "commit": "0",
        "licence": "none",
        "file": "none",
        "runtime": "none",
        "fusion": "tensorrt",
        "measurements": 3,
        "constant_ms": 0.1,
    }
    content = {
        "version": 1,
        "name": "made_up",
        "device": "a board that does not exist",
        "runtime": "tensorrt",
        "runtime_version": "0",
        "precision": "fp16",
        "batch": 1,
        "alignment": 1,
        "predictor": {
            "kind": "roofline",
            "overlap": "full",
            "constant_ms": 0.1,
            "families": dict.fromkeys(FAMILIES, limits),
        },
        "provenance": {
            "sources": [source],
            "date": "2026-01-01",
            "sample_count": 3,
            "split": "none, these are no measurements",
            "held_out": error,
            "measured_families": list(FAMILIES),
        },
    }
    return DeviceProfile.model_validate(content | changes)


def made_up_facts(**changes: Any) -> ProfileFacts:
    """Return what a report says of a board that does not exist.

    Args:
        **changes: Fields of :class:`~autoprune.report.data.ProfileFacts` that differ.
    """
    facts: dict[str, Any] = {
        "name": "made_up",
        "device": "a board that does not exist",
        "runtime": "none",
        "precision": "fp16",
        "batch": 1,
        "error": 0.1,
        "error_text": "made up",
    }
    return ProfileFacts(**(facts | changes))
