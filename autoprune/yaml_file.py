"""Reads settings from YAML files: plain values, and no key twice."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from autoprune.errors import SettingsError


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: The file.
        what: What it is, for messages: ``"search space"``.

    Raises:
        SettingsError: It cannot be read, holds no mapping, or a key is given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} {path}: cannot be read: {error}") from None
    try:
        # A subclass of SafeLoader: plain values only.
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} {path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(
            f"{what} {path}: expected a mapping such as 'version: 1', got {type(content).__name__}"
        )
    return content


class _Loader(yaml.SafeLoader):
    """Safe loader for which a key that is given twice is an error, not silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"given twice: {', '.join(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)
