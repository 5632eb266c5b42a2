"""Small rasters that the tests of this folder write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

UTM = "EPSG:32633"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_200_000)


def ramp(bands: int, height: int, width: int, dtype: str = "uint16") -> npt.NDArray[Any]:
    """Values above 0 by which band, row and column can be told: 1 + 1000 band + 10 row + column, modulo the type's range."""
    band, row, column = np.indices((bands, height, width))
    values = 1 + 1000 * band + 10 * row + column
    if np.dtype(dtype).kind in "iu":
        values = 1 + values % (np.iinfo(dtype).max - 1)
    return values.astype(dtype)


def write(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    crs: str | None = UTM,
    transform: Affine | None = NORTH_UP,
    names: tuple[str, ...] = (),
    mask: npt.NDArray[Any] | None = None,
    overviews: tuple[int, ...] = (),
    colorinterp: tuple[Any, ...] = (),
    **profile: Any,
) -> Path:
    """Write a GeoTIFF [C, H, W]."""
    count, height, width = pixels.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, crs=crs,
            transform=transform, **profile,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(pixels)
        for index, name in enumerate(names, start=1):
            dataset.set_band_description(index, name)
        if mask is not None:
            dataset.write_mask(mask)
        if colorinterp:
            dataset.colorinterp = colorinterp
        if overviews:
            dataset.build_overviews(list(overviews), rasterio.enums.Resampling.average)
    return path
