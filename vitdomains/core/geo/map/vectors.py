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
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from affine import Affine
from rasterio.crs import CRS

from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.map.tiles_table import PLACE, probability_columns
from vitdomains.core.geo.read.scene_paths import shown_path

Georeference = tuple[Affine, CRS | None]
"""From (column, row) of a scene to coordinates of the CRS; None where the scene has none."""

LONLAT = "OGC:CRS84"
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
            "geometry_types": ["Polygon"],
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


def write_vectors(
    tables: Iterable[pd.DataFrame], out: Path, classes: Sequence[str], places: Mapping[str, Georeference]
) -> None:
    """Write tile tables as GeoPackage, GeoJSON (in longitude and latitude, RFC 7946) or FlatGeobuf, by the ending of ``out``.

    Raises:
        ConfigError: An ending of none of these, or no scene has a CRS.
    """
    driver = _DRIVERS.get(out.suffix.lower())
    crs = common_crs(places)
    if driver is None or crs is None:
        raise ConfigError(
            f"{out} cannot be written: " + ("its ending is not known." if driver is None else "no scene has a CRS."),
            hint=f"Use one of {', '.join(_DRIVERS)}, or --tiles with .parquet.",
        )
    if driver == "GeoJSON":
        crs = pyproj.CRS.from_user_input(LONLAT)
    schema = tile_schema(classes, boxed=False)
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}

    def batches() -> Iterator[pa.RecordBatch]:
        for table in tables:
            yield from _with_polygons(table, schema, places, crs).to_batches()

    def write(part: Path) -> None:
        # GDAL takes the driver from us, but a GeoPackage has to be called one.
        file = part.with_name(f"{part.name}{out.suffix}")
        try:
            reader = pa.RecordBatchReader.from_batches(schema, batches())
            pyogrio.write_arrow(
                reader, file, layer=out.stem, driver=driver, geometry_name="geometry", geometry_type="Polygon",
                crs="EPSG:4326" if driver == "GeoJSON" else crs.to_wkt(), **options,
            )  # fmt: skip
            file.replace(part)
        finally:
            file.unlink(missing_ok=True)

    write_atomically(out, write)


def _with_polygons(
    table: pd.DataFrame, schema: pa.Schema, places: Mapping[str, Georeference], crs: pyproj.CRS | None
) -> pa.Table:
    """The columns of ``schema``, with polygons in ``crs`` and their boxes."""
    corners = np.full((len(table), 4, 2), np.nan)
    for scene, (transform, own) in places.items():
        rows = (table["scene"] == scene).to_numpy() & (table["width"] > 0).to_numpy()
        if own is not None and crs is not None and rows.any():
            corners[rows] = _corners(table[rows], transform, own, crs)
    there = ~np.isnan(corners).any(axis=(1, 2))
    polygons = np.full(len(table), None, dtype=object)
    polygons[there] = shapely.to_wkb(shapely.polygons(corners[there]))
    columns: dict[str, Any] = {name: table[name] for name in schema.names if name in table}
    columns["path"] = table["path"].map(shown_path)  # what signs an address is no concern of the readers of a table
    columns["geometry"] = pa.array(polygons, pa.binary(), from_pandas=True)
    if "bbox" in schema.names:
        low, high = corners.min(axis=1), corners.max(axis=1)
        sides = dict(zip(_BOX, (low[:, 0], low[:, 1], high[:, 0], high[:, 1]), strict=True))
        columns["bbox"] = pa.StructArray.from_arrays(
            [pa.array(values) for values in sides.values()],
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


def _corners(table: pd.DataFrame, transform: Affine, own: CRS, crs: pyproj.CRS) -> npt.NDArray[np.float64]:
    """Corners [N, 4, 2] of tiles in ``crs``."""
    col, row, width, height = (table[name].to_numpy(np.float64) for name in ("col", "row", "width", "height"))
    x = np.stack([col, col + width, col + width, col], axis=1)
    y = np.stack([row, row, row + height, row + height], axis=1)
    a, b, c, d, e, f = tuple(transform)[:6]
    found = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
    source = pyproj.CRS.from_wkt(own.to_wkt())
    if source == crs:
        return found
    shape = found.shape
    lon, lat = pyproj.Transformer.from_crs(source, crs, always_xy=True).transform(
        found[..., 0].ravel(), found[..., 1].ravel()
    )
    found = np.stack([lon, lat], axis=-1).reshape(shape)
    if crs.is_geographic:
        # A tile across the antimeridian stays in one piece, beyond 180 degrees.
        across = np.ptp(found[..., 0], axis=1) > 180
        found[across, :, 0] = found[across, :, 0] % 360
    return found
