"""Tiles that a table lists: the user's own CSV, and the manifest that ``tile`` writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.data.manifest import LABEL_PREFIX, Manifest, make_manifest, read_manifest
from vitdomains.core.data.tables import label_columns, read_table, require_columns
from vitdomains.core.errors import ManifestError

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
