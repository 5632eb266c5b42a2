"""Reads and writes one YAML file as plain mappings, and nothing that YAML can hide in it.

A configuration may come from a colleague or a bundle, so the reader is bounded: safe tags only, no aliases (a few
nested ones grow to gigabytes, or to a structure that holds itself), no key twice, at most ``MAX_BYTES``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import nearest

MAX_BYTES = 256_000
"""Largest file that is read; a real one has a few kilobytes."""

MAX_DEPTH = 30
"""Deepest nesting that is read; a real file has five levels. Keeps the parser's stack and time small."""


class _Loader(yaml.SafeLoader):
    """Safe tags only; a repeated key is an error, not a silent last word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text because it has no dot; every recipe has such a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def shipped_files() -> dict[str, Path]:
    """The configurations and class lists that come with the package, by name: in its folder, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[2]
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    return {file.stem: file for file in sorted(folder.glob("*/*.yaml"))}


def find_yaml(path: str | Path) -> Path:
    """The file, or where there is none the shipped one of that name (``nih_deit3_384``)."""
    file = Path(path)
    named = file.name == str(path) and not file.suffix
    return shipped_files().get(str(path), file) if named and not file.exists() else file


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file, or a shipped one by name, whose top level is a mapping; an empty file gives an empty one.

    Raises:
        ConfigError: The file is missing, too large, no UTF-8, no YAML, uses anchors or unsafe tags, or repeats a key.
    """
    file = find_yaml(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        meant = " or ".join(nearest(file.stem, list(shipped_files())))
        raise ConfigError(
            f"The configuration file {file} {what}.",
            hint="Give the path of a YAML file, or a name that `vitdomains configs` lists"
            + (f", such as {meant}." if meant else "."),
        )
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"The configuration file {file} is larger than {MAX_BYTES:,} bytes.", hint="Give a YAML file of keys."
        )
    try:
        values = parse_yaml(raw.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not text in UTF-8.", hint="Save it as UTF-8.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} holds {type(values).__name__} at its top level.",
            hint="Put keys under the sections data, model, recipe and run.",
        )
    return values


def parse_yaml(text: str, name: str) -> Any:
    """Read YAML from a string; ``name`` says in errors where it stood.

    Raises:
        ConfigError: The text is no YAML, uses anchors or unsafe tags, repeats a key or nests without end.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(
                    f"{name} is nested more than {MAX_DEPTH} deep.", hint="Sections hold keys and values."
                )
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{name}: the alias *{event.anchor} is not accepted.",
                    hint="Write the value out where it is needed.",
                )
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name} is not the YAML of a configuration: {_where(error)}.", hint="Correct it.") from error


def dump_yaml(values: dict[str, Any]) -> str:
    """Write a mapping as YAML in its own order, without anchors."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _where(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())[:200]
