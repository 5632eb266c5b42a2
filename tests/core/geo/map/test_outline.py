"""Outlines in longitude and latitude: the whole world, scenes across 180 degrees, poles, what touches the line."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from vitdomains.core.geo.map.outline import outline, tile_outlines
from vitdomains.core.geo.map.vectors import write_geoparquet, write_vectors

MERCATOR = 20037508.342789244


@pytest.mark.parametrize(
    ("crs", "grid", "size", "box", "parts"),
    [
        # the whole world, however it is counted
        ("EPSG:4326", Affine(1, 0, -180, 0, -1, 90), (360, 180), (-180, -90, 180, 90), 1),
        ("EPSG:4326", Affine(1, 0, 0, 0, -1, 90), (360, 180), (-180, -90, 180, 90), 1),
        ("EPSG:4326", Affine(1, 0, -180.5, 0, -1, 90.5), (361, 181), (-180, -90, 180, 90), 1),
        ("EPSG:3857", Affine(MERCATOR / 128, 0, -MERCATOR, 0, -MERCATOR / 128, MERCATOR), (256, 256),
         (-180, -85.0511, 180, 85.0511), 1),
        # across the line: west is greater than east
        ("EPSG:4326", Affine(1, 0, 175, 0, -1, 10), (10, 10), (175, 0, -175, 10), 2),
        ("EPSG:4269", Affine(1, 0, 175, 0, -1, 10), (10, 10), (175, 0, -175, 10), 2),
        ("EPSG:4326", Affine(1, 0, -185, 0, -1, 10), (10, 10), (175, 0, -175, 10), 2),
        ("EPSG:3832", Affine(10, 0, 3339584.72 - 480, 0, -10, 0), (96, 96), (179.99569, -0.00868, -179.99569, 0), 2),
        ("EPSG:32660", Affine(1000, 0, 600000, 0, -1000, 7000000), (200, 50), (178.952, 62.559, -177.07, 63.115), 2),
        # it touches the line and does not cross it
        ("EPSG:4326", Affine(1, 0, 170, 0, -1, 10), (10, 10), (170, 0, 180, 10), 1),
        ("EPSG:4326", Affine(1, 0, 180, 0, -1, 10), (10, 10), (-180, 0, -170, 10), 1),
        ("EPSG:4326", Affine(0.1, 0, 179 + 1e-9, 0, -0.1, 10), (10, 10), (179, 9, 180, 10), 1),
        ("EPSG:4326", Affine(1, 0, 190, 0, -1, 10), (10, 10), (-170, 0, -160, 10), 1),
        # poles
        ("EPSG:3031", Affine(10000, 0, -2e6, 0, -10000, 2e6), (400, 400), (-180, -90, 180, -64.386), 1),
        ("EPSG:3413", Affine(10000, 0, -1e6, 0, -10000, 2e6), (400, 400), (-180, 57.575, 180, 90), 1),
    ],
)  # fmt: skip
def test_outlines_are_those_of_rfc_7946(
    crs: str, grid: Affine, size: tuple[int, int], box: tuple[float, ...], parts: int
) -> None:
    found, sides = outline(grid, CRS.from_string(crs), *size)
    assert sides == pytest.approx(box, abs=0.01)
    pieces = shapely.get_parts(found)
    assert len(pieces) == parts and found.is_valid and all(piece.geom_type == "Polygon" for piece in pieces)
    assert all(-180 <= x <= 180 and -90 <= y <= 90 for x, y in shapely.get_coordinates(found))
    assert all(piece.exterior.is_ccw for piece in pieces)
    (west, south, east, north), bounds = sides, found.bounds
    assert bounds == pytest.approx((-180, south, 180, north) if parts > 1 else (west, south, east, north), abs=1e-6)
    width = (east - west) % 360 or 360
    assert found.area == pytest.approx(width * (north - south), rel=0.7)


@pytest.fixture
def pacific() -> tuple[pd.DataFrame, dict[str, tuple[Affine, CRS]]]:
    """64 tiles of a scene in metres, an edge of its tiles within a centimetre of 180 degrees."""
    place = {"pacific": (Affine(10, 0, 3339584.72 - 480, 0, -10, 0), CRS.from_epsg(3832)),
             "other": (Affine(10, 0, 500000, 0, -10, 0), CRS.from_epsg(32660))}  # fmt: skip
    at = [(col, row) for row in range(0, 96, 12) for col in range(0, 96, 12)]
    n = len(at)
    table = pd.DataFrame({
        "tile_id": [f"t{i}" for i in range(n)], "scene": "pacific", "path": "p.tif", "col": [c for c, _ in at],
        "row": [r for _, r in at], "width": 16, "height": 16, "label": "a", "probability": 1.0, "margin": 1.0, "entropy": 0.0,
        "prob:a": 1.0, "valid_fraction": 1.0, "model_id": "m", "error": "",
    })  # fmt: skip
    return table, place


def test_geojson_and_geoparquet_cut_tiles_alike(
    tmp_path: Path, pacific: tuple[pd.DataFrame, dict[str, tuple[Affine, CRS]]]
) -> None:
    table, places = pacific
    write_vectors([table], tmp_path / "t.geojson", ["a"], {"pacific": places["pacific"]})
    write_geoparquet([table], tmp_path / "t.parquet", ["a"], places)  # two CRS: longitude and latitude
    text = json.loads((tmp_path / "t.geojson").read_text())
    kinds = [feature["geometry"]["type"] for feature in text["features"]]
    assert set(kinds) == {"Polygon", "MultiPolygon"}
    drawn, kept = geopandas.read_file(tmp_path / "t.geojson"), geopandas.read_parquet(tmp_path / "t.parquet")
    assert list(drawn.geom_type) == list(kept.geom_type) == kinds
    assert shapely.hausdorff_distance(drawn.geometry.to_numpy(), kept.geometry.to_numpy()).max() < 1e-6
    geo = json.loads(pq.read_schema(tmp_path / "t.parquet").metadata[b"geo"])["columns"]["geometry"]
    assert geo["geometry_types"] == ["Polygon", "MultiPolygon"]
    boxes = pd.json_normalize(pq.read_table(tmp_path / "t.parquet").column("bbox").to_pylist())
    assert ((boxes["xmin"] > boxes["xmax"]) == (drawn.geom_type == "MultiPolygon")).all()


def test_tiles_around_a_pole_and_on_a_world_map() -> None:
    table = pd.DataFrame({"col": [0, 128], "row": [0, 128], "width": [128, 256], "height": [128, 256]})
    lonlat = CRS.from_epsg(4326)
    grid = Affine(20000, 0, -256 * 20000, 0, -20000, 256 * 20000)
    shapes, boxes = tile_outlines(table, grid, CRS.from_epsg(3031), lonlat)
    assert boxes[1][:2].tolist() == [-180, -90] and boxes[1][2] == 180 and shapes[1].area > 5000
    world = pd.DataFrame({"col": [0, 0], "row": [0, 0], "width": [256, 128], "height": [256, 256]})
    mercator = Affine(MERCATOR / 128, 0, -MERCATOR, 0, -MERCATOR / 128, MERCATOR)
    _, boxes = tile_outlines(world, mercator, CRS.from_epsg(3857), lonlat)
    np.testing.assert_allclose(boxes, [[-180, -85.0511, 180, 85.0511], [-180, -85.0511, 0, 85.0511]], atol=1e-3)
