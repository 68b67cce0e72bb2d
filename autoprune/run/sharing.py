"""Whether drivers of one study search for the same thing."""

from __future__ import annotations

import json
from typing import Any

import optuna

from autoprune.errors import RunError
from autoprune.run.directory import RunRecord

#: Attribute of a shared study: what all its drivers must agree on.
SEARCH = "search"

#: Settings that decide what a candidate is, and what it scores.
_DECISIVE = (
    *("data", "budget_ms", "batch", "criterion", "realise", "metric", "racing", "precision"),
    *("calibration_samples", "search_samples", "seed", "objective", "max_params", "max_macs"),
    *("max_memory_mb", "max_latency_ms", "min_accuracy"),
)


def check_same(study: optuna.Study, record: RunRecord) -> None:
    """Note in a study what is searched for, or compare with what was noted.

    Args:
        study: A study that several drivers work on.
        record: The run of this driver.

    Raises:
        RunError: The study was made for another search; the message names what differs.
    """
    ours = _search(record)
    theirs = study.user_attrs.get(SEARCH)
    if theirs is None:
        study.set_user_attr(SEARCH, ours)
        return
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if differing:
        listed = "; ".join(
            f"{name}: {_short(theirs.get(name))} there, {_short(ours[name])} here"
            for name in differing
        )
        raise RunError(
            f"the study {study.study_name!r} was made for another search ({listed}); "
            "give the same settings, or another --study-name"
        )


def _search(record: RunRecord) -> dict[str, Any]:
    settings = record.settings.model_dump(mode="json")
    return {
        "model": record.model.model_dump(mode="json"),
        "device": record.profile.name,
        "space": record.space.model_dump(mode="json"),
        **{name: settings[name] for name in _DECISIVE},
    }


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
