"""What a raster file says of itself: size, bands, grid, nodata; and whether its coordinates can be in its CRS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import rasterio.warp
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.coords import BoundingBox
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError
from rasterio.io import DatasetReader

from vitdomains.core.errors import ImageError

Mask = Literal["none", "nodata", "alpha", "internal"]
Georeference = Literal["transform", "gcps", "none"]

LONLAT = CRS.from_epsg(4326)
_COLOURS = {ColorInterp.red: "red", ColorInterp.green: "green", ColorInterp.blue: "blue"}
_MIN_PIXEL_M = 1e-3  # no image of the ground has smaller pixels: these are degrees under a projected CRS
_SEMI_MAJOR_M, _ECCENTRICITY_2 = 6378137.0, 6.69437999014e-3  # WGS 84
_RELABEL = "Correct it: `gdal_edit.py -a_srs EPSG:CODE FILE`."


@dataclass(frozen=True)
class RasterInfo:
    """A raster, or a raster on a target grid.

    ``count``, ``indexes`` (GDAL's band numbers, from 1) and ``bands`` leave out an alpha band; ``bands`` is empty where
    not every band has a name. ``transform`` takes (column, row) to coordinates of ``crs``, which is None without a
    georeference; ``bounds`` encloses the four corners. ``resolution`` is the pixel's (width, height) in metres on the
    ground at the centre, NaN without ``crs``. ``nodata`` is what the first band declares, ``nodatavals`` what each does;
    ``mask`` says what marks pixels without data first (``nodatavals`` count beside it);
    ``undeclared_collar`` is the value of a constant border that the file does not declare. An image that only has ground
    control points is described on the north-up grid that it is warped to.
    """

    path: str
    width: int
    height: int
    count: int
    dtype: str
    crs: CRS | None
    transform: Affine
    nodata: float | None
    bands: tuple[str, ...]
    bounds: BoundingBox
    mask: Mask
    undeclared_collar: float | None
    resolution: tuple[float, float]
    georeference: Georeference
    indexes: tuple[int, ...] = ()
    overviews: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    nodatavals: tuple[float | None, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)
    palette: bool = False  # its only band holds numbers of colours


def describe_dataset(dataset: DatasetReader, path: str) -> RasterInfo:
    """Read the header; ``undeclared_collar``, for which pixels are read, is left out.

    Raises:
        ImageError: The coordinates cannot be in the declared CRS.
    """
    crs, georeference = _georeference(dataset)
    indexes = tuple(
        index for index, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind != ColorInterp.alpha
    )
    mask = mask_kind(dataset)
    transform = dataset.transform
    if georeference == "transform" and crs is not None:
        check_coordinates(path, crs, transform, dataset.width, dataset.height)
    names = _names(dataset, indexes)
    return RasterInfo(
        path=path,
        width=dataset.width,
        height=dataset.height,
        count=len(indexes),
        dtype=str(np.result_type(*(dataset.dtypes[index - 1] for index in indexes))),
        crs=crs,
        transform=transform,
        nodata=dataset.nodatavals[indexes[0] - 1] if indexes else None,
        bands=names,
        bounds=corner_bounds(transform, dataset.width, dataset.height),
        mask=mask,
        undeclared_collar=None,
        resolution=ground_resolution(crs, transform, dataset.width, dataset.height),
        georeference=georeference,
        indexes=indexes,
        overviews=tuple(dataset.overviews(1)),
        scales=tuple(dataset.scales[index - 1] for index in indexes),
        offsets=tuple(dataset.offsets[index - 1] for index in indexes),
        nodatavals=tuple(dataset.nodatavals[index - 1] for index in indexes),
        tags=dataset.tags(),
        palette=len(indexes) == 1 and dataset.colorinterp[indexes[0] - 1] == ColorInterp.palette,
    )


def _georeference(dataset: DatasetReader) -> tuple[CRS | None, Georeference]:
    if dataset.crs is not None and dataset.transform != Affine.identity():
        return dataset.crs, "transform"
    points, crs = dataset.gcps
    if points and crs is not None:
        return crs, "gcps"
    return None, "none"


def mask_kind(dataset: DatasetReader) -> Mask:
    """By what the file says which pixels are valid; nodata beside a mask counts too: a pixel is data where both say so."""
    if ColorInterp.alpha in dataset.colorinterp:
        return "alpha"
    if any(MaskFlags.per_dataset in flags for flags in dataset.mask_flag_enums):
        return "internal"
    return "nodata" if any(value is not None for value in dataset.nodatavals) else "none"


def _names(dataset: DatasetReader, indexes: tuple[int, ...]) -> tuple[str, ...]:
    described = [dataset.descriptions[index - 1] or "" for index in indexes]
    if not any(described):
        described = [_COLOURS.get(dataset.colorinterp[index - 1], "") for index in indexes]
    return tuple(described) if all(described) and len(set(described)) == len(described) else ()


def place(transform: Affine, column: float, row: float) -> tuple[float, float]:
    """The coordinates of a pixel; the operator for it differs between affine 2 and 3."""
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def corner_bounds(transform: Affine, width: int, height: int) -> BoundingBox:
    """The box around the four corners, also of a rotated or south-up grid."""
    corners = [place(transform, *corner) for corner in ((0, 0), (width, 0), (0, height), (width, height))]
    xs, ys = zip(*corners, strict=True)
    return BoundingBox(min(xs), min(ys), max(xs), max(ys))


def check_coordinates(path: str, crs: CRS, transform: Affine, width: int, height: int) -> None:
    """Refuse coordinates that cannot be in this CRS: metres under degrees, degrees under metres, outside the projection.

    Raises:
        ImageError: As above, or the transform is degenerate.
    """
    if not all(map(math.isfinite, transform[:6])) or transform.is_degenerate:
        raise ImageError(
            path, "has a transform that maps pixels to a line", tag="transform", value=tuple(transform)[:6]
        )
    bounds = corner_bounds(transform, width, height)
    if crs.is_geographic:
        if bounds.left < -541 or bounds.right > 541 or bounds.bottom < -91 or bounds.top > 91:
            raise ImageError(
                path,
                "has coordinates that are no degrees, under a geographic CRS",
                tag="bounds",
                value=tuple(round(value, 3) for value in bounds),
                hint=_RELABEL,
            )
        return
    size = ground_resolution(crs, transform, width, height)
    if not all(map(math.isfinite, size)):
        raise ImageError(
            path, f"has coordinates outside its CRS ({crs})", tag="bounds", value=tuple(bounds), hint=_RELABEL
        )
    if min(size) < _MIN_PIXEL_M:
        raise ImageError(
            path,
            f"has pixels of {min(size):.1e} m under its projected CRS ({crs})",
            tag="bounds",
            value=tuple(bounds),
            hint=f"Are its coordinates degrees? {_RELABEL}",
        )


def ground_resolution(crs: CRS | None, transform: Affine, width: int, height: int) -> tuple[float, float]:
    """Width and height in metres on the ground of the pixel at the centre; NaN without a CRS or outside of it.

    From differences of longitude and latitude and the ellipsoid's radii of curvature (Snyder 1987, "Map projections: a
    working manual", equations 4-19 and 4-20), so that degrees and the metres of Web Mercator come out true.
    """
    if crs is None:
        return math.nan, math.nan
    column, row = width / 2, height / 2
    points = [place(transform, *point) for point in ((column, row), (column + 1, row), (column, row + 1))]
    try:
        longitudes, latitudes = rasterio.warp.transform(crs, LONLAT, *map(list, zip(*points, strict=True)))
    except (CRSError, CPLE_BaseError):  # PROJ: the point lies outside of the projection
        return math.nan, math.nan
    if not all(map(math.isfinite, (*longitudes, *latitudes))) or any(abs(value) > 90.5 for value in latitudes):
        return math.nan, math.nan
    latitude = math.radians(latitudes[0])
    curvature = 1 - _ECCENTRICITY_2 * math.sin(latitude) ** 2
    north = _SEMI_MAJOR_M * (1 - _ECCENTRICITY_2) / curvature**1.5
    east = _SEMI_MAJOR_M / math.sqrt(curvature) * math.cos(latitude)
    sizes = []
    for index in (1, 2):
        turn = (longitudes[index] - longitudes[0] + 180) % 360 - 180
        sizes.append(math.hypot(math.radians(turn) * east, math.radians(latitudes[index] - latitudes[0]) * north))
    return sizes[0], sizes[1]
