"""Outlines in longitude and latitude as RFC 7946 wants them: cut at 180 degrees, closed over a pole, west may exceed east.

What GeoJSON, GeoParquet, STAC and the app's map show of a scene or a tile comes from here, so that they agree.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import rasterio.warp
import shapely
from affine import Affine
from rasterio.crs import CRS

from vitdomains.core.geo.read.info import LONLAT, place

Floats = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west is greater than east across 180 degrees (RFC 7946, 5.2)."""

_EDGE_POINTS = 20  # a side of an outline in another CRS, as gdalwarp samples it
_WIDE = 90.0  # degrees: a tile so wide is outlined with points along its edges
_SNAP = 1e-7  # degrees (a centimetre), the precision of GeoJSON: nearer to the line than this is on it


def outline(transform: Affine, crs: CRS, width: float, height: float) -> tuple[shapely.Geometry, Box]:
    """The outline of ``width`` x ``height`` pixels in longitude and latitude, and its box.

    Args:
        transform: From (column, row) to coordinates of ``crs``.
        crs: Geographic ones may count beyond 180 degrees.

    Returns:
        A polygon, or a multi-polygon where 180 degrees cut it (RFC 7946, 3.1.9); around a pole it is closed along it.
    """
    steps = np.arange(_EDGE_POINTS) / _EDGE_POINTS
    if crs.is_geographic:
        steps = steps[:1]
    across, down, none = steps * width, steps * height, np.zeros(len(steps))
    column = np.concatenate([across, none + width, width - across, none])
    row = np.concatenate([none, down, none + height, height - down])
    lon, lat = to_lonlat(*_coordinates(transform, column, row), crs)
    finite = np.isfinite(lon) & np.isfinite(lat)
    lon, lat = np.append(lon[finite], lon[finite][:1]), np.append(lat[finite], lat[finite][:1])
    if not crs.is_geographic:
        lon = np.unwrap(lon, period=360)
        if abs(lon[-1] - lon[0]) > 180:  # once around the earth: a pole lies within
            pole = _pole_within(transform, crs, width, height, lat)
            lon, lat = np.append(lon, [lon[-1], lon[0], lon[0]]), np.append(lat, [pole, pole, lat[0]])
    return cut(lon, lat)


def _coordinates(transform: Affine, column: Floats, row: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


def to_lonlat(x: Floats, y: Floats, crs: CRS) -> tuple[Floats, Floats]:
    """Longitude and latitude (WGS 84, degrees); those of a geographic CRS keep their turn, which PROJ takes off."""
    lon, lat = (np.asarray(v, np.float64).reshape(x.shape) for v in _transformed(x, y, crs))
    if crs.is_geographic:
        degrees = x * math.degrees(pyproj.CRS.from_wkt(crs.to_wkt()).axis_info[0].unit_conversion_factor)
        lon = lon + 360 * np.round((degrees - lon) / 360)
    return lon, lat


def _transformed(x: Floats, y: Floats, crs: CRS) -> tuple[npt.ArrayLike, npt.ArrayLike]:
    if crs == LONLAT:
        return x, y
    lon, lat = rasterio.warp.transform(crs, LONLAT, x.ravel().tolist(), y.ravel().tolist())
    return lon, lat


def _pole_within(transform: Affine, crs: CRS, width: float, height: float, lat: Floats) -> float:
    for latitude in (90.0, -90.0):
        (x,), (y,) = rasterio.warp.transform(LONLAT, crs, [0.0], [latitude])
        column, row = place(~transform, x, y)
        if math.isfinite(column) and 0 <= column <= width and 0 <= row <= height:
            return latitude
    return math.copysign(90.0, float(lat.mean()))


def cut(lon: Floats, lat: Floats) -> tuple[shapely.Geometry, Box]:
    """A closed ring whose longitudes go on beyond 180 degrees, as RFC 7946 wants it, and its box.

    Args:
        lon, lat: [N] degrees, each near the one before it.
    """
    lon, lat = _snapped(lon), np.clip(lat, -90.0, 90.0)
    lon = lon - 360 * math.floor((float(lon.min()) + 180) / 360)
    west, east, south, north = float(lon.min()), float(lon.max()), float(lat.min()), float(lat.max())
    polygon = shapely.Polygon(np.stack([lon, lat], axis=1))
    if east <= 180:
        return shapely.geometry.polygon.orient(polygon), (west, south, east, north)
    valid = polygon if polygon.is_valid else shapely.make_valid(polygon)
    parts = [
        shapely.transform(piece, lambda at, turn=turn: at - [360 * turn, 0])
        for turn in range(math.ceil((east - 180) / 360) + 1)
        for piece in _polygons(shapely.intersection(valid, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)))
    ]
    whole = east - west >= 360 - _SNAP
    joined = _polygons(shapely.union_all(parts, grid_size=_SNAP)) if whole else parts
    joined = [shapely.geometry.polygon.orient(part) for part in joined]
    found = joined[0] if len(joined) == 1 else shapely.MultiPolygon(joined)
    return found, ((-180.0, south, 180.0, north) if whole else (west, south, east - 360, north))


def _snapped(lon: Floats) -> Floats:
    line = 180 * np.round(lon / 180)
    return np.where(np.abs(lon - line) < _SNAP, line, lon)


def _polygons(found: shapely.Geometry) -> list[shapely.Polygon]:
    """The parts of a geometry that have an area; a touching line is none."""
    return [part for part in shapely.get_parts(found) if part.geom_type == "Polygon" and part.area > 0]


def tile_outlines(table: pd.DataFrame, transform: Affine, own: CRS, crs: CRS) -> tuple[npt.NDArray[np.object_], Floats]:
    """The outlines [N] of tiles in ``crs``, and their boxes [N, 4] (west, south, east, north).

    Args:
        table: With ``col, row, width, height`` in pixels of the scene.
        transform, own: Of the scene.
        crs: That of the scene, or longitude and latitude.
    """
    col, row, width, height = (table[name].to_numpy(np.float64)[:, None] for name in ("col", "row", "width", "height"))
    steps, none, one = np.arange(4) / 4, np.zeros(4), np.ones(4)
    x = col + width * np.concatenate([steps, one, 1 - steps, none])  # [N, 16] around each tile
    y = row + height * np.concatenate([none, steps, one, 1 - steps])
    x, y = _coordinates(transform, x, y)
    if not crs.is_geographic:
        quads = np.stack([x, y], axis=-1)[:, ::4]
        return np.asarray(shapely.polygons(quads), dtype=object), np.concatenate([quads.min(1), quads.max(1)], axis=1)
    if own != crs:
        x, y = to_lonlat(x, y, own)
    if not own.is_geographic:
        ring = np.unwrap(np.concatenate([x, x[:, :1]], axis=1), axis=1, period=360)
        x = ring[:, :-1]
        odd = ~(np.ptp(ring, axis=1) < _WIDE)  # a pole within, a continent, or outside of the projection
    else:
        odd = np.zeros(len(x), np.bool_)
    lon, lat = _snapped(x[:, ::4]), y[:, ::4]
    lon = lon - 360 * np.floor((lon.min(axis=1, keepdims=True) + 180) / 360)
    shapes = np.asarray(shapely.polygons(np.stack([lon, lat], axis=-1)), dtype=object)
    boxes = np.stack([lon.min(axis=1), lat.min(axis=1), lon.max(axis=1), lat.max(axis=1)], axis=1)
    for at in np.flatnonzero(odd | (lon.max(axis=1) > 180)):
        if odd[at]:
            moved = transform @ Affine.translation(float(col[at, 0]), float(row[at, 0]))
            shapes[at], boxes[at] = outline(moved, own, float(width[at, 0]), float(height[at, 0]))
        else:
            shapes[at], boxes[at] = cut(np.append(lon[at], lon[at, :1]), np.append(lat[at], lat[at, :1]))
    return shapes, boxes
