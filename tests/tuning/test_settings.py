import pytest

from autoprune.errors import SettingsError
from autoprune.tuning.settings import TuneSettings


def test_all_faults_come_at_once():
    with pytest.raises(SettingsError) as caught:
        TuneSettings.checked({"epochs": -1, "ema": 1.0, "patients": 3})
    message = str(caught.value)
    for part in ("epochs", "ema", "patients", "-1"):
        assert part in message


def test_rate_rises_then_falls_to_nearly_nothing():
    settings = TuneSettings(original_lr=0.2, lr_fraction=0.5, warm_up=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert max(rates) == rates[9] == rates[10] == 0.1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.05)  # halfway down the cosine
    assert rates[-1] < 1e-3 * 0.1


def test_rate_without_warm_up_begins_at_the_peak():
    assert TuneSettings(warm_up=0, original_lr=0.2).rate(0, 10) == 0.1
    assert TuneSettings(original_lr=0.2).rate(0, 1) == 0.1


def test_rate_is_a_fraction_of_the_original_and_follows_the_batch():
    assert TuneSettings().peak_lr == 0.05
    assert TuneSettings(optimiser="adamw").peak_lr == 5e-4
    assert TuneSettings(batch=64, original_batch=256).peak_lr == 0.0125
    assert TuneSettings(train="normalisation").method == "adamw"
