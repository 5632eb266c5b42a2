"""From class names to the sentences that a text tower reads: synonyms, descriptions, template ensembles, background, levels.

Prompt engineering is data: a YAML file of classes, and template sets with their source in ``templates.yaml``. What was asked
is part of every answer, so a ``PromptSet`` can be written out and read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_atomically
from vitdomains.core.terminal import nearest

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
"""N texts -> unit vectors [N, D]."""

TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")
DEFAULT_TEMPLATES = ("clip_resisc45",)
_KEYS = ("name", "synonyms", "aliases", "descriptions", "parent", "background")


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
    """Classes from a YAML file, or from a list of names with commas between them.

    Args:
        source: Path of the file, or ``forest, river, parking lot``.
        templates: Names of template sets, or texts with ``{}``; empty: those of the file, else CLIP's for RESISC45.

    Raises:
        ConfigError: The file is not what it should be; the message names the class and the key.
    """
    text = str(source)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return make_prompts(read_yaml(text), templates, name=Path(text).stem)
    return make_prompts({"classes": [part.strip() for part in text.split(",")]}, templates, name="classes")


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
    unknown = sorted(set(raw) - {"name", "templates", "classes"})
    if unknown:
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}.", hint="The keys are name, templates and classes.")
    entries = raw.get("classes")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{name}: there are no classes.", hint="Write a list of names, or of mappings with a name, under `classes`."
        )
    wanted = templates or _texts(raw.get("templates", list(DEFAULT_TEMPLATES)), f"{name}: templates")
    sentences = expand_templates(wanted)
    classes = tuple(_one_class(entry, sentences, name) for entry in entries)
    names = [c.name for c in classes]
    double = [n for n in names if names.count(n) > 1]
    if double:
        raise ConfigError(f"{name}: the class {double[0]!r} stands twice.", hint="Name each class once; use synonyms.")
    groups = {part for c in classes for part in c.parent.split("/") if part}
    if groups & set(names):
        raise ConfigError(
            f"{name}: {sorted(groups & set(names))[0]!r} is both a class and a parent.",
            hint="Give the group another name.",
        )
    return PromptSet(str(raw.get("name", name)), classes, sentences)


def _one_class(entry: Any, templates: Sequence[str], where: str) -> ClassPrompts:
    entry = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
        raise ConfigError(f"{where}: {entry!r} is no class.", hint="Write a name, or a mapping with a name.")
    name = entry["name"].strip()
    unknown = sorted(set(entry) - set(_KEYS))
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
    """A name without case, blanks, hyphens and underscores."""
    return "".join(c for c in name.casefold() if c.isalnum())
