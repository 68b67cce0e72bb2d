from __future__ import annotations

import math

import pytest

from autoprune.report import text


def plain(formatted):
    return formatted.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(9.999, "10.0"), (99.95, "100"), (0.00123456, "0.00123"), (12345.6, "12,346"), (1.0, "1.00")],
)
def test_three_significant_digits(value, expected):
    assert text.significant(value) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_999, "1.00 M"), (25_557_032, "25.6 M")],
)
def test_counts(number, expected):
    assert plain(text.count(number)) == expected


def test_differences_carry_a_sign_unless_they_are_nothing():
    assert plain(text.points(0.913, 0.93)) == "-1.7 points"
    assert plain(text.points(0.93, 0.93)) == "0.0 points"
    assert plain(text.points(0.93, 0.930001)) == "0.0 points"
    assert plain(text.change(57, 100)) == "-43 %"


def test_what_is_missing_is_a_dash():
    nan = math.nan
    formatted = [text.significant(nan), text.milliseconds(nan), text.percent(nan), text.count(nan)]

    assert formatted == [text.MISSING] * 4
    assert text.percent(None) == text.MISSING
    assert text.change(5, 0) == text.MISSING


def test_settings_are_flattened_and_odd_values_written_out(tmp_path):
    settings = {"a": {"b": [1, None], "c": {}}, "path": tmp_path, "on": True}

    assert text.flat_settings(settings) == [
        ("a.b", "[1, null]"),
        ("a.c", "{}"),
        ("path", f'"{tmp_path}"'),
        ("on", "true"),
    ]
