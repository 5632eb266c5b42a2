"""The words of a configuration: which keys there are, how they are spelt, what to say to a wrong one."""

from __future__ import annotations

import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vitdomains.core.config.schema import Data, Model, Recipe, Run, Source
from vitdomains.core.config.validate import range_of
from vitdomains.core.config.yaml_file import parse_yaml
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import nearest

SECTIONS: dict[str, type[Data | Model | Recipe | Run]] = {"data": Data, "model": Model, "recipe": Recipe, "run": Run}
ALL_SECTIONS = tuple(SECTIONS)
_SHORTHANDS = {"resume": "run.resume", "overwrite": "run.overwrite", "dry_run": "run.dry_run"}
BARE = ("help", "print_config", "data.sources.help")


def known_keys(sections: Sequence[str] = ALL_SECTIONS) -> dict[str, Any]:
    """Map every dotted key of the sections to its type."""
    return {
        f"{section}.{name}": hint for section in sections for name, hint in get_type_hints(SECTIONS[section]).items()
    }


def take_overrides(argv: Sequence[str], *, sections: Sequence[str] = ALL_SECTIONS) -> tuple[list[str], list[str]]:
    """Split words into configuration options, each as one ``--key=value``, and all others in their order.

    Lets a command have words of its own (``evaluate runs/x/bundle --data.root films``) beside the shared keys.

    Raises:
        ConfigError: A dotted option is no key, or a key that needs a value has none.
    """
    keys = known_keys(sections)
    options: list[str] = []
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", *(f"--{name}" for name in BARE)):
            options.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = _SHORTHANDS.get(name, name)
        key = name.removesuffix("+")
        if not word.startswith("--") or (key not in keys and key != "config" and key.split(".")[0] not in SECTIONS):
            rest.append(word)
            continue
        if key not in keys and key != "config":
            raise unknown_key(key, list(keys), given=word)
        if not equals:
            if keys.get(key) is bool:  # may stand alone, also before a word that belongs to the command
                value = words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
            elif words and not words[0].startswith("--"):
                value = words.pop(0)
            else:
                raise ConfigError(f"--{name} stands without a value.", hint=f"Give {allowed_text(key, keys)}.")
        options.append(f"--{name}={_spelled(value, keys.get(key), appended=name.endswith('+'))}")
    return options, rest


def _spelled(value: str, hint: Any, *, appended: bool) -> str:
    """Write ``A,B`` as the list that it means, and sources as JSON whose keys were checked."""
    if hint == list[Source]:
        sources = parse_yaml(value, "--data.sources")
        sources = checked_sources([sources] if appended and isinstance(sources, Mapping) else sources)
        return json.dumps(sources)
    if hint != list[str] or appended or value.lstrip().startswith("["):
        return value
    return yaml.safe_dump([part.strip() for part in value.split(",") if part.strip()], default_flow_style=True).strip()


def checked_sources(value: object) -> object:
    """Check the keys of each source here, where the place in the list is still known."""
    if not isinstance(value, list):
        return value
    hints = get_type_hints(Source)
    sources = []
    for index, source in enumerate(value):
        key = f"data.sources[{index}]"
        if not isinstance(source, Mapping):
            raise ConfigError(f"{key} was given as {source!r}.", hint=f"Give a mapping such as {{name: {source}}}.")
        for name in source:
            if name not in hints:
                raise unknown_key(f"{key}.{name}", [f"{key}.{known}" for known in hints])
        sources.append({name: as_text(part) if hints[name] is str else part for name, part in source.items()})
    return sources


def as_text(value: object) -> object:
    """Let ``freeze: 6`` or ``id: 0012`` mean its text; YAML reads a bare number as one."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def checked(parse: Callable[[], dict[str, Any]], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Run jsonargparse and say what it found in this package's words."""
    try:
        return parse()
    except RecursionError as error:
        raise ConfigError("A value is nested too deeply to be read.", hint="Give it flat.") from error
    except (ArgumentError, TypeError, ValueError) as error:
        message = str(error)
        named = re.findall(r'(?:Parser key|argument) "?(?:--)?([\w.]+)', message)
        key = ".".join(named) or "A value"
        given = re.findall(r"(?:Got value:|Option) (.+)", message)
        shown = given[-1][:120] if given else " ".join(message.split())[:200]
        text = allowed_text(key, keys)
        raise ConfigError(f"{key} was given as {shown}; it takes {text}.", hint="See --help for every key.") from error


def unknown_key(key: str, known: Sequence[str], *, given: str = "") -> ConfigError:
    """Make the error for a key that does not exist, with what it may have been meant to be."""
    close = nearest(key, known)
    hint = f"Did you mean {' or '.join(close)}?" if close else "See --help for every key."
    return ConfigError(f"{given or key} is no key of the configuration.", hint=hint)


def allowed_text(key: str, keys: Mapping[str, Any]) -> str:
    """Say what a key takes; reads after "it takes" and "give"."""
    if key == "config":
        return "the path of a YAML file"
    if key.startswith("data.sources."):
        hint = get_type_hints(Source).get(key.removeprefix("data.sources."))
    else:
        hint = keys.get(key)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    limits = range_of(key)
    if hint is float:
        return f"a number {limits}".rstrip()
    if hint is int:
        return f"a whole number {limits}".rstrip()
    words = {
        bool: "true or false",
        str: "text",
        list[str]: "a list of names, e.g. [A, B]",
        list[Source]: "a list of mappings, e.g. [{name: nih, root: /data/nih}]",
        dict[str, str]: "a mapping of names, e.g. {id: image}",
        dict[str, list[str]]: "a mapping of names to lists, e.g. {view: [PA, AP]}",
        dict[str, Any]: "a mapping, e.g. {stem: conv}",
        list[tuple[float, int]]: "a list of pairs, e.g. [[0.6, 224], [1.0, 384]]",
        tuple[float, float]: "two numbers, e.g. [0.9, 0.999]",
    }
    for kind, text in words.items():
        if hint == kind:
            return text
    return "another type" if hint is None else str(hint).replace("typing.", "")
