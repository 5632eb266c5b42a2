"""What is written opens elsewhere: gdalinfo, rio-cogeo, geopandas, pyarrow, DuckDB, pyogrio, pystac."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import transform, transform_bounds
from rio_cogeo.cogeo import cog_validate

from tests.core.geo.bright import CLASSES, bundle, worker
from tests.core.geo.rasters import NORTH_UP, UTM, write
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.geo.map.outputs import Labels
from vitdomains.core.geo.map.run import (
    ComputeOptions,
    MapResult,
    Scene,
    Tiling,
    draw,
    label_scenes,
    open_scene,
    path_for,
)
from vitdomains.core.geo.map.stac import Product, check_item, map_item, model_item, slug, write_item
from vitdomains.core.geo.map.tiles_table import UNKNOWN, classes_of
from vitdomains.core.geo.map.vectors import common_crs, write_vectors

SIDE = 700


@dataclass(frozen=True)
class Job:
    folder: Path
    scene: Scene
    labels: Labels
    drawn: MapResult


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A scene with a bright half and a grey stripe, mapped with everything that can be written."""
    folder = tmp_path_factory.mktemp("outputs")
    pixels = np.full((1, SIDE, SIDE), 0.1, np.float32)
    pixels[:, :, SIDE // 2 :] = 0.9
    pixels[:, :64] = 0.5
    path = write(folder / "scene.tif", pixels)
    scene = open_scene(str(path), Tiling(32, 0.25, 1), set())
    labels = Labels(CLASSES, min_probability=0.6)
    shards = label_scenes(
        [scene],
        worker(1, min_probability=0.6, batch_size=64),
        folder / "job",
        {},
        ComputeOptions(shard_size=200),
        lambda *_: None,
    )
    drawn = draw(
        [scene], shards, folder / "job", labels, folder / "map.tif", probabilities=folder / "p.tif",
        tiles=folder / "tiles.parquet", vectors=[folder / "tiles.gpkg", folder / "tiles.geojson"],
    )  # fmt: skip
    return Job(folder, scene, labels, drawn)


@pytest.mark.parametrize("name", ["map.tif", "p.tif"])
def test_rasters_are_cloud_optimised(job: Job, name: str) -> None:
    valid, errors, warnings = cog_validate(job.folder / name, strict=True, quiet=True)
    assert valid and not errors and not warnings
    with rasterio.open(job.folder / name) as dataset:
        assert dataset.overviews(1) and dataset.crs == UTM and dataset.transform == NORTH_UP


def test_the_map_carries_its_legend(job: Job) -> None:
    with rasterio.open(job.folder / "map.tif") as dataset:
        assert dataset.nodata == 0 and dataset.dtypes == ("uint8",)
        tags = dataset.tags(1)
        assert [tags[f"CLASS_{value}"] for value in (1, 2, 3)] == ["dark", "bright", UNKNOWN]
        assert len({dataset.colormap(1)[value] for value in (1, 2, 3)}) == 3
        found = dataset.read(1)
    assert (found[200:, :300] == 1).all() and (found[200:, 400:] == 2).all() and (found[:30] == 3).all()
    assert (
        job.drawn.cells["scene"][UNKNOWN] == int((found == 3).sum())
        and sum(job.drawn.cells["scene"].values()) == SIDE**2
    )


def test_gdalinfo_shows_categories_and_colours(job: Job) -> None:
    if shutil.which("gdalinfo") is None:
        pytest.skip("gdalinfo is not installed")
    said = subprocess.run(["gdalinfo", "-json", job.folder / "map.tif"], capture_output=True, check=True, text=True)
    band = json.loads(said.stdout)["bands"][0]
    assert band["colorInterpretation"] == "Palette" and band["noDataValue"] == 0 and band["overviews"]
    text = subprocess.run(["gdalinfo", job.folder / "map.tif"], capture_output=True, check=True, text=True).stdout
    assert "Categories:" in text and "1: dark" in text and "LAYOUT=COG" in text
    assert "GDALRasterAttributeTable" in text and "<F>bright</F>" in text


def test_the_qgis_style_names_each_value(job: Job) -> None:
    entries = ElementTree.parse(job.folder / "map.qml").findall(
        ".//rasterrenderer[@type='paletted']/colorPalette/paletteEntry"
    )
    assert [(entry.get("value"), entry.get("label")) for entry in entries] == [
        ("1", "dark"),
        ("2", "bright"),
        ("3", UNKNOWN),
    ]


def test_geopandas_reads_the_tiles(job: Job) -> None:
    tiles = geopandas.read_parquet(job.folder / "tiles.parquet")
    assert tiles.crs == UTM and len(tiles) == job.drawn.tiles and tiles["tile_id"].is_unique
    assert classes_of(list(tiles)) == CLASSES and set(tiles["label"]) == {"dark", "bright", UNKNOWN}
    one = tiles.iloc[5]
    x, y = NORTH_UP @ (int(one["col"]), int(one["row"]))
    assert one.geometry.equals(shapely.box(x, y - 320, x + 320, y)) and set(tiles["model_id"]) == {bundle().id}
    boxes = pq.read_table(job.folder / "tiles.parquet", columns=["bbox"])["bbox"].to_pylist()
    assert tuple(boxes[5][side] for side in ("xmin", "ymin", "xmax", "ymax")) == one.geometry.bounds
    near = geopandas.read_parquet(job.folder / "tiles.parquet", bbox=(500_000, 5_199_000, 500_100, 5_199_100))
    assert 0 < len(near) < 12, "the covering column filters"


def test_the_geoparquet_metadata_is_that_of_version_1_1(job: Job) -> None:
    geo = json.loads(pq.read_schema(job.folder / "tiles.parquet").metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    assert column["encoding"] == "WKB" and column["geometry_types"] == ["Polygon"]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]


def test_duckdb_reads_the_tiles(job: Job) -> None:
    # The spatial extension is on the network only; without it DuckDB still reads every column.
    found = duckdb.sql(
        f"select label, count(*), avg(bbox.xmax - bbox.xmin) from '{job.folder / 'tiles.parquet'}' group by label order by label"
    ).fetchall()
    assert [row[0] for row in found] == ["bright", "dark", UNKNOWN]
    assert sum(row[1] for row in found) == job.drawn.tiles and found[0][2] == pytest.approx(320)


@pytest.mark.parametrize("name", ["tiles.gpkg", "tiles.geojson"])
def test_vector_files_hold_the_same_tiles(job: Job, name: str) -> None:
    same = pyogrio.read_dataframe(job.folder / name)
    tiles = geopandas.read_parquet(job.folder / "tiles.parquet")
    assert list(same["tile_id"]) == list(tiles["tile_id"]) and list(same["label"]) == list(tiles["label"])
    assert same.crs == (UTM if name.endswith("gpkg") else "EPSG:4326")
    distance = same.to_crs(UTM).centroid.distance(tiles.centroid)
    assert distance.max() < 0.5


def test_vectors_without_a_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scene has a CRS"):
        write_vectors([], tmp_path / "tiles.gpkg", CLASSES, {"scene": (Affine.identity(), None)})
    with pytest.raises(ConfigError, match="ending"):
        write_vectors([], tmp_path / "tiles.kml", CLASSES, {"scene": (NORTH_UP, rasterio.CRS.from_epsg(32633))})


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_scenes_of_different_crs_share_a_file_in_longitude_and_latitude(tmp_path: Path) -> None:
    grey = np.full((1, 32, 32), 0.9, np.float32)
    paths = [
        write(tmp_path / "a.tif", grey),
        write(tmp_path / "b.tif", grey, crs="EPSG:32733", transform=Affine(10, 0, 500_000, 0, 10, 8_000_000)),
        write(tmp_path / "c.tif", grey, crs=None, transform=None),
    ]
    tiling = Tiling(16, 0.0)
    scenes: list[Scene] = []
    for path in paths:
        scenes.append(open_scene(str(path), tiling, {scene.name for scene in scenes}))
    shards = label_scenes(scenes, worker(1), tmp_path / "job", {}, ComputeOptions(shard_size=3), lambda *_: None)
    draw(scenes, shards, tmp_path / "job", Labels(CLASSES), tmp_path / "map.tif", tiles=tmp_path / "tiles.parquet")
    tiles = geopandas.read_parquet(tmp_path / "tiles.parquet")
    assert tiles.crs == "OGC:CRS84" and list(tiles["scene"]) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert tiles.geometry[8:].isna().all()
    boxes = pq.read_table(tmp_path / "tiles.parquet", columns=["bbox"])["bbox"]
    assert boxes[8:].null_count == 4 and boxes[:8].null_count == 0
    lon, lat = transform("EPSG:32633", "EPSG:4326", [500_080], [5_199_920])
    assert tiles.geometry[0].centroid.coords[0] == pytest.approx((lon[0], lat[0]), abs=1e-6)
    lon, lat = transform("EPSG:32733", "EPSG:4326", [500_080], [8_000_080])
    assert tiles.geometry[4].centroid.coords[0] == pytest.approx((lon[0], lat[0]), abs=1e-6)
    assert all(path_for(tmp_path / "map.tif", scene, scenes).is_file() for scene in scenes)
    assert common_crs({}) is None


def test_multi_label_maps_have_a_band_a_class(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 64), 0.9, np.float32)
    pixels[:, :32] = 0.5
    pixels[:, :, 48:] = -1
    path = write(tmp_path / "scene.tif", pixels, nodata=-1)
    scene = open_scene(str(path), Tiling(16, 0.0, 1), set())
    labels = Labels(CLASSES, "multilabel", (0.5, 0.5))
    work = worker(1, bundle("multilabel"))
    shards = label_scenes([scene], work, tmp_path / "job", {}, ComputeOptions(), lambda *_: None)
    draw([scene], shards, tmp_path / "job", labels, tmp_path / "map.tif", tiles=tmp_path / "tiles.parquet")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.descriptions == CLASSES and dataset.nodata == 255
        found = dataset.read()
    assert (found[:, :32, :48] == 1).all() and (found[0, 32:, :48] == 0).all() and (found[1, 32:, :48] == 1).all()
    assert (found[:, :, 48:] == 255).all()
    table = pq.read_table(tmp_path / "tiles.parquet").to_pandas()
    assert set(table["label"]) == {"dark|bright", "bright", ""}


def test_items_are_valid_stac_and_know_each_other(job: Job) -> None:
    made = replace(bundle(), files={"model.safetensors": "ab" * 32})
    model = model_item(made, "../bundle")
    products = {
        "labels": Product("map.tif", "image/tiff; application=geotiff; profile=cloud-optimized", "Land cover"),
        "tiles": Product("tiles.parquet", "application/vnd.apache.parquet", "Tiles"),
    }
    taken = datetime(2024, 6, 1, 10, 30, tzinfo=UTC)
    item = map_item("map", job.scene.place, job.labels, products, model, when=taken, sources=["scene.json"])
    write_item(model, job.folder / f"{model.id}.json")
    write_item(item, job.folder / "map.json")
    read = pystac.Item.from_file(str(job.folder / "map.json"))
    assert (
        read.datetime == taken
        and read.properties["proj:code"] == "EPSG:32633"
        and read.properties["proj:shape"] == [SIDE, SIDE]
    )
    assert shapely.geometry.shape(read.geometry).bounds == pytest.approx(tuple(read.bbox))
    with rasterio.open(job.folder / "map.tif") as dataset:
        assert read.bbox == pytest.approx(transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds), abs=1e-6)
    assert [link.target for link in read.get_links("derived_from")][-1].endswith("scene.json")
    assert {value["name"] for value in read.assets["labels"].extra_fields["classification:classes"]} == {
        "dark",
        "bright",
        UNKNOWN,
    }
    behind = pystac.Item.from_file(str(job.folder / f"{model.id}.json"))
    assert read.get_links("derived_from")[0].get_absolute_href() == behind.get_self_href()
    assert behind.properties["mlm:output"][0]["classification:classes"][1]["name"] == "bright"
    assert behind.properties["mlm:input"][0]["input"]["shape"] == [-1, 1, 16, 16]
    assert behind.properties["mlm:pretrained"] is False and behind.properties["mlm:pretrained_source"] is None
    assert behind.assets["model"].extra_fields["file:checksum"] == "1220" + "ab" * 32


@pytest.mark.parametrize(
    ("change", "said"), [({"geometry": {"type": "Blob"}}, "geometry"), ({"id": 7}, "id"), ({"assets": {}}, "mlm:model")]
)
def test_items_that_do_not_hold_are_refused(change: dict[str, object], said: str) -> None:
    item = model_item(bundle(), "bundle").to_dict(include_self_link=False)
    check_item(item)
    with pytest.raises(ManifestError, match=said):
        check_item(item | change)
    with pytest.raises(ManifestError, match="mlm:tasks"):
        check_item(
            item | {"properties": {key: value for key, value in item["properties"].items() if key != "mlm:tasks"}}
        )


@pytest.mark.parametrize(("name", "short"), [("Sea & lake", "Sea-lake"), ("forest", "forest"), ("森", "class")])
def test_slugs_have_the_letters_that_the_extension_takes(name: str, short: str) -> None:
    assert slug(name) == short
