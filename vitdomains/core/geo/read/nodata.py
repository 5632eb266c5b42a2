"""Which pixels are data: nodata that is declared, a constant collar that is not, NaN."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

logger = logging.getLogger(__name__)

# What producers put where there is no data, beside the ends of an integer type's range.
_FILLS = (0.0, -9999.0, -32768.0, -99999.0, float(np.finfo(np.float32).min))
_CORNER = 16  # pixels a side that are equal in all bands: no ground is
_WHITE_CORNER = 64  # the same for an integer type's largest value, which clouds and snow reach
_warned: set[str] = set()


def undeclared_collar(dataset: DatasetReader, indexes: tuple[int, ...]) -> float | None:
    """The value of a constant border without data that the file does not declare, or None.

    A border that the straight edge of a swath cuts off covers at least one corner of the raster. A corner of 16 x 16 pixels
    that has one and the same value in all bands, a value that stands for nothing (0, the ends of the type's range, -9999
    and the like), is taken for it. Rasters of classes may start with their class 0: their readers do not ask.

    Args:
        dataset: An open raster that declares no nodata and has no mask.
        indexes: Its bands, without alpha.
    """
    side = min(_CORNER, dataset.width // 4, dataset.height // 4)
    if side < 4 or dataset.colorinterp[0] == ColorInterp.palette:
        return None
    for corner in range(4):
        value = _constant_corner(dataset, indexes, corner, side)
        if value is not None:
            return value
    return None


def warn_of_collar(path: str, value: float) -> None:
    """Say once a file that pixels are left out."""
    if path not in _warned:
        _warned.add(path)
        logger.warning(
            "%s: declares no nodata, but a corner is %g in all bands; pixels that are %g in all bands are left out. "
            "Declare it (`gdal_edit.py -a_nodata %g FILE`) to silence this.",
            path,
            value,
            value,
            value,
        )


def _constant_corner(dataset: DatasetReader, indexes: tuple[int, ...], corner: int, side: int) -> float | None:
    try:
        pixels = _corner(dataset, indexes, corner, side)
    except RasterioError as error:
        # The rest of the file may be whole; who reads this corner is told.
        logger.debug("corner %d cannot be read (%s)", corner, error)
        return None
    value = pixels.flat[0]
    if not (pixels == value).all():
        return None
    if pixels.dtype.kind in "iu" and value == np.iinfo(pixels.dtype).max:
        wide = _corner(dataset, indexes, corner, min(_WHITE_CORNER, dataset.width // 4, dataset.height // 4))
        return float(value) if (wide == value).all() else None
    lowest = pixels.dtype.kind == "i" and value == np.iinfo(pixels.dtype).min
    return float(value) if lowest or float(value) in _FILLS else None


def _corner(dataset: DatasetReader, indexes: tuple[int, ...], corner: int, side: int) -> npt.NDArray[Any]:
    top = 0 if corner < 2 else dataset.height - side
    left = 0 if corner % 2 == 0 else dataset.width - side
    return np.asarray(dataset.read(indexes, window=((top, top + side), (left, left + side))))


def distinct(values: Iterable[float | None]) -> set[float]:
    """Declared nodata values without their repetitions; NaN, which equals nothing, once."""
    return {math.nan if math.isnan(value) else float(value) for value in values if value is not None}


def valid_pixels(
    pixels: npt.NDArray[Any], nodata: Sequence[float | None], collar: float | None
) -> npt.NDArray[np.bool_] | None:
    """Which pixels hold data in all bands: [H, W], or None where all do and nothing had to be compared.

    A pixel is left out where any band has its nodata value or is not finite, or where all bands have the collar's.

    Args:
        pixels: [C, H, W] as stored.
        nodata: A value, or None, a band.
        collar: The undeclared one.
    """
    # Band by band and in place: a temporary of [C, H, W] makes the allocator give memory back and fault it in at each tile.
    valid: npt.NDArray[np.bool_] | None = None
    if collar is not None:
        valid = _differs(pixels[0], collar)
        for band in pixels[1:]:
            np.logical_or(valid, _differs(band, collar), out=valid)
    for band, value in zip(pixels, nodata, strict=True):
        typed = _typed(value, pixels.dtype)
        if typed is not None:
            valid = _and(valid, band != typed)
        if pixels.dtype.kind == "f":
            valid = _and(valid, np.isfinite(band))
    return valid


def _differs(band: npt.NDArray[Any], value: float) -> npt.NDArray[np.bool_]:
    different: npt.NDArray[np.bool_] = band != band.dtype.type(value)
    return different


def _and(valid: npt.NDArray[np.bool_] | None, more: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return more if valid is None else np.logical_and(valid, more, out=valid)


def _typed(value: float | None, dtype: np.dtype[Any]) -> Any:
    """A nodata value in the pixels' type, so that comparing does not widen them; None where no pixel can have it."""
    if value is None or np.isnan(value):
        return None  # NaN is never equal; it is not finite
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max or value != int(value):
            return None
    with np.errstate(over="ignore"):
        return dtype.type(value)
