"""Miniature files for the tests of this domain: rasters with bands of known values, and folders of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

UTM = "EPSG:32633"


def write_raster(
    path: Path,
    pixels: npt.NDArray[np.generic],
    *,
    crs: str | None = UTM,
    origin: tuple[float, float] = (500_000.0, 5_000_000.0),
    resolution: float = 10.0,
    bands: Sequence[str] = (),
    nodata: float | None = None,
) -> Path:
    """A GeoTIFF of [C, H, W] whose top left corner is ``origin``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    transform = Affine(resolution, 0, origin[0], 0, -resolution, origin[1]) if crs else None
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, crs=crs,
        transform=transform, nodata=nodata, photometric="minisblack",
    ) as file:  # fmt: skip
        file.write(pixels)
        if bands:
            file.descriptions = tuple(bands)
    return path


def write_picture(path: Path, colour: Sequence[int] = (200, 30, 60), size: int = 16) -> Path:
    """A PNG or JPEG of one RGB colour."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size, size, 3), colour[::-1], dtype=np.uint8))
    return path
