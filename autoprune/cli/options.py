"""Options that several verbs take, said once."""

from __future__ import annotations

from typing import Annotated

import typer

#: File of trained weights; ``None`` where none was given.
Weights = Annotated[
    str | None, typer.Option(metavar="FILE", help="Trained weights: .safetensors, .pt or .pth.")
]

#: Device profile; ``None`` where none was given.
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Device profile; `autoprune devices` lists them."),
]

#: Latency budget in ms; ``None`` where none was given.
BudgetMs = Annotated[
    float | None,
    typer.Option(metavar="MS", help="Latency of one batch that no network may exceed."),
]
