"""From single data sets to one manifest: what the sources of every domain share, from the root folder to the full split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.manifest import Manifest, check_splits, take, with_split
from vitdomains.core.data.splits import grouped_split
from vitdomains.core.data.tables import require_columns
from vitdomains.core.errors import ManifestError


def source_root(source: Source, data: Data) -> Path:
    """The folder of a source.

    Raises:
        ManifestError: None is given, or it is no folder.
    """
    if not data.root and not source.root:
        raise ManifestError(
            f"The source {source.name} has no root.", hint="Say where the data set lies: --data.root FOLDER."
        )
    root = Path(data.root, source.root).expanduser()
    if not root.is_dir():
        raise ManifestError(
            f"The root of the source {source.name}, {root}, is no folder.",
            hint="Set --data.root to where the data set lies; data_cards/ says how to get it.",
        )
    return root


def keep_rows(m: Manifest, keep: Mapping[str, Sequence[str]]) -> Manifest:
    """The rows whose column has one of the values, for each column that ``keep`` names.

    Raises:
        ManifestError: There is no such column, or no such row.
    """
    for column, values in keep.items():
        require_columns(m.table, [column], f"The source {m.name}")
        m = take(m, m.table[column].astype("str").isin([str(v) for v in values]).to_numpy(dtype=bool))
        if not len(m):
            raise ManifestError(
                f"No image of {m.name} has {column} in {', '.join(map(str, values))}.",
                hint="Correct the source's `keep`.",
            )
    return m


def limited(m: Manifest, limit: int, seed: int) -> Manifest:
    """Whole groups in the order of a seeded shuffle, as many as fit, rows in table order."""
    sizes = m.table.groupby("group", sort=True).size()
    order = sizes.iloc[np.random.default_rng(seed).permutation(len(sizes))]
    fits = order.index[(order.cumsum() <= limit).to_numpy()]
    if not len(fits):
        raise ManifestError(
            f"`limit: {limit}` is less than the {int(order.iloc[0])} images of the first group of {m.name}.",
            hint="Raise the limit.",
        )
    return take(m, m.table["group"].isin(fits).to_numpy(dtype=bool))


def complete_splits(m: Manifest, data: Data) -> Manifest:
    """Fill the split column source by source.

    Where a source gives a test but no validation split (or the reverse), the other is taken by group from its training
    rows.
    """
    check_splits(m)
    owner = m.table["source"] if "source" in m.table.columns else pd.Series("", index=m.table.index)
    splits = m.table["split"].to_numpy(dtype=object).copy()
    for name in owner.unique():
        rows = np.flatnonzero((owner == name).to_numpy())
        given = set(splits[rows])
        if {"val", "test"} - given:
            # Only undecided rows are assigned: offer the training rows for what is missing.
            splits[rows] = np.where(splits[rows] == "train", "", splits[rows])
        part = with_split(take(m, rows), splits[rows])
        full = grouped_split(part, data.val_fraction, data.test_fraction, data.split_seed)
        splits[rows] = full.table["split"].to_numpy(dtype=object)
    return with_split(m, list(splits))
