"""Settings of a search as a file: written with every default explained, read, set one by one.

Names, defaults and explanations are those of :class:`~autoprune.run.settings.RunSettings`; nothing
is said here a second time.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.run.directory import FORMAT, RECORD_FILE, RunDirectory
from autoprune.run.settings import RunSettings
from autoprune.run.storage import whole_storage
from autoprune.yaml_file import read_yaml

#: Version of the file format, and the key its settings are under.
VERSION, SECTION = 1, "search"

#: Headings, each over the setting it begins with.
_PARTS = {
    "model": "what is pruned, and for what",
    "trials": "how long",
    "sampler": "how candidates are found and made",
    "seed": "repeating it",
    "workers": "where evaluations run",
    "metric": "how networks are scored",
    "study_storage": "several searches together",
    "calibration_samples": "how many samples are read",
}

_HEAD = """\
# Settings of a search. Start it with
#
#     autoprune search -c {name}
#     autoprune search -c {name} --set search.trials=200      (once with another value)
#
# A line that is commented out shows the default. Paths are seen from where autoprune is started.
# `autoprune devices` lists devices; docs/samplers.md, docs/criteria.md and docs/cluster.md tell the
# rest.
"""

#: Settings that have entries, each with a name.
_MAPPINGS = tuple(
    name for name, field in RunSettings.model_fields.items() if get_origin(field.annotation) is dict
)

_WIDTH = 98


def settings_text(values: Mapping[str, Any], *, name: str = "run.yaml") -> str:
    """Return the content of a settings file.

    Args:
        values: Settings that are given; all others are commented out, with their defaults.
        name: What the file will be called.
    """
    explained = explanations()
    lines = [_HEAD.format(name=name), f"version: {VERSION}", f"{SECTION}:"]
    for setting, field in RunSettings.model_fields.items():
        if setting in _PARTS:
            lines += ["", f"  # --- {_PARTS[setting]} ".ljust(_WIDTH, "-")]
        told = explained.get(setting, "") + _choices(field.annotation)
        lines += ["", *textwrap.wrap(told, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")]
        given = setting in values
        value = values[setting] if given else field.get_default()
        default = None if field.is_required() and not given else value
        lines.append(f"  {'' if given else '# '}{setting}: {_yaml(default)}")
    return "\n".join(lines) + "\n"


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a file gives.

    Args:
        path: A file that :func:`settings_text` made, a run's ``run.json``, or the run's folder.

    Raises:
        SettingsError: It cannot be read, or is neither.
        UnknownNameError: A key is unknown.
        RunError: There is no run in the folder, or a damaged one.
    """
    if path.is_dir() or path.name == RECORD_FILE:
        return _of_run(path if path.is_dir() else path.parent)
    content = read_yaml(path, "settings")
    if content.get("format") == FORMAT:
        raise SettingsError(f"settings {path}: a run is read from its folder; give {path.parent}")
    for key in content:
        if key not in ("version", SECTION):
            hint = f"; put it under '{SECTION}:'" if key in RunSettings.model_fields else ""
            unknown = UnknownNameError("key", str(key), ["version", SECTION])
            raise SettingsError(f"settings {path}: {unknown}{hint}")
    if content.get("version") != VERSION:
        raise SettingsError(
            f"settings {path}: expected 'version: {VERSION}', got {content.get('version')!r}"
        )
    values = content.get(SECTION)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"settings {path}: expected settings by name under '{SECTION}:'")
    _check_names(values, f"settings {path}")
    return {name: value for name, value in values.items() if value is not None}


def assigned(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings that ``search.NAME=VALUE`` texts give.

    >>> assigned(["search.trials=50", "search.sampler_options.size=3", "seed=7"])
    {'trials': 50, 'sampler_options': {'size': 3}, 'seed': 7}

    Args:
        texts: Each a name, ``search.`` before it or not, ``=`` and a value as in YAML; the entry of
            a mapping has its name after another dot.

    Raises:
        SettingsError: A text is of another form.
        UnknownNameError: There is no such setting.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix(f"{SECTION}.")
        if not equals or not name:
            raise SettingsError(f"--set takes NAME=VALUE such as {SECTION}.trials=50, got {text!r}")
        name, _, entry = name.partition(".")
        _check_names([name], "--set")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SettingsError(f"--set {text}: the value is not valid YAML") from None
        if entry and name not in _MAPPINGS:
            raise SettingsError(
                f"--set {text}: {name} has no entries, only {' and '.join(_MAPPINGS)}"
            )
        values = merged(values, {name: {entry: parsed} if entry else parsed})
    return values


def merged(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others in their place; mappings get the others' entries.

    >>> merged({"seed": 1, "sampler_options": {"a": 1}}, {"seed": 2, "sampler_options": {"b": 2}})
    {'seed': 2, 'sampler_options': {'a': 1, 'b': 2}}
    """
    result = dict(settings)
    for name, value in others.items():
        known = result.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            result[name] = {**known, **value}
        else:
            result[name] = value
    return result


def explanations() -> dict[str, str]:
    """Return what the docstring of the settings says of each, as plain text."""
    document = inspect.getdoc(RunSettings) or ""
    attributes = document.partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: _plain(" ".join(told.split())) for name, told in found}


def _plain(text: str) -> str:
    """Return a docstring's text without its markup, and with YAML's words."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"\1", text)
    return text.replace("``None``", "null").replace("``", "")


def _choices(annotation: Any) -> str:
    """Return the values that a setting may have, where they are few."""
    union = get_origin(annotation) in (Union, UnionType)
    parts = get_args(annotation) if union else (annotation,)
    if any(get_origin(part) is not Literal for part in parts):
        return ""
    return f" One of {', '.join(str(value) for part in parts for value in get_args(part))}."


def _yaml(value: Any) -> str:
    """Return a value in one line of YAML."""
    return json.dumps(value) if not isinstance(value, str) else _scalar(value)


def _scalar(text: str) -> str:
    dumped: str = yaml.safe_dump(text, width=10_000, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _of_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that began."""
    settings = RunDirectory.open(folder).record.settings
    for name, what in (("model", "model"), ("data", "task")):
        if getattr(settings, name) is None:
            raise SettingsError(
                f"the run in {folder} was given its {what} as an object in Python, so its settings "
                "do not name it; search from Python again"
            )
    values = {n: v for n, v in settings.model_dump(mode="json").items() if v is not None}
    if settings.study_storage is not None:
        values["study_storage"] = whole_storage(settings.study_storage, None)
    return values


def _check_names(names: Sequence[str] | Mapping[str, Any], where: str) -> None:
    """Raise for the first name that no setting has."""
    for name in names:
        if name not in RunSettings.model_fields:
            unknown = UnknownNameError("setting", str(name), RunSettings.model_fields)
            raise SettingsError(f"{where}: {unknown}")
