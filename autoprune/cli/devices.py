"""``autoprune devices``: what latencies can be predicted for, and how well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from autoprune.latency.profile import DeviceProfile


def devices(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this profile; a name, an alias or a file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the device profiles with their held-out errors, or show one."""
    from autoprune.latency.profile import load_profile, profile_names

    profiles = [load_profile(known) for known in (profile_names() if name is None else [name])]
    if as_json:
        content = [profile.model_dump(mode="json", by_alias=True) for profile in profiles]
        typer.echo(json.dumps(content if name is None else content[0], indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    if name is None:
        _list(console, profiles)
    else:
        _show(console, profiles[0])


def _list(console: Console, profiles: list[DeviceProfile]) -> None:
    table = Table(box=None)
    for title in ("name", "aliases", "runtime", "networks", "error", "unseen"):
        table.add_column(title, no_wrap=title != "aliases", overflow="fold")
    for profile in profiles:
        unseen = profile.provenance.unseen_family
        table.add_row(
            escape(profile.name),
            escape(" ".join(profile.aliases)),
            f"{profile.runtime} {profile.precision}",
            str(profile.provenance.sample_count),
            profile.error_text,
            f"±{100 * unseen.mape:.0f} %" if unseen is not None else "",
        )
    console.print(table)
    console.print(
        "error: mean over measured networks, each predicted without it; unseen: without its whole "
        "family. `autoprune devices NAME` shows more."
    )


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
        f"held-out error {profile.error_text} over {provenance.sample_count} networks "
        f"({escape(provenance.split)}); {100 * error.within_20:.0f} % within 20 %"
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
