"""The labelling job: the right numbers, nothing lost, nothing computed twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
import torch.nn.functional as F
from affine import Affine
from PIL import Image

from tests.zeroshot import tiny
from tests.zeroshot.labels.label_job import CLASSES
from vitdomains.core.bundle import read_bundle
from vitdomains.core.data.preprocess import normalise, prepare
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.core.geo.map.tiles_table import probability_columns
from vitdomains.core.inference.predictor import Predictor
from vitdomains.zeroshot import DOMAIN
from vitdomains.zeroshot.embeddings.reader import read_image, reader, with_bands
from vitdomains.zeroshot.embeddings.store import TilePlan, plan_tiles
from vitdomains.zeroshot.labels.label import Compute, Labelled, Options, label_tiles
from vitdomains.zeroshot.labels.prompts import PromptSet, read_classes
from vitdomains.zeroshot.models.towers import Towers, load_towers
from vitdomains.zeroshot.students.student import read_tiles

ROOT = Path(__file__).resolve().parents[3]
EXACT = Compute(ComputeOptions(shard_size=8), "fp32", batch_size=4)
PROMPTS = read_classes(CLASSES)
PROBABILITIES = probability_columns(PROMPTS.names)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in ``clip``; 23 tiles in ``tiles``, of which one cannot be read and two are the same picture."""
    folder = tmp_path_factory.mktemp("zeroshot")
    tiny.clip().save(folder / "clip")
    tiny.write_tiles(folder / "tiles", 21)
    (folder / "tiles" / "bad.png").write_bytes(b"no picture")
    (folder / "tiles" / "copy.png").write_bytes((folder / "tiles" / "tile_00003.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def towers(root: Path) -> Towers:
    return load_towers(root / "clip")


@pytest.fixture(scope="module")
def labelled(root: Path, towers: Towers) -> Labelled:
    return label_tiles(towers, PROMPTS, plan_tiles([root / "tiles"]), root / "labels", compute=EXACT)


def phases(towers: Towers, prompts: PromptSet, plan: TilePlan, out: Path, **more: object) -> set[str]:
    """Label, and say which phases there were."""
    seen: set[str] = set()
    label_tiles(towers, prompts, plan, out, compute=EXACT, on_progress=lambda phase, *_: seen.add(phase), **more)  # type: ignore[arg-type]
    return seen


def test_labels_are_what_the_model_says(labelled: Labelled, towers: Towers) -> None:
    table = read_tiles(labelled.folder)
    assert len(table) == 23 and table["tile_id"].is_unique
    good = table[table["error"] == ""]
    texts = torch.stack([towers.text.encode(list(c.prompts)).mean(dim=0) for c in PROMPTS.classes])
    batch = np.stack([prepare(read_image(f), towers.preprocess).transpose(2, 0, 1) for f in good["path"]])
    with torch.no_grad():
        images = towers.image(normalise(torch.from_numpy(batch), towers.preprocess))
    expected = towers.scores(towers.logits(images, F.normalize(texts, dim=1))).numpy()
    np.testing.assert_allclose(good[PROBABILITIES].to_numpy(), expected, atol=1e-4)
    assert list(good["label"]) == [PROMPTS.names[k] for k in expected.argmax(axis=1)]
    twins = table[table["tile_id"].str.contains("copy|00003")]
    assert len(twins) == 2 and twins[PROBABILITIES].nunique().eq(1).all()


def test_a_tile_that_cannot_be_read_is_a_row_with_an_error(labelled: Labelled) -> None:
    table = read_tiles(labelled.folder).set_index("tile_id")
    (bad,) = labelled.errors
    assert bad.endswith("bad.png") and table.loc[bad, "label"] == "" and np.isnan(table.loc[bad, "probability"])
    assert "decoded" in str(table.loc[bad, "error"])
    assert list(pd.read_csv(labelled.folder / "errors.csv")["tile_id"]) == [bad]
    assert int(pd.read_csv(labelled.folder / "summary.csv")["tiles"].sum()) == 22


def test_the_exact_prompts_travel_with_every_output(labelled: Labelled) -> None:
    asked = json.loads((labelled.folder / "prompts.json").read_text())
    assert asked == read_bundle(labelled.bundle.path).provenance["prompts"] == PROMPTS.to_dict()
    assert "satellite imagery of river or lake." in (labelled.bundle.path / "MODEL_CARD.md").read_text()
    assert set(read_tiles(labelled.folder)["model_id"]) == {labelled.bundle.id}
    metadata = pq.read_schema(labelled.folder / "tiles" / "part-00000.parquet").metadata
    assert json.loads(metadata[b"prompts"]) == asked and metadata[b"model"].decode().endswith("clip")


def test_every_label_has_its_contact_sheet(labelled: Labelled) -> None:
    labels = set(read_tiles(labelled.folder)["label"]) - {""}
    sheets = {path.stem.replace("_", " ") for path in (labelled.folder / "sheets").iterdir()}
    assert sheets == labels
    for path in (labelled.folder / "sheets").iterdir():
        with Image.open(path) as sheet:
            assert sheet.size == (896, 272) and sheet.getextrema() != ((255, 255),) * 3


def test_the_bundle_predicts_the_labels(labelled: Labelled) -> None:
    bundle = read_bundle(labelled.bundle.path)
    assert bundle.domain == DOMAIN.name and bundle.task_kind == "singlelabel"
    predictor = Predictor(bundle, reader(bundle.preprocess), precision="fp32", threads=1)
    table = read_tiles(labelled.folder)
    found = list(predictor.predict(list(zip(table["tile_id"], table["path"], strict=True))))
    assert [p.error != "" for p in found] == list(table["error"] != "")
    np.testing.assert_allclose(np.stack([p.scores for p in found]), table[PROBABILITIES].to_numpy(), atol=1e-4)


def test_other_classes_cost_no_image_pass_and_new_tiles_only_themselves(
    root: Path, towers: Towers, labelled: Labelled, tmp_path: Path
) -> None:
    tiles, index = tmp_path / "tiles", tmp_path / "index"
    tiny.write_tiles(tiles, 9, seed=4)
    assert "tiles" in phases(towers, PROMPTS, plan_tiles([tiles]), tmp_path / "a", index_folder=index)
    others = read_classes("desert, beach")
    assert phases(towers, others, plan_tiles([tiles]), tmp_path / "b", index_folder=index) == {"label"}
    assert set(read_tiles(tmp_path / "b")["label"]) <= {"desert", "beach"}
    (tiles / "tile_00000.png").rename(tiles / "renamed.png")
    assert "tiles" not in phases(towers, others, plan_tiles([tiles]), tmp_path / "b", index_folder=index)
    tiny.write_tiles(tmp_path / "more", 2, seed=5)
    (tmp_path / "more" / "tile_00001.png").rename(tiles / "new.png")
    seen: list[tuple[str, int]] = []
    label_tiles(towers, others, plan_tiles([tiles]), tmp_path / "b", index_folder=index, compute=EXACT,
                on_progress=lambda phase, done, total, text: seen.append((phase, total)))  # fmt: skip
    assert ("tiles", 1) in seen and ("label", 10) in seen


def test_an_index_refuses_another_model_or_precision(
    root: Path, towers: Towers, labelled: Labelled, tmp_path: Path
) -> None:
    plan, index = plan_tiles([root / "tiles"]), root / "labels" / "index"
    with pytest.raises(ManifestError, match="another kind"):
        label_tiles(replace(towers, id="0" * 16), PROMPTS, plan, tmp_path, index_folder=index, compute=EXACT)
    with pytest.raises(ManifestError, match="precision"):
        label_tiles(towers, PROMPTS, plan, tmp_path, index_folder=index, compute=replace(EXACT, precision="bf16"))


@pytest.mark.parametrize(("name", "value"), [("threshold", 2.0), ("min_valid", -1.0), ("scores", "tanh")])
def test_impossible_options_are_refused(towers: Towers, tmp_path: Path, name: str, value: object) -> None:
    options = replace(Options(), **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=name):
        label_tiles(towers, PROMPTS, TilePlan(pd.DataFrame(), {}), tmp_path, options=options)


def write_scene(path: Path, dtype: str = "uint8", bands: int = 3) -> np.ndarray:
    """80 x 112 pixels of 10 m in UTM 33N; the left third holds no data."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(20, 250, (bands, 10, 14))
    pixels = np.kron(coarse, np.ones((8, 8))).astype(dtype) * (10 if dtype == "uint16" else 1)
    pixels[:, :, :36] = 0
    transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(
        path, "w", "GTiff", 112, 80, bands, dtype=dtype, crs="EPSG:32633", transform=transform, nodata=0
    ) as out:
        out.write(pixels)
    return pixels


def test_a_scene_becomes_tiles_with_a_place(root: Path, towers: Towers, tmp_path: Path) -> None:
    write_scene(tmp_path / "north.tif")
    plan = plan_tiles([tmp_path / "north.tif"], tile=32, overlap=0.25)
    done = label_tiles(
        towers, PROMPTS, plan, tmp_path / "labels", options=Options(min_valid=0.5, prior=True), compute=EXACT
    )
    table = gpd.read_parquet(tmp_path / "labels" / "tiles")
    assert table.crs == "EPSG:32633" and set(table["scene"]) == {"north"} and not done.errors
    window = table.iloc[5]
    bounds = (500_000 + 10 * window["col"], 5_000_000 - 10 * (window["row"] + 32),
              500_000 + 10 * (window["col"] + 32), 5_000_000 - 10 * window["row"])  # fmt: skip
    assert window.geometry.bounds == pytest.approx(bounds)
    empty = table["valid_fraction"] < 0.5
    assert empty.any() and (table["label"][empty] == "").all() and (table["label"][~empty] != "").all()
    prior = json.loads((tmp_path / "labels" / "run.json").read_text())["prior"]["north"]
    assert sum(prior.values()) == pytest.approx(1.0) and max(prior.values()) > 0.26


def test_bands_and_a_stretch_show_the_model_what_an_8_bit_picture_would(towers: Towers, tmp_path: Path) -> None:
    deep = write_scene(tmp_path / "deep.tif", "uint16", 4)
    with (
        rasterio.open(tmp_path / "deep.tif") as source,
        rasterio.open(
            tmp_path / "flat.tif",
            "w",
            "GTiff",
            112,
            80,
            3,
            dtype="uint8",
            crs=source.crs,
            transform=source.transform,
            nodata=0,
        ) as out,
    ):
        out.write(np.rint(deep[[2, 1, 0]] * (255 / 2550)).astype(np.uint8))
    stretched = replace(towers, preprocess=with_bands(towers.preprocess, ("3", "2", "1"), (0.0, 2550.0)))
    found = {}
    for name, model in {"deep": stretched, "flat": towers}.items():
        label_tiles(model, PROMPTS, plan_tiles([tmp_path / f"{name}.tif"], 32, 0.0), tmp_path / name, compute=EXACT)
        found[name] = read_tiles(tmp_path / name)[PROBABILITIES].to_numpy()
    assert not np.isnan(found["deep"]).all()
    np.testing.assert_allclose(found["deep"], found["flat"], atol=0.01)
    with pytest.raises(ConfigError):
        with_bands(towers.preprocess, ("1", "2"))
    label_tiles(towers, PROMPTS, plan_tiles([tmp_path / "deep.tif"], 32, 0.0), tmp_path / "none", compute=EXACT)
    errors = read_tiles(tmp_path / "none")["error"]
    assert errors.str.contains("--bands").all()


def finished_shards(out: Path) -> int:
    return len(list(out.glob("index/jobs/*/shards/shard-*.json")))


def test_killed_and_resumed_labels_are_those_of_an_uninterrupted_run(
    root: Path, towers: Towers, tmp_path: Path
) -> None:
    tiles = tiny.write_tiles(root / "many", 400, 40, seed=9)
    for i in (17, 111, 299, 300):
        (tiles / f"tile_{i:05d}.png").write_bytes((tiles / f"tile_{i:05d}.png").read_bytes()[:90])
    out = tmp_path / "killed"
    words = [str(root / "clip"), str(tiles), str(out), "inline", "1"]
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.zeroshot.labels.label_job", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until, wanted = time.monotonic() + 250, random.Random(2).randint(3, 9)
    while finished_shards(out) < wanted:
        assert job.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.wait()
    done = {file: file.stat().st_mtime_ns for file in out.glob("index/jobs/*/shards/*.json")}
    assert 0 < len(done) < 50
    compute = Compute(ComputeOptions(threads=1, shard_size=8), batch_size=8, readers=1)
    kept: list[bool] = []

    def look(phase: str, *_: object) -> None:
        if phase == "tiles":
            kept.append(all(file.exists() and file.stat().st_mtime_ns == then for file, then in done.items()))

    for folder in (out, tmp_path / "whole"):
        label_tiles(towers, PROMPTS, plan_tiles([tiles]), folder, options=Options(sheets=False), compute=compute,
                    on_progress=look if folder == out else lambda *_: None)  # fmt: skip
    assert all(kept) and not (out / "index" / "jobs").exists()
    table = read_tiles(out)
    pd.testing.assert_frame_equal(table, read_tiles(tmp_path / "whole"))
    assert len(table) == 400 and int((table["error"] != "").sum()) == 4
