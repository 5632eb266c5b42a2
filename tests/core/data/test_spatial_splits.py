"""Spatial splits: no block on two sides, no tile within the buffer, west before east, and distances that are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.data.manifest import Manifest, check_splits, make_manifest, subset
from vitdomains.core.data.spatial_splits import (
    EARTH_RADIUS,
    block_split,
    blocks,
    default_block_size,
    longitude_split,
    nearness,
    points,
)
from vitdomains.core.data.splits import grouped_split
from vitdomains.core.errors import ConfigError, ManifestError

STEP = 640.0  # metres between tiles


def grid(n: int = 24, lon0: float = 11.0, lat0: float = 48.0) -> Manifest:
    """n x n tiles, ``STEP`` metres apart; two classes in alternating stripes."""
    degrees = np.degrees(STEP / EARTH_RADIUS)
    row, column = np.divmod(np.arange(n * n), n)
    lat = lat0 + row * degrees
    lon = lon0 + column * degrees / np.cos(np.radians(lat0 + n / 2 * degrees))
    lon = (lon + 180) % 360 - 180
    ids = [f"t{i:04d}" for i in range(n * n)]
    targets = np.eye(2)[row % 2]
    extra = pd.DataFrame({"lon": lon, "lat": lat})
    return make_manifest(ids, [f"/{i}.tif" for i in ids], ids, ("a", "b"), targets, extra=extra, name="grid")


def distances(m: Manifest, one: str, other: str) -> np.ndarray:
    a, b = points(subset(m, one)), points(subset(m, other))
    return np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1)


def test_a_block_is_about_as_large_as_asked_for() -> None:
    m = grid()
    names = np.array(blocks(m, 3200.0))
    inner = [np.sum(names == name) for name in np.unique(names)]
    assert max(inner) <= 36 and np.median(inner) >= 9  # 5 x 5 tiles, cut at the border
    where = points(m)
    for name in np.unique(names):
        part = where[names == name]
        assert np.linalg.norm(part.max(axis=0) - part.min(axis=0)) < 3200 * 1.5


def test_blocks_part_no_block_and_keep_the_shares() -> None:
    m = block_split(grid(), 0.2, 0.2, 0, size=1500.0)
    check_splits(m)
    assert len(m) == 24 * 24
    shares = m.table["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.6, abs=0.08)
    assert shares["test"] == pytest.approx(0.2, abs=0.06)
    again = block_split(grid(), 0.2, 0.2, 0, size=1500.0)
    pd.testing.assert_frame_equal(m.table, again.table)
    assert not m.table["split"].equals(block_split(grid(), 0.2, 0.2, 1, size=1500.0).table["split"])


@pytest.mark.parametrize("lon0", [11.0, 179.95])
def test_the_buffer_holds_between_all_splits(lon0: float) -> None:
    m = block_split(grid(lon0=lon0), 0.2, 0.2, 0, size=2600.0, buffer=1000.0)
    assert len(m) < 24 * 24
    assert distances(m, "train", "test").min() >= 1000
    assert distances(m, "train", "val").min() >= 1000
    assert distances(m, "val", "test").min() >= 1000
    without = block_split(grid(lon0=lon0), 0.2, 0.2, 0, size=2600.0)
    test = set(subset(m, "test").table["id"])
    assert test == set(subset(without, "test").table["id"]), "the test split loses nothing to the buffer"


def test_a_buffer_that_eats_a_split_is_refused() -> None:
    with pytest.raises(ManifestError, match="leaves no tile in the train split"):
        block_split(grid(), 0.2, 0.2, 0, size=2000.0, buffer=50_000.0)


def test_west_to_east() -> None:
    m = longitude_split(grid(), 0.2, 0.2)
    check_splits(m)
    lon = {name: subset(m, name).table["lon"] for name in ("train", "val", "test")}
    assert lon["train"].max() < lon["val"].min() and lon["val"].max() < lon["test"].min()
    assert len(lon["train"]) / len(m) == pytest.approx(0.6, abs=0.05)
    assert len(lon["test"]) / len(m) == pytest.approx(0.2, abs=0.05)
    assert m.table["group"].nunique() > 8, "the bootstrap draws blocks, not three strips"


def test_west_to_east_with_a_buffer() -> None:
    m = longitude_split(grid(), 0.25, 0.25, buffer=2 * STEP)
    assert distances(m, "val", "test").min() >= 2 * STEP
    assert distances(m, "train", "val").min() >= 2 * STEP


def test_longitude_split_refuses_impossible_shares() -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        longitude_split(grid(), 0.5, 0.5)


def test_a_tile_without_a_position_is_named() -> None:
    m = grid(4)
    m = replace(m, table=m.table.assign(lon=m.table["lon"].where(m.table["id"] != "t0005")))
    with pytest.raises(ManifestError, match="1 of 16 tiles .* the first is t0005"):
        block_split(m, 0.2, 0.2, 0)
    with pytest.raises(ManifestError, match="have no position"):
        block_split(replace(m, table=m.table.drop(columns=["lon"])), 0.2, 0.2, 0)


def test_nearness_is_measured() -> None:
    m = grid()
    random = nearness(grouped_split(m, 0.2, 0.2, 0))
    apart = nearness(block_split(m, 0.2, 0.2, 0, size=4000.0, buffer=1300.0))
    assert random is not None and apart is not None
    assert random.spacing == pytest.approx(STEP, rel=0.01)
    assert random.median == pytest.approx(STEP, rel=0.01), "in a random split the neighbour is in training"
    assert apart.least >= 1300
    assert nearness(grouped_split(replace(m, table=m.table.drop(columns=["lat"])), 0.2, 0.2, 0)) is None


@pytest.mark.parametrize("lat0", [0.0, 48.0, 70.0])
def test_the_default_block_follows_the_area(lat0: float) -> None:
    size = default_block_size(grid(24, lat0=lat0))
    assert size == pytest.approx(23 * STEP / 8, rel=0.02)
    assert default_block_size(grid(24, lon0=179.95, lat0=lat0)) == pytest.approx(size, rel=0.02)
