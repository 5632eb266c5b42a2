"""Windows of rasters: pixels with their valid mask, transform, CRS and band names, or a typed error.

The one way by which pixels of a scene come into the package. What GDAL would answer silently (a lost remote read, a corner
without data, coordinates that cannot be) is an error or a masked pixel here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.dataset_pool import Handle, borrow, close_all, open_raster
from vitdomains.core.geo.read.http import is_remote
from vitdomains.core.geo.read.info import RasterInfo, place
from vitdomains.core.geo.read.nodata import valid_pixels, warn_of_collar
from vitdomains.core.geo.read.warp import Grid, Resampling, Rows, parse_crs, view_of

__all__ = ["MAX_PIXELS", "RasterInfo", "Window", "close_all", "describe_raster", "open_raster", "read_window"]

MAX_PIXELS = 100_000_000  # values of one read (width x height x bands): 400 MB as float32

_SAMPLE = 512  # pixels a side of a raster that ``value_range`` reads whole

Extent = tuple[int, int, int, int]


@dataclass(frozen=True)
class Window:
    """Pixels of a part of a raster.

    ``pixels`` is float32 [C, H, W] in the file's own numbers (no scale, no offset), 0 where ``valid`` [H, W] is False.
    ``transform`` takes (column, row) of the window to coordinates of ``crs``.
    """

    pixels: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    transform: Affine
    crs: CRS | None
    bands: tuple[str, ...]


def describe_raster(path: str | Path, *, resolution: float | None = None, crs: CRS | str | None = None) -> RasterInfo:
    """What a file holds; with ``resolution`` or ``crs``, on the grid that ``read_window`` then reads.

    Args:
        path: A local file or an http(s) address.
        resolution: Metres on the ground a pixel (see ``read_window``).
        crs: Target CRS, such as ``"EPSG:32633"``.

    Raises:
        ImageError: As for ``read_window``.
    """
    with borrow(path) as handle:
        grid = Grid(resolution, parse_crs(crs))
        view = None if grid.plain and handle.info.georeference != "gcps" else view_of(handle, grid)
        return replace(handle.info if view is None else view.info, undeclared_collar=handle.collar)


def read_window(
    path: str | Path,
    window: Extent | None = None,
    *,
    bands: Sequence[str] | Sequence[int] | None = None,
    resolution: float | None = None,
    crs: CRS | str | None = None,
    resampling: Resampling = "bilinear",
    nodata: float | None = None,
    collar: bool = True,
    boundless: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Window:
    """Read a window of a raster.

    Args:
        path: A local file or an http(s) address.
        window: (column, row, width, height) in pixels of the grid that is read: the file's own, or the target grid where
            ``resolution`` or ``crs`` is given or the image only has ground control points (``describe_raster`` with the
            same arguments gives its size). None: all of it.
        bands: Names, or GDAL's numbers (the first is 1), in the order wanted. None: all but alpha.
        resolution: Metres on the ground a pixel. Measured at the centre of the scene where the CRS is in degrees or distorts
            by more than 1 %, as Web Mercator does. Overviews serve where the target is coarser than the file.
        crs: Target CRS.
        resampling: ``bilinear`` and ``cubic`` widen their kernel when they shrink; ``nearest`` or ``mode`` for classes.
        nodata: In place of what the file declares.
        collar: Look for a constant border that the file does not declare, and mask it. Off for rasters of classes.
        boundless: Pad a window that reaches over the edges with invalid pixels; else that is an error.
        max_pixels: Refuse a read of more values (width x height x bands).

    Raises:
        ImageError: Not there, not readable, damaged, an address that may not be read, a remote read that failed; no CRS where
            one is needed, or one that cannot be; a band that is not there; a window that is empty, too large or outside.
    """
    with borrow(path) as handle:
        grid = Grid(
            resolution, parse_crs(crs), resampling, nodata, _collar(handle) if collar and nodata is None else None
        )
        view = None if grid.plain and handle.info.georeference != "gcps" else view_of(handle, grid)
        info = handle.info if view is None else view.info
        indexes, names = select_bands(info, bands)
        column, row, width, height = _checked(info, window, len(indexes), boundless, max_pixels)
        left, top = max(column, 0), max(row, 0)
        right, bottom = min(column + width, info.width), min(row + height, info.height)
        if left >= right or top >= bottom:
            pixels, valid = np.zeros((len(indexes), 0, 0), np.float32), np.zeros((0, 0), np.bool_)
            left, top = column, row
        elif view is None:
            pixels, valid = _read_native(handle, grid, indexes, ((top, bottom), (left, right)))
        else:
            pixels, valid = view.read(indexes, ((top, bottom), (left, right)))
    if valid.shape != (height, width):
        pixels, valid = _padded(pixels, valid, top - row, left - column, height, width)
    return Window(pixels, valid, _shifted(info.transform, column, row), info.crs, names)


def value_range(path: str | Path) -> tuple[float, float] | None:
    """Lowest and highest value of a sample of the raster, None where that holds no data; worked out once for an open file.

    Raises:
        ImageError: As for ``read_window``.
    """
    with borrow(path) as handle:
        if handle.value_range is None:
            handle.value_range = _sampled_range(path, handle.info)
        return handle.value_range or None


def _sampled_range(path: str | Path, info: RasterInfo) -> tuple[float, float] | tuple[()]:
    """Of windows that stand in a grid of 4 x 4 over the scene, or of all where it is small."""
    low, high = math.inf, -math.inf
    side = 64 if info.width * info.height > _SAMPLE**2 else _SAMPLE
    columns, rows = ([*range(0, n, max(side, (n - side) // 3))] if n > side else [0] for n in (info.width, info.height))
    for row in rows:
        for column in columns:
            extent = (column, row, min(side, info.width - column), min(side, info.height - row))
            try:
                window = read_window(path, extent)
            except ImageError:
                if is_remote(path):
                    raise
                continue  # one bad block: whoever reads its pixels is told
            values = window.pixels[:, window.valid]
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else ()


def palette_of(path: str | Path) -> npt.NDArray[np.uint8]:
    """The colours of a palette raster, uint8 [256, 4] of red, green, blue and opacity; clear where it has none.

    Raises:
        ImageError: As for ``read_window``.
    """
    with borrow(path) as handle:
        colours = np.zeros((256, 4), np.uint8)
        for value, colour in handle.dataset.colormap(handle.info.indexes[0]).items():
            colours[value] = colour
        return colours


def _collar(handle: Handle) -> float | None:
    if handle.collar is not None:
        warn_of_collar(handle.source.name, handle.collar)
    return handle.collar


def select_bands(info: RasterInfo, bands: Sequence[str] | Sequence[int] | None) -> tuple[list[int], tuple[str, ...]]:
    """GDAL's numbers of the wanted bands, and their names (or ``band 1`` and so on).

    Raises:
        ImageError: A band that the file does not have; what it has is listed.
    """
    names = info.bands or tuple(f"band {index}" for index in info.indexes)
    if bands is None:
        return list(info.indexes), names
    chosen = []
    for band in bands:
        known: Sequence[object] = names if isinstance(band, str) else info.indexes
        if band not in known:
            raise ImageError(
                info.path,
                f"has no band {band!r}",
                tag="bands",
                value=[f"{index}: {name}" for index, name in zip(info.indexes, names, strict=True)],
                hint=_ALPHA if info.mask == "alpha" else "Name bands as the file does, or give their numbers from 1.",
            )
        chosen.append(known.index(band))
    if not chosen:
        raise ImageError(info.path, "is asked for no band")
    return [info.indexes[place] for place in chosen], tuple(names[place] for place in chosen)


_ALPHA = "A fourth band that is declared as alpha but holds infrared: `gdal_edit.py -colorinterp_4 undefined FILE`."


def _checked(info: RasterInfo, window: Extent | None, bands: int, boundless: bool, max_pixels: int) -> Extent:
    column, row, width, height = window if window is not None else (0, 0, info.width, info.height)
    if width < 1 or height < 1:
        raise ImageError(info.path, "is asked for a window without pixels", tag="window", value=window)
    if width * height * bands > max_pixels:
        raise ImageError(
            info.path,
            f"would give {width} x {height} x {bands} values in one read, and {max_pixels} are allowed",
            tag="window",
            value=window,
            hint="Read it window by window, at a coarser resolution, or raise max_pixels.",
        )
    inside = column >= 0 and row >= 0 and column + width <= info.width and row + height <= info.height
    if not boundless and not inside:
        raise ImageError(
            info.path,
            f"has {info.width} x {info.height} pixels, and the window reaches over its edge",
            tag="window",
            value=window,
        )
    return column, row, width, height


def _read_native(
    handle: Handle, grid: Grid, indexes: list[int], rows: Rows
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    dataset, mask = handle.dataset, "nodata" if grid.nodata is not None else handle.info.mask
    if mask == "alpha":
        alpha = next(index for index in dataset.indexes if index not in handle.info.indexes)
        raw = dataset.read([*indexes, alpha], window=rows, out_dtype=handle.info.dtype)
        shown = raw[-1] > 0
        raw = raw[:-1]
    else:
        raw = dataset.read(indexes, window=rows, out_dtype=handle.info.dtype)
        shown = dataset.read_masks(indexes[0], window=rows) > 0 if mask == "internal" else None
    declared = [handle.info.nodatavals[handle.info.indexes.index(index)] for index in indexes]
    if grid.nodata is not None:
        declared = [grid.nodata] * len(indexes)
    valid = valid_pixels(raw, declared, grid.collar)
    if shown is not None:
        valid = shown if valid is None else np.logical_and(valid, shown, out=valid)
    with np.errstate(over="ignore"):  # nodata of double precision
        pixels = raw.astype(np.float32)
    if valid is None:
        valid = np.ones(pixels.shape[1:], np.bool_)
    elif not valid.all():
        np.copyto(pixels, 0, where=~valid)
    return pixels, valid


def _padded(
    pixels: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], top: int, left: int, height: int, width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    bottom, right = top + valid.shape[0], left + valid.shape[1]
    padded = np.zeros((len(pixels), height, width), np.float32)
    inside = np.zeros((height, width), np.bool_)
    padded[:, top:bottom, left:right] = pixels
    inside[top:bottom, left:right] = valid
    return padded, inside


def _shifted(transform: Affine, column: int, row: int) -> Affine:
    """``transform * Affine.translation(column, row)`` in a fifth of the time: this runs once a tile."""
    a, b, _, d, e, _ = transform[:6]
    x, y = place(transform, column, row)
    return Affine(a, b, x, d, e, y)
