import numpy as np
import pytest

from autoprune.measure import alignment
from autoprune.measure.alignment import WIDTHS, alignment_of, best_multiple
from autoprune.measure.measuring import Folder
from autoprune.testing.backends import FormulaBackend

WHO = {"device": "d", "runtime": "r_1", "precision": "fp32", "threads": 1, "clock": "wall"}


def padded(width, multiple):
    return -(-width // multiple) * multiple


@pytest.mark.parametrize("multiple", [4, 8, 16, 32])
def test_multiple_that_channels_are_padded_to_is_found_in_noise(multiple):
    # Half a per cent of noise: a step of four channels is worth eight per cent.
    noise = np.random.default_rng(0).normal(1, 0.005, len(WIDTHS))
    times = {
        w: (0.1 + padded(w, multiple) ** 2 * 1e-4) * n for w, n in zip(WIDTHS, noise, strict=True)
    }
    assert best_multiple(times) == multiple


def test_narrow_widths_on_a_slow_path_are_not_worth_it():
    # As with blocks of 16 output channels and a slow path for inputs that 4 does not divide.
    times = {w: padded(w, 16) ** 2 * (1.0 if w % 4 == 0 else 1.3) for w in WIDTHS}
    assert best_multiple(times) == 16


def test_every_width_is_worth_it_where_nothing_is_padded():
    assert best_multiple({w: float(w**2) for w in WIDTHS}) == 1


def test_time_that_does_not_depend_on_channels_asks_for_no_multiple():
    assert best_multiple(dict.fromkeys(WIDTHS, 0.3)) == 1


def test_answer_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "WIDTHS", (96, 104, 112, 120, 128))
    backend, folder = FormulaBackend(noise=0.0), Folder(tmp_path, WHO)
    assert alignment_of(backend, folder) == 1
    built = backend.built
    assert alignment_of(backend, folder) == 1
    assert backend.built == built > 5


def test_assumed_multiple_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(FormulaBackend, "assumed_alignment", 8)
    backend = FormulaBackend()
    assert alignment_of(backend, Folder(tmp_path, WHO)) == 8
    assert backend.built == 0
