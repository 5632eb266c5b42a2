"""The commands of this domain in a row, on a small drawn scene: tile, train, evaluate, predict, explain, queue, audit."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.warp import transform_geom
from rasterio.windows import Window

from tests.satellite.tile_files import UTM, write_picture, write_raster
from vitdomains.core.bundle import read_bundle
from vitdomains.core.commands import cli
from vitdomains.core.config.parse import config_from_dict, config_to_dict
from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.data.manifest import make_manifest, read_manifest, write_manifest
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.__main__ import COMMANDS

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "satellite"
SIDE, TILE = 96, 8
MEAN, STD = [300.0, 300.0, 300.0, 300.0], [200.0, 200.0, 200.0, 200.0]


@pytest.fixture(scope="module", autouse=True)
def no_restart() -> object:
    """The commands restart their process for a faster allocator; a test runner must stay where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_TOP_PAD_", "67108864")
        yield


def run(*words: object) -> int:
    return cli.main(DOMAIN, [str(word) for word in words], COMMANDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of four bands in which two classes lie in stripes, its tiles, and a bundle."""
    base = tmp_path_factory.mktemp("satellite")
    rng = np.random.default_rng(0)
    stripes = np.kron((np.arange(SIDE // TILE) % 3 > 0).astype(np.uint8), np.ones(TILE, np.uint8))
    truth = np.broadcast_to(1 + stripes, (SIDE, SIDE)).copy()
    level = np.where(truth == 1, 150, 450)
    pixels = rng.normal(level, 60, (4, SIDE, SIDE)).clip(1, 1000).astype(np.uint16)
    write_raster(base / "scene.tif", pixels, bands=("blue", "green", "red", "nir"), resolution=30.0)
    write_raster(base / "truth.tif", truth[None], resolution=30.0)
    (base / "classes.yaml").write_text("1: water\n2: field\n")
    code = run("tile", base / "scene.tif", "--labels", base / "truth.tif", "--size", TILE, "--classes",
               base / "classes.yaml", "--out", base / "tiles")  # fmt: skip
    assert code == 0
    assert run("train", *data_words(base), *model_words(), "--run.dir", base / "run") == 0
    return base


def data_words(base: Path) -> list[object]:
    sources = json.dumps([{"name": "tiles", "root": "tiles"}])
    return ["--data.root", base, "--data.sources", sources, "--data.bands", "[blue, green, red, nir]", "--data.mean", MEAN,
            "--data.std", STD, "--data.image_size", 16, "--data.split", "spatial", "--data.block_size", 700,
            "--data.block_buffer", 250, "--data.cache", "memory"]  # fmt: skip


def model_words() -> list[object]:
    options = '{"depth": 2, "width": 32, "heads": 2}'
    return ["--model.name", "vit:Ti/8", "--model.channels", 4, "--model.weights", "", "--model.options", options,
            "--recipe.epochs", 6, "--recipe.batch_size", 16, "--recipe.lr", 2e-3, "--recipe.warmup_epochs", 1,
            "--recipe.augment", "multispectral", "--recipe.layer_decay", 1, "--run.threads", 1, "--run.bootstrap", 50,
            "--run.accelerator", "cpu"]  # fmt: skip


def test_tiles_carry_names_and_places(base: Path) -> None:
    m = read_manifest(base / "tiles" / "manifest.csv")
    assert m.classes == ("water", "field") and len(m) == (SIDE // TILE) ** 2
    assert m.table[["lon", "lat"]].notna().all().all()


def test_training_leaves_a_bundle_that_says_what_it_takes(base: Path) -> None:
    bundle = read_bundle(base / "run" / "bundle")
    assert bundle.domain == "satellite" and bundle.task_kind == "singlelabel"
    assert bundle.preprocess.bands == ("blue", "green", "red", "nir") and bundle.preprocess.storage == "float32"
    assert bundle.preprocess.mean == tuple(MEAN)
    assert {"accuracy", "kappa", "f1", "ece"} <= set(bundle.metrics)
    report = json.loads((bundle.path / "report" / "report.json").read_text())
    assert report["overall"]["accuracy"]["value"] > 0.9
    assert report["overall"]["kappa"]["low"] <= report["overall"]["kappa"]["value"]
    assert 3 < report["groups"] < report["n"], "the bootstrap draws blocks of tiles"
    assert (bundle.path / "report" / "plots" / "confusion.png").is_file()
    assert "kappa" in (bundle.path / "MODEL_CARD.md").read_text()
    assert bundle.data_card == "tiles"


def test_evaluate_and_predict(base: Path, tmp_path: Path) -> None:
    bundle = base / "run" / "bundle"
    assert run("evaluate", bundle, "--split", "val", "--out", tmp_path / "report") == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())["overall"]["accuracy"]["value"] > 0.8
    odd = write_raster(tmp_path / "in" / "odd.tif", np.ones((3, 8, 8), np.uint16))
    files = sorted((base / "tiles" / "tiles").iterdir())[:6]
    out = tmp_path / "p.csv"
    assert run("predict", bundle, *files, odd, "--out", out, "--threads", 1) == 0
    found = pd.read_csv(out)
    assert len(found) == 7 and found["error"].notna().sum() == 1
    assert "'blue'" in found["error"].dropna().iloc[0] and "3 without names" in found["error"].dropna().iloc[0]


def test_explain_draws_bands_of_any_scale(base: Path, tmp_path: Path) -> None:
    tile = next((base / "tiles" / "tiles").iterdir())
    assert run("explain", base / "run" / "bundle", tile, "--out", tmp_path / "o.png") == 0
    picture = cv2.imread(str(tmp_path / "o.png"))
    assert picture.std() > 20, "the bands are stretched for the eye"


def test_explain_writes_the_map_where_its_tile_lies(base: Path, tmp_path: Path) -> None:
    tile = next((base / "tiles" / "tiles").iterdir())
    bundle = base / "run" / "bundle"
    assert run("explain", bundle, tile, "--finding", "all", "--out", tmp_path / "heat.tif") == 0
    with rasterio.open(tile) as source, rasterio.open(tmp_path / "heat.tif") as heat:
        assert (heat.transform, heat.crs, heat.shape) == (source.transform, source.crs, source.shape)
        assert heat.descriptions == read_bundle(bundle).classes and np.nanmax(heat.read()) == pytest.approx(1, abs=0.05)
    assert run("explain", bundle, tile, "--out", tmp_path / "figure.pdf") == 0
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert run("explain", bundle, tile, "--out", tmp_path / "heat.jpg") == 2


@pytest.mark.parametrize("by", ["entropy", "both"])
def test_queue_of_files(base: Path, tmp_path: Path, by: str) -> None:
    manifest = read_manifest(base / "tiles" / "manifest.csv")
    done = manifest.table.head(10).assign(id=manifest.table["path"].head(10))
    done.to_csv(tmp_path / "labelled.csv", index=False)
    out = tmp_path / "queue.parquet"
    files = manifest.table["path"].head(24)
    words = ["queue", *files, "--bundle", base / "run" / "bundle", "--by", by, "--n", 8, "--out", out]
    assert run(*words, "--labelled", tmp_path / "labelled.csv") == 0
    chosen = pd.read_parquet(out)
    assert len(chosen) == 8 and chosen["tile_id"].is_unique
    assert list(chosen.columns[:6]) == ["tile_id", "path", "scene", "rank", "score", "reason"]
    assert not set(chosen["path"]) & set(done["path"])


def test_queue_of_a_mapped_scene(base: Path, tmp_path: Path) -> None:
    """A table with windows of a scene: the embeddings are read from there."""
    rows = pd.DataFrame({"tile_id": ["a", "b", "c"], "scene": "scene.tif", "path": str(base / "scene.tif")})
    rows = rows.assign(col=[0, 8, 16], row=0, width=8, height=8, label="field", margin=[0.1, 0.2, 0.9])
    rows.assign(entropy=[0.6, 0.5, 0.1], error="").to_parquet(tmp_path / "t.parquet")
    words = ["queue", tmp_path / "t.parquet", "--n", 2, "--out", tmp_path / "q.csv"]
    assert run(*words, "--by", "margin") == 0
    assert pd.read_csv(tmp_path / "q.csv")["tile_id"].tolist() == ["a", "b"]
    assert run(*words, "--by", "both") == 2, "embeddings need a model"
    assert run(*words, "--by", "both", "--bundle", base / "run" / "bundle") == 0
    assert len(pd.read_csv(tmp_path / "q.csv")) == 2


def test_ids_of_a_table_are_text_whatever_they_look_like(base: Path, tmp_path: Path) -> None:
    """Numbers in a CSV are the ids of a manifest, classes called None and NA are classes, and upper-case endings do."""
    rows = pd.DataFrame({"tile_id": ["007", "8", "9"], "scene": "1", "path": str(base / "scene.tif")})
    rows = rows.assign(col=[0, 8, 16], row=0, width=8, height=8, label=["None", "NA", "field"], margin=[0.1, 0.2, 0.9])
    rows.assign(entropy=[0.6, 0.5, 0.1], error="").to_csv(tmp_path / "T.CSV", index=False)
    labelled = make_manifest(["007"], [str(base / "scene.tif")], ["g"], ("field",), [[1.0]])
    write_manifest(labelled, tmp_path / "labelled.csv")
    words = ["queue", tmp_path / "T.CSV", "--n", 5, "--by", "margin", "--labelled", tmp_path / "labelled.csv"]
    assert run(*words, "--out", tmp_path / "Q.PARQUET") == 0
    chosen = pd.read_parquet(tmp_path / "Q.PARQUET")
    assert chosen["tile_id"].tolist() == ["8", "9"]


def test_audit_finds_what_was_planted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit", *data_words(base), "--model.channels", 4, "--out", tmp_path / "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["clean"] and found["distance_to_training_m"]["test"]["least"] >= 250
    assert "nearest training tile" in capsys.readouterr().out
    table = pd.read_csv(base / "tiles" / "manifest.csv").assign(split="train")
    table["path"] = [str(base / "tiles" / path) for path in table["path"]]
    table.loc[:40, "split"] = "val"
    table.loc[table.index[-40:], "split"] = "test"
    table.loc[table.index[-1], "path"] = table.loc[table.index[100], "path"]
    table.to_csv(tmp_path / "t.csv", index=False)
    sources = json.dumps([{"name": "csv", "csv": "t.csv"}])
    words = ["audit", "--data.root", tmp_path, "--data.sources", sources, "--pixels", "false", "--data.split", "column"]
    assert run(*words) == 2, "one file in two splits is no manifest"
    table.loc[table.index[-1], "path"] = str(tmp_path / "copy.tif")
    (tmp_path / "copy.tif").write_bytes(Path(table.loc[table.index[100], "path"]).read_bytes())
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run(*words) == 1
    assert "files of equal content" in capsys.readouterr().out


def test_polygons_on_the_command_line(base: Path, tmp_path: Path) -> None:
    ring = [
        [500_000, 5_000_000],
        [501_000, 5_000_000],
        [501_000, 4_999_000],
        [500_000, 4_999_000],
        [500_000, 5_000_000],
    ]
    shape = transform_geom(UTM, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]})
    feature = {"type": "Feature", "properties": {"kind": "meadow", "year": 2020}, "geometry": dict(shape)}
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    words = ["tile", base / "scene.tif", "--labels", tmp_path / "t.geojson", "--size", 16, "--out", tmp_path / "tiles"]
    assert run(*words) == 2, "two fields, and neither is named like a class"
    assert run(*words, "--field", "kind") == 0
    assert read_manifest(tmp_path / "tiles" / "manifest.csv").classes == ("meadow",)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_possible(path: Path) -> None:
    if "classes" in path.stem:
        assert all(isinstance(name, str) for name in read_yaml(path).values())
        return
    config = config_from_dict(read_yaml(path))
    assert DOMAIN.preprocess is not None and config_to_dict(config)["data"]["sources"]


def test_several_classes_a_tile(base: Path, tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "labels": ["wood|water", "water", "wood"][i % 3]} for i in range(60)]
    for i, row in enumerate(rows):
        write_picture(tmp_path / row["path"], (40 + 150 * (i % 3 != 1), 90, 40 + 150 * (i % 3 != 2)), size=16)
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    sources = json.dumps([{"name": "csv", "csv": "t.csv"}])
    small = [word if word != 4 else 3 for word in model_words()]
    words = ["train", "--data.root", tmp_path, "--data.sources", sources, "--data.image_size", 16, *small]
    assert run(*words, "--data.task", "multilabel", "--recipe.label_smoothing", 0, "--run.dir", tmp_path / "run") == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert bundle.task_kind == "multilabel" and bundle.classes == ("water", "wood")
    assert bundle.metrics["auroc"]["value"] > 0.9


def test_a_real_scene_with_polygons_and_a_collar(shared: Path, tmp_path: Path) -> None:
    """Landsat 8: tiles of four polygons, a model, and a map of a part that reaches into the collar."""
    rasters = shared / "data" / "rasters"
    whole = rasters / "landsat8_224078_bgr.tif"
    words = ["tile", whole, "--labels", rasters / "landsat8_224078_landcover_polygons.gpkg", "--size", 4, "--out"]
    assert run(*words, tmp_path / "tiles", "--bands", "B2,B3,B4") == 0
    small = [word if word != 4 else 3 for word in model_words()]
    bands = [
        "--data.sensor",
        "landsat8_l1",
        "--data.bands",
        "[B2, B3, B4]",
        "--data.mean",
        [0.1] * 3,
        "--data.std",
        [0.02] * 3,
    ]
    data = ["--data.root", tmp_path, "--data.sources", json.dumps([{"name": "tiles", "root": "tiles"}]), *bands]
    shape = ["--data.image_size", 16, "--data.split", "grouped", "--run.dir", tmp_path / "run"]
    assert run("train", *data, *small, *shape) == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert bundle.classes == ("crop", "developed", "tree", "water")
    with rasterio.open(whole) as scene:
        window = Window(1340, 360, 120, 80)  # its upper right half is collar
        part = scene.read(window=window)
        write_raster(tmp_path / "part.tif", part, crs=scene.crs, origin=scene.transform @ (1340, 360), resolution=30)
    out = tmp_path / "map.tif"
    words = [
        "map",
        tmp_path / "part.tif",
        "--bundle",
        bundle.path,
        "--out",
        out,
        "--tile",
        8,
        "--overlap",
        0,
        "--cell",
        4,
    ]
    assert run(*words, "--bands", "B2=1,B3=2,B4=3", "--tiles", tmp_path / "tiles.parquet") == 0
    with rasterio.open(out) as drawn:
        labelled = drawn.read(1) > 0
    collar = (part == 0).all(axis=0)
    assert collar.mean() > 0.05
    cells = collar[: labelled.shape[0] * 4, : labelled.shape[1] * 4].reshape(labelled.shape[0], 4, labelled.shape[1], 4)
    assert not labelled[cells.all(axis=(1, 3))].any(), "no label where there is no data"
    assert labelled[~cells.any(axis=(1, 3))].mean() > 0.95
