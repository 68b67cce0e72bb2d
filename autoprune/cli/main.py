"""The entry point: registers the verbs and turns our errors into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from autoprune.cli.calibrate import calibrate
from autoprune.cli.devices import devices
from autoprune.cli.doctor import doctor
from autoprune.cli.export import export
from autoprune.cli.finetune import finetune
from autoprune.cli.init import init
from autoprune.cli.inspect import inspect
from autoprune.cli.letters import make_readable
from autoprune.cli.predict import predict
from autoprune.cli.profile import profile_app
from autoprune.cli.report import report
from autoprune.cli.search import search
from autoprune.cli.verify import verify
from autoprune.errors import AutopruneError
from autoprune.version import __version__

#: Exit codes; everything below is also what ``--help`` says.
BAD_INPUT = 2

_EPILOG = (
    "Exit codes: 0 done; 1 the search found no network under the budget; "
    "2 bad input, with one line that says what and the way out; 130 stopped by Ctrl-C; "
    "143 stopped by SIGTERM. A stopped search keeps every finished trial."
)

app = typer.Typer(
    name="autoprune",
    help="Finds the Pareto front of pruned networks: accuracy against milliseconds on your device.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autoprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from, before the command.")
    ] = False,
) -> None:
    """Take the options that stand before the verb."""


app.command()(search)
app.command()(init)
app.command()(inspect)
app.command()(devices)
app.command()(predict)
app.command()(calibrate)
app.add_typer(profile_app, name="profile")
app.command()(report)
app.command()(finetune)
app.command()(export)
app.command()(verify)
app.command()(doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What was typed after ``autoprune``; ``None`` reads ``sys.argv``.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        make_readable(stream)
    try:
        app(arguments, prog_name="autoprune")
    except AutopruneError as error:
        if "--debug" in arguments[:2]:
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]error:[/] {escape(str(error))}"
        )
        return BAD_INPUT
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
