"""Scenes and ground truth to labelled tiles: the right label at the right place, whatever the CRS of the truth."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import rasterio
from rasterio.warp import transform
from shapely.geometry import Point, box

from tests.satellite.tile_files import UTM, write_raster
from vitdomains.core.data.manifest import labels, read_manifest
from vitdomains.core.errors import ConfigError, ImageError, ManifestError
from vitdomains.core.geo.read.metadata import known_of, parse_bands
from vitdomains.core.geo.read.raster import close_all, describe_raster
from vitdomains.satellite.scenes.tiles import TileRules, cut_tiles
from vitdomains.satellite.sensors import read_bands, sensor_named

SIDE = 64  # pixels of the scene, 10 m each
LEFT, TOP = 500_000.0, 5_000_000.0


def quarters() -> npt.NDArray[np.uint8]:
    """Classes 1 and 2 above, 3 and 4 below, [SIDE, SIDE]."""
    half = SIDE // 2
    return np.kron(np.array([[1, 2], [3, 4]], np.uint8), np.ones((half, half), np.uint8))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two bands whose value is 10 and 100 times the class of the quarter."""
    q = quarters().astype(np.uint16)
    return write_raster(tmp_path / "scene.tif", np.stack([10 * q, 100 * q]), bands=("red", "nir"))


def polygons(path: Path, crs: str = UTM, **columns: object) -> Path:
    """The four quarters as polygons."""
    half = SIDE * 5.0
    corners = [(0, 0), (half, 0), (0, -half), (half, -half)]
    shapes = [box(LEFT + x, TOP + y - half, LEFT + x + half, TOP + y) for x, y in corners]
    table = gpd.GeoDataFrame(columns or {"name": ["one", "two", "three", "four"]}, geometry=shapes, crs=UTM).to_crs(crs)
    table.to_file(path)
    return path


def check_quarters(m: object, names: dict[int, str]) -> None:
    table = m.table  # type: ignore[attr-defined]
    for row in table.itertuples():
        with rasterio.open(row.path) as tile:
            value = int(np.median(tile.read(1))) // 10
        assert table.loc[row.Index, names[value]] == 1, (row.id, value)


def test_tiles_hold_the_pixels_and_the_place_of_the_scene(scene: Path, tmp_path: Path) -> None:
    truth = write_raster(tmp_path / "truth.tif", quarters()[None])
    m = cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16))
    assert len(m) == 16 and m.classes == ("1", "2", "3", "4")
    assert (labels(m).sum(axis=1) == 1).all()
    check_quarters(m, {k: str(k) for k in range(1, 5)})
    whole = rasterio.open(scene)
    for row in m.table.itertuples():
        with rasterio.open(row.path) as tile:
            assert tile.crs == whole.crs and tile.descriptions == ("red", "nir") and tile.dtypes[0] == "uint16"
            window = whole.window(*tile.bounds)
            assert (window.col_off, window.row_off) == (row.col, row.row)
            assert (tile.read() == whole.read(window=window)).all()
            x, y = tile.transform @ (8, 8)
        (lon,), (lat,) = transform(UTM, "EPSG:4326", [x], [y])
        assert (row.lon, row.lat) == pytest.approx((lon, lat), abs=1e-6)
    again = read_manifest(tmp_path / "out" / "manifest.csv")
    assert again.table["id"].tolist() == m.table["id"].tolist() and again.classes == m.classes


@pytest.mark.parametrize(("crs", "resolution"), [("EPSG:4326", 0.00004), ("EPSG:32634", 4.0), ("EPSG:3857", 40.0)])
def test_truth_in_another_crs_and_resolution(scene: Path, tmp_path: Path, crs: str, resolution: float) -> None:
    """Each pixel of the truth gets the class of the quarter in which its centre lies."""
    (x0, x1), (y0, y1) = transform(UTM, crs, [LEFT - 300, LEFT + 940], [TOP - 940, TOP + 300])
    width, height = int(abs(x1 - x0) / resolution), int(abs(y1 - y0) / resolution)
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    x = min(x0, x1) + (column + 0.5) * resolution
    y = max(y0, y1) - (row + 0.5) * resolution
    east, north = (np.array(a).reshape(x.shape) for a in transform(crs, UTM, x.ravel(), y.ravel()))
    half = SIDE * 5
    values = 1 + (east >= LEFT + half) + 2 * (north < TOP - half)
    outside = (east < LEFT) | (east > LEFT + 2 * half) | (north > TOP) | (north < TOP - 2 * half)
    pixels = np.where(outside, -9999, values).astype(np.float32)[None]
    truth = write_raster(
        tmp_path / "truth.tif", pixels, crs=crs, origin=(min(x0, x1), max(y0, y1)), resolution=resolution, nodata=-9999
    )
    m = cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16, min_purity=0.4))
    assert len(m) == 16
    check_quarters(m, {k: str(k) for k in range(1, 5)})
    assert m.table["purity"].median() > 0.85


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
@pytest.mark.parametrize("ending", ["gpkg", "geojson", "shp"])
def test_polygons_in_any_format(scene: Path, tmp_path: Path, ending: str, crs: str) -> None:
    truth = polygons(tmp_path / f"truth.{ending}", crs)
    m = cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16))
    assert m.classes == ("four", "one", "three", "two")
    assert len(m) == 16
    check_quarters(m, {1: "one", 2: "two", 3: "three", 4: "four"})


def test_purity_and_names(scene: Path, tmp_path: Path) -> None:
    q = quarters()
    q[:16, :12] = 2  # 12 of 16 columns of the first tile
    truth = write_raster(tmp_path / "truth.tif", q[None])
    m = cut_tiles([scene], truth, tmp_path / "a", TileRules(size=16), names={"1": "wood", "2": "water"})
    first = m.table.iloc[0]
    assert first["water"] == 1 and first["purity"] == pytest.approx(0.75)
    assert set(m.classes) == {"wood", "water", "3", "4"}
    strict = cut_tiles([scene], truth, tmp_path / "b", TileRules(size=16, min_purity=0.8))
    assert len(strict) == len(m) - 1


def test_pixels_without_data_do_not_vote(tmp_path: Path) -> None:
    pixels = np.full((1, 32, 32), 7, np.int16)
    pixels[:, :, :10] = -1
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=-1)
    truth = np.full((1, 32, 32), 2, np.uint8)
    truth[:, :, :10] = 1
    labels_path = write_raster(tmp_path / "truth.tif", truth)
    with pytest.raises(ManifestError, match="No tile of 32 x 32 pixels"):
        cut_tiles([scene], labels_path, tmp_path / "a", TileRules(size=32))
    m = cut_tiles([scene], labels_path, tmp_path / "b", TileRules(size=32, min_valid=0.5))
    row = m.table.iloc[0]
    assert m.classes == ("2",) and row["purity"] == 1.0
    assert row["valid_fraction"] == pytest.approx(22 / 32, abs=1e-4)
    with rasterio.open(row["path"]) as tile:
        assert (tile.read(1) == pixels[0]).all() and tile.nodata == -1


def test_an_undeclared_collar_is_not_labelled_and_declared_in_the_tile(tmp_path: Path) -> None:
    pixels = np.full((3, 64, 64), 900, np.uint16)
    pixels[:, :, :20] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels)
    truth = write_raster(tmp_path / "truth.tif", np.ones((1, 64, 64), np.uint8))
    whole = cut_tiles([scene], truth, tmp_path / "a", TileRules(size=16))
    assert whole.table["col"].min() == 32
    partial = cut_tiles([scene], truth, tmp_path / "b", TileRules(size=16, min_valid=0.5))
    row = partial.table[partial.table["col"] == 16].iloc[0]
    assert row["valid_fraction"] == pytest.approx(12 / 16)
    with rasterio.open(row["path"]) as tile:
        assert tile.dataset_mask().mean() / 255 == pytest.approx(12 / 16)


def test_overlapping_tiles(scene: Path, tmp_path: Path) -> None:
    truth = write_raster(tmp_path / "truth.tif", quarters()[None])
    m = cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16, stride=8, min_purity=0.6))
    assert set(m.table["col"] % 8) == {0} and len(m) > 16


def test_a_stopped_job_goes_on_and_another_one_is_refused(scene: Path, tmp_path: Path) -> None:
    truth = write_raster(tmp_path / "truth.tif", quarters()[None])
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_tiles([scene], truth, out, TileRules(size=16), on_progress=stop)
    assert not (out / "manifest.csv").exists()
    written = {p: p.stat().st_mtime_ns for p in (out / "tiles").iterdir()}
    assert len(written) == 8
    m = cut_tiles([scene], truth, out, TileRules(size=16))
    assert len(m) == 16 and all(p.stat().st_mtime_ns == at for p, at in written.items())
    with pytest.raises(ManifestError, match="holds tiles of other scenes, labels or rules"):
        cut_tiles([scene], truth, out, TileRules(size=8))


def test_several_scenes_make_one_manifest(tmp_path: Path) -> None:
    truth = write_raster(tmp_path / "truth.tif", np.ones((1, 32, 64), np.uint8))
    one = write_raster(tmp_path / "one.tif", np.full((1, 32, 32), 3, np.uint8))
    two = write_raster(tmp_path / "two.tif", np.full((1, 32, 32), 4, np.uint8), origin=(LEFT + 320, TOP))
    m = cut_tiles([one, two], truth, tmp_path / "out", TileRules(size=16))
    assert m.table["scene"].tolist() == ["one.tif"] * 4 + ["two.tif"] * 4
    with pytest.raises(ManifestError, match="share a name"):
        cut_tiles([one, one], truth, tmp_path / "b", TileRules(size=16))


def test_the_smaller_of_two_polygons_wins(scene: Path, tmp_path: Path) -> None:
    shapes = [box(LEFT, TOP - 160, LEFT + 160, TOP), box(LEFT, TOP - 640, LEFT + 640, TOP)]
    gpd.GeoDataFrame({"class": ["small", "large"]}, geometry=shapes, crs=UTM).to_file(tmp_path / "t.gpkg")
    m = cut_tiles([scene], tmp_path / "t.gpkg", tmp_path / "out", TileRules(size=16))
    assert m.table.iloc[0]["small"] == 1 and m.table["large"].sum() == 15


def test_what_is_no_truth_is_refused(scene: Path, tmp_path: Path) -> None:
    out, rules = tmp_path / "out", TileRules(size=16)
    heights = write_raster(
        tmp_path / "dem.tif", np.linspace(0, 9, SIDE * SIDE, dtype=np.float32).reshape(1, SIDE, SIDE)
    )
    with pytest.raises(ImageError, match="no map of classes"):
        cut_tiles([scene], heights, out, rules)
    bare = write_raster(tmp_path / "bare.tif", quarters()[None], crs=None)
    with pytest.raises(ImageError, match="bare.tif: has no CRS"):
        cut_tiles([scene], bare, tmp_path / "b", rules)
    two = polygons(tmp_path / "two.gpkg", kind=list("abcd"), use=list("abcd"))
    with pytest.raises(ConfigError, match="--field, one of kind, use"):
        cut_tiles([scene], two, tmp_path / "c", rules)
    with pytest.raises(ConfigError, match="has no field 'typ'"):
        cut_tiles([scene], two, tmp_path / "d", TileRules(size=16, field="typ"))
    points = gpd.GeoDataFrame({"name": ["a"]}, geometry=[Point(LEFT, TOP)], crs=UTM)
    points.to_file(tmp_path / "p.gpkg")
    with pytest.raises(ImageError, match="no polygon with a value of 'name'"):
        cut_tiles([scene], tmp_path / "p.gpkg", tmp_path / "e", rules)
    with pytest.raises(ConfigError, match="3 band names for the 2 bands"):
        cut_tiles([scene], two, tmp_path / "f", TileRules(size=16, bands=("a", "b", "c")))


def test_without_a_crs_both_lie_on_one_grid(tmp_path: Path) -> None:
    q = quarters()
    scene = write_raster(tmp_path / "scene.tif", 10 * q[None].astype(np.uint16), crs=None)
    truth = write_raster(tmp_path / "truth.tif", q[None], crs=None)
    m = cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16))
    check_quarters(m, {k: str(k) for k in range(1, 5)})
    assert m.table["lon"].isna().all()
    small = write_raster(tmp_path / "small.tif", q[None, :32], crs=None)
    with pytest.raises(ImageError, match="is 64 x 32 pixels, the scene 64 x 64"):
        cut_tiles([scene], small, tmp_path / "b", TileRules(size=16))


def test_far_away_truth_gives_no_tile(scene: Path, tmp_path: Path) -> None:
    truth = write_raster(tmp_path / "truth.tif", quarters()[None], origin=(LEFT + 100_000, TOP))
    with pytest.raises(ManifestError, match="check that labels and scene overlap"):
        cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16))


def test_real_truth_in_another_crs(shared: Path, tmp_path: Path) -> None:
    rasters = shared / "data" / "rasters"
    m = cut_tiles(
        [rasters / "landsat7_multiband.tif"], rasters / "landsat7_landcover.tif", tmp_path, TileRules(size=48)
    )
    assert len(m) > 40 and set(m.classes) <= set("1234567")
    # NAD83(HARN) / North Carolina and the scene's own datum differ by less than a pixel here.
    with rasterio.open(rasters / "landsat7_landcover.tif") as truth:
        grid = truth.read(1)
    row = m.table.iloc[len(m) // 2]
    part = grid[row["row"] : row["row"] + 48, row["col"] : row["col"] + 48]
    values, counts = np.unique(part[part > 0], return_counts=True)
    assert row[f"{values[counts.argmax()]:g}"] == 1
    assert row["purity"] == pytest.approx(counts.max() / 48**2, abs=0.03)


def test_real_polygons_and_a_collar(shared: Path, tmp_path: Path) -> None:
    rasters = shared / "data" / "rasters"
    m = cut_tiles(
        [rasters / "landsat8_224078_bgr.tif"],
        rasters / "landsat8_224078_landcover_polygons.gpkg",
        tmp_path,
        TileRules(size=4),
    )
    assert m.classes == ("crop", "developed", "tree", "water")
    assert 30 < len(m) < 60  # polygons of 71,000 to 191,000 m2 on a grid of 120 m
    assert (m.table["valid_fraction"] == 1).all()


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".fgb", ".parquet", ".shp"])
def test_long_codes_stay_apart_beside_a_blank(scene: Path, tmp_path: Path, ending: str) -> None:
    codes = pd.array([3301010101, 3301010102, 3302000000, None], dtype="Int64")
    half = SIDE * 5.0
    shapes = [
        box(LEFT + x, TOP + y - half, LEFT + x + half, TOP + y)
        for x, y in ((0, 0), (half, 0), (0, -half), (half, -half))
    ]
    table = gpd.GeoDataFrame({"code": codes}, geometry=shapes, crs=UTM)
    path = tmp_path / f"crops{ending}"
    table.to_parquet(path) if ending == ".parquet" else table.to_crs(
        "EPSG:4326" if ending == ".geojson" else UTM
    ).to_file(path)
    m = cut_tiles(
        [scene], path, tmp_path / "out", TileRules(size=16, field="code"), names={"3302000000": "winter wheat"}
    )
    assert m.classes == ("3301010101", "3301010102", "winter wheat")
    assert labels(m).sum(axis=0).tolist() == [4, 4, 4]


def test_codes_of_a_label_raster_are_written_out(scene: Path, tmp_path: Path) -> None:
    codes = np.array([0, 3301010101, 3301010102, 3302000000, 4000000000], np.uint32)[quarters()]
    m = cut_tiles([scene], write_raster(tmp_path / "codes.tif", codes[None]), tmp_path / "out", TileRules(size=16))
    assert m.classes == ("3301010101", "3301010102", "3302000000", "4000000000")
    wrong = write_raster(tmp_path / "float.tif", codes[None].astype(np.float32))
    with pytest.raises(ImageError, match="above 16777216"):
        cut_tiles([scene], wrong, tmp_path / "float", TileRules(size=16))


def test_blank_and_odd_values_of_a_field(scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = polygons(tmp_path / "p.gpkg", name=["None", "NA", "  ", "0101"])
    m = cut_tiles([scene], path, tmp_path / "out", TileRules(size=16))
    assert m.classes == ("0101", "NA", "None") and "1 without a value of name" in caplog.text
    decimals = polygons(tmp_path / "d.gpkg", name=[1.0, 2.5, 3.0, np.nan])
    assert cut_tiles([scene], decimals, tmp_path / "d", TileRules(size=16)).classes == ("1", "2.5", "3")


def test_vectors_are_what_their_first_bytes_say(scene: Path, tmp_path: Path) -> None:
    secret = polygons(tmp_path / "secret.gpkg")
    ogr = f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    for name, text, said in (
        ("a.geojson", ogr, "no vector data that is read here"),
        ("b.gpkg", ogr, "no vector data that is read here"),
        ("c.json", '{"type": "Topology"}', "no GeoJSON of features"),
        ("d.geojson", '{"type": ', "cannot be read as vector data"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ImageError, match=said):
            cut_tiles([scene], tmp_path / name, tmp_path / "out", TileRules(size=16))
    lone = polygons(tmp_path / "lone.shp")
    lone.with_suffix(".dbf").unlink()
    with pytest.raises(ImageError, match=r"has no lone\.dbf beside it"):
        cut_tiles([scene], lone, tmp_path / "out", TileRules(size=16))


def test_what_is_known_of_a_scene_is_written_into_its_tiles(tmp_path: Path) -> None:
    """A SAFE folder's name, scale and offset of the file, an option: a tile on its own says the same."""
    folder = tmp_path / "S2B_MSIL2A_20230821T221941_N0509_R029_T33TWN_20230822T021825.SAFE" / "IMG_DATA"
    pixels = np.full((3, SIDE, SIDE), 3000, np.uint16)
    pixels[:, 0, 0] = (3100, 3200, 3300)
    scene = write_raster(folder / "T33TWN_20230821T221941_TCI.tif", pixels)
    truth = write_raster(tmp_path / "truth.tif", quarters()[None])
    sensor = sensor_named("sentinel2_l2a")
    rules = TileRules(size=16, bands=parse_bands("red=3,green=2,blue=1"))
    m = cut_tiles([scene], truth, tmp_path / "out", rules)
    tile = m.table["path"][0]
    close_all()
    assert describe_raster(tile).bands == ("red", "green", "blue")
    assert known_of(describe_raster(tile)).acquired == datetime(2023, 8, 21, 22, 19, 41, tzinfo=UTC)
    found = read_bands(tile, sensor, ["red", "blue"])
    np.testing.assert_allclose(found.pixels[:, 0, 0], [0.23, 0.21], atol=1e-6)
    plain = write_raster(tmp_path / "plain.tif", pixels, bands=("blue", "green", "red"))
    with rasterio.open(plain, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 3, (-0.1, -0.2, -0.3)
    close_all()
    tile = cut_tiles([plain], truth, tmp_path / "scaled", TileRules(size=16, bands=("red", "blue"))).table["path"][0]
    assert (describe_raster(tile).bands, describe_raster(tile).offsets) == (("red", "blue"), (-0.3, -0.1))
    np.testing.assert_allclose(read_bands(tile, sensor, ["red", "blue"]).pixels[:, 0, 0], [0.03, 0.21], atol=1e-6)
    said = TileRules(size=16, baseline="harmonized", acquired="2020-05-01", units="stored")
    nameless = write_raster(tmp_path / "n.tif", pixels, bands=("blue", "green", "red"))
    tile = cut_tiles([nameless], truth, tmp_path / "said", said).table["path"][0]
    known = known_of(describe_raster(tile))
    assert (known.baseline, known.units, known.acquired) == ("harmonized", "stored", datetime(2020, 5, 1, tzinfo=UTC))
    assert read_bands(tile, sensor, ["red"]).pixels[0, 0, 0] == pytest.approx(0.33)


@pytest.mark.parametrize(
    ("bands", "said"),
    [("red=3,green", "some have a number"), ("a,b", "2 band names for the 3 bands"), ("red=9", "no band")],
)
def test_bands_that_cannot_be_are_refused(tmp_path: Path, bands: str, said: str) -> None:
    scene = write_raster(tmp_path / "s.tif", np.ones((3, SIDE, SIDE), np.uint8) * 9)
    truth = write_raster(tmp_path / "truth.tif", quarters()[None])
    with pytest.raises((ConfigError, ImageError), match=said):
        cut_tiles([scene], truth, tmp_path / "out", TileRules(size=16, bands=parse_bands(bands)))
    for wrong in ("red=x", "=3", "red,Red"):
        with pytest.raises(ConfigError, match="--bands"):
            parse_bands(wrong)
