"""Writes the pictures of the terminal in docs/images, from a real search of the embedded digits.

    python docs/make_terminal_screenshots.py

It takes a minute or two on one core. The pace in the picture is that of the machine it ran on.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from autoprune.cli.live import LiveScreen
from autoprune.cli.outcome import show_outcome
from autoprune.execution.driver import Progress
from autoprune.run import Run, RunSettings

IMAGES = Path(__file__).resolve().parent / "images"
COMMAND = "autoprune search --budget-ms 10 --device jetson --output runs/mine"
WIDTH, HEIGHT = 100, 27
#: Evaluations after which the live screen is drawn.
AFTER = 34

#: Rich's picture without the font that it would fetch from the network.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def screen() -> Console:
    """Return a terminal that is recorded."""
    return Console(
        record=True, force_terminal=True, width=WIDTH, height=HEIGHT, file=io.StringIO(),
        highlight=False, legacy_windows=False, color_system="truecolor",
    )  # fmt: skip


def save(console: Console, name: str) -> None:
    """Write what a terminal showed."""
    path = IMAGES / f"{name}.svg"
    console.save_svg(str(path), title=f"$ {COMMAND}", code_format=FORMAT, unique_id=name)
    print(f"wrote {path}")


def main() -> None:
    """Search, and draw the live screen on the way and the last screen at the end."""
    settings = RunSettings.checked({"device": "jetson", "budget_ms": 10.0, "executor": "inline"})
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run = Run.create(settings, output="runs/mine", say=print)
        live = LiveScreen(run)

        def listen(standing: Progress) -> None:
            live(standing)
            if standing.done == AFTER:
                console = screen()
                console.print(live)
                save(console, "terminal-live")

        result = run.execute(listeners=[listen], say=print)
        console = screen()
        show_outcome(result, run, console)
        save(console, "terminal-end")


if __name__ == "__main__":
    main()
