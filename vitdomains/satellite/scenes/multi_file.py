"""Windows of scenes for a model, also of those whose bands lie in files of their own, as catalogues deliver Sentinel-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.raster import Extent, RasterInfo, describe_raster
from vitdomains.core.geo.read.scene_paths import files_of
from vitdomains.satellite.data.reader import Known, read_pixels

_SAME = 0.5
"""Pixels by which the corners of two grids may differ."""


def read_scene(
    path: str,
    window: Extent,
    spec: PreprocessSpec,
    *,
    resolution: float | None = None,
    crs: str | None = None,
    known: Known | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """As ``read_pixels``, for a path that may name a file for each band of ``spec``.

    Bands of another resolution are brought to the grid of the first; a pixel holds data where all bands do.

    Raises:
        ImageError: As ``read_pixels``; or a band covers another ground than the first.
    """
    files = files_of(path)
    if len(files) == 1:
        return read_pixels(path, window, spec, resolution=resolution, crs=crs, known=known)
    pixels, valid = [], []
    for i, (file, band) in enumerate(zip(files, spec.bands, strict=True)):
        own = resolution_of(file, files[0], resolution, crs)
        one = replace(
            spec,
            channels=1,
            bands=(f"{band.partition('=')[0]}=1",),
            mean=(spec.mean[i if len(spec.mean) > 1 else 0],),
            std=(spec.std[i if len(spec.std) > 1 else 0],),
        )
        found, there = read_pixels(file, window, one, resolution=own, crs=crs, known=known)
        pixels.append(found[:, :, 0])
        valid.append(there)
    return np.stack(pixels).transpose(1, 2, 0), np.logical_and.reduce(valid)


def resolution_of(file: str, first: str, resolution: float | None = None, crs: str | None = None) -> float | None:
    """At how many metres a pixel to read a band's file, so that its pixels lie on those of the first band's; None: its own.

    Raises:
        ImageError: It covers another ground.
    """
    reference = describe_raster(first, resolution=resolution, crs=crs)
    for own in (resolution, reference.resolution[0]):
        if _same_grid(describe_raster(file, resolution=own, crs=crs), reference):
            return own
    raise ImageError(file, "covers another ground than the first band", hint="Bring the bands to one grid first.")


def _same_grid(a: RasterInfo, b: RasterInfo) -> bool:
    if (a.width, a.height, a.crs) != (b.width, b.height, b.crs):
        return False
    corners = [~b.transform @ (a.transform @ corner) for corner in ((0, 0), (a.width, a.height))]
    return all(
        abs(found[axis] - expected[axis]) < _SAME
        for found, expected in zip(corners, ((0, 0), (b.width, b.height)), strict=True)
        for axis in (0, 1)
    )
