import datetime

import numpy as np
import pytest

from autoprune.errors import ProfileError
from autoprune.latency.recalibrate import CONSTANT, Row, factors_of, recalibrated
from autoprune.latency.samples import Origin
from autoprune.testing.profiles import made_up_profile

ORIGIN = Origin(
    "own measurements", "networks.csv", "board_1", "tensorrt", "sha256:0", "unpublished"
)
TODAY = datetime.date(2026, 2, 3)


def drawn(count, seed=0):
    """Parts of networks whose shares of two families differ a lot, and a constant."""
    generator = np.random.default_rng(seed)
    return np.column_stack(
        [generator.uniform(0.2, 3, count), generator.uniform(0.2, 3, count), np.full(count, 0.1)]
    )


def rows_of(parts, measured):
    families = ("conv", "linear", CONSTANT)
    return [
        Row(f"trial {i}", dict(zip(families, map(float, part), strict=True)), float(ms))
        for i, (part, ms) in enumerate(zip(parts, measured, strict=True))
    ]


def test_one_speed_is_found_from_few_networks():
    parts = drawn(3)
    assert factors_of(parts, 1.7 * parts.sum(axis=1)) == pytest.approx([1.7] * 3, rel=1e-3)


def test_families_that_differ_are_told_apart_by_many():
    parts = drawn(30)
    found = factors_of(parts, parts @ np.array([1.5, 0.8, 1.0]))
    assert found[:2] == pytest.approx([1.5, 0.8], rel=0.03)


def test_an_outlier_moves_little():
    parts = drawn(12)
    measured = parts.sum(axis=1)
    measured[4] *= 5
    assert factors_of(parts, measured)[:2] == pytest.approx([1.0, 1.0], abs=0.1)


def test_profile_says_what_it_was_corrected_by():
    parts = drawn(8)
    noise = 1 + 0.02 * np.random.default_rng(1).standard_normal(8)
    measured = parts @ np.array([1.3, 1.3, 1.3]) * noise
    profile = made_up_profile()
    found = recalibrated(profile, rows_of(parts, measured), origin=ORIGIN, date=TODAY)

    assert found.name == "made_up_recalibrated"
    assert found.predictor.scales["conv"] == pytest.approx(1.3, rel=0.05)
    assert found.predictor.constant_ms == pytest.approx(0.13, rel=0.2)
    assert found.predictor.families == profile.predictor.families
    provenance = found.provenance
    assert [s.repository for s in provenance.sources] == ["made/up", "own measurements"]
    assert (provenance.date, provenance.sample_count) == (TODAY, 8)
    # Held out one by one, by hand.
    errors = []
    for i in range(8):
        others = np.arange(8) != i
        errors.append(abs(parts[i] @ factors_of(parts[others], measured[others]) / measured[i] - 1))
    assert provenance.held_out.mape == pytest.approx(np.mean(errors), rel=0.01)
    # Once more: factors multiply, the name stays.
    again = recalibrated(found, rows_of(1.3 * parts, 1.5 * measured), origin=ORIGIN, date=TODAY)
    assert again.name == found.name
    assert again.predictor.scales["conv"] == pytest.approx(1.95, rel=0.05)


def test_too_few_networks_are_refused():
    parts = drawn(2)
    with pytest.raises(ProfileError, match="2 measured networks, at least 3 are needed"):
        recalibrated(
            made_up_profile(), rows_of(parts, parts.sum(axis=1)), origin=ORIGIN, date=TODAY
        )
