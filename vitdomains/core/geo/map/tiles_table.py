"""One table of labelled tiles for all who make or read one: scene maps, zero-shot labels, the review app.

    tile_id scene path col row width height label probability margin entropy prob:CLASS... valid_fraction model_id error

``tile_id`` is unique and stable. ``col`` to ``height`` are pixels of the scene, -1 for a plain image file. A tile without a
label (nodata, or an error) has an empty ``label`` and NaN for the numbers. In GeoParquet ``geometry`` and ``bbox`` come on top.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from vitdomains.core.geo.read.metadata import PixelMetadata
from vitdomains.core.tasks import Kind

UNKNOWN = "unknown"
"""The label of a tile on which the model is less sure than was asked for."""

PLACE = ("tile_id", "scene", "path", "col", "row", "width", "height")
"""What the plan of the tiles gives."""

READ_AS = "vitdomains:read_as"
"""Key of the file's metadata that says what ``map`` was told of its scenes: JSON of option to text."""

Floats = npt.NDArray[np.floating]


def probability_columns(classes: Sequence[str]) -> list[str]:
    """The column of each class."""
    return [f"prob:{name}" for name in classes]


def classes_of(columns: Sequence[str]) -> tuple[str, ...]:
    """The classes that a table has columns for."""
    return tuple(name.removeprefix("prob:") for name in columns if name.startswith("prob:"))


def read_as(tiles: Path) -> dict[str, str]:
    """What ``map`` was told of the scenes of a table, where its file says so: ``asset``, ``sensor``, ``bands``, ``baseline``,
    ``resolution`` and ``crs``, as on the command line."""
    if tiles.suffix.lower() != ".parquet":
        return {}
    try:
        about = pq.read_schema(tiles).metadata or {}
        return {str(k): str(v) for k, v in json.loads(about.get(READ_AS.encode(), b"{}")).items() if v}
    except (OSError, ValueError, AttributeError):  # whoever reads the rows says what is wrong with the file
        return {}


def read_known(tiles: Path) -> dict[str, PixelMetadata]:
    """What ``map`` knew of the numbers of its scenes' files, by file without what signs an address."""
    try:
        return {
            file: PixelMetadata.from_dict(given)
            for file, given in json.loads(read_as(tiles).get("known", "{}")).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def tile_table(
    plan: pd.DataFrame,
    scores: Floats,
    classes: Sequence[str],
    *,
    model_id: str,
    kind: Kind = "singlelabel",
    thresholds: Sequence[float] = (),
    valid_fraction: Floats | None = None,
    errors: Sequence[str] = (),
    min_probability: float = 0.0,
) -> pd.DataFrame:
    """The table of N tiles.

    Args:
        plan: [N] rows with the columns ``PLACE``.
        scores: [N, K] probabilities; a row of NaN for a tile without any.
        classes: K names.
        model_id: Of the bundle.
        kind: With ``singlelabel`` the label is the most probable class, ``margin`` its lead over the second and ``entropy`` in
            nats. With ``multilabel`` it is the classes at or above their threshold, joined by ``|``, ``probability`` the largest,
            ``margin`` the least distance of a class from its threshold, ``entropy`` the mean over the classes.
        thresholds: [K], for ``multilabel``; empty: 0.5.
        valid_fraction: [N] share of the tile's pixels that hold data; ``None``: 1.
        errors: [N] why a tile could not be read; empty: none.
        min_probability: Below it the label of a single-label tile is ``unknown``.
    """
    scores = np.asarray(scores, dtype=np.float32).reshape(len(plan), len(classes))
    known = ~np.isnan(scores).any(axis=1)
    label, margin = np.full(len(plan), "", dtype=object), np.full(len(plan), np.nan, np.float32)
    probability, entropy = margin.copy(), margin.copy()
    if known.any():
        p = scores[known].astype(np.float64)
        probability[known] = p.max(axis=1)
        if kind == "singlelabel":
            best = np.asarray(classes, dtype=object)[p.argmax(axis=1)]
            label[known] = np.where(p.max(axis=1) >= min_probability, best, UNKNOWN)
            first_two = -np.partition(-p, min(1, p.shape[1] - 1), axis=1)[:, :2]
            margin[known] = first_two[:, 0] - (first_two[:, 1] if p.shape[1] > 1 else 0.0)
            entropy[known] = _information(p).sum(axis=1)
        else:
            limits = np.asarray(thresholds or [0.5] * len(classes))
            label[known] = [
                "|".join(name for name, yes in zip(classes, row, strict=True) if yes) for row in p >= limits
            ]
            margin[known] = np.abs(p - limits).min(axis=1)
            entropy[known] = (_information(p) + _information(1 - p)).mean(axis=1)
    table = plan[list(PLACE)].reset_index(drop=True)
    table = table.assign(label=pd.Series(label, dtype="str"), probability=probability, margin=margin, entropy=entropy)
    table = pd.concat([table, pd.DataFrame(scores, columns=probability_columns(classes))], axis=1)
    table["valid_fraction"] = np.ones(len(plan), np.float32) if valid_fraction is None else np.float32(valid_fraction)
    table["model_id"] = pd.Series([model_id] * len(plan), dtype="str")
    table["error"] = pd.Series(list(errors) or [""] * len(plan), dtype="str")
    return table


def _information(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-p ln p, 0 at p = 0; nats."""
    return np.asarray(-p * np.log(np.clip(p, 1e-12, 1.0)))
