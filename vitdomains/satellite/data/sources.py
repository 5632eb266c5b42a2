"""The sources of tiles: published releases in class folders, BigEarthNet, class folders, tables, and what ``tile`` wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data import sources
from vitdomains.core.data.manifest import LABEL_PREFIX, Manifest
from vitdomains.core.data.sources import DomainSources, Labels, Reader, folders, listed_labels, prefixed_labels, tiles
from vitdomains.core.errors import ManifestError
from vitdomains.satellite.data import bigearthnet
from vitdomains.satellite.data.folders import LAYOUTS, release
from vitdomains.satellite.data.positions import split_tiles


def csv_source(source: Source, root: Path) -> Manifest:
    """Any table that the config describes: ``columns`` maps id, path, group, split, labels, lon, lat.

    Classes come from one ``labels`` column (one name, or several joined by ``separator``), else from the columns that
    start with ``label:`` and hold 1, 0 or nothing. Columns that are not mapped are kept under their own names.

    Raises:
        ManifestError: The table or a column is not there.
    """
    return sources.csv_source(source, root, _labels, _further, ("lon", "lat"))


def _labels(source: Source, table: pd.DataFrame, mapped: Collection[str], path: Path) -> Labels:
    column = source.columns.get("labels", "labels")
    if column in table:
        classes, listed = listed_labels(table[column], source.separator)
        if not classes:
            raise ManifestError(f"{path}: the column {column!r} is empty.", hint="Map `labels` to the class column.")
        targets = np.array([[name in names for name in classes] for names in listed], dtype=np.float32)
        targets[[not names for names in listed]] = np.nan
        return tuple(classes), targets
    found = prefixed_labels(table, path)
    if found is None:
        raise ManifestError(
            f"{path} has no class column; it has {', '.join(map(str, table.columns))}.",
            hint="Map a `labels` column in the source's `columns`, or name columns `label:CLASS`.",
        )
    return found


def _further(table: pd.DataFrame, mapped: Mapping[str, str], classes: Collection[str]) -> pd.DataFrame:
    used = {*mapped.values(), *classes}
    extra = table[[c for c in table.columns if c not in used and not c.startswith(LABEL_PREFIX)]].copy()
    for key in ("lon", "lat"):
        if mapped[key] in table:
            extra[key] = pd.to_numeric(table[mapped[key]], errors="coerce").astype(np.float64)
    return extra


SOURCES: dict[str, Reader] = {
    **dict.fromkeys(LAYOUTS, release),
    **bigearthnet.READERS,
    "folders": folders,
    "tiles": tiles,
    "csv": csv_source,
}
"""Reader by name. Each takes the source and its resolved root and opens no image."""


def build_manifest(data: Data) -> Manifest:
    """The manifest of a config, as ``core.data.sources.build_manifest``; without sources: class folders under ``data.root``."""
    return sources.build_manifest(data, DomainSources(SOURCES, "folders", split=split_tiles))
