"""The tile table with its polygons: GeoParquet 1.1, GeoPackage and GeoJSON, written shard by shard.

GeoParquet as in https://geoparquet.org/releases/v1.1.0: WKB polygons, the CRS as PROJJSON, and a ``bbox`` column that lets
readers skip row groups. Tiles without a georeference have no polygon; a table of only such tiles is plain Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from rasterio.crs import CRS

from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.map.outline import tile_outlines
from vitdomains.core.geo.map.tiles_table import PLACE, probability_columns
from vitdomains.core.geo.read.scene_paths import shown_path

Georeference = tuple[Affine, CRS | None]
"""From (column, row) of a scene to coordinates of the CRS; None where the scene has none."""

LONLAT = "OGC:CRS84"
_RESERVED = ("gpkg_", "sqlite_", "rtree_")  # beginnings of layer names that a GeoPackage keeps for itself
_MOST_CLASSES = 1900  # of SQLite's 2000 columns
_BOX = ("xmin", "ymin", "xmax", "ymax")
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".fgb": "FlatGeobuf"}


def tile_schema(classes: Sequence[str], *, boxed: bool = True) -> pa.Schema:
    """Columns and types of the tile table on disk; ``bbox`` only where ``boxed``."""
    fields = [(name, pa.string() if name in PLACE[:3] else pa.int32()) for name in PLACE]
    fields += [("label", pa.string()), *((name, pa.float32()) for name in ("probability", "margin", "entropy"))]
    fields += [(name, pa.float32()) for name in (*probability_columns(classes), "valid_fraction")]
    fields += [("model_id", pa.string()), ("error", pa.string()), ("geometry", pa.binary())]
    if boxed:
        fields.append(("bbox", pa.struct([(side, pa.float64()) for side in _BOX])))
    return pa.schema(fields)


def common_crs(places: Mapping[str, Georeference]) -> pyproj.CRS | None:
    """The CRS that all scenes share, longitude and latitude where they do not, None where none has one."""
    found = {crs.to_wkt() for _, crs in places.values() if crs is not None}
    if not found:
        return None
    return pyproj.CRS.from_user_input(found.pop() if len(found) == 1 else LONLAT)


def write_geoparquet(
    tables: Iterable[pd.DataFrame],
    out: Path,
    classes: Sequence[str],
    places: Mapping[str, Georeference],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write tile tables, in any pieces, as one file; atomically.

    Args:
        tables: Tile tables (``tiles_table.py``); further columns are left out.
        out: The file.
        classes: Names behind the probability columns.
        places: By ``scene``, where its pixels lie.
        about: Further metadata of the file, key to text.
    """
    crs = common_crs(places)
    schema = tile_schema(classes).with_metadata(dict(about or {}))
    if crs is not None:
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"] if crs.is_geographic else ["Polygon"],
            "crs": crs.to_json_dict(),
            "covering": {"bbox": {side: ["bbox", side] for side in _BOX}},
        }
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        schema = schema.with_metadata({**(about or {}), "geo": json.dumps(geo)})

    def write(part: Path) -> None:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(_with_polygons(table, schema, places, crs))

    write_atomically(out, write)


def check_vectors(out: Path, classes: Sequence[str], places: Mapping[str, Georeference]) -> tuple[str, pyproj.CRS]:
    """GDAL's driver for ``out`` and the CRS that the tiles are written in.

    Raises:
        ConfigError: What cannot be: an ending of no driver, scenes without a CRS, class names or a number of classes that the
            format does not take.
    """
    driver, crs = _DRIVERS.get(out.suffix.lower()), common_crs(places)
    problem = ""
    if driver is None:
        problem = "its ending is not known"
    elif crs is None:
        problem = "no scene has a CRS"
    elif driver == "GPKG":
        lower = [name.lower() for name in classes]
        twins = [name for name in classes if lower.count(name.lower()) > 1]
        problem = f"a GeoPackage does not tell the columns of {', '.join(twins)} apart" if twins else ""
        if len(classes) > _MOST_CLASSES:
            problem = f"a GeoPackage has at most {_MOST_CLASSES} columns of classes, not {len(classes)}"
    if problem or driver is None or crs is None:
        raise ConfigError(f"{out} cannot be written: {problem}.",
                          hint=f"Use one of {', '.join(_DRIVERS)}, or --tiles with .parquet.")  # fmt: skip
    return driver, crs


def write_vectors(
    tables: Iterable[pd.DataFrame], out: Path, classes: Sequence[str], places: Mapping[str, Georeference]
) -> None:
    """Write tile tables as GeoPackage, GeoJSON (in longitude and latitude, RFC 7946) or FlatGeobuf, by the ending of ``out``.

    Raises:
        ConfigError: As for ``check_vectors``, or GDAL cannot write them.
    """
    driver, crs = check_vectors(out, classes, places)
    if driver == "GeoJSON":
        crs = pyproj.CRS.from_user_input(LONLAT)
    schema = tile_schema(classes, boxed=False)
    kind = "Unknown" if crs.is_geographic else "Polygon"  # 180 degrees may cut one in two
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            yield from _with_polygons(table, schema, places, crs).to_batches()

    def write(part: Path) -> None:
        # GDAL takes the driver from us, but a GeoPackage has to be called one.
        file = part.with_name(f"{part.name}{out.suffix}")
        try:
            layer = "tiles" if out.stem.lower().startswith(_RESERVED) else out.stem
            reader = pa.RecordBatchReader.from_batches(schema, batches())
            pyogrio.write_arrow(
                reader, file, layer=layer, driver=driver, geometry_name="geometry", geometry_type=kind,
                crs="EPSG:4326" if driver == "GeoJSON" else crs.to_wkt(), **options,
            )  # fmt: skip
            file.replace(part)
        except (DataSourceError, DataLayerError, FieldError, GeometryError, FeatureError) as error:
            raise ConfigError(
                f"{out} cannot be written: {str(error)[:200]}.", hint="Write --tiles as .parquet."
            ) from error
        finally:
            file.unlink(missing_ok=True)

    write_atomically(out, write)


def _with_polygons(
    table: pd.DataFrame, schema: pa.Schema, places: Mapping[str, Georeference], crs: pyproj.CRS | None
) -> pa.Table:
    """The columns of ``schema``, with polygons in ``crs`` and their boxes."""
    shapes = np.full(len(table), None, dtype=object)
    boxes = np.full((len(table), 4), np.nan)
    for scene, (transform, own) in places.items():
        rows = np.flatnonzero((table["scene"] == scene).to_numpy() & (table["width"] > 0).to_numpy())
        if own is not None and crs is not None and len(rows):
            shapes[rows], boxes[rows] = tile_outlines(table.iloc[rows], transform, own, CRS.from_wkt(crs.to_wkt()))
    there = np.isfinite(boxes).all(axis=1)
    polygons = np.full(len(table), None, dtype=object)
    polygons[there] = shapely.to_wkb(shapes[there])
    columns: dict[str, Any] = {name: table[name] for name in schema.names if name in table}
    columns["path"] = table["path"].map(shown_path)  # what signs an address is no concern of the readers of a table
    columns["geometry"] = pa.array(polygons, pa.binary(), from_pandas=True)
    if "bbox" in schema.names:
        columns["bbox"] = pa.StructArray.from_arrays(
            [pa.array(side) for side in boxes.T],
            fields=list(schema.field("bbox").type),
            mask=pa.array(~there),
        )
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(columns[field.name].to_numpy(), field.type, from_pandas=True)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
