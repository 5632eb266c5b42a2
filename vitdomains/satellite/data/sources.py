"""From the ``data`` section of a config to one checked manifest of tiles: read, merge, choose classes, split, validate."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data import manifest
from vitdomains.core.data.manifest import (
    LABEL_PREFIX,
    Manifest,
    labels,
    make_manifest,
    merge,
    read_manifest,
    select_classes,
    take,
    validate,
    with_split,
)
from vitdomains.core.data.sources import keep_rows, limited, source_root
from vitdomains.core.data.tables import label_columns, read_table, require_columns
from vitdomains.core.errors import ManifestError
from vitdomains.core.terminal import nearest
from vitdomains.satellite.data import bigearthnet
from vitdomains.satellite.data.folders import LAYOUTS, folders, release
from vitdomains.satellite.data.positions import split_tiles

# --------------------
# Tiles that a table lists: the user's own CSV, and the manifest that ``tile`` writes.

_FIXED = ("id", "path", "group", "split", "labels")


def tiles(source: Source, root: Path) -> Manifest:
    """What ``tile`` wrote: ``manifest.csv`` (or ``csv`` of the source, .csv or .parquet) under the root.

    Raises:
        ManifestError: It is not there.
    """
    return read_manifest(root / (source.csv or "manifest.csv"), name=root.absolute().name)


def csv_source(source: Source, root: Path) -> Manifest:
    """Any table that the config describes: ``columns`` maps id, path, group, split, labels, lon, lat.

    Classes come from one ``labels`` column (one name, or several joined by ``separator``), else from the columns that
    start with ``label:`` and hold 1, 0 or nothing. Columns that are not mapped are kept under their own names.

    Raises:
        ManifestError: The table or a column is not there.
    """
    if not source.csv:
        raise ManifestError("A `csv` source needs the name of its table.", hint="Set `csv`, relative to its root.")
    path = root / source.csv
    if not path.is_file():
        raise ManifestError(f"No table at {path}.", hint="Check the source's `root` and `csv`.")
    mapped = {key: source.columns.get(key, key) for key in (*_FIXED, "lon", "lat")}
    table = read_table(path, (), text=[mapped[key] for key in _FIXED])
    require_columns(table, [*source.columns.values(), mapped["path"]], path)
    files = table[mapped["path"]].fillna("").astype("str")

    def column(key: str, default: pd.Series) -> list[str]:
        return (table[mapped[key]].fillna("") if mapped[key] in table else default).astype("str").tolist()

    classes, targets = _labels(source, table, mapped["labels"], path)
    ids = column("id", files)
    used = {*mapped.values(), *(c for c in table.columns if c.startswith(LABEL_PREFIX))}
    extra = table[[c for c in table.columns if c not in used and c not in classes]].copy()
    for key in ("lon", "lat"):
        if mapped[key] in table:
            extra[key] = pd.to_numeric(table[mapped[key]], errors="coerce")
    base = (root / source.images).absolute()
    return make_manifest(
        ids, [os.path.normpath(base / f) if f else "" for f in files], column("group", pd.Series(ids)), classes, targets,
        splits=column("split", files) if mapped["split"] in table else None, extra=extra, name=root.absolute().name,
    )  # fmt: skip


def _labels(
    source: Source, table: pd.DataFrame, column: str, path: Path
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Class names, and 1, 0, NaN by row and class."""
    if column in table:
        cells = table[column].fillna("").astype("str")
        listed = [[part.strip() for part in cell.split(source.separator) if part.strip()] for cell in cells]
        classes = tuple(sorted({name for names in listed for name in names}))
        if not classes:
            raise ManifestError(f"{path}: the column {column!r} is empty.", hint="Map `labels` to the class column.")
        targets = np.array([[name in names for name in classes] for names in listed], dtype=np.float32)
        targets[[not names for names in listed]] = np.nan
        return classes, targets
    columns = [c for c in table.columns if c.startswith(LABEL_PREFIX)]
    if not columns:
        raise ManifestError(
            f"{path} has no class column; it has {', '.join(map(str, table.columns))}.",
            hint="Map a `labels` column in the source's `columns`, or name columns `label:CLASS`.",
        )
    return tuple(c.removeprefix(LABEL_PREFIX) for c in columns), label_columns(table, columns, path)


log = logging.getLogger(__name__)

SOURCES: dict[str, Callable[[Source, Path], Manifest]] = {
    **dict.fromkeys(LAYOUTS, release),
    **bigearthnet.READERS,
    "folders": folders,
    "tiles": tiles,
    "csv": csv_source,
}
"""Reader by name. Each takes the source and its resolved root and opens no image."""


def build_manifest(data: Data) -> Manifest:
    """The manifest of a config: sources -> keep, limit -> merge -> classes -> split -> checks.

    Args:
        data: The config's ``data``; without sources: class folders under ``data.root``.

    Returns:
        A validated manifest, every row in train, val or test, none without a known label. For a single-label task every
        row has exactly one class.

    Raises:
        ManifestError: A source is not there, not what it claims, or inconsistent.
        ConfigError: Impossible fractions.
    """
    joined = merge([_read(source, data) for source in data.sources or [Source(name="folders")]])
    single = data.task != "multilabel"
    m = _one_class_each(joined) if single else joined
    if data.classes:
        m = _chosen(m, data.classes)
    m = split_tiles(_known(m, single), data)
    if not data.classes:
        m = _known(_without_rare(m, data.min_positives), single)
    validate(m, require_positives=False)
    return m


def _read(source: Source, data: Data) -> Manifest:
    reader = SOURCES.get(source.name)
    if reader is None:
        raise ManifestError(
            f"Unknown source {source.name!r}.",
            hint=f"Did you mean {nearest(source.name, list(SOURCES), 1)}? Allowed: {', '.join(SOURCES)}.",
        )
    m = reader(source, source_root(source, data))
    if data.split in ("official", "column") and not (m.table["split"] != "").any():
        raise ManifestError(
            f"`data.split` is {data.split}, but the source {source.name} ({m.name}) has no such split.",
            hint="Use `data.split: auto` or `grouped`, or add the split lists beside the images.",
        )
    if data.split in ("grouped", "spatial", "longitude"):
        m = with_split(m, [""] * len(m))
    m = keep_rows(m, source.keep)
    if source.limit > 0:
        m = limited(m, source.limit, data.split_seed)
    log.info("%s: %d images, %d groups", m.name, len(m), m.table["group"].nunique())
    return m


def _one_class_each(m: Manifest) -> Manifest:
    """A tile of one class is none of the others, those of another source included."""
    targets = labels(m).copy()
    positives = (targets == 1).sum(axis=1)
    if (positives > 1).any():
        first = m.table["id"].iloc[int(np.argmax(positives > 1))]
        raise ManifestError(
            f"{int((positives > 1).sum())} tiles have more than one class, the first is {first}.",
            hint="Set --data.task multilabel.",
        )
    targets[positives == 1] = np.nan_to_num(targets[positives == 1], nan=0.0)
    return Manifest(m.table.assign(**dict(zip(m.classes, targets.T, strict=True))), m.classes, m.name)


def _chosen(m: Manifest, names: Sequence[str]) -> Manifest:
    """The classes asked for, in that order; a class that no source has is a warning, so that a model can be measured
    on data with fewer classes than its own."""
    spelled = {_plain(c): c for c in m.classes}
    absent = [name for name in names if _plain(name) not in spelled]
    if len(absent) == len(names):
        raise ManifestError(
            f"No source has {', '.join(names[:5])}.", hint=f"Its classes are {', '.join(m.classes[:40])}."
        )
    if absent:
        log.warning("no tile of %s; the sources have %s", ", ".join(absent), ", ".join(m.classes))
    table = m.table.rename(columns={spelled[_plain(n)]: n for n in names if _plain(n) in spelled})
    renamed = tuple(next((n for n in names if _plain(n) == _plain(c)), c) for c in m.classes)
    chosen = select_classes(Manifest(table, renamed, m.name), names)
    others = [c for c in renamed if c not in names]
    if others and not absent:
        log.info("%d classes are left out: %s", len(others), ", ".join(others[:10]))
    return chosen


def _plain(name: str) -> str:
    """A class name without case, blanks, hyphens and underscores."""
    return "".join(c for c in name.casefold() if c.isalnum())


def _known(m: Manifest, single: bool) -> Manifest:
    """Without the rows that have no known label; a tile of a class that was not chosen is none of the others."""
    known = (labels(m) == 1).any(axis=1) if single else ~np.isnan(labels(m)).all(axis=1)
    if not known.all():
        log.info("%d of %d tiles have no known label and are left out", int((~known).sum()), len(m))
    return m if known.all() else take(m, known)


def _without_rare(m: Manifest, least: int) -> Manifest:
    """Without the classes that have fewer than ``least`` positives in training."""
    splits = m.table["split"].to_numpy(dtype=object)
    rare = {m.classes[k] for k in manifest.classes_without_positives(splits, labels(m), max(1, least))}
    if rare:
        log.warning("left out, fewer than %d positives in training: %s", max(1, least), ", ".join(sorted(rare)))
    if len(rare) == len(m.classes):
        raise ManifestError(
            f"No class has {max(1, least)} positives in training.", hint="Lower `data.min_positives`, or add tiles."
        )
    return select_classes(m, [c for c in m.classes if c not in rare])
