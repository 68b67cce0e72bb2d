"""``autoprune finetune``: networks of a run learn again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from autoprune.cli.search import stopping_on_signals

if TYPE_CHECKING:
    from autoprune.tuning.loop import TuneProgress

#: Shortest time between two lines of progress, in seconds.
LINE_SECONDS = 5.0


def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="budget|knee|ID|all", help="Which networks. \\[default: the recommended one]"
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training samples. \\[default: 30]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps instead.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per step. \\[default: 128]")] = None,
    samples: Annotated[int | None, typer.Option(help="Only so many training samples.")] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="all|normalisation", help="Which parameters. \\[default: all]"),
    ] = None,
    init: Annotated[
        str, typer.Option(metavar="pruned|scratch|rewind:FILE", help="Weights to begin with.")
    ] = "pruned",
    schedule: Annotated[
        str,
        typer.Option(
            metavar="one-shot|iterative:K", help="Prune at once, or in K steps and train between."
        ),
    ] = "one-shot",
    optimiser: Annotated[
        str | None, typer.Option(metavar="sgd|adamw", help="\\[default: sgd]")
    ] = None,
    original_lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of the original training. \\[default: 0.1 (sgd)]"),
    ] = None,
    original_batch: Annotated[
        int | None, typer.Option(help="Batch it belongs to. \\[default: that of --batch]")
    ] = None,
    lr_fraction: Annotated[
        float | None, typer.Option(help="Peak rate as a fraction of it. \\[default: 0.5]")
    ] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Fraction of the steps. \\[default: 0.05]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="\\[default: 0.0005 (sgd)]")] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest gradient norm, 0 for none. \\[default: 5]")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the moving average. \\[default: 0.999]")
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(help="Share of the loss learnt from the unpruned network. \\[default: 0.5]"),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="\\[default: 2]")] = None,
    features: Annotated[
        float | None, typer.Option(help="Weight of feature distillation. \\[default: 0]")
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(metavar="batch|stored", help="BatchNorm normalises by. \\[default: batch]"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|fp32|bf16", help="\\[default: auto]")
    ] = None,
    checks: Annotated[
        int | None, typer.Option(help="Scores on the search split. \\[default: 10]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many scores in a row without a better one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="\\[default: 0]")] = None,
    train_on: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")
    ] = "auto",
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.0, help="How often a checkpoint is written.")
    ] = 5.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what was fine-tuned before.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print folders only.")] = False,
) -> None:
    """Fine-tune networks of a run, with the unpruned network as a teacher; the same call goes on.

    autoprune finetune runs/mine --pick budget --epochs 30

    Several GPUs: accelerate launch --num_processes 2 -m autoprune.cli.main finetune runs/mine
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "samples": samples,
        "train": train,
        "optimiser": optimiser,
        "original_lr": original_lr,
        "original_batch": original_batch,
        "lr_fraction": lr_fraction,
        "warm_up": warm_up,
        "weight_decay": weight_decay,
        "clip": clip,
        "ema": ema,
        "distill": distill,
        "temperature": temperature,
        "features": features,
        "statistics": statistics,
        "precision": precision,
        "checks": checks,
        "patience": patience,
        "seed": seed,
    }
    from autoprune.report import text
    from autoprune.run import finetuning
    from autoprune.tuning.settings import TuneSettings

    chosen = TuneSettings.checked({name: v for name, v in given.items() if v is not None})
    request = finetuning.Request(
        settings=chosen,
        init=init,
        schedule=schedule,
        train_on=train_on,
        restart=restart,
        every_minutes=checkpoint_minutes,
    )
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    lines = _Lines(console)
    with stopping_on_signals() as stopped_by:
        try:
            done = finetuning.finetune(
                run,
                request,
                pick=pick,
                listener=lines,
                say=lambda sentence: console.print(f"[yellow]note:[/] {escape(sentence)}"),
            )
        except KeyboardInterrupt:
            console.print("stopped; type the same again to go on from the last checkpoint")
            raise typer.Exit(128 + (stopped_by[0] if stopped_by else 2)) from None
    for network in done:
        if quiet:
            typer.echo(str(network.folder))
            continue
        before, after = network.before, network.after
        typer.echo(
            f"trial {network.trial}: accuracy {text.percent(before.accuracy)} -> "
            f"{text.percent(after.accuracy)} (search), {text.percent(before.test_accuracy)} -> "
            f"{text.percent(after.test_accuracy)} (test) at {text.milliseconds(after.latency_ms)}"
            f"  {network.folder}"
        )


class _Lines:
    """Prints where a fine-tuning stands now and then, and at every new score."""

    def __init__(self, console: Console) -> None:
        self.console, self._last, self._scored = console, float("-inf"), (-1, -1)

    def __call__(self, trial: int, progress: TuneProgress) -> None:
        from autoprune.report import text

        now, last = time.monotonic(), progress.last
        scored = (trial, -1 if last is None else last.step)
        if scored == self._scored and now - self._last < LINE_SECONDS:
            return
        self._last, self._scored = now, scored
        best = "" if progress.best is None else f", best {text.percent(progress.best.accuracy)}"
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        self.console.print(
            f"trial {trial}: step {progress.step}/{progress.steps}, loss "
            f"{text.significant(progress.train_loss)}{best}, {minutes}:{seconds:02d} left"
        )
