"""Pairs of image and caption for contrastive training: a table, or folders named by class and templates around their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.data.manifest import labels
from vitdomains.core.data.sources import folders
from vitdomains.core.data.tables import local_path, read_table
from vitdomains.core.errors import ManifestError
from vitdomains.zeroshot.labels.prompts import PromptSet, make_prompts

_PAIR = ("path", "caption")


@dataclass(frozen=True)
class Pairs:
    """N images in G groups; ``captions[g]`` are the texts that fit every image of group g, ``names[g]`` what it is called."""

    paths: tuple[str, ...]
    groups: npt.NDArray[np.int64]
    names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]


def spoken(name: str) -> str:
    """The name of a folder as words: ``BaseballField`` -> ``baseball field``."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", name).lower().split())


def read_pairs(source: str | Path, templates: Sequence[str] = ()) -> Pairs:
    """A CSV with ``path`` (relative to it) and ``caption``, equal captions being one group; or a folder of class folders.

    Raises:
        ManifestError: Neither is there.
    """
    path = Path(source)
    if path.is_dir():
        m = folders(Source(), path)
        number = (labels(m) == 1).argmax(axis=1)
        prompts = class_prompts(m.classes, templates)
        texts = tuple(c.prompts for c in prompts.classes)
        return Pairs(tuple(m.table["path"]), number.astype(np.int64), tuple(m.classes), texts)
    try:
        table = read_table(path, _PAIR, text=_PAIR).dropna(subset=list(_PAIR))
    except ManifestError as error:
        raise ManifestError(
            f"{source} holds no pairs: {error.message}",
            hint="Give a CSV with path and caption, or a folder of class folders.",
        ) from error
    numbers, captions = pd.factorize(table["caption"].str.strip())
    files = tuple(local_path(path.parent.absolute(), file) for file in table["path"])
    return Pairs(files, numbers.astype(np.int64), tuple(captions), tuple((text,) for text in captions))


def class_prompts(names: Sequence[str], templates: Sequence[str] = ()) -> PromptSet:
    """Folder names as classes to ask for, in words."""
    return make_prompts({"classes": [spoken(name) for name in names]}, templates)


def hold_out(pairs: Pairs, count: int, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs of all groups but ``count`` drawn ones, and those of the drawn ones.

    Raises:
        ManifestError: Fewer than two groups would be left to learn from.
    """
    if len(pairs.names) - count < 2:
        raise ManifestError(
            f"There are {len(pairs.names)} classes or captions; {count} cannot be held out.", hint="Lower --hold_out."
        )
    drawn = np.zeros(len(pairs.names), dtype=bool)
    drawn[np.random.default_rng(seed).permutation(len(drawn))[:count]] = True
    return _only(pairs, ~drawn), _only(pairs, drawn)


def _only(pairs: Pairs, wanted: npt.NDArray[np.bool_]) -> Pairs:
    keep = wanted[pairs.groups]
    number = np.cumsum(wanted) - 1
    chosen = np.flatnonzero(wanted)
    return Pairs(
        tuple(np.array(pairs.paths, dtype=object)[keep]),
        number[pairs.groups[keep]],
        tuple(pairs.names[i] for i in chosen),
        tuple(pairs.captions[i] for i in chosen),
    )
