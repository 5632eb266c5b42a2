"""Classes and prompts as a reviewer types them, a line a class, and the same kept by their id so that a link leads back to them.

    forest: dense trees, woodland | a forest seen from above in autumn
    built > parking lot: car park
    - cloud

After the colon stand synonyms, which go into every template as the name does; after bars, sentences that are taken as they
are. Groups stand before ``>``, coarse to fine with ``/`` between them; a dash marks a background class, which competes and
whose tiles are unknown.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_text
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.zeroshot.labels.prompts import ClassPrompts, PromptSet, make_prompts, read_prompts

MAX_CHARACTERS = 20_000
MAX_CLASSES = 200
MAX_NAME = 100
FOLDER = "asked"
"""Sub-folder of the labels in which prompts that were tried are kept."""
_LINE = re.compile(r"^(?P<name>[^:|]*)(?::(?P<words>[^|]*))?(?:\|(?P<sentences>.*))?$")


def parts_of(c: ClassPrompts, templates: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Synonyms and sentences of a class: which of its texts come from templates, and the others."""
    asked = set(c.prompts)
    texts = {word: [t.replace("{}", word) for t in templates] for word in (c.name, *c.aliases)}
    synonyms = [w for w in c.aliases if "," not in w and "|" not in w and set(texts[w]) <= asked]
    from_templates = {text for word in (c.name, *synonyms) for text in texts[word]}
    return synonyms, [text for text in c.prompts if text not in from_templates]


def as_text(prompts: PromptSet) -> str:
    """The classes as lines."""
    lines = []
    for c in prompts.classes:
        synonyms, sentences = parts_of(c, prompts.templates)
        line = ("- " if c.background else "") + (f"{c.parent} > " if c.parent else "") + c.name
        line += f": {', '.join(synonyms)}" if synonyms else ""
        lines.append(" | ".join([line, *sentences]))
    return "\n".join(lines)


def parse(text: str, templates: tuple[str, ...], base: PromptSet) -> PromptSet:
    """Lines -> classes.

    Args:
        text: What was typed; empty lines and those that begin with ``#`` do not count.
        templates: Names of template sets, or texts with ``{}``.
        base: Its name is kept, and of classes of the same name what others call them.

    Raises:
        ConfigError: A line is no class, or the classes do not go together; the message names the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{len(text):,} characters of classes.", hint=f"Use at most {MAX_CHARACTERS:,}.")
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1)]
    entries = [_entry(i, line) for i, line in lines if line and not line.startswith("#")]
    if len(entries) > MAX_CLASSES:
        raise ConfigError(f"{len(entries)} classes.", hint=f"Use at most {MAX_CLASSES}.")
    known = {c.name: set(c.aliases) - set(parts_of(c, base.templates)[0]) for c in base.classes}
    for entry in entries:
        entry["aliases"] = sorted(known.get(entry["name"], ()))
    return make_prompts({"classes": entries}, templates, name=base.name)


def _entry(number: int, line: str) -> dict[str, Any]:
    background = line.startswith("-")
    found = _LINE.match(line.removeprefix("-").strip())
    head = (found["name"] if found else "").strip()
    parent, _, name = head.rpartition(">")
    name = name.strip()
    if found is None or not name or len(name) > MAX_NAME or not line.isprintable():
        raise ConfigError(
            f"Line {number} is no class: {line[:60]!r}.",
            hint=f"Write NAME: synonym, synonym | a sentence. A name has 1 to {MAX_NAME} characters.",
        )
    if name == UNKNOWN:
        raise ConfigError(f"Line {number}: a class cannot be called {UNKNOWN}.", hint="Give it another name.")
    split = [(found["words"] or "").split(","), (found["sentences"] or "").split("|")]
    synonyms, sentences = ([part.strip() for part in parts if part.strip()] for parts in split)
    return {
        "name": name,
        "synonyms": synonyms,
        "descriptions": sentences,
        "parent": parent.strip(),
        "background": background,
    }


def as_yaml(prompts: PromptSet) -> str:
    """A class file for ``label --classes``."""
    classes = []
    for c in prompts.classes:
        synonyms, sentences = parts_of(c, prompts.templates)
        aliases = [a for a in c.aliases if a not in synonyms]
        entry = {"name": c.name, "synonyms": synonyms, "aliases": aliases, "descriptions": sentences, "parent": c.parent,
                 "background": c.background}  # fmt: skip
        classes.append({key: value for key, value in entry.items() if value})
    raw = {"name": prompts.name, "templates": list(prompts.templates), "classes": classes}
    return str(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))


def write_asked(labels: Path, prompts: PromptSet) -> str:
    """Keep prompts beside the labels; returns the id under which ``read_asked`` finds them."""
    file = labels / FOLDER / f"{prompts.id}.json"
    if not file.is_file():
        write_text(file, json.dumps(prompts.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return prompts.id


def read_asked(labels: Path, identity: str) -> PromptSet:
    """The prompts of an id.

    Raises:
        ConfigError: There are none.
    """
    file = labels / FOLDER / f"{identity}.json"
    if not re.fullmatch("[0-9a-f]{12}", identity) or not file.is_file():
        raise ConfigError(
            "The classes that this link was made with are not kept here.",
            hint="The labels are shown with their own classes; ask for the link again.",
        )
    return read_prompts(file)
