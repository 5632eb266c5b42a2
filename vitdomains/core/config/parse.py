"""From words to a ``Config``: the file, the dotted overrides, the help, and back to YAML.

Stands between ``schema.py`` (what can be said) and ``validate.py`` (what makes sense). jsonargparse converts and
checks the types and writes the help from the dataclasses; this module gives it a file that is safe to read and turns
what it finds into errors that name the key, what was given and what is allowed.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.config.validate import Allowed, range_of, validate
from vitdomains.core.config.yaml_file import dump_yaml, parse_yaml, read_yaml
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import nearest

# The words of a configuration: which keys there are, how they are spelt, what to say to a wrong one.

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


__all__ = [
    "config_from_dict",
    "config_parser",
    "config_to_dict",
    "dump_config",
    "parse_config",
    "take_overrides",
    "validate",
]

_TITLES = {
    "data": "data: where images come from, how they are split, sized and cached",
    "model": "model: backbone, weights, head",
    "recipe": "recipe: how the model is trained",
    "run": "run: where results go and on what it runs",
}


# ---------------------------------------------------------------------------------------------- the parser and its help


def config_parser(
    prog: str, description: str, default: Config, *, sections: Sequence[str] = ALL_SECTIONS
) -> ArgumentParser:
    """Make a parser with one option a key, grouped by section, whose help gives meaning, unit, type and default.

    Args:
        prog: The command as the user types it.
        description: First lines of the help.
        default: Where the defaults come from, e.g. a domain's own.
        sections: Which of data, model, recipe and run to offer.

    Returns:
        A parser that raises ``argparse.ArgumentError`` rather than leave the process; ``parse_config`` wraps it.
    """
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE.yaml] [--SECTION.KEY VALUE ...]",
        description=description,
        epilog=_source_help(),
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=str, help="YAML file with any of the keys below; options win over it.")
    parser.add_argument("--print_config", action="store_true", help="Print the whole configuration as YAML and exit.")
    defaults = config_to_dict(default)
    for section in sections:
        group = parser.add_argument_group(_TITLES[section])
        hints = get_type_hints(SECTIONS[section])
        texts = _docstrings(SECTIONS[section])
        for field in fields(SECTIONS[section]):
            group.add_argument(
                f"--{section}.{field.name}",
                type=hints[field.name],
                default=defaults[section][field.name],
                help=texts[field.name],
            )
    return parser


def _docstrings(section: type) -> dict[str, str]:
    """Read the string under each field; Python itself throws them away."""
    found = docstring_parser.parse_from_object(section).params
    return {entry.arg_name: (entry.description or "").replace("``", "") for entry in found}


def _source_help() -> str:
    texts = _docstrings(Source)
    example = '--data.sources \'[{"name": "csv", "root": "films"}]\''
    keys = " ".join(f"{field.name}: {texts[field.name]}" for field in fields(Source))
    return f"Each source in data.sources is a mapping, e.g. {example}, with these keys. {keys}"


# ----------------------------------------------------------------------------------------------------- the command line


def parse_config(
    argv: Sequence[str],
    default: Config,
    prog: str,
    *,
    description: str = "",
    sections: Sequence[str] = ALL_SECTIONS,
    allowed: Allowed | None = None,
) -> Config:
    """Turn command-line words into a checked configuration: defaults, then ``--config``, then the dotted overrides.

    ``--help`` and ``--print_config`` write to standard output and leave with status 0. A boolean key may stand without
    a value (true); a list of names may be given as ``A,B``; ``--resume``, ``--overwrite`` and ``--dry_run`` need no
    prefix.

    Args:
        argv: Words after the command, e.g. ``["--recipe.lr", "3e-4"]``.
        default: The configuration to start from.
        prog: The command as the user types it, for the help.
        description: First lines of the help.
        sections: Which of data, model, recipe and run the command takes.
        allowed: Further allowed values by key, see ``validate``.

    Raises:
        ConfigError: Unknown key, wrong type, impossible value, missing or unsafe file, or a word that is no option.
    """
    options, rest = take_overrides(argv, sections=sections)
    if rest:
        raise unknown_key(rest[0].lstrip("-").split("=")[0], list(known_keys(sections)), given=rest[0])
    words = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "--config":
            default = config_from_dict(read_yaml(value), default, check=False)
        elif name != "--print_config":
            words.append(option)
    parser = config_parser(prog, description, default, sections=sections)
    values = checked(lambda: parser.parse_args(words).as_dict(), known_keys(sections))
    config = _build({**config_to_dict(default), **{section: values[section] for section in sections}})
    validate(config, allowed=allowed)
    if "--print_config" in options:
        sys.stdout.write(dump_config(config))
        raise SystemExit(0)
    return config


# ---------------------------------------------------------------------------------------------------- mappings and YAML


def config_to_dict(config: Config) -> dict[str, Any]:
    """Give the configuration as nested dicts, lists and scalars that JSON and YAML can hold."""
    plain: dict[str, Any] = _plain(asdict(config))
    return plain


def dump_config(config: Config) -> str:
    """Write the configuration as YAML that ``--config`` reads back to an equal one."""
    return dump_yaml(config_to_dict(config))


def config_from_dict(values: Mapping[str, Any], default: Config | None = None, *, check: bool = True) -> Config:
    """Make a configuration from nested mappings, as read from YAML or a bundle.

    Args:
        values: Section to key to value; what is missing comes from ``default``.
        default: The configuration to start from; None: the dataclasses' own defaults.
        check: Whether to check ranges and combinations as well as keys and types.

    Raises:
        ConfigError: As ``parse_config``.
    """
    default = default or Config()
    keys = known_keys()
    given = {section: dict(part) for section, part in _sections(values)}
    for section, part in given.items():
        for name, value in part.items():
            key = f"{section}.{name}"
            if key not in keys:
                raise unknown_key(key, list(keys))
            part[name] = as_text(value) if keys[key] is str else value
            if key == "data.sources":
                part[name] = checked_sources(value)
    parser = config_parser("config", "", default)
    parsed = checked(lambda: parser.parse_object(given).as_dict(), keys)
    config = _build(parsed)
    if check:
        validate(config)
    return config


def _sections(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for section, part in values.items():
        if section not in SECTIONS:
            raise unknown_key(str(section), [*SECTIONS, *known_keys()])
        if part is None:  # a section whose keys are all commented out
            continue
        if not isinstance(part, Mapping):
            raise ConfigError(
                f"{section} was given as {part!r}; it is a section.",
                hint=f"Put keys under it, one of {', '.join(f.name for f in fields(SECTIONS[section]))}.",
            )
        yield section, part


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _build(values: Mapping[str, Any]) -> Config:
    parts = {section: _instance(SECTIONS[section], values[section]) for section in SECTIONS}
    return Config(**parts)


def _instance(cls: type[Any], values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(**{name: _typed(value, hints[name]) for name, value in values.items()})


def _typed(value: Any, hint: Any) -> Any:
    """Give tuples, floats and sources back the type that JSON cannot say; all else was checked before."""
    if hint is Source:
        return _instance(Source, value)
    if hint is float:
        return float(value)
    if get_origin(hint) is list:
        return [_typed(part, get_args(hint)[0]) for part in value]
    if get_origin(hint) is tuple:
        return tuple(_typed(part, kind) for part, kind in zip(value, get_args(hint), strict=True))
    return value
