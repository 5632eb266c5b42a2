"""Reference labels on the grid of a scene: a label raster of any CRS and resolution, or polygons with a field."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.transform import array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as reproject_points
from rasterio.windows import Window as PixelWindow
from shapely.errors import GEOSException
from shapely.geometry import box

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.raster import RasterInfo, open_raster

log = logging.getLogger(__name__)

Labels = npt.NDArray[np.int32]

VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")
MAX_CLASSES = 1000
NAME_FIELDS = ("label", "class", "name", "landcover", "category")


@dataclass(frozen=True)
class LabelRows:
    """Labels of a scene: ``rows(top, height)`` gives the class index of each pixel of those rows, int32 [height, W], or -1."""

    classes: tuple[str, ...]
    rows: Callable[[int, int], Labels]


@contextmanager
def reference_labels(
    path: str | Path, scene: RasterInfo, *, field: str = "", names: Mapping[str, str] | None = None
) -> Iterator[LabelRows]:
    """Labels on the grid of ``scene``.

    Args:
        path: A label raster, or polygons (GeoPackage, GeoJSON, Shapefile, FlatGeobuf, GeoParquet).
        scene: The scene whose grid it is.
        field: Column of the polygons that holds the class; empty: the only one, or the first of ``NAME_FIELDS``.
        names: Class name by value of the raster or field; a value without one is its own name.

    Raises:
        ImageError: Not there, damaged, without a CRS, or no map of classes.
        ConfigError: The field is not there.
    """
    if Path(path).suffix.lower() in VECTORS:
        yield _polygons(Path(path), scene, field, names or {})
    else:
        with _raster(path, scene, names or {}) as truth:
            yield truth


@contextmanager
def _raster(path: str | Path, scene: RasterInfo, names: Mapping[str, str]) -> Iterator[LabelRows]:
    with open_raster(path) as labels:
        if labels.count != 1:
            raise ImageError(
                path, "is no label raster", tag="bands", value=labels.count, hint="Give one band of classes."
            )
        if (labels.crs is None) != (scene.crs is None):
            lacking = path if labels.crs is None else scene.path
            raise ImageError(lacking, "has no CRS", tag="crs", hint="Assign one, e.g. with rio edit-info --crs.")
        if scene.crs is None and (labels.width, labels.height) != (scene.width, scene.height):
            raise ImageError(
                path, f"is {labels.width} x {labels.height} pixels, the scene {scene.width} x {scene.height}", tag="crs",
                hint="Without a CRS both have to lie on one grid.",
            )  # fmt: skip
        values = _values(labels, path)
        with _on_grid(labels, scene) as read:

            def rows(top: int, height: int) -> Labels:
                found = read(top, height)
                index = np.searchsorted(values, np.nan_to_num(found, nan=values[0]))
                known = np.isfinite(found) & (values[index.clip(0, len(values) - 1)] == found)
                return np.where(known, index, -1).astype(np.int32)

            yield LabelRows(tuple(names.get(_text(v), _text(v)) for v in values), rows)


@contextmanager
def _on_grid(labels: Any, scene: RasterInfo) -> Iterator[Callable[[int, int], npt.NDArray[np.float64]]]:
    """A reader of rows (top, height) of the labels on the scene's grid, float64 with NaN where there is none."""
    if scene.crs is None:
        yield lambda top, height: labels.read(
            1, window=PixelWindow(0, top, scene.width, height), masked=True, out_dtype="float64"
        ).filled(np.nan)
        return
    # Of several labels in one pixel the most frequent; of labels coarser than the pixel the one it lies in.
    resampling = Resampling.mode if _pixel_area(labels, scene) < 0.5 else Resampling.nearest
    with WarpedVRT(
        labels, crs=scene.crs, transform=scene.transform, width=scene.width, height=scene.height,
        resampling=resampling, src_nodata=labels.nodata, nodata=np.nan, dtype="float64",
    ) as warped:  # fmt: skip
        yield lambda top, height: warped.read(1, window=PixelWindow(0, top, scene.width, height))


def _values(labels: Any, path: str | Path) -> npt.NDArray[np.float64]:
    """Sorted values of a label raster, block by block."""
    seen: set[float] = set()
    exact = 2**24 if labels.dtypes[0] == "float32" else 2**53
    for _, window in labels.block_windows(1):
        block = labels.read(1, window=window, masked=True).compressed()
        seen.update(np.unique(block[np.isfinite(block)]).tolist())
        if len(seen) > MAX_CLASSES or any(value != round(value) for value in seen):
            raise ImageError(
                path, "is no map of classes: its values are not whole numbers, or there are more than "
                f"{MAX_CLASSES} of them", hint="Give a raster with one whole number a class.",
            )  # fmt: skip
        if any(abs(value) > exact for value in seen):
            raise ImageError(
                path, f"has codes above {exact}, which its numbers or ours do not tell apart", tag="dtype",
                value=labels.dtypes[0], hint="Number the classes anew, e.g. with `gdal_calc.py`, and name them by --classes.",
            )  # fmt: skip
    if not seen:
        raise ImageError(path, "holds no labelled pixel", tag="nodata", value=labels.nodata)
    return np.array(sorted(seen), dtype=np.float64)


def _pixel_area(labels: Any, scene: RasterInfo) -> float:
    """Area of a label pixel in pixels of the scene, at the scene's centre."""
    cols, rows = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    x, y = labels.transform @ (cols + labels.width / 2, rows + labels.height / 2)
    x, y = (np.array(a) for a in reproject_points(labels.crs, scene.crs, x, y))
    u, v = ~scene.transform @ (x, y)
    return float(abs((u[1] - u[0]) * (v[2] - v[0]) - (u[2] - u[0]) * (v[1] - v[0])))


def _polygons(path: Path, scene: RasterInfo, field: str, names: Mapping[str, str]) -> LabelRows:
    table = _read_polygons(path)
    if scene.crs is None or table.crs is None:
        lacking = path if table.crs is None else scene.path
        raise ImageError(lacking, "has no CRS", tag="crs", hint="Assign one; polygons cannot be placed without.")
    column = _field(path, table, field)
    blank = table[column].isna() | (table[column].map(_text) == "")
    shapes = table[~blank & table.geometry.notna() & ~table.geometry.is_empty]
    shapes = shapes[shapes.geom_type.isin(["Polygon", "MultiPolygon"])]
    if not len(shapes):
        raise ImageError(path, f"has no polygon with a value of {column!r}", hint="Check --field.")
    if len(shapes) < len(table):
        log.warning(
            "%s: %d of %d features are left out: %d without a value of %s, the others without a polygon",
            path.name, len(table) - len(shapes), len(table), int(blank.sum()), column,
        )  # fmt: skip
    shapes = shapes.assign(geometry=shapes.geometry.make_valid())
    try:
        shapes = shapes.to_crs(scene.crs)
    except CRSError as error:
        raise ImageError(path, f"cannot be brought to the scene's CRS ({error})") from error
    named = [names.get(_text(value), _text(value)) for value in shapes[column]]
    classes = tuple(sorted(set(named)))
    codes = np.array([classes.index(name) for name in named], dtype=np.int32)
    # Where polygons overlap the smaller one is the more specific: it is drawn last.
    order = np.argsort(-shapes.geometry.area.to_numpy(), kind="stable")
    geometries, codes = shapes.geometry.iloc[order].reset_index(drop=True), codes[order]
    tree = geometries.sindex

    def rows(top: int, height: int) -> Labels:
        transform = scene.transform @ Affine.translation(0, top)
        here = np.sort(tree.query(box(*array_bounds(height, scene.width, transform)), predicate="intersects"))
        if not len(here):
            return np.full((height, scene.width), -1, dtype=np.int32)
        drawn = rasterize(
            [(geometries.iloc[i], int(codes[i])) for i in here],
            out_shape=(height, scene.width), transform=transform, fill=-1, dtype="int32",
        )  # fmt: skip
        return np.asarray(drawn, dtype=np.int32)

    return LabelRows(classes, rows)


_SIGNATURES = {
    b"SQLite format 3\0": ".gpkg",
    b"\0\0\x27\x0a": ".shp",
    b"fgb\x03": ".fgb",
    b"PAR1": ".parquet",
    b"{": ".geojson",
}


def _read_polygons(path: Path) -> gpd.GeoDataFrame:
    """The features of a file of one of ``VECTORS``, by its first bytes: GDAL alone would open whatever those ask for.

    Whole numbers stay whole beside blanks: a column of codes with one missing is not turned into floats.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error
    kind = next((ending for magic, ending in _SIGNATURES.items() if head.startswith(magic)), "")
    if not kind:
        raise ImageError(
            path, "is no vector data that is read here", tag="first bytes", value=head[:16],
            hint="Give GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet: `ogr2ogr OUT.gpkg IN`.",
        )  # fmt: skip
    table = path.with_suffix(".dbf")
    if kind == ".shp" and not any(path.with_suffix(ending).is_file() for ending in (".dbf", ".DBF")):
        raise ImageError(
            path, f"has no {table.name} beside it, which holds the fields", hint="Copy all parts of the shapefile."
        )
    whole = {"integer_object_nulls": True}
    try:
        if kind == ".parquet":
            return gpd.read_parquet(path, to_pandas_kwargs=whole)
        if kind == ".geojson" and _json_type(path) not in ("FeatureCollection", "Feature"):
            raise ImageError(path, "is JSON, but no GeoJSON of features", tag="type", value=_json_type(path))
        return gpd.read_file(path, use_arrow=True, arrow_to_pandas_kwargs=whole)
    except (
        DataSourceError,
        DataLayerError,
        pa.ArrowException,
        GEOSException,
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        raise ImageError(path, f"cannot be read as vector data ({str(error)[:200]})") from error


def _json_type(path: Path) -> str:
    found = json.loads(path.read_bytes())
    return str(found.get("type")) if isinstance(found, dict) else ""


def _field(path: Path, table: gpd.GeoDataFrame, field: str) -> str:
    columns = [str(c) for c in table.columns if c != table.geometry.name]
    if not columns:
        raise ConfigError(f"{path} has polygons without any field.", hint="Add one that holds the class.")
    if field:
        if field not in columns:
            raise ConfigError(f"{path} has no field {field!r}.", hint=f"It has {', '.join(columns)}.")
        return field
    found = columns if len(columns) == 1 else [c for name in NAME_FIELDS for c in columns if c.lower() == name]
    if not found:
        raise ConfigError(
            f"{path}: which field holds the class is not clear.", hint=f"Give --field, one of {', '.join(columns)}."
        )
    return found[0]


def _text(value: object) -> str:
    """A value as a class name, digit for digit: 3.0 and 3 are the same class, 3301010101 and 3301010102 are not."""
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value).strip()
