"""Splits by where tiles lie: blocks with a buffer, or west to east; and how near a split brings train and test.

Neighbouring tiles show the same fields in the same light. A random split puts them on both sides, and its score says how
well the model remembers them (Roberts et al. 2017, Ecography 40:913; Ploton et al. 2020, Nature Communications 11:4540).
Positions are the columns ``lon`` and ``lat`` of the manifest, WGS 84 degrees.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from vitdomains.core.data.manifest import Manifest, take, with_split, without
from vitdomains.core.data.splits import grouped_split
from vitdomains.core.errors import ConfigError, ManifestError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

EARTH_RADIUS = 6_371_008.8
"""Mean radius of the Earth, metres; distances here are off by at most 0.6 % for taking it as a sphere."""
BLOCKS_ALONG = 8
"""Blocks along the longer side of the area where no size is given."""


def located(m: Manifest) -> npt.NDArray[np.bool_]:
    """Rows whose position is known, bool [N]."""
    if not {"lon", "lat"} <= set(m.table.columns):
        return np.zeros(len(m), dtype=np.bool_)
    lon, lat = (pd.to_numeric(m.table[c], errors="coerce").to_numpy(dtype=np.float64) for c in ("lon", "lat"))
    return np.asarray((np.abs(lon) <= 360) & (np.abs(lat) <= 90), dtype=np.bool_)


def coordinates(m: Manifest) -> tuple[Floats, Floats]:
    """Longitude and latitude of every row, radians, [N] each.

    Raises:
        ManifestError: A row has none.
    """
    known = located(m)
    if not known.all():
        first = m.table["id"].iloc[int(np.argmin(known))]
        raise ManifestError(
            f"{int((~known).sum())} of {len(m)} tiles of {m.name} have no position (lon, lat), the first is {first}.",
            hint="A spatial split needs geo-referenced tiles, or columns lon and lat; else use data.split: grouped.",
        )
    lon, lat = (np.radians(m.table[c].to_numpy(dtype=np.float64)) for c in ("lon", "lat"))
    return np.asarray((lon + np.pi) % (2 * np.pi) - np.pi), np.asarray(lat)


def points(m: Manifest) -> Floats:
    """Positions on the sphere, metres, [N, 3]: their straight-line distance is 1 m short in 100 km of ground."""
    lon, lat = coordinates(m)
    return EARTH_RADIUS * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def blocks(m: Manifest, size: float) -> list[str]:
    """Name of the block of every row: cells of ``size`` metres in rows along the parallels, the same for every table."""
    lon, lat = coordinates(m)
    band = np.floor(lat * EARTH_RADIUS / size)
    middle = np.clip((band + 0.5) * size / EARTH_RADIUS, -np.pi / 2, np.pi / 2)
    cell = np.floor((lon + np.pi) * EARTH_RADIUS * np.cos(middle) / size)
    return [f"{int(b)}:{int(c)}" for b, c in zip(band, cell, strict=True)]


def default_block_size(m: Manifest) -> float:
    """An eighth of the longer side of the area that the tiles cover, metres."""
    lon, lat = coordinates(m)
    height = float(np.ptp(lat)) * EARTH_RADIUS
    # Across the antimeridian the span of longitudes is 360 degrees less its widest gap.
    ordered = np.sort(lon)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
    width = (2 * np.pi - float(gaps.max())) * EARTH_RADIUS * float(np.cos(lat.mean()))
    return max(height, width, 1.0) / BLOCKS_ALONG


def block_split(
    m: Manifest, val_fraction: float, test_fraction: float, seed: int, *, size: float = 0.0, buffer: float = 0.0
) -> Manifest:
    """Split by spatial block, stratified on the classes; a block becomes the group, which the bootstrap draws.

    Args:
        m: The manifest with ``lon`` and ``lat``; its split column plays no part.
        val_fraction, test_fraction: Shares of the blocks.
        seed: The same seed and table give the same split.
        size: Side of a block, metres; 0: ``default_block_size``. Take more than the distance over which neighbours look
            alike.
        buffer: Training and validation tiles nearer than this to a held-out one, centre to centre, are left out, metres.

    Returns:
        The manifest without the rows of the buffer, every row in a split.

    Raises:
        ManifestError: A row has no position, or there are fewer blocks than splits.
    """
    size = size or default_block_size(m)
    moved = replace(m, table=m.table.assign(group=blocks(m, size)))
    split = grouped_split(with_split(moved, [""] * len(m)), val_fraction, test_fraction, seed)
    log.info("%d blocks of %.0f m", split.table["group"].nunique(), size)
    return _buffered(split, buffer)


def longitude_split(
    m: Manifest, val_fraction: float, test_fraction: float, *, size: float = 0.0, buffer: float = 0.0
) -> Manifest:
    """Split from west to east: training, validation, test, as EuroSAT-Spatial of TorchGeo does with shares 60, 20 and 20 %.

    Args:
        m: The manifest with ``lon`` and ``lat``; its split column plays no part. An area across the antimeridian is cut
            there.
        val_fraction, test_fraction: Shares of the rows. Rows of one longitude stay together.
        size: Side of the blocks that become groups, metres; 0: ``default_block_size``.
        buffer: As for ``block_split``.

    Raises:
        ConfigError: Impossible fractions.
        ManifestError: A row has no position.
    """
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on.",
            hint="Both lie in 0..1 and their sum below 1.",
        )
    lon, _ = coordinates(m)
    ordered = np.sort(lon)

    def first_of(share: float) -> float:
        at = round(share * len(ordered))
        return float(ordered[at]) if at < len(ordered) else np.inf

    edges = [first_of(1 - val_fraction - test_fraction), first_of(1 - test_fraction)]
    names = np.array(["train", "val", "test"], dtype=object)[np.digitize(lon, edges)]
    # A block may lie across an edge: its two parts are two groups.
    groups = [f"{name}/{block}" for name, block in zip(names, blocks(m, size or default_block_size(m)), strict=True)]
    return _buffered(with_split(replace(m, table=m.table.assign(group=groups)), names), buffer)


def _buffered(m: Manifest, buffer: float) -> Manifest:
    """Without the validation rows near a test row and the training rows near either."""
    if buffer <= 0:
        return m
    where = points(m)
    splits = m.table["split"].to_numpy(dtype=object)
    keep = np.ones(len(m), dtype=np.bool_)
    for inner, outer in (("val", ("test",)), ("train", ("val", "test"))):
        rows, others = np.flatnonzero(splits == inner), np.flatnonzero(np.isin(splits, outer) & keep)
        if len(rows) and len(others):
            distance, _ = cKDTree(where[others]).query(where[rows])
            keep[rows[distance < buffer]] = False
    for name in np.unique(splits):
        if not (splits[keep] == name).any():
            raise ManifestError(
                f"The buffer of {buffer:g} m leaves no tile in the {name} split.",
                hint="Lower data.block_buffer, or raise data.block_size.",
            )
    return without(m, ~keep, f"in the buffer of {buffer:.0f} m", "asked")


@dataclass(frozen=True)
class Nearness:
    """How near held-out tiles lie to training tiles, metres: the median, the least, and the tiles' own usual spacing."""

    median: float
    least: float
    spacing: float


def nearness(m: Manifest, held_out: str = "test") -> Nearness | None:
    """Distance from each held-out tile to the nearest training tile, centre to centre.

    Returns:
        None where either split has no tile with a position.
    """
    known = located(m)
    if known.sum() < 2:
        return None
    placed = take(m, known)
    where, splits = points(placed), placed.table["split"].to_numpy(dtype=object)
    train, held = where[splits == "train"], where[splits == held_out]
    if not len(train) or not len(held):
        return None
    distance, _ = cKDTree(train).query(held)
    spacing, _ = cKDTree(where).query(where, k=2)
    return Nearness(float(np.median(distance)), float(distance.min()), float(np.median(spacing[:, 1])))
