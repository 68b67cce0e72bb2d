"""Search-space settings: the YAML files of ``search_spaces/``, validated whole."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.resources import data_folder
from autoprune.yaml_file import read_yaml


def _multiple(value: object) -> object:
    """Return ``value`` if it is a channel multiple; one message instead of one per union member."""
    if value == "device" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("should be 'device' or a whole number of channels, at least 1")


_Ratio = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
_Units = Annotated[int, pydantic.Field(ge=1)]
_Multiple = Annotated[int | Literal["device"], pydantic.BeforeValidator(_multiple)]


class _Settings(pydantic.BaseModel):
    """What all levels of the file have in common: no conversions, no unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class GroupSettings(_Settings):
    """Overrides for the channel groups that match one pattern; ``None`` leaves a value alone.

    Attributes:
        max_ratio: Largest fraction of the group's units that may be removed.
        minimum_units: Fewest units that stay.
        multiple: Kept channels are a multiple of this, or ``"device"``.
        step: Smallest change of the width, as a fraction of it.
        freeze: Leave the group at its full width.
    """

    max_ratio: _Ratio | None = None
    minimum_units: _Units | None = None
    multiple: _Multiple | None = None
    step: _Ratio | None = None
    freeze: bool | None = None


class BlockSettings(_Settings):
    """Overrides for the removable blocks that match one pattern.

    Attributes:
        freeze: Never drop the block.
    """

    freeze: bool


class SpaceSettings(_Settings):
    """Settings of a search space, as in ``search_spaces/default.yaml``.

    Attributes:
        version: Version of the file format.
        max_ratio: Largest fraction of a group's units that may be removed, in [0, 1).
        minimum_units: Fewest units that stay in a group.
        multiple: Kept channels are a multiple of this; ``"device"`` takes the device's alignment.
        step: Smallest change of a group's width, as a fraction of its full width; 0 for as fine as
            ``multiple`` allows.
        ties: Shell patterns on the groups' names; all groups that match one share one ratio.
        isomorphic: Whether groups of the same structure share one ratio too; ``"auto"`` ties them
            where more than 200 groups are searched.
        depth: Whether blocks may be dropped.
        max_dropped: Largest fraction of the network's removable blocks that one candidate drops.
        groups: Overrides by shell pattern on the group's name; of several that match, later wins.
        blocks: Overrides by shell pattern on the block's name; of several that match, later wins.
    """

    version: Literal[1]
    max_ratio: _Ratio = 0.9
    minimum_units: _Units = 1
    multiple: _Multiple = "device"
    step: _Ratio = 0.0
    ties: list[str] = []
    isomorphic: bool | Literal["auto"] = "auto"
    depth: bool = True
    max_dropped: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] = 0.5
    groups: dict[str, GroupSettings] = {}
    blocks: dict[str, BlockSettings] = {}


def load_space_settings(path_or_name: str | Path) -> SpaceSettings:
    """Return the settings in a YAML file.

    Args:
        path_or_name: A file (anything with a folder or the suffix ``.yaml`` or ``.yml``), or the
            name of a search space that comes with autoprune, such as ``"default"``.

    Raises:
        UnknownNameError: No search space of that name comes with autoprune.
        SettingsError: The file is missing or wrong; the message lists every fault.
    """
    path = _locate(path_or_name)
    content = read_yaml(path, "search space")
    try:
        return SpaceSettings.model_validate(content)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {_fault(entry)}" for entry in error.errors(include_url=False))
        raise SettingsError(f"search space {path}:\n{faults}") from None


def _locate(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if isinstance(path_or_name, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    shipped = {file.stem: file for file in data_folder("search_spaces").glob("*.yaml")}
    if path.name not in shipped:
        raise UnknownNameError("search space", str(path_or_name), shipped)
    return shipped[path.name]


def _fault(entry: Any) -> str:  # pydantic_core.ErrorDetails, which its stubs make a TypedDict
    """Return one line: where, what was expected, what came."""
    location = [str(part) for part in entry["loc"]]
    where = ".".join(location)
    if entry["type"] == "missing":
        return f"{where}: missing"
    if entry["type"] == "extra_forbidden":
        # "groups.<pattern>.<key>" has three parts, a top-level key one.
        levels: dict[str, type[_Settings]] = {"groups": GroupSettings, "blocks": BlockSettings}
        known = list(levels.get(location[0], SpaceSettings).model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key{hint} (known: {', '.join(known)})"
    message = str(entry["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {message}, got {entry['input']!r}"
