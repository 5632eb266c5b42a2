"""Where tiles lie on the ground: the centre of each file, from its header, and splits by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform

from vitdomains.core.config.schema import Data
from vitdomains.core.data.manifest import SPLITS, Manifest, with_split
from vitdomains.core.data.sources import complete_splits
from vitdomains.core.data.spatial_splits import block_split, located, longitude_split, nearness
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.raster import open_raster

log = logging.getLogger(__name__)

LONGITUDE_COLUMN = "longitude_split"
"""Split lists by longitude that a release brings (EuroSAT-Spatial); they win over a cut computed here."""
_GEOREFERENCED = (".tif", ".tiff", ".jp2")
_THREADS = 8


def file_centres(paths: Sequence[str]) -> npt.NDArray[np.float64]:
    """Longitude and latitude (WGS 84, degrees) of the centre of each file, [N, 2]; NaN where it has no CRS or no header."""

    def centre(path: str) -> tuple[float, float]:
        try:
            with open_raster(path) as file:
                if file.crs is None:
                    return np.nan, np.nan
                x, y = file.transform @ (file.width / 2, file.height / 2)
                (lon,), (lat,) = transform(file.crs, "EPSG:4326", [x], [y])
                return float(lon), float(lat)
        except ImageError as error:
            log.debug("%s", error)  # reading the pixels will say so, where it counts
            return np.nan, np.nan

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.array(list(pool.map(centre, paths)), dtype=np.float64).reshape(-1, 2)


def with_positions(m: Manifest) -> Manifest:
    """The manifest with ``lon`` and ``lat`` of every row that says where it lies, in its table or in its file."""
    known = located(m)
    rows = [i for i in np.flatnonzero(~known) if Path(m.table["path"].iloc[i]).suffix.lower() in _GEOREFERENCED]
    # A look at the first file saves a look at thousands that are pictures in a .tif.
    if not rows or np.isnan(file_centres([m.table["path"].iloc[rows[0]]])).any():
        return m
    lon, lat = np.full(len(m), np.nan), np.full(len(m), np.nan)
    if known.any():
        lon[known], lat[known] = m.table["lon"].to_numpy()[known], m.table["lat"].to_numpy()[known]
    lon[rows], lat[rows] = file_centres([m.table["path"].iloc[i] for i in rows]).T
    return replace(m, table=m.table.assign(lon=lon, lat=lat))


def split_tiles(m: Manifest, data: Data) -> Manifest:
    """Fill the split column as ``data.split`` says; ``auto`` cuts tiles of a scene (column ``scene``) by block.

    Raises:
        ManifestError: A spatial split of tiles without positions, or too few blocks.
        ConfigError: Impossible fractions.
    """
    fractions = data.val_fraction, data.test_fraction
    given = (m.table["split"] != "").any()
    m = m if given and data.split not in ("spatial", "longitude") else with_positions(m)
    of_scenes = data.split == "auto" and not given and "scene" in m.table and bool(located(m).all())
    if data.split == "spatial" or of_scenes:
        return block_split(m, *fractions, data.split_seed, size=data.block_size, buffer=data.block_buffer)
    if data.split == "longitude":
        if LONGITUDE_COLUMN in m.table and m.table[LONGITUDE_COLUMN].isin(SPLITS[:3]).all():
            return with_split(m, m.table[LONGITUDE_COLUMN])
        return longitude_split(m, *fractions, size=data.block_size, buffer=data.block_buffer)
    m = complete_splits(m, data)
    if not given:
        _warn_of_neighbours(m)
    return m


def _warn_of_neighbours(m: Manifest) -> None:
    found = nearness(m)
    if found is None:
        return
    log.warning(
        "random split of tiles that lie %.0f m apart: the nearest training tile of a test tile is %.0f m away in the median "
        "(least %.0f m), so the score says how well neighbours are remembered; use data.split: spatial",
        found.spacing, found.median, found.least,
    )  # fmt: skip
