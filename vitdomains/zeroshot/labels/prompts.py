"""From class names to the sentences that a text tower reads: synonyms, descriptions, template ensembles, background, levels.

Prompt engineering is data: a YAML file of classes, and template sets with their source in ``templates.yaml``. What was asked
is part of every answer, so a ``PromptSet`` can be written out and read again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.yaml_file import find_yaml, parse_yaml, read_yaml
from vitdomains.core.data.tables import read_text
from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.terminal import nearest

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
"""N texts -> unit vectors [N, D]."""

TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")
DEFAULT_TEMPLATES = ("clip_resisc45",)
_KEYS = ("name", "synonyms", "aliases", "descriptions", "parent", "background")
RESERVED = (UNKNOWN, "unsure", "error", "id", "path", "group", "split", "source", "weight", "reviewed", "probability")
"""Names that no class may have: words that labels and decisions use for none of the classes, and columns of a manifest."""
_FORM = "Two lines are enough: `classes:`, and below it `  - forest`, a line a class."


@dataclass(frozen=True)
class ClassPrompts:
    """One class: the exact texts that stand for it.

    ``parent`` is the path of the groups that it is in, coarse to fine (``natural/vegetation``), or empty. A ``background``
    class competes with the others, and what it wins is unknown. ``aliases`` are what labels of others call it: its synonyms,
    and names that are no words to ask with (AnnualCrop).
    """

    name: str
    prompts: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    parent: str = ""
    background: bool = False


@dataclass(frozen=True)
class PromptSet:
    """The classes of a job, in the order of the scores, and the templates that their prompts were made with."""

    name: str
    classes: tuple[ClassPrompts, ...]
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self)

    @property
    def names(self) -> tuple[str, ...]:
        """K class names."""
        return tuple(c.name for c in self.classes)

    @property
    def id(self) -> str:
        """Twelve hex digits that stand for classes and texts."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON types with every text that was shown to the model."""
        classes = [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(c).items()} for c in self.classes]
        return {"name": self.name, "templates": list(self.templates), "classes": classes}


def read_classes(source: str | Path, templates: Sequence[str] = ()) -> PromptSet:
    """Classes from a file, or from a list of names with commas between them.

    Args:
        source: ``forest, river, parking lot``; the name of a shipped list (``landuse``); a YAML or JSON file with ``classes``
            (or a bare list of them); a text file with a name a line; or a CSV whose column is called name, class or label
            (others: ``synonyms``, ``aliases``, ``descriptions`` with bars between several, ``parent``, ``background``).
        templates: Names of template sets, or texts with ``{}``; empty: those of the file, else CLIP's for RESISC45.

    Raises:
        ConfigError: The file is not what it should be; the message names the class and the key.
    """
    text = str(find_yaml(source))
    ending = Path(text).suffix.lower()
    if not Path(text).is_file() and ending not in (".yaml", ".yml", ".json", ".csv", ".tsv", ".txt"):
        return make_prompts({"classes": [name for part in text.split(",") if (name := part.strip())]}, templates)
    if not Path(text).is_file():
        raise ConfigError(
            f"The class file {text} cannot be read: it is not there.", hint="Give a file, or names with commas."
        )
    written = read_text(text)
    if ending in (".yaml", ".yml", ".json"):
        raw = parse_yaml(written, text)
        raw = {"classes": raw} if isinstance(raw, list) else raw
    elif ending in (".csv", ".tsv"):
        raw = {"classes": _csv_entries(written, text)}
    else:
        lines = [line.strip() for line in written.splitlines()]
        raw = {"classes": [line for line in lines if line and not line.startswith("#")]}
    if not isinstance(raw, dict):
        raise ConfigError(f"{text} is no list of classes.", hint=_FORM)
    return make_prompts(raw, templates, name=Path(text).stem)


def _csv_entries(text: str, where: str) -> list[dict[str, Any]]:
    """A row a class; commas, semicolons or tabs between the columns. Without a header the first column is the name."""
    first = text.lstrip().split("\n", 1)[0]
    rows = [
        row for row in csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)) if any(map(str.strip, row))
    ]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = next((word for word in ("name", "class", "label", "classes") if word in header), "")
    if not named:
        return [{"name": row[0].strip()} for row in rows]
    entries = []
    for row in rows[1:]:
        cells = {key: cell.strip() for key, cell in zip(header, row, strict=False) if cell.strip()}
        entry: dict[str, Any] = {"name": cells.get(named, "")}
        for key in ("synonyms", "aliases", "descriptions"):
            if key in cells:
                entry[key] = [part.strip() for part in cells[key].split("|") if part.strip()]
        entry |= {"parent": cells["parent"]} if "parent" in cells else {}
        entry |= (
            {"background": cells["background"].lower() in ("1", "true", "yes", "x")} if "background" in cells else {}
        )
        if entry not in entries:
            entries.append(entry)
    if not entries:
        raise ConfigError(f"{where} has a header and no class.", hint="Write a row a class.")
    return entries


def read_prompts(path: str | Path) -> PromptSet:
    """The inverse of ``PromptSet.to_dict``, from a JSON file.

    Raises:
        ConfigError: The file is not there, or holds something else.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        classes = tuple(
            ClassPrompts(c["name"], tuple(c["prompts"]), tuple(c["aliases"]), c["parent"], c["background"])
            for c in raw["classes"]
        )
        return PromptSet(raw["name"], classes, tuple(raw["templates"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no prompts: {error}.", hint="Give a folder that `label` wrote.") from error


def make_prompts(raw: Mapping[str, Any], templates: Sequence[str] = (), name: str = "classes") -> PromptSet:
    """What a class file says, as prompts: each name and synonym in each template, and each description as it is.

    Raises:
        ConfigError: As ``read_classes``.
    """
    unknown = sorted(map(str, set(raw) - {"name", "templates", "classes"}))
    if unknown:
        raise ConfigError(
            f"{name}: unknown key {unknown[0]!r}.", hint=f"The keys are name, templates and classes. {_FORM}"
        )
    entries = raw.get("classes")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{name}: there are no classes.", hint=f"Write names, or mappings with a name. {_FORM}")
    wanted = templates or _texts(raw.get("templates", list(DEFAULT_TEMPLATES)), f"{name}: templates")
    sentences = expand_templates(wanted)
    classes = tuple(_one_class(entry, sentences, name) for entry in entries)
    return PromptSet(str(raw.get("name", name)), classes, sentences)


def _check_names(prompts: PromptSet) -> None:
    """Refuse names that two things in a table would share: of classes, of groups, and of words that stand for neither."""
    where, taken = prompts.name, dict[str, str]()
    for name in prompts.names:
        other = taken.setdefault(plain(name), name)
        if prompts.names.count(name) > 1:
            raise ConfigError(f"{where}: the class {name!r} stands twice.", hint="Name each class once; use synonyms.")
        if other != name:
            raise ConfigError(
                f"{where}: the classes {other!r} and {name!r} differ in case, blanks, hyphens or underscores only.",
                hint="Give one of them another name; labels of others are matched without these.",
            )
    groups = {plain(part): part for c in prompts.classes for part in c.parent.split("/") if part}
    for key in groups.keys() & taken.keys():
        raise ConfigError(
            f"{where}: {groups[key]!r} is both a class and a parent.", hint="Give the group another name."
        )
    for key, name in (taken | groups).items():
        if name.casefold().strip() in RESERVED or name.casefold().startswith("not ") or not key:
            raise ConfigError(
                f"{where}: no class can be called {name!r}, which means something else in labels, decisions or manifests.",
                hint=f"Give it a name such as '{name or 'x'} area', and {name!r} as a synonym."
                if key
                else "A name needs a letter or a digit.",
            )
        if "|" in name or not name.isprintable():
            raise ConfigError(
                f"{where}: the name {name!r} has a bar or a character that cannot be printed.",
                hint="Bars stand between the classes of a tile with several; leave them out.",
            )


def _one_class(entry: Any, templates: Sequence[str], where: str) -> ClassPrompts:
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise ConfigError(
            f"{where}: {entry!r} is no class.",
            hint="Write a name, or a mapping with a name; names such as 12, no or on stand in quotes.",
        )
    name = entry["name"].strip()
    unknown = sorted(map(str, set(entry) - set(_KEYS)))
    if unknown:
        close = nearest(str(unknown[0]), _KEYS, 1)
        raise ConfigError(
            f"{where}: the class {name!r} has an unknown key {unknown[0]!r}.",
            hint=f"Did you mean {close[0]}?" if close else f"The keys are {', '.join(_KEYS)}.",
        )
    synonyms = _texts(entry.get("synonyms", []), f"{where}: synonyms of {name}")
    aliases = _texts(entry.get("aliases", []), f"{where}: aliases of {name}")
    descriptions = _texts(entry.get("descriptions", []), f"{where}: descriptions of {name}")
    said = [template.replace("{}", word) for word in (name, *synonyms) for template in templates]
    parent = "/".join(part.strip() for part in str(entry.get("parent") or "").split("/") if part.strip())
    return ClassPrompts(
        name,
        tuple(dict.fromkeys([*said, *descriptions])),
        (*synonyms, *aliases),
        parent,
        bool(entry.get("background", False)),
    )


def _texts(value: Any, where: str) -> list[str]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ConfigError(f"{where} is {value!r}.", hint="Write a text, or a list of texts.")
    return [text.strip() for text in value]


def template_sets() -> dict[str, dict[str, Any]]:
    """The template sets that come with the package: name -> source, templates."""
    return read_yaml(TEMPLATES_FILE)


def expand_templates(wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of template sets and texts with ``{}`` -> the texts.

    Raises:
        ConfigError: A text has no ``{}`` and is no name of a set.
    """
    sets, found = template_sets(), list[str]()
    for entry in wanted:
        if entry in sets:
            found += sets[entry]["templates"]
        elif "{}" in entry:
            found.append(entry)
        else:
            raise ConfigError(
                f"{entry!r} is neither a template with {{}} nor a set of templates.", hint=f"Sets: {', '.join(sets)}."
            )
    return tuple(dict.fromkeys(found))


def single_prompt(prompts: PromptSet) -> PromptSet:
    """The same classes without an ensemble: the name in the first template, nothing else."""
    first = prompts.templates[0] if prompts.templates else "{}"
    classes = tuple(replace(c, prompts=(first.replace("{}", c.name),)) for c in prompts.classes)
    return PromptSet(prompts.name, classes, (first,))


def random_word_prompts(prompts: PromptSet, count: int = 15, seed: int = 0) -> PromptSet:
    """The same classes described by random words, the floor for any wording: what prompts do beyond the name has to beat it
    (WaffleCLIP: Roth et al. 2023, ICCV, arXiv:2306.07282). Words are the same for all classes."""
    first = prompts.templates[0] if prompts.templates else "{}"
    letters, rng = np.array(list("abcdefghijklmnopqrstuvwxyz")), np.random.default_rng(seed)
    words = ["".join(rng.choice(letters, int(rng.integers(3, 9)))) for _ in range(2 * count)]
    ends = [f", which has {a} {b}." for a, b in zip(words[::2], words[1::2], strict=True)]
    classes = tuple(
        replace(c, prompts=tuple(first.replace("{}", c.name).rstrip(".") + end for end in ends))
        for c in prompts.classes
    )
    return PromptSet(prompts.name, classes, (first,))


def class_embeddings(prompts: PromptSet, encode: Encode) -> Floats:
    """One unit vector a class, [K, D]: the mean over its prompts, normalised again (Radford et al. 2021, section 3.1.4)."""
    texts = list(dict.fromkeys(text for c in prompts.classes for text in c.prompts))
    row = {text: i for i, text in enumerate(texts)}
    embedded = encode(texts)
    means = np.stack([embedded[[row[text] for text in c.prompts]].mean(axis=0) for c in prompts.classes])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), dtype=np.float32)


def remembering(encode: Encode, file: Path) -> Encode:
    """``encode`` with a memory: a Parquet file of texts and their vectors; only texts that it lacks are encoded.

    The file belongs to one model; its name should hold the model's id.
    """

    def encode_new(texts: Sequence[str]) -> Floats:
        known = _read_texts(file)
        absent = [text for text in dict.fromkeys(texts) if text not in known]
        if absent:
            known |= dict(zip(absent, np.asarray(encode(absent), dtype=np.float32), strict=True))
            table = pd.DataFrame({"text": list(known), "embedding": list(known.values())})
            write_atomically(file, lambda part: table.to_parquet(part, index=False))
        return np.stack([known[text] for text in texts])

    return encode_new


def _read_texts(file: Path) -> dict[str, Floats]:
    if not file.is_file():
        return {}
    table = pd.read_parquet(file)
    return dict(zip(table["text"], (np.asarray(v, dtype=np.float32) for v in table["embedding"]), strict=True))


def matching_class(prompts: PromptSet, label: str) -> str:
    """The class that a label of someone else's means: same name or alias, apart from case, blanks, hyphens and
    underscores; empty where none is."""
    wanted = plain(label)
    return next((c.name for c in prompts.classes if wanted in (plain(c.name), *map(plain, c.aliases))), "")


def plain(name: str) -> str:
    """A name without case, blanks, hyphens, underscores and other punctuation; the marks of other scripts stay."""
    folded = unicodedata.normalize("NFKC", name.casefold())
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")
