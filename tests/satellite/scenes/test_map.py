"""The command ``map``: from scenes and a bundle to files, also in several runs, workers and places."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS

from vitdomains.core.bundle import Bundle, read_bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import BundleError, ConfigError, ImageError, ManifestError
from vitdomains.core.geo.map.tiles_table import read_known
from vitdomains.core.geo.map.vectors import check_vectors
from vitdomains.core.geo.read.http import is_remote, resolve_href
from vitdomains.core.geo.read.scene_paths import files_of, find_input, join_files
from vitdomains.core.models.build import build_model
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.scenes.map import map_command, tile_side

ROOT = Path(__file__).resolve().parents[3]
NORTH = Affine(10, 0, 500_700, 0, -10, 5_200_000)
SIZE, CLASSES = 16, ("forest", "sea & lake", "town")


def write_tiny_bundle(folder: Path, kind: str = "singlelabel", domain: str = "satellite", **spec: object) -> Path:
    model = Model(name="vit:Ti/8", image_size=SIZE, options={"depth": 1})
    torch.manual_seed(0)
    built = build_model(model, len(CLASSES), image_size=SIZE)
    preprocess = PreprocessSpec(SIZE, SIZE, "squash", 3, (0.5,), (0.25,))
    bundle = Bundle(
        path=folder, domain=domain, task_kind=kind, classes=CLASSES, model=model, preprocess=replace(preprocess, **spec),
        temperature=(0.1,), thresholds=(0.4,) * 3, threshold_rule="", metrics={}, data_card="made", provenance={},
        exports={}, files={},
    )  # fmt: skip
    write_bundle(bundle, built.state_dict())
    return folder


def write_scene(
    path: Path, height: int = 90, width: int = 120, seed: int = 0, dtype: str = "uint8", **profile: object
) -> Path:
    """Smooth noise in three bands; the lower right corner is nodata, 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(10, 250, (3, height // 10 + 1, width // 10 + 1))
    pixels = coarse.repeat(10, axis=1).repeat(10, axis=2)[:, :height, :width].astype(dtype)
    pixels[:, -20:, -30:] = 0
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_200_000), "nodata": 0} | profile
    with rasterio.open(path, "w", driver="GTiff", count=3, height=height, width=width, dtype=dtype, **place) as dataset:
        dataset.write(pixels)
    return path


def run(*words: object) -> int:
    return map_command(DOMAIN, [*(str(word) for word in words), "--threads", "1"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def test_one_command_writes_everything(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_scene(tmp_path / "north.tif")
    out = tmp_path / "out"
    assert run(
        scene, "--bundle", bundle, "--out", out / "lc.tif", "--tiles", out / "lc.parquet", "--probabilities", out / "p.tif",
        "--geojson", out / "lc.geojson", "--gpkg", out / "lc.gpkg", "--datetime", "2024-06-01T10:30:00", "--tta",
    ) == 0  # fmt: skip
    item = pystac.Item.from_file(str(out / "lc.json"))
    model = item.get_links("derived_from")[0].get_absolute_href()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            "lc.tif",
            "lc.tif.aux.xml",
            "lc.qml",
            "lc.json",
            "lc.parquet",
            "lc.geojson",
            "lc.gpkg",
            "p.tif",
            Path(str(model)).name,
        ]
    )
    assert item.datetime == datetime(2024, 6, 1, 10, 30, tzinfo=UTC) and set(item.assets) == {
        "labels",
        "probabilities",
        "tiles",
    }
    weights = pystac.Item.from_file(str(model)).assets["model"].get_absolute_href()
    assert Path(str(weights)).resolve() == (bundle / "model.safetensors").resolve()
    tiles = geopandas.read_parquet(out / "lc.parquet")
    assert set(tiles["model_id"]) == {read_bundle(bundle).id} and (tiles["path"] == str(scene)).all()
    skipped = tiles["label"] == ""
    assert skipped.any() and (skipped == (tiles["valid_fraction"] < 0.25)).all()
    np.testing.assert_allclose(tiles.filter(like="prob:")[~skipped].sum(axis=1), 1, atol=1e-5)
    assert set(tiles.loc[~skipped, "label"]) <= set(CLASSES)
    with rasterio.open(out / "lc.tif") as result, rasterio.open(scene) as source:
        assert result.res == (10, 10) and result.bounds == source.bounds
        assert (result.read(1) == 0)[-20:, -30:].all() and (result.read(1) > 0)[:-20, :-30].all()
    said = " ".join(capsys.readouterr().out.split())
    n = int(skipped.sum())
    assert f"{len(tiles)} tiles: {len(tiles) - n} labelled, {n} without enough data, 0 with an error" in said


def test_killed_and_started_again_it_goes_on_and_ends_alike(tmp_path: Path, bundle: Path) -> None:
    scene = write_scene(tmp_path / "north.tif", 200, 200)
    words = [str(scene), "--bundle", str(bundle), "--overlap", "0.5", "--shard_size", "16", "--threads", "1"]
    there = [*words, "--out", str(tmp_path / "a.tif"), "--tiles", str(tmp_path / "a.parquet")]
    # With the allocator's settings in place the command does not start itself again.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": "67108864"}
    job = subprocess.Popen([sys.executable, "-m", "vitdomains.satellite", "map", *there], cwd=ROOT, env=environment)
    records = tmp_path / ".a.tif.job" / "shards"
    until = time.monotonic() + 200
    while len(list(records.glob("*.json"))) < 3 and job.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert 3 <= len(finished) < 36 and not (tmp_path / "a.tif").exists()
    with pytest.raises(ManifestError, match="holds another job.*tta"):
        run(*there, "--tta")
    assert run(*there, "--keep_shards") == 0
    assert {name: (records / name).stat().st_mtime_ns for name in finished} == finished
    assert run(*words, "--out", tmp_path / "b.tif", "--tiles", tmp_path / "b.parquet", "--executor", "processes") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "b.parquet"))
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        np.testing.assert_array_equal(a.read(), b.read())


def test_several_scenes_are_one_job(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "x").mkdir()
    one, two = write_scene(tmp_path / "a.tif"), write_scene(tmp_path / "x" / "a.tif", 60, 60, seed=1)
    assert run(one, two, "--bundle", bundle, "--out", tmp_path / "lc.tif", "--tiles", tmp_path / "t.parquet") == 0
    tiles = geopandas.read_parquet(tmp_path / "t.parquet")
    assert list(dict.fromkeys(tiles["scene"])) == ["a", "a-2"] and tiles["tile_id"].is_unique
    for name, source in (("lc-a", one), ("lc-a-2", two)):
        with rasterio.open(tmp_path / f"{name}.tif") as result, rasterio.open(source) as scene:
            assert result.bounds == scene.bounds
        assert pystac.Item.from_file(str(tmp_path / f"{name}.json")).id == name


def test_scenes_are_read_at_another_resolution_and_crs(tmp_path: Path, bundle: Path) -> None:
    scene = write_scene(tmp_path / "a.tif", 120, 160)
    out = tmp_path / "lc.tif"
    assert (
        run(scene, "--bundle", bundle, "--out", out, "--resolution", 20, "--crs", "EPSG:32634", "--min_valid", 0.01)
        == 0
    )
    with rasterio.open(out) as result, rasterio.open(scene) as source:
        assert result.crs == "EPSG:32634" and result.res[0] == pytest.approx(20, rel=0.02)
        inner = rasterio.warp.transform(source.crs, result.crs, [500_400, 501_000], [5_199_700, 5_199_400])
        assert all(result.read(1)[result.index(x, y)] > 0 for x, y in zip(*inner, strict=True))


def test_numbers_of_a_sensor_need_a_name(tmp_path: Path, bundle: Path) -> None:
    scene = write_scene(tmp_path / "a.tif", dtype="uint16")
    out = ["--out", tmp_path / "lc.tif"]
    with pytest.raises(ConfigError, match="holds uint16"):
        run(scene, "--bundle", bundle, *out)
    said = ["--sensor", "landsat8_l1", "--bands", "red=3,green=2,blue=1"]
    assert run(scene, "--bundle", bundle, *out, *said) == 0
    own = write_tiny_bundle(tmp_path / "own", sensor="landsat8_l1", bands=("B4", "B3", "B2"), storage="float32")
    assert run(scene, "--bundle", own, *out, "--bands", "B4=3,B3=2,blue=1") == 0
    with pytest.raises(ConfigError, match="takes B4, B3, B2"):
        run(scene, "--bundle", own, *out, "--bands", "B2=1,B3=2,B4=3")
    with pytest.raises(ConfigError, match="trained on landsat8_l1"):
        run(scene, "--bundle", own, *out, "--sensor", "naip")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "lc.png"], "--out lc.png"), (["--tiles", "t.csv"], "--tiles t.csv"), (["--overlap", "1"], "overlap 1"),
        (["--min_valid", "2"], "--min_valid 2"), (["--batch_size", "0"], "--batch_size 0"), (["--datetime", "may"], "may"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(tmp_path: Path, bundle: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(write_scene(tmp_path / "a.tif"), "--bundle", bundle, "--out", tmp_path / "lc.tif", *words)


def test_bundles_of_other_domains_are_refused(tmp_path: Path) -> None:
    films = write_tiny_bundle(tmp_path / "films", domain="cxr")
    with pytest.raises(BundleError, match="of cxr"):
        run(write_scene(tmp_path / "a.tif"), "--bundle", films)


def test_multi_label_bundles_and_unknown(tmp_path: Path, bundle: Path) -> None:
    scene = write_scene(tmp_path / "a.tif")
    many = write_tiny_bundle(tmp_path / "many", "multilabel")
    assert run(scene, "--bundle", many, "--out", tmp_path / "m.tif", "--tiles", tmp_path / "m.parquet") == 0
    tiles = pd.read_parquet(tmp_path / "m.parquet")
    held = tiles["probability"].notna()
    expected = [
        "|".join(c for c in CLASSES if row[f"prob:{c}"] >= np.float32(0.4)) for _, row in tiles[held].iterrows()
    ]
    assert list(tiles.loc[held, "label"]) == expected
    with pytest.raises(ConfigError, match="multi-label"):
        run(scene, "--bundle", many, "--min_probability", 0.5)
    assert (
        run(
            scene,
            "--bundle",
            bundle,
            "--out",
            tmp_path / "s.tif",
            "--tiles",
            tmp_path / "s.parquet",
            "--min_probability",
            0.6,
        )
        == 0
    )
    tiles = pd.read_parquet(tmp_path / "s.parquet")
    unsure = tiles["probability"] < 0.6
    assert unsure.any() and (tiles.loc[unsure, "label"] == "unknown").all()


def test_a_bundle_may_know_the_side_of_its_tiles(bundle: Path) -> None:
    made = read_bundle(bundle)
    assert tile_side(made) == SIZE and tile_side(replace(made, provenance={"tile_pixels": 40})) == 40


class Ranges(http.server.BaseHTTPRequestHandler):
    folder: Path

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        file = self.folder / self.path.lstrip("/").split("?")[0]
        body, asked = file.read_bytes(), self.headers.get("Range", "")
        total = len(body)
        if asked:
            first, last = (int(word) for word in asked.removeprefix("bytes=").split("-"))
            body = body[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    handler = type("Handler", (Ranges,), {"folder": tmp_path})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("VITDOMAINS_PRIVATE_HOSTS", "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_stac(path: Path, assets: dict[str, dict[str, object]]) -> Path:
    item = pystac.Item("scene-7", None, None, datetime(2023, 5, 4, tzinfo=UTC), {})
    for key, fields in assets.items():
        item.add_asset(key, pystac.Asset.from_dict({"type": "image/tiff; application=geotiff", **fields}))
    path.write_text(json.dumps(item.to_dict(include_self_link=False)), encoding="utf-8")
    return path


def test_a_remote_stac_item_is_mapped_like_its_local_file(tmp_path: Path, bundle: Path, served: str) -> None:
    scene = write_scene(tmp_path / "visual.tif")
    write_stac(
        tmp_path / "item.json",
        {"visual": {"href": "./visual.tif?sig=secret"}, "thumb": {"href": "t.tif", "roles": ["thumbnail"]}},
    )
    assert (
        run(f"{served}/item.json", "--bundle", bundle, "--out", tmp_path / "r.tif", "--tiles", tmp_path / "r.parquet")
        == 0
    )
    assert run(scene, "--bundle", bundle, "--out", tmp_path / "l.tif", "--tiles", tmp_path / "l.parquet") == 0
    remote, local = pd.read_parquet(tmp_path / "r.parquet"), pd.read_parquet(tmp_path / "l.parquet")
    pd.testing.assert_frame_equal(remote.drop(columns="path"), local.drop(columns="path"))
    assert set(remote["path"]) == {f"{served}/visual.tif"}, "no signature in the table"
    item = pystac.Item.from_file(str(tmp_path / "r.json"))
    assert item.datetime == datetime(2023, 5, 4, tzinfo=UTC)
    assert item.get_links("derived_from")[1].target == f"{served}/item.json"


def test_what_an_item_says_reaches_the_pixels_and_the_apps(tmp_path: Path) -> None:
    """Baseline, scale and offset, time and band names of an item, which the file itself does not carry."""
    write_scene(tmp_path / "s2.tif", 32, 32, dtype="uint16")
    own = write_tiny_bundle(tmp_path / "own", sensor="sentinel2_l2a", bands=("B04", "B03", "B02"), storage="float32")
    names = [{"name": name} for name in ("B04", "B03", "B02")]
    asset = {"href": "s2.tif", "bands": names}
    found = {}
    for key, properties, extra in (
        ("old", {"s2:processing_baseline": "02.14"}, {}),
        ("new", {"s2:processing_baseline": "05.09"}, {}),
        ("applied", {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True},
         {"raster:bands": [{"scale": 1e-4, "offset": -0.1}] * 3}),
        ("scaled", {}, {"raster:bands": [{"scale": 1e-4, "offset": -0.1}] * 3}),
    ):  # fmt: skip
        item = write_stac(tmp_path / f"{key}.json", {"all": asset | extra})
        made = json.loads(item.read_text())
        made["properties"] |= properties
        item.write_text(json.dumps(made))
        out = tmp_path / f"out_{key}.tif"
        assert run(item, "--bundle", own, "--out", out, "--tiles", out.with_suffix(".parquet")) == 0
        found[key] = pd.read_parquet(out.with_suffix(".parquet"))[[f"prob:{name}" for name in CLASSES]].to_numpy()
        known = read_known(out.with_suffix(".parquet"))[str(tmp_path / "s2.tif")]
        assert known.acquired is not None and known.bands == ("B04", "B03", "B02")
        assert pystac.Item.from_file(str(out.with_suffix(".json"))).datetime == datetime(2023, 5, 4, tzinfo=UTC)
    np.testing.assert_allclose(found["old"], found["applied"], atol=1e-5)  # skipped tiles are NaN in both
    np.testing.assert_allclose(found["new"], found["scaled"], atol=1e-5)
    assert not np.allclose(found["old"], found["new"], atol=1e-5, equal_nan=True)
    with pytest.raises(ImageError, match="no band B04"):
        run(tmp_path / "s2.tif", "--bundle", own, "--out", tmp_path / "o.tif", "--baseline", "05.09")
    words = [
        "--bundle",
        own,
        "--out",
        tmp_path / "p.tif",
        "--tiles",
        tmp_path / "p.parquet",
        "--bands",
        "B04=1,B03=2,B02=3",
    ]
    with pytest.raises(ImageError, match="processing baseline.*--baseline"):
        run(tmp_path / "s2.tif", *words)
    assert run(tmp_path / "s2.tif", *words, "--baseline", "05.09") == 0
    said = pd.read_parquet(tmp_path / "p.parquet")[[f"prob:{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(said, found["new"], atol=1e-5)


def test_a_remote_item_names_no_local_file(tmp_path: Path, served: str) -> None:
    secret = write_scene(tmp_path / "secret.tif")
    remote = f"{served}/item.json"
    for href in (f"visual.tif|{secret}", f"{served}/visual.tif|{secret}", f"|{secret}"):
        assert all(is_remote(file) for file in files_of(join_files([resolve_href(href, remote)])))
    with pytest.raises(ImageError, match="parts the files"):
        join_files(["a.tif", "b|c.tif"])


def test_a_scene_without_the_bands_is_refused_before_the_first_tile(tmp_path: Path) -> None:
    own = write_tiny_bundle(tmp_path / "own", sensor="sentinel2_l2a", bands=("B04", "B03", "B02"), storage="float32")
    scene = tmp_path / "one.tif"
    pixels = np.random.default_rng(0).integers(200, 4000, (1, 64, 64)).astype(np.uint16)
    with rasterio.open(scene, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint16", crs="EPSG:32633",
                       transform=NORTH) as file:  # fmt: skip
        file.write(pixels)
    with pytest.raises(ImageError, match="one.tif: has no band B04 .*1 without names"):
        run(scene, "--bundle", own, "--out", tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists() and not (tmp_path / ".m.tif.job").exists()


def test_a_map_without_a_labelled_tile_is_status_4(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.tif"
    with (
        rasterio.open(write_scene(tmp_path / "a.tif")) as source,
        rasterio.open(empty, "w", **source.profile) as target,
    ):
        target.write(np.zeros((3, source.height, source.width), np.uint8))
    (tmp_path / "m.tif").write_text("an earlier map")
    assert run(empty, "--bundle", bundle, "--out", tmp_path / "m.tif") == 4
    assert "No tile was labelled, so no map was written" in capsys.readouterr().out
    assert (tmp_path / "m.tif").read_text() == "an earlier map" and not (tmp_path / ".m.tif.job").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "A.tif", "--probabilities", "a.tif"], "would be one file"),
        (["--out", "m.tif", "--geojson", "m.geojson", "--gpkg", "M.GPKG"], ""),
        (["--out", "scene.tif"], "is what is mapped"),
        (["--out", "folder.tif"], "is a folder"),
        (["--out", "x/../scene.TIF", "--tiles", "t.PARQUET"], "x/../scene.TIF"),
    ],
)
def test_outputs_are_checked_before_the_first_tile(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "scene.tif", 32, 32)
    (tmp_path / "folder.tif").mkdir()
    if said in ("", "x/../scene.TIF"):
        assert run("scene.tif", "--bundle", bundle, *words) == 0
    else:
        with pytest.raises(ConfigError, match=said):
            run("scene.tif", "--bundle", bundle, *words)


def test_vectors_that_cannot_hold_the_classes_are_refused() -> None:
    crs = CRS.from_epsg(32633)
    places = {"a": (NORTH, crs)}
    with pytest.raises(ConfigError, match="does not tell the columns of Forest, forest apart"):
        check_vectors(Path("a.gpkg"), ("Forest", "forest", "town"), places)
    with pytest.raises(ConfigError, match="at most 1900"):
        check_vectors(Path("a.gpkg"), tuple(f"c{i}" for i in range(1901)), places)
    with pytest.raises(ConfigError, match="no scene has a CRS"):
        check_vectors(Path("a.geojson"), ("a",), {"a": (NORTH, None)})
    assert check_vectors(Path("a.GeoJSON"), ("Forest", "forest"), places)[0] == "GeoJSON"


def test_the_asset_of_an_item_is_the_one_that_fits(tmp_path: Path) -> None:
    assets = {
        "b4": {"href": "b4.tif", "bands": [{"name": "B4"}]},
        "all": {"href": "all.tif", "eo:bands": [{"name": name} for name in ("B2", "B3", "B4")]},
    }
    item = write_stac(tmp_path / "item.json", assets)
    assert find_input(str(item), bands=[{"B4", "red"}, {"B3"}]).files == (str(tmp_path / "all.tif"),)
    assert find_input(str(item), asset="b4").files == (str(tmp_path / "b4.tif"),)
    with pytest.raises(ImageError, match="2 rasters.*all.*b4"):
        find_input(str(item))
    with pytest.raises(ImageError, match="no asset 'red'"):
        find_input(str(item), asset="red")
    (tmp_path / "no.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ImageError, match="no STAC item"):
        find_input(str(tmp_path / "no.json"))
    with pytest.raises(ImageError, match="cannot be opened"):
        find_input(str(tmp_path / "away.json"))


def one_file_a_band(folder: Path, scene: Path) -> dict[str, Path]:
    """STAC items of a scene of three bands, by what the third has: a grid like the others (``blue``), larger pixels
    (``coarse``) or another ground (``off``)."""
    with rasterio.open(scene) as source:
        for number, name in enumerate(("red", "green", "blue"), start=1):
            with rasterio.open(folder / f"{name}.tif", "w", **(source.profile | {"count": 1})) as target:
                target.write(source.read(number), 1)
        size = {"count": 1, "width": source.width // 2, "height": source.height // 2}
        for name, transform in (("coarse", source.transform), ("off", NORTH)):
            profile = source.profile | size | {"transform": transform @ Affine.scale(2)}
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as target:
                target.write(source.read(3)[::2, ::2], 1)
    items = {}
    for third in ("blue", "coarse", "off"):
        files = {"green": "green.tif", "B4": "red.tif", "third": f"{third}.tif"}
        assets = {
            key: {"href": href} | ({"bands": [{"name": "B2"}]} if key == "third" else {}) for key, href in files.items()
        }
        items[third] = write_stac(folder / f"{third}.json", assets)
    return items


def test_bands_in_files_of_their_own_are_put_together(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "whole.tif", 80, 120, dtype="uint16")
    own = write_tiny_bundle(tmp_path / "own", sensor="landsat8_l1", bands=("B4", "B3", "B2"), storage="float32")
    kept = ["--bundle", own, "--tiles"]
    assert run(scene, *kept, tmp_path / "w.parquet", "--out", tmp_path / "w.tif", "--bands", "B4=1,B3=2,B2=3") == 0
    tables = {}
    items = one_file_a_band(tmp_path, scene)
    for third in ("blue", "coarse"):
        out = tmp_path / f"out_{third}.tif"
        assert run(items[third], *kept, out.with_suffix(".parquet"), "--out", out) == 0
        tables[third] = pd.read_parquet(out.with_suffix(".parquet"))
    for out, said in (("o.tif", "off.tif: covers another ground"), ("off.tif", "would be replaced")):
        with pytest.raises((ImageError, ConfigError), match=said):
            run(
                items["off" if out == "o.tif" else "blue"],
                "--bundle",
                own,
                "--out",
                tmp_path / out.replace("off", "blue"),
            )
    numbers = [f"prob:{name}" for name in CLASSES]
    whole = pd.read_parquet(tmp_path / "w.parquet")
    np.testing.assert_array_equal(tables["blue"][numbers], whole[numbers])
    assert tables["blue"]["path"][0] == "|".join(str(tmp_path / f"{name}.tif") for name in ("red", "green", "blue"))
    np.testing.assert_allclose(tables["coarse"][numbers], whole[numbers], atol=0.2)
    assert not tables["coarse"]["error"].any()
