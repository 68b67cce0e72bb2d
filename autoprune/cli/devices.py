"""``autoprune devices``: what latencies can be predicted for, and how well."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from autoprune.latency.profile import DeviceProfile

#: Columns of the list, in a file as on a screen.
_WIDTH = 100
_LEGEND = (
    "error: mean over what was measured, each network predicted without it, each kernel without\n"
    "its number of output channels; docs/formats.md has the rule behind the quality.\n"
    "`autoprune devices NAME` shows one profile, --json everything."
)


def devices(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this profile; a name, an alias or a file."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: a line's facts of all, or one profile in full."),
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/devices.md.")
    ] = False,
) -> None:
    """List the device profiles with their held-out errors, or show one.

    \b
    autoprune devices
    autoprune devices jetson
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.latency.profile import load_profile, profile_names, without_texts

    if name is not None:
        profile = load_profile(name)
        if as_json:
            content = without_texts(profile.model_dump(mode="json", by_alias=True))
            typer.echo(json.dumps(content, indent=2))
        else:
            _show(Console(highlight=False, soft_wrap=True), profile)
        return
    profiles = [load_profile(known) for known in profile_names()]
    if as_json:
        typer.echo(json.dumps([summary(profile) for profile in profiles], indent=2))
    elif as_markdown:
        typer.echo(markdown(profiles), nl=False)
    else:
        _list(Console(highlight=False, soft_wrap=True, width=_WIDTH), profiles)


def summary(profile: DeviceProfile) -> dict[str, Any]:
    """Return a profile's line of ``--json``; errors and shares are fractions."""
    provenance = profile.provenance
    error = provenance.held_out
    return {
        "name": profile.name,
        "aliases": list(profile.aliases),
        "device": profile.device,
        "runtime": profile.runtime,
        "precision": profile.precision,
        "batch": profile.batch,
        "kind": profile.predictor.kind,
        "source": sorted({f"{s.repository}@{s.commit}" for s in provenance.sources}),
        "licence": sorted({source.licence for source in provenance.sources}),
        "samples": provenance.samples,
        "measurements": sum(source.measurements for source in provenance.sources),
        "held_out_mape": error.mape,
        "within_10": error.within_10,
        "spearman": error.spearman,
        "quality": profile.quality,
        "capabilities": list(profile.capabilities),
    }


def markdown(profiles: list[DeviceProfile]) -> str:
    """Return the table of ``docs/devices.md``."""
    lines = [
        "| name | device | runtime | kind | measured | error | within 10 % | rank | quality |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for profile in profiles:
        provenance = profile.provenance
        error = provenance.held_out
        names = " ".join(f"`{known}`" for known in (profile.name, *profile.aliases))
        lines.append(
            f"| {names} | {profile.device} | {profile.runtime} {profile.precision} | "
            f"{profile.predictor.kind} | {provenance.sample_count} {provenance.samples} | "
            f"{100 * error.mape:.1f} % | {100 * error.within_10:.0f} % | {error.spearman:.3f} | "
            f"{profile.quality} |"
        )
    return "\n".join(lines) + "\n"


def _list(console: Console, profiles: list[DeviceProfile]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("name", "runtime"):
        table.add_column(title, no_wrap=True)
    for title in ("measured", "error", "in 10 %", "rank"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("quality", no_wrap=True)
    for profile in profiles:
        provenance = profile.provenance
        error = provenance.held_out
        table.add_row(
            escape(profile.name),
            f"{profile.runtime} {profile.precision}",
            f"{provenance.sample_count} {provenance.samples}",
            f"{profile.error_text}",
            f"{100 * error.within_10:.0f} %",
            f"{error.spearman:.2f}",
            profile.quality,
        )
    console.print(table)
    aliases = {alias: profile.name for profile in profiles for alias in profile.aliases}
    if aliases:
        pairs = (f"{alias} = {known}" for alias, known in sorted(aliases.items()))
        told = textwrap.fill(f"aliases: {'; '.join(pairs)}", _WIDTH, break_on_hyphens=False)
        console.print(escape(told))
    console.print(_LEGEND)


def _show(console: Console, profile: DeviceProfile) -> None:
    provenance, predictor = profile.provenance, profile.predictor
    console.print(
        f"{escape(profile.name)}: {escape(profile.device)}, {profile.runtime} "
        f"({escape(profile.runtime_version)}), {profile.precision}, batch {profile.batch}"
    )
    aliases = ", ".join(profile.aliases) or "none"
    capabilities = ", ".join(profile.capabilities) or "none"
    console.print(f"aliases: {escape(aliases)}; capabilities: {capabilities}")
    console.print(f"channels are padded to multiples of {profile.alignment}")
    error, unseen = provenance.held_out, provenance.unseen_family
    console.print(
        f"held-out error {profile.error_text} over {provenance.sample_count} "
        f"{provenance.samples} ({escape(provenance.split)}); {100 * error.within_20:.0f} % within "
        f"20 %; {profile.quality} data"
    )
    if unseen is not None:
        console.print(f"with whole families held out: ±{100 * unseen.mape:.0f} %")
    for source in provenance.sources:
        console.print(
            f"{source.measurements} measurements from {escape(source.repository)} at "
            f"{escape(source.commit)} ({escape(source.licence)}), {escape(source.file)}"
        )
    table = Table("kernel family", "overhead ms", "GMAC/s", "GB/s", "", box=None)
    for family, limit in predictor.families:
        table.add_row(
            "copy" if family == "copied" else family,
            f"{limit.overhead_ms:.4g}",
            f"{limit.peak_gmacs_per_s:.4g}",
            f"{limit.bandwidth_gb_s:.4g}",
            "" if family.replace("copied", "copy") in provenance.measured_families else "assumed",
        )
    console.print(table)
    console.print(f"and {predictor.constant_ms:.4g} ms per network")
    for attachment in predictor.attachments:
        console.print(f"corrected by {escape(attachment.file)}")
