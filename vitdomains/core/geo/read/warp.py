"""Another ground resolution or CRS: a target grid over the raster and GDAL's warper behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import rasterio.enums
import rasterio.warp
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.dataset_pool import Handle, open_overview
from vitdomains.core.geo.read.info import LONLAT, RasterInfo, corner_bounds, ground_resolution, place
from vitdomains.core.geo.read.nodata import distinct, valid_pixels

Resampling = Literal["nearest", "bilinear", "cubic", "average", "mode"]
Rows = tuple[tuple[int, int], tuple[int, int]]

_SAME = 1e-3  # relative difference of pixel sizes that is no difference
_DISTORTED = 0.01  # of a projection's metre at the centre of the scene
_EDGE_POINTS = 21  # a side, as gdalwarp samples it
_MAX_SIDE = 2**24


@dataclass(frozen=True)
class Grid:
    """What is asked for: metres on the ground a pixel, CRS, and how pixels are made."""

    resolution: float | None = None
    crs: CRS | None = None
    resampling: Resampling = "bilinear"
    nodata: float | None = None  # in place of what the file declares
    collar: float | None = None  # the value of a border that no band declares

    def __post_init__(self) -> None:
        if self.nodata is not None and math.isnan(self.nodata):
            object.__setattr__(self, "nodata", math.nan)  # the same one each time, for grids are keys of views

    @property
    def plain(self) -> bool:
        """Is nothing asked for but the file's own grid?"""
        return self.resolution is None and self.crs is None


def parse_crs(crs: CRS | str | None) -> CRS | None:
    """A CRS from its code or WKT.

    Raises:
        ConfigError: No CRS that PROJ knows.
    """
    if crs is None or isinstance(crs, CRS):
        return crs
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise ConfigError(f"crs: {crs!r} is no coordinate reference system.", hint="Name one as EPSG:32633.") from error


class View:
    """A raster on a target grid, north-up."""

    def __init__(self, handle: Handle, info: RasterInfo, grid: Grid) -> None:
        self.info = info
        self._open: list[DatasetReader] = []  # closed last to first
        masked = grid.nodata is None and handle.info.mask in ("alpha", "internal")
        declared = masked and bool(distinct(handle.info.nodatavals))
        self._source = self._warped(handle, grid, masked=masked and not declared)
        self._mask = self._warped(handle, grid, masked=True) if declared else self._source
        self._alpha = self._mask.colorinterp.index(ColorInterp.alpha) + 1 if masked else 0

    def _warped(self, handle: Handle, grid: Grid, *, masked: bool) -> DatasetReader:
        """The raster on the target grid: with an alpha band where ``masked``, else with NaN for nodata."""
        stored, info, source = handle.info, self.info, handle.dataset
        options = _mask_options(stored, grid, masked) | {"resampling": rasterio.enums.Resampling[grid.resampling]}
        target = {"crs": info.crs, "transform": info.transform, "width": info.width, "height": info.height}
        if stored.georeference == "gcps":
            # GDAL drops the points where a grid is prescribed: first to the grid that it finds, from there to the target.
            source = self._keep(WarpedVRT(source, src_crs=stored.crs, crs=stored.crs, **options))
            options |= {"add_alpha": False} if masked else {"src_nodata": math.nan}
            if (source.crs, source.transform, source.width, source.height) == tuple(target.values()):
                return source
        elif (level := _overview_level(stored, info)) is not None:
            source = self._keep(open_overview(handle, level))
        return self._keep(WarpedVRT(source, src_crs=_wrapped(stored, info.crs), **target, **options))

    def _keep(self, dataset: DatasetReader) -> DatasetReader:
        self._open.append(dataset)
        return dataset

    def read(self, indexes: Sequence[int], rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """float32 [C, H, W] and valid [H, W] of ((top, bottom), (left, right)); 0 where not valid."""
        if self._alpha and self._mask is self._source:
            raw = self._source.read([*indexes, self._alpha], window=rows)
            pixels, shown = raw[:-1].astype(np.float32), raw[-1] > 0
        else:
            pixels, shown = self._source.read(indexes, window=rows), None
            if self._alpha:
                shown = self._mask.read(self._alpha, window=rows) > 0
        valid = valid_pixels(pixels, [None] * len(pixels), None)
        assert valid is not None  # of floating point
        if shown is not None:
            np.logical_and(valid, shown, out=valid)
        if not valid.all():
            np.copyto(pixels, 0, where=~valid)
        return pixels, valid

    def close(self) -> None:
        """Close the warper, then what it read from."""
        while self._open:
            self._open.pop().close()


def _wrapped(info: RasterInfo, target: CRS | None) -> CRS | None:
    """The source's CRS, for degrees beyond 180 such that PROJ comes back to those and not to their twins within."""
    crs = info.crs
    if crs is None or not crs.is_geographic or crs == target or (info.bounds.left >= -180 and info.bounds.right <= 180):
        return crs
    return CRS.from_string(f"{crs.to_proj4()} +lon_wrap={(info.bounds.left + info.bounds.right) / 2}")


def _mask_options(info: RasterInfo, grid: Grid, masked: bool) -> dict[str, object]:
    if masked:
        return {"add_alpha": True} if info.mask == "internal" else {}
    # Every band is compared with its nodata value by itself and comes out as NaN, with the collar only all together.
    options: dict[str, object] = {"dtype": "float32", "nodata": math.nan, "UNIFIED_SRC_NODATA": "NO"}
    declared = distinct(info.nodatavals)
    if grid.collar is not None:
        return options | {"src_nodata": grid.collar, "UNIFIED_SRC_NODATA": "YES"}
    if grid.nodata is not None:
        return options | {"src_nodata": grid.nodata}
    if len(declared) > 1:
        raise ImageError(
            info.path,
            "declares another nodata value for each band, which cannot be resampled",
            tag="nodata",
            value=info.nodatavals,
            hint="Give it one value for all bands: `gdalwarp -srcnodata 'A B' -dstnodata V IN OUT.tif`.",
        )
    return options | ({"src_nodata": declared.pop()} if declared else {})


def view_of(handle: Handle, grid: Grid) -> View | None:
    """The raster on a grid, kept with its handle; None where that is the file's own grid.

    Raises:
        ImageError: No CRS, or no way from it to the target.
        ConfigError: A resolution that is no positive number.
    """
    if grid not in handle.views:
        target = _target(handle, grid)
        handle.keep_view(grid, None if target is handle.info else View(handle, target, grid))
    view = handle.views[grid]
    assert view is None or isinstance(view, View)
    return view


def _target(handle: Handle, grid: Grid) -> RasterInfo:
    info = handle.info
    if grid.resolution is not None and not (math.isfinite(grid.resolution) and grid.resolution > 0):
        raise ConfigError(f"resolution: {grid.resolution} is no number of metres above 0.")
    if info.crs is None:
        raise ImageError(
            info.path,
            "has no coordinate reference system, so it has no ground resolution",
            hint="Declare it: `gdal_edit.py -a_srs EPSG:CODE FILE` (an image with RPCs only: orthorectify it first), "
            "or read it without resolution and crs.",
        )
    if info.georeference == "gcps":
        info = _from_points(handle)
    target = grid.crs or info.crs
    assert target is not None
    a, b, _, d, e, _ = info.transform[:6]
    north_up = b == d == 0 and a > 0 > e
    if target == info.crs and north_up:
        wanted = (grid.resolution,) * 2 if grid.resolution else info.resolution
        if all(abs(new / old - 1) < _SAME for new, old in zip(wanted, info.resolution, strict=True)):
            return info
    bounds = _bounds_in(info, target)
    x, y = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
    if target == info.crs and grid.resolution is None:
        width, height = math.hypot(a, d), math.hypot(b, e)
    else:
        metres = grid.resolution or math.sqrt(info.resolution[0] * info.resolution[1])
        width, height = (metres / unit for unit in metres_per_unit(info.path, target, x, y))
    columns = math.ceil((bounds.right - bounds.left) / width - _SAME)
    rows = math.ceil((bounds.top - bounds.bottom) / height - _SAME)
    if max(columns, rows) > _MAX_SIDE:
        raise ImageError(info.path, f"would have {columns} x {rows} pixels", tag="resolution", value=grid.resolution)
    return _on_grid(info, target, Affine(width, 0, bounds.left, 0, -height, bounds.top), max(columns, 1), max(rows, 1))


def _on_grid(info: RasterInfo, crs: CRS, transform: Affine, width: int, height: int) -> RasterInfo:
    return replace(
        info,
        crs=crs,
        transform=transform,
        width=width,
        height=height,
        bounds=corner_bounds(transform, width, height),
        resolution=ground_resolution(crs, transform, width, height),
    )


def _from_points(handle: Handle) -> RasterInfo:
    """The grid that GDAL finds for an image that only has ground control points, in their CRS."""
    crs = handle.info.crs
    assert crs is not None
    with WarpedVRT(handle.dataset, src_crs=crs, crs=crs) as default:
        return _on_grid(handle.info, crs, default.transform, default.width, default.height)


def _bounds_in(info: RasterInfo, target: CRS) -> BoundingBox:
    """The raster's box in another CRS; across the antimeridian longitudes go on beyond 180 degrees.

    Raises:
        ImageError: A part of the raster lies outside the target CRS, or it covers a pole and the target is in degrees.
    """
    if info.crs is None or target == info.crs:
        return info.bounds
    steps = np.linspace(0, 1, _EDGE_POINTS)
    columns, rows = np.meshgrid(steps * info.width, steps * info.height)
    x, y = _moved(info.crs, target, [place(info.transform, *at) for at in zip(columns.flat, rows.flat, strict=True)])
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ImageError(info.path, f"does not lie within {target}", tag="bounds", value=tuple(info.bounds))
    if target.is_geographic:
        if not info.crs.is_geographic and _covers_pole(info):
            raise ImageError(info.path, f"covers a pole, where {target} has no grid", hint="Use a polar CRS.")
        # Neighbours along a row are close on the ground: a jump of more than half a turn is the antimeridian.
        along = np.unwrap(np.unwrap(x.reshape(_EDGE_POINTS, -1), axis=1, period=360), axis=0, period=360)
        x = along - 360 * math.floor((along.min() + 180) / 360)
    return BoundingBox(float(x.min()), float(y.min()), float(x.max()), float(y.max()))


def _moved(
    crs: CRS | None, target: CRS, places: list[tuple[float, float]]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Coordinates in another CRS; not finite where PROJ gives up, far outside of a projection."""
    try:
        x, y = rasterio.warp.transform(crs, target, *map(list, zip(*places, strict=True)))
    except CPLE_BaseError:
        x = y = [math.nan] * len(places)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _covers_pole(info: RasterInfo) -> bool:
    assert info.crs is not None
    for latitude in (-90.0, 90.0):
        x, y = _moved(LONLAT, info.crs, [(0.0, latitude)])
        column, row = place(~info.transform, float(x[0]), float(y[0]))
        if 0 < column < info.width and 0 < row < info.height:
            return True
    return False


def metres_per_unit(path: str, crs: CRS, x: float, y: float) -> tuple[float, float]:
    """Metres on the ground of one unit of a CRS, eastward and northward at a place.

    Where that is within 1 % of the projection's own unit (as it is in UTM), the unit counts, so that 10 m stay 10 m.

    Raises:
        ImageError: The place is outside the CRS.
    """
    step = 1e-4 if crs.is_geographic else 1.0
    east, north = (size / step for size in ground_resolution(crs, Affine(step, 0, x, 0, -step, y), 0, 0))
    if not (math.isfinite(east) and math.isfinite(north) and east > 0 and north > 0):
        raise ImageError(path, f"does not lie within {crs}", tag="centre", value=(x, y))
    if crs.is_geographic:
        return east, north
    unit = float(crs.linear_units_factor[1])
    if max(abs(east / unit - 1), abs(north / unit - 1)) < _DISTORTED:
        return unit, unit
    return east, north


def _overview_level(stored: RasterInfo, target: RasterInfo) -> int | None:
    """The coarsest overview that is no coarser than the target."""
    native = max(stored.resolution)
    factor = min(target.resolution) / native
    levels = [level for level, shrink in enumerate(stored.overviews) if shrink <= factor * (1 + _SAME)]
    return levels[-1] if levels else None
