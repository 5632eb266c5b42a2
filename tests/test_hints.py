"""Every hint can be followed: the options, keys and commands that it names exist where it is given."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vitdomains import cli
from vitdomains.core.commands.cli import SHARED
from vitdomains.core.config.parse import known_keys

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = {"--help", "--server.address"}
"""Options of other programs that hints may name: Streamlit."""


@cache
def options_of(domain: str) -> frozenset[str]:
    """All options of the commands of a domain."""
    value, own = cli.domain_commands(domain)
    found = {option for command in {**SHARED, **own}.values() for option in cli._options(command, value)}
    return frozenset(found)


def options_of_apps() -> set[str]:
    """All options that the apps and the measuring of models name in their code."""
    files = [*(ROOT / "apps").rglob("*.py"), *(ROOT / "vitdomains/bench").rglob("*.py"), ROOT / "vitdomains/cli.py"]
    found = {option for file in files for option in re.findall(r"\"(--[a-z][\w.-]*)\"", file.read_text())}
    return {*found, *(f"--{app}_port" for app in cli.DOMAINS)}


def hints() -> Iterator[tuple[str, str]]:
    """(place, text) of everything that is given as ``hint``; a value in an f-string becomes a dot."""
    for file in sorted([*(ROOT / "vitdomains").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                yield f"{file.relative_to(ROOT)}:{node.value.lineno}", "".join(_texts(node.value))


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.FormattedValue):
        yield "…"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def known_options(place: str) -> set[str]:
    """Options that exist where a hint is given: of its domain, of the app, or, in core, of any domain."""
    if place.startswith(("apps/", "vitdomains/bench", "vitdomains/cli.py", "vitdomains/doctor.py")):
        domains = list(cli.DOMAINS)
    else:
        domains = [name for name in cli.DOMAINS if place.startswith(f"vitdomains/{name}/")] or list(cli.DOMAINS)
    return {*options_of_apps(), *FOREIGN}.union(*(options_of(name) for name in domains))


@pytest.fixture(scope="module")
def collected() -> list[tuple[str, str]]:
    return list(hints())


def test_hints_are_found(collected: list[tuple[str, str]]) -> None:
    assert len(collected) > 300
    assert any("--data.root" in text for _, text in collected)


def test_every_option_in_a_hint_exists_there(collected: list[tuple[str, str]]) -> None:
    wrong = []
    for place, text in collected:
        known = known_options(place) | {f"--{key}" for key in known_keys()}
        named = re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)
        wrong += [f"{place}: {option} in {text!r}" for option in named if option not in known]
    assert not wrong, "\n".join(wrong)


def test_every_key_in_a_hint_exists(collected: list[tuple[str, str]]) -> None:
    keys, wrong = set(known_keys()), []
    files = {".yaml", ".json", ".csv", ".txt", ".py", ".tif", ".dcm", ".png"}
    for place, text in collected:
        for key in re.findall(r"(?<![\w./-])(?:data|model|recipe|run)\.[a-z_]+(?:\.[a-z_]+)*", text):
            top = ".".join(key.split(".")[:2])
            if top not in keys and not any(key.endswith(ending) for ending in files):
                wrong.append(f"{place}: {key} in {text!r}")
    assert not wrong, "\n".join(wrong)


def test_every_command_in_a_hint_exists(collected: list[tuple[str, str]]) -> None:
    wrong = []
    for place, text in collected:
        for domain, command in re.findall(r"python -m vitdomains\.(\w+) ([a-z]+)", text):
            if domain in cli.DOMAINS and command not in {**SHARED, **cli.domain_commands(domain)[1]}:
                wrong.append(f"{place}: {domain} {command}")
    assert not wrong, "\n".join(wrong)


def test_no_hint_shows_a_list_as_python_writes_it() -> None:
    """Names in a hint are joined by commas: ``{names}`` of a list would print brackets and quotes."""
    wrong = []
    for file in sorted([*(ROOT / "vitdomains").rglob("*.py"), *(ROOT / "apps").rglob("*.py")]):
        given = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.keyword) and n.arg == "hint"]
        values = [
            v for n in given for v in ast.walk(n.value) if isinstance(v, ast.FormattedValue) and _is_a_list(v.value)
        ]
        wrong += [f"{file.relative_to(ROOT)}:{value.lineno}: {ast.unparse(value.value)}" for value in values]
    assert not wrong, "\n".join(wrong)


def _is_a_list(node: ast.expr) -> bool:
    made = (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("sorted", "list", "tuple", "set")
    )
    return made or isinstance(node, (ast.List, ast.ListComp, ast.Tuple, ast.Set))
