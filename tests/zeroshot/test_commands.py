"""The commands end to end: label, search, evaluate, refine, student, convert, and the bundle in other rooms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tests.zeroshot import tiny
from tests.zeroshot.labels.test_label import write_scene
from vitdomains import satellite
from vitdomains.core.bundle import read_bundle
from vitdomains.core.commands.explain import explain
from vitdomains.core.config.parse import parse_config
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.terminal import console
from vitdomains.satellite.scenes.map import map_command
from vitdomains.zeroshot import DOMAIN
from vitdomains.zeroshot.commands import (
    audit_command,
    convert_command,
    embed,
    evaluate,
    label,
    refine_command,
    search,
    student_command,
)
from vitdomains.zeroshot.labels.fewshot import METHODS
from vitdomains.zeroshot.students.student import read_tiles

CLASSES = "forest, river, town"
FAST = ["--threads", "1", "--readers", "1", "--shard_size", "16"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 36 tiles, labels of them, and a folder of them by class (as the model says, but for a few)."""
    folder = tmp_path_factory.mktemp("commands")
    tiny.clip().save(folder / "clip")
    tiles = tiny.write_tiles(folder / "tiles", 36)
    words = [str(tiles), "--model", str(folder / "clip"), "--classes", CLASSES, "--out", str(folder / "labels"), *FAST]
    assert label(DOMAIN, words) == 0
    table = read_tiles(folder / "labels")
    names = CLASSES.split(", ")
    truth = [names[i % 3] if i % 4 == 0 else said for i, said in enumerate(table["label"])]
    pd.DataFrame({"tile_id": table["tile_id"], "label": truth}).to_csv(folder / "reviewed.csv", index=False)
    for path, name in zip(table["path"], truth, strict=True):
        place = folder / "sorted" / name.upper()
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(path).name).write_bytes(Path(path).read_bytes())
    return folder


def test_search_finds_a_picture_by_itself_and_texts_by_their_prompts(root: Path, tmp_path: Path) -> None:
    wanted = str(root / "tiles" / "tile_00007.png")
    words = ["--index", str(root / "labels" / "index"), "--out", str(tmp_path / "found.csv"), "--top", "5"]
    with console.capture() as shown:
        assert search(DOMAIN, [wanted, *words]) == 0
    found = pd.read_csv(tmp_path / "found.csv")
    assert found["path"][0] == wanted and found["similarity"][0] > 0.99 and found["similarity"].is_monotonic_decreasing
    assert len(found) == 5 and wanted in shown.get()
    assert search(DOMAIN, ["river", *words, "--templates", "a photo of a {}."]) == 0
    found = pd.read_csv(tmp_path / "found.csv")
    assert set(found["asked"]) == {"a photo of a river."} and (found["similarity"].abs() <= 1).all()


def test_an_index_can_be_made_before_there_are_classes(root: Path, tmp_path: Path) -> None:
    words = [str(root / "tiles"), "--index", str(tmp_path / "index"), "--model", str(root / "clip"), *FAST]
    with console.capture() as shown:
        assert embed(DOMAIN, words) == 0
    assert "36 tiles, 0 with an error; 36 embeddings" in shown.get()
    with pytest.raises(ManifestError, match="no index"):
        search(DOMAIN, ["river", "--index", str(tmp_path)])


def test_evaluate_measures_the_ensemble_and_a_single_prompt(root: Path, tmp_path: Path) -> None:
    words = [str(root / "sorted"), "--model", str(root / "clip"), "--classes", CLASSES, "--out", str(tmp_path / "report"),
             "--index", str(root / "labels" / "index"), "--bootstrap", "20", *FAST,
             "--bundle", str(root / "labels" / "bundle")]  # fmt: skip
    with console.capture() as shown:
        assert evaluate(DOMAIN, words) == 0
    reports = {
        name: json.loads((tmp_path / "report" / name / "report.json").read_text())
        for name in ("ensemble", "single_prompt")
    }
    truth = pd.read_csv(root / "reviewed.csv")["label"]
    agreement = (truth.to_numpy() == read_tiles(root / "labels")["label"].to_numpy()).mean()
    assert reports["ensemble"]["overall"]["accuracy"]["value"] == pytest.approx(agreement)
    assert reports["ensemble"]["confusion"] and "f1" in reports["ensemble"]["macro"]
    assert len(reports["single_prompt"]["prompts"]["classes"][0]["prompts"]) == 1
    assert "54 prompts" in shown.get() and "3 prompts" in shown.get()
    assert read_bundle(root / "labels" / "bundle").metrics["accuracy"]["value"] == pytest.approx(agreement)


def test_the_shared_evaluate_takes_the_bundle(root: Path, tmp_path: Path) -> None:
    words = [str(root / "labels" / "bundle"), "--split", "all", "--out", str(tmp_path), "--data.root", str(root / "sorted"),
             "--run.bootstrap", "0"]  # fmt: skip
    assert evaluate(DOMAIN, words) == 0
    truth = pd.read_csv(root / "reviewed.csv")["label"]
    agreement = (truth.to_numpy() == read_tiles(root / "labels")["label"].to_numpy()).mean()
    found = json.loads((tmp_path / "report.json").read_text())["overall"]["accuracy"]["value"]
    assert found == pytest.approx(agreement, abs=0.06)  # bf16 in another place


def test_calibration_takes_a_labelled_folder(root: Path, tmp_path: Path) -> None:
    words = [str(root / "tiles"), "--model", str(root / "clip"), "--classes", CLASSES, "--out", str(tmp_path), *FAST,
             "--index", str(root / "labels" / "index"), "--calibrate", str(root / "sorted"), "--no_sheets"]  # fmt: skip
    assert label(DOMAIN, words) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["calibrated_on"] == 36 and run["temperature"] != 1.0
    assert read_bundle(tmp_path / "bundle").temperature == (run["temperature"],)
    assert not (tmp_path / "sheets").exists()


def test_refine_learns_from_reviewed_tiles_without_reading_images(root: Path, tmp_path: Path) -> None:
    words = [str(root / "labels"), "--reviewed", str(root / "reviewed.csv"), "--out", str(tmp_path / "refined")]
    with console.capture() as shown:
        assert refine_command(DOMAIN, words) == 0
    assert all(f"  {name} " in shown.get() for name in (*METHODS, "the choice among these", "transductive"))
    truth = pd.read_csv(root / "reviewed.csv")["label"].to_numpy()
    before, after = (read_tiles(root / f)["label"].to_numpy() for f in ("labels", tmp_path / "refined"))
    assert (after == truth).mean() >= (before == truth).mean()
    assert "36 reviewed tiles" in read_bundle(tmp_path / "refined" / "bundle").provenance["head"]
    with pytest.raises(ConfigError):
        refine_command(DOMAIN, [*words[:-1], str(root / "labels")])


@pytest.mark.parametrize("method", ["anchored probe", "Tip-Adapter", "transductive"])
def test_refine_takes_a_method_and_a_few_clicks(root: Path, tmp_path: Path, method: str) -> None:
    few = pd.read_csv(root / "reviewed.csv").drop_duplicates("label")  # one a class: nothing can be held out
    few.to_csv(tmp_path / "few.csv", index=False)
    words = [
        str(root / "labels"),
        "--reviewed",
        str(tmp_path / "few.csv"),
        "--out",
        str(tmp_path / "out"),
        "--method",
        method,
    ]
    with console.capture() as shown:
        assert refine_command(DOMAIN, words) == 0
    assert f"{method} on {len(few)} reviewed tiles" in shown.get() and "held-out" not in shown.get()
    tiles = read_tiles(tmp_path / "out")
    np.testing.assert_allclose(tiles.filter(like="prob:").sum(axis=1), 1.0, atol=1e-5)
    if method == "transductive":
        found = tiles.set_index("tile_id")["label"]
        assert all(found[t] == label for t, label in zip(few["tile_id"], few["label"], strict=True))
    with pytest.raises(ConfigError, match="not known"):
        refine_command(DOMAIN, [*words[:-1], "magic"])


def test_audit_of_a_labelling_is_a_queue_and_weights_for_the_student(root: Path, tmp_path: Path) -> None:
    queue, reviewed = tmp_path / "queue.csv", tmp_path / "reviewed.csv"
    pd.read_csv(root / "reviewed.csv").head(20).to_csv(reviewed, index=False)
    assert audit_command(DOMAIN, [str(root / "labels"), "--reviewed", str(reviewed), "--labels", str(queue)]) == 0
    found = pd.read_csv(queue)
    assert found["reviewed"].sum() == 20 and found["quality"].between(0, 1).all() and len(found) == 36
    words = [str(root / "labels"), "--confident", "0", "--weight", "1", "--errors", str(queue)]
    assert student_command(DOMAIN, words) == 0
    m = read_manifest(root / "labels" / "manifest.csv")
    quality = found.set_index("id")["quality"]
    np.testing.assert_allclose(m.table["weight"], m.table["probability"] * m.table["id"].map(quality), atol=1e-4)


def test_a_student_gets_weighted_labels_and_a_file_to_train_with(root: Path) -> None:
    reviewed = pd.read_csv(root / "reviewed.csv").iloc[:10]
    reviewed.to_csv(root / "ten.csv", index=False)
    words = [str(root / "labels"), "--reviewed", str(root / "ten.csv"), "--confident", "0.4", "--weight", "0.5"]
    assert student_command(DOMAIN, words) == 0
    m = read_manifest(root / "labels" / "manifest.csv")
    own = m.table["reviewed"].astype(bool)
    assert own.sum() == 10 and (m.table.loc[own, "weight"] == 1).all()
    sure = m.table[~own]
    assert len(sure) and (sure["probability"] >= 0.4).all()
    np.testing.assert_allclose(sure["weight"], 0.5 * sure["probability"], atol=1e-6)
    labels = m.table.set_index("id")[list(m.classes)].idxmax(axis=1)
    assert all(labels[t] == said for t, said in zip(reviewed["tile_id"], reviewed["label"], strict=True))
    config = parse_config(["--config", str(root / "labels" / "student.yaml")], satellite.default_config(), "train")
    built = satellite.DOMAIN.build_manifest(config.data)
    assert len(built) == len(m) and set(built.table["split"]) == {"train", "val", "test"} and "weight" in built.table


def test_a_student_of_a_scene_gets_its_tiles_cut_out(root: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.tif")
    words = [str(tmp_path / "scene.tif"), "--tile", "32", "--model", str(root / "clip"), "--classes", CLASSES, "--out",
             str(tmp_path / "labels"), *FAST]  # fmt: skip
    assert label(DOMAIN, words) == 0
    assert student_command(DOMAIN, [str(tmp_path / "labels"), "--confident", "0.3"]) == 0
    m = read_manifest(tmp_path / "labels" / "manifest.csv")
    assert len(m) and all(path.endswith(".png") and Path(path).is_file() for path in m.table["path"])
    assert satellite.DOMAIN.read_image(m.table["path"][0]).shape == (32, 32, 3)
    with pytest.raises(ManifestError, match="0.999"):
        student_command(DOMAIN, [str(tmp_path / "labels"), "--confident", "0.9999"])


def test_heat_maps_come_from_the_bundle(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    words = [
        str(root / "labels" / "bundle"),
        str(root / "tiles" / "tile_00001.png"),
        "--finding",
        "river",
        "--out",
        str(out),
    ]
    assert explain(DOMAIN, words) == 0
    assert out.read_bytes()[1:4] == b"PNG"


def test_satellite_map_takes_the_bundle(root: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.tif")
    words = [str(tmp_path / "scene.tif"), "--bundle", str(root / "labels" / "bundle"), "--out", str(tmp_path / "map.tif"),
             "--tiles", str(tmp_path / "tiles.parquet"), "--tile", "32", "--threads", "1"]  # fmt: skip
    assert map_command(satellite.DOMAIN, words) == 0
    table = pd.read_parquet(tmp_path / "tiles.parquet")
    assert set(table["label"]) - {""} <= set(CLASSES.split(", ")) and (table["label"] != "").any()


def test_options_can_stand_in_a_file(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump({"model": str(root / "clip"), "classes": CLASSES, "shard_size": 16, "threads": 1}))
    words = [
        str(root / "tiles"),
        "--config",
        str(config),
        "--out",
        str(tmp_path / "labels"),
        "--classes",
        "forest, town",
    ]
    assert label(DOMAIN, words) == 0
    assert set(read_tiles(tmp_path / "labels")["label"]) <= {"forest", "town"}
    config.write_text("modell: x\n")
    with pytest.raises(ConfigError, match="modell"):
        label(DOMAIN, words)
    with pytest.raises(ConfigError, match="No classes"):
        label(DOMAIN, [str(root / "tiles"), "--model", str(root / "clip")])


def test_convert_writes_a_folder_that_label_takes(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    from tests.zeroshot.models.test_openclip import random_model, write_config

    torch.save(random_model().state_dict(), tmp_path / "mine.pt")
    words = [str(tmp_path / "mine.pt"), "--architecture", str(write_config(tmp_path)), "--out", str(tmp_path / "model")]
    assert convert_command(DOMAIN, words) == 0
    words = [
        str(root / "tiles"),
        "--model",
        str(tmp_path / "model"),
        "--classes",
        CLASSES,
        "--out",
        str(tmp_path / "labels"),
    ]
    assert label(DOMAIN, [*words, "--no_sheets", *FAST]) == 0
    assert len(read_tiles(tmp_path / "labels")) == 36


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "dual"])
def test_the_other_kinds_of_towers_label_too(root: Path, tmp_path: Path, kind: str) -> None:
    tiny.MAKERS[kind]().save(tmp_path / kind)
    words = [
        str(root / "tiles"),
        "--model",
        str(tmp_path / kind),
        "--classes",
        CLASSES,
        "--out",
        str(tmp_path / "labels"),
        *FAST,
    ]
    assert label(DOMAIN, [*words, "--no_sheets"]) == 0
    bundle = read_bundle(tmp_path / "labels" / "bundle")
    assert bundle.task_kind == ("multilabel" if kind.startswith("siglip") else "singlelabel")
    probabilities = read_tiles(tmp_path / "labels").filter(like="prob:").sum(axis=1)
    assert np.allclose(probabilities, 1.0, atol=1e-5) == (kind == "dual")
    if kind == "siglip":
        assert label(DOMAIN, [*words, "--no_sheets", "--scores", "softmax"]) == 0
        assert np.allclose(read_tiles(tmp_path / "labels").filter(like="prob:").sum(axis=1), 1.0, atol=1e-5)
