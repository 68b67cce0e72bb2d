"""``autoprune init``: a settings file for a search, every setting in it explained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune.cli.options import BudgetMs, Device, Weights
from autoprune.errors import AutopruneError, SettingsError

#: How often a question is asked again after an answer that does not do.
_TRIES = 5

#: What is asked where it was not given: the setting, the question, and the answer by default.
_QUESTIONS = (
    ("model", "Model (torchvision:NAME, timm:NAME, hf:FOLDER, file.py:factory)", "digits"),
    ("weights", "File with its weights (empty: none)", ""),
    ("data", "Data (image-folder:DIR, cifar10:DIR, text:FILE, file.py:factory)", ""),
    ("device", "Device (`autoprune devices` lists them)", "jetson"),
    ("budget_ms", "Latency budget in ms for one batch (empty: none)", "10"),
    ("trials", "Networks to evaluate", "50"),
)


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is written.")] = Path(
        "run.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="As `autoprune search` takes it.")
    ] = None,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="As `autoprune search` takes it.")
    ] = None,
    device: Device = None,
    budget_ms: BudgetMs = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Networks to evaluate.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="search.NAME=VALUE", help="Any other; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a settings file for a search; in a terminal, ask for what is not given.

    \b
    autoprune init
    autoprune init mine.yaml --device jetson --budget-ms 10 --set search.sampler=tpe
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.files import write_atomically
    from autoprune.run.settings_file import assigned, merged, settings_text

    if file.exists() and not force:
        raise SettingsError(f"{file} exists; give another name, or --force to overwrite it")
    given: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "data": data,
        "device": device,
        "budget_ms": budget_ms,
        "trials": trials,
    }
    given = {name: value for name, value in given.items() if value is not None}
    given = merged(given, assigned(assignments or []))
    if sys.stdin.isatty() and sys.stdout.isatty() and "device" not in given:
        given = _asked(given)
    given = _whole(given)
    try:
        write_atomically(file, settings_text(given, name=str(file)))
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from None
    typer.echo(f"wrote {file}; look at it, then\n  autoprune search -c {file}")


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the model's own data, checked as a search checks them."""
    from autoprune.network.source import ModelSource
    from autoprune.run import RunSettings, own_task

    model = given.get("model", "digits")
    whole = {"model": model, "data": given.get("data") or own_task(model), **given}
    RunSettings.checked(whole)
    ModelSource.parse(model, weights=given.get("weights"))
    return whole


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with answers to what was not given."""
    answers: dict[str, Any] = {}
    typer.echo("Enter takes what stands in brackets; the file explains everything else.\n")
    for name, question, default in _QUESTIONS:
        embedded = (answers | given).get("model") == "digits"
        if name in given or (embedded and name in ("weights", "data")):
            continue
        answer = _answer(name, question, default)
        answers |= {} if answer is None else {name: answer}
    return answers | given


def _answer(name: str, question: str, default: str) -> Any:
    """Ask until a setting can have the answer as its value; ``None`` for an empty one."""
    from autoprune.run import RunSettings

    for _ in range(_TRIES):
        answer: str = typer.prompt(question, default=default, show_default=bool(default)).strip()
        if not answer:
            return None
        try:
            return getattr(RunSettings.checked({"device": "jetson", name: answer}), name)
        except AutopruneError as error:
            typer.echo(f"  {error}")
    raise SettingsError(f"no answer to {question!r} that does; give it as an option instead")
