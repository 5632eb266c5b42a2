"""Labelled tiles, for measuring and calibrating: folders named by class, or a table; names need only mean the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.manifest import (
    Manifest,
    folder_manifest,
    labels,
    make_manifest,
    merge,
    read_manifest,
    select_classes,
    take,
    validate,
)
from vitdomains.core.data.sources import complete_splits, keep_rows, limited, source_root
from vitdomains.core.errors import ManifestError
from vitdomains.core.geo.map.tiles_table import PLACE
from vitdomains.zeroshot.embeddings.store import EXTENSIONS, TilePlan
from vitdomains.zeroshot.labels.prompts import PromptSet, matching_class, plain

logger = logging.getLogger(__name__)


def folders(source: Source, root: Path) -> Manifest:
    """Any folder whose sub-folders are classes; an image belongs to the one that it lies in.

    Raises:
        ManifestError: There is no image in a sub-folder.
    """
    base = (root / source.images).absolute()
    found = folder_manifest(base, EXTENSIONS, root.absolute().name).table
    parts = [Path(path).relative_to(base).parts for path in found["path"]]
    inside = np.array([len(part) > 1 for part in parts])
    if not inside.any():
        raise ManifestError(
            f"{base} has no images in sub-folders.", hint="Give the folder that holds the class folders."
        )
    names = [part[0] for part in parts if len(part) > 1]
    classes = sorted(set(names))
    targets = np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in names]]
    ids = ["/".join(part) for part in parts if len(part) > 1]
    return make_manifest(ids, list(found["path"][inside]), ids, classes, targets, name=root.absolute().name)


def tiles(source: Source, root: Path) -> Manifest:
    """A manifest, ``manifest.csv`` unless ``csv`` names another, as ``student`` writes it."""
    return read_manifest(root / (source.csv or "manifest.csv"), name=root.absolute().name)


SOURCES: dict[str, Callable[[Source, Path], Manifest]] = {"folders": folders, "tiles": tiles}


def build_manifest(data: Data) -> Manifest:
    """The manifest of a config: sources -> keep, limit -> merge -> classes -> split -> checks. Tiles have one class each.

    Raises:
        ManifestError: A source is not there, or has none of the classes.
    """
    parts = []
    for source in data.sources or [Source(name="folders")]:
        if source.name not in SOURCES:
            raise ManifestError(f"Unknown source {source.name!r}.", hint=f"Allowed: {', '.join(SOURCES)}.")
        part = keep_rows(SOURCES[source.name](source, source_root(source, data)), source.keep)
        parts.append(limited(part, source.limit, data.split_seed) if source.limit else part)
    m = merge(parts)
    if data.classes:
        spelled = {plain(name): name for name in data.classes}
        renamed = {c: spelled[plain(c)] for c in m.classes if plain(c) in spelled}
        if not renamed:
            raise ManifestError(
                f"No source has {', '.join(data.classes[:5])}; they have {', '.join(m.classes[:10])}.",
                hint="Name folders as the classes; `evaluate` with --classes knows aliases too.",
            )
        table = m.table.rename(columns=renamed)
        m = select_classes(Manifest(table, tuple(renamed.get(c, c) for c in m.classes), m.name), data.classes)
        m = take(m, (labels(m) == 1).any(axis=1))
    m = complete_splits(m, data)
    validate(m, require_positives=False)
    return m


def labelled_sample(source: str | Path, prompts: PromptSet) -> tuple[TilePlan, npt.NDArray[np.float64]]:
    """Labelled image files with their targets over the classes of ``prompts``, [N, K] of 1, 0.

    Args:
        source: A folder of class folders; or a CSV with ``path`` and ``label``; or a manifest (.csv, .parquet).
        prompts: A label is one of its classes if it is the same name or alias, case, blanks and hyphens apart.

    Raises:
        ManifestError: Nothing is there, or no label is a class.
    """
    path = Path(source)
    m = folders(Source(), path) if path.is_dir() else _table(path)
    matched = {name: matching_class(prompts, name) for name in m.classes}
    strange = [name for name, match in matched.items() if not match]
    if len(strange) == len(m.classes):
        raise ManifestError(
            f"No label of {source} is one of the classes: {', '.join(strange[:10])} are not {', '.join(prompts.names[:10])}.",
            hint="Add the labels as aliases to the class file.",
        )
    if strange:
        logger.warning("left out, for they are none of the classes: %s", ", ".join(strange))
    targets = np.zeros((len(m), len(prompts.names)))
    for name, match in matched.items():
        if match:
            targets[:, prompts.names.index(match)] += np.nan_to_num(m.table[name].to_numpy(np.float64)) == 1
    targets = np.minimum(targets, 1.0)
    known = targets.any(axis=1)
    rows = m.table[known]
    names = [Path(path).name for path in rows["path"]]
    place = {name: np.full(len(rows), -1, np.int32) for name in ("col", "row", "width", "height")}
    table = pd.DataFrame({"tile_id": rows["id"].to_numpy(), "scene": names, "path": rows["path"].to_numpy(), **place})
    return TilePlan(table[list(PLACE)], {}), targets[known]


def _table(path: Path) -> Manifest:
    if path.suffix == ".csv" and path.is_file():
        head = pd.read_csv(path, nrows=0).columns
        if {"path", "label"} <= set(head):
            table = pd.read_csv(path, dtype={"path": "str", "label": "str"}).dropna(subset=["path", "label"])
            files = [str((path.parent / file).absolute()) for file in table["path"]]
            classes = sorted(set(table["label"]))
            targets = np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in table["label"]]]
            return make_manifest(list(table["path"]), files, list(table["path"]), classes, targets, name=path.stem)
    return read_manifest(path)
