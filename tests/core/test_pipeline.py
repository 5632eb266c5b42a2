"""A domain of one file goes the whole way: train, evaluate, predict, through the command line that every domain shares."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tests.core import toy
from vitdomains.core import pipeline
from vitdomains.core.bundle import read_bundle
from vitdomains.core.commands import cli
from vitdomains.core.config.schema import Data
from vitdomains.core.data.manifest import Manifest, with_split
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.roles import SEEN, read_report, untouched
from vitdomains.core.files import file_sha256
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.inference.table import write_predictions


@pytest.fixture(autouse=True)
def no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands restart their process for a faster allocator; a test runner must stay where it is."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Outcome]:
    base = tmp_path_factory.mktemp("run")
    root = toy.write_images(base / "images", n=120)
    (root / "broken_10.npy").write_bytes(b"not an array")
    config = toy.config(root, base / "run", epochs=12, ema_decay=0.9)
    return base, pipeline.train(toy.DOMAIN, config)


def test_the_bundle_has_all_that_it_promises(trained: tuple[Path, pipeline.Outcome]) -> None:
    base, outcome = trained
    bundle = read_bundle(base / "run" / "bundle")
    assert bundle.id == outcome.bundle.id
    assert {"model.safetensors", "MODEL_CARD.md", "report/report.json", "report/report.html"} <= set(bundle.files)
    report = json.loads((bundle.path / "report" / "report.json").read_text())
    assert report["macro"]["auroc"]["value"] > 0.85
    assert set(report["classes"]) == set(toy.CLASSES)
    assert {"value", "low", "high"} <= set(report["classes"]["left"]["auroc"])
    assert report["baselines"].keys() >= {"shuffled", "thumbnail"}
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert "For tests only." in card and f"{report['macro']['auroc']['value']:.3f}" in card
    assert (
        bundle.provenance["images"] == {"train": 73, "val": 24, "test": 24}
        or sum(bundle.provenance["images"].values()) == 120
    )


def test_a_file_that_cannot_be_read_is_left_out_and_listed(trained: tuple[Path, pipeline.Outcome]) -> None:
    base, outcome = trained
    assert [identity for identity, _ in outcome.skipped] == ["broken_10"]
    assert "broken_10" in (base / "run" / "skipped.csv").read_text()


def test_a_wrong_folder_is_not_a_few_bad_files(tmp_path: Path) -> None:
    root = toy.write_images(tmp_path / "images", n=20)
    for file in sorted(root.iterdir())[::2]:
        file.write_bytes(b"")
    with pytest.raises(ManifestError, match="10 of 20 images cannot be read"):
        pipeline.train(toy.DOMAIN, toy.config(root, tmp_path / "run"))


def test_every_phase_computes_in_the_threads_of_the_configuration(tmp_path: Path) -> None:
    config = toy.config(toy.write_images(tmp_path / "images", n=40), tmp_path / "run", epochs=1)
    config = replace(config, run=replace(config.run, threads=3))
    found: dict[str, set[int]] = {}

    def note(phase: str, done: int, total: int, text: str) -> None:
        found.setdefault(phase, set()).add(torch.get_num_threads())

    bundle = pipeline.train(toy.DOMAIN, config, note).bundle
    assert {"train", "calibrate", "test", "explain"} <= found.keys()
    assert {n for phase in ("train", "calibrate", "test", "explain") for n in found[phase]} == {3}
    found.clear()
    two = replace(config, run=replace(config.run, threads=2))
    pipeline.evaluate(toy.DOMAIN, bundle, two, "val", on_progress=note)
    assert {n for phase in ("test", "explain") for n in found[phase]} == {2}


def test_many_bands_at_a_size_that_is_no_multiple_of_32_reach_a_bundle(tmp_path: Path) -> None:
    def read(path: str | Path) -> np.ndarray:
        return np.stack([toy.read_image(path) * (band + 1) / 6 for band in range(6)], axis=2)

    domain = replace(toy.DOMAIN, read_image=read)
    config = toy.config(toy.write_images(tmp_path / "images", n=40), tmp_path / "run", epochs=1)
    config = replace(
        config, data=replace(config.data, image_size=40, mean=[0.4], std=[0.3]), model=replace(config.model, channels=6)
    )
    outcome = pipeline.train(domain, config)
    assert "thumbnail" in outcome.report["baselines"]
    shutil.rmtree(outcome.bundle.path)  # as after a stop between training and the bundle
    again = pipeline.train(domain, replace(config, run=replace(config.run, resume=True)))
    assert again.bundle.files["model.safetensors"] == outcome.bundle.files["model.safetensors"]


def test_a_second_run_does_not_overwrite_the_first(trained: tuple[Path, pipeline.Outcome]) -> None:
    base, _ = trained
    with pytest.raises(ConfigError, match="holds a run already"):
        pipeline.train(toy.DOMAIN, toy.config(base / "images", base / "run"))


def test_predictions_of_the_bundle_are_those_of_training(trained: tuple[Path, pipeline.Outcome]) -> None:
    """The reader, the preprocessing and the calibration behind the bundle give the scores that the report was made from."""
    base, outcome = trained
    table = pd.read_csv(outcome.bundle.path / "report" / "predictions.csv")
    predictor = Predictor(outcome.bundle.path, toy.read_image, threads=1)
    records = [(i, str(base / "images" / f"{i}.npy")) for i in table["id"].astype(str)]
    scores = np.array([p.scores for p in predictor.predict(records)])
    expected = table[[f"score:{c}" for c in toy.CLASSES]].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=0.02)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_predict_command(trained: tuple[Path, pipeline.Outcome], tmp_path: Path, ending: str) -> None:
    base, _ = trained
    good = sorted((base / "images").glob("0*.npy"))[:5]
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"nothing")
    out = tmp_path / f"predictions{ending}"
    words = [
        "predict",
        str(base / "run" / "bundle"),
        str(good[3]),
        str(bad),
        str(good[0]),
        str(tmp_path / "absent.npy"),
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    assert cli.main(toy.DOMAIN, words) == 0
    table = pd.read_csv(out) if ending == ".csv" else pd.read_parquet(out)
    assert list(table.columns) == ["id", "path", *toy.CLASSES, "labels", "error"]
    assert [Path(p).name for p in table["path"]] == [good[3].name, "bad.npy", good[0].name, "absent.npy"]
    assert table[list(toy.CLASSES)].notna().all(axis=1).tolist() == [True, False, True, False]
    assert table["error"].fillna("").str.len().gt(0).tolist() == [False, True, False, True]


def test_prediction_goes_on_after_a_stop(trained: tuple[Path, pipeline.Outcome], tmp_path: Path) -> None:
    base, _ = trained
    records = [(f.stem, str(f)) for f in sorted((base / "images").glob("0*.npy"))[:30]]
    predictor = Predictor(base / "run" / "bundle", toy.read_image, threads=1, batch_size=4)
    write_predictions(predictor, records, tmp_path / "whole.csv")

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(predictor, records, tmp_path / "broken.csv", stop)
    journal = tmp_path / ".broken.csv.journal"
    with journal.open("ab") as handle:
        handle.write(b'{"id": "torn')
    calls = []
    write_predictions(predictor, records, tmp_path / "broken.csv", lambda done, total: calls.append(done))
    assert calls[0] == 14
    assert (tmp_path / "broken.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not journal.exists()


@pytest.fixture
def copied(trained: tuple[Path, pipeline.Outcome], tmp_path: Path) -> Path:
    """A bundle to write reports into."""
    return Path(shutil.copytree(trained[0] / "run" / "bundle", tmp_path / "run" / "bundle"))


def evaluate(bundle: Path, root: Path, *args: str) -> int:
    return cli.main(toy.DOMAIN, ["evaluate", str(bundle), "--data.root", str(root), "--run.bootstrap", "20", *args])


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def test_evaluate_measures_held_out_images_again(trained: tuple[Path, pipeline.Outcome], copied: Path) -> None:
    base, outcome = trained
    assert evaluate(copied, base / "images") == 0
    again, expected = report_of(copied / "report"), report_of(outcome.bundle.path / "report")
    assert again["macro"]["auroc"]["value"] == pytest.approx(expected["macro"]["auroc"]["value"], abs=1e-6)
    assert again["baselines"] == expected["baselines"] and again["baselines"]
    assert again["rows"] == expected["rows"] and again["rows"]["role"] == "untouched" and again["errors"]["n"] == 0
    assert "left: the surest right call" in (copied / "report" / "report.html").read_text()
    assert "images that training never saw" in (copied / "MODEL_CARD.md").read_text()
    read_bundle(copied)


@pytest.mark.parametrize(
    ("split", "role", "words"),
    [
        ("train", "fitted", "the model was fitted on"),
        ("val", "thresholds", "that chose epoch, temperature and thresholds"),
        ("all", "mixed", "of which training saw some"),
    ],
)
def test_other_splits_do_not_take_the_place_of_the_held_out_report(
    trained: tuple[Path, pipeline.Outcome], copied: Path, split: str, role: str, words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before, card = (copied / "report" / "report.json").read_bytes(), (copied / "MODEL_CARD.md").read_bytes()
    metrics = read_bundle(copied).metrics
    assert evaluate(copied, trained[0] / "images", "--split", split) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    assert (copied / "report" / "report.json").read_bytes() == before and (
        copied / "MODEL_CARD.md"
    ).read_bytes() == card
    assert read_bundle(copied).metrics == metrics
    report = report_of(copied / f"report_{role}")
    assert (
        report["rows"]["role"] == role and report["rows"]["split"] == split and words in report["facts"]["measured on"]
    )
    assert words in (copied / f"report_{role}" / "report.html").read_text()
    table = pd.read_csv(copied / f"report_{role}" / "predictions.csv")
    assert untouched(table).tolist() == (table["split"] == "test").tolist()


def test_images_keep_their_role_where_the_data_is_moved_and_split_anew(
    trained: tuple[Path, pipeline.Outcome], copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names change, the splits too: what a file holds says whether training saw it, and its group goes with it."""
    root = tmp_path / "moved"
    root.mkdir()
    for i, file in enumerate(sorted((trained[0] / "images").glob("[0-9]*.npy"))):
        shutil.copy(file, root / f"copy_{i:03d}_{file.stem[-2:]}.npy")
    plain = toy.build_manifest

    def split_anew(data: Data) -> Manifest:
        made = plain(data)
        return with_split(made, [("test", "train")[i % 4 // 2] for i in range(len(made))])

    domain = replace(toy.DOMAIN, build_manifest=split_anew)
    words = ["evaluate", str(copied), "--data.root", str(root), "--run.bootstrap", "0"]
    before = (copied / "report" / "report.json").read_bytes()
    assert cli.main(domain, words) == 0
    rows = report_of(copied / "report_mixed")["rows"]
    assert rows["home"] and rows["split"] == "test" and rows["counts"]["fitted"] > rows["counts"]["untouched"] > 0
    assert (copied / "report" / "report.json").read_bytes() == before


def test_a_bundle_of_0_1_opens_and_says_what_is_not_known(
    trained: tuple[Path, pipeline.Outcome], copied: Path, tmp_path: Path
) -> None:
    """It has no list of training images, its report no role, and its baselines are called floors."""
    path = copied / "report" / "report.json"
    old = report_of(copied / "report")
    floors = old.pop("baselines")
    for key in ("rows", "errors", "names", "not_annotated"):
        old.pop(key)
    path.write_text(json.dumps(old | {"floors": floors}))
    table = pd.read_csv(copied / "report" / "predictions.csv").drop(columns="role")
    table.to_csv(copied / "report" / "predictions.csv", index=False)
    (copied / SEEN).unlink()
    raw = json.loads((copied / "bundle.json").read_text())
    raw["files"] = {f.relative_to(copied).as_posix(): file_sha256(f) for f in copied.rglob("*")
                    if f.is_file() and f.name != "bundle.json"}  # fmt: skip
    (copied / "bundle.json").write_text(json.dumps(raw))
    assert untouched(table).all() and read_report(copied / "report")["baselines"] == floors
    assert evaluate(copied, trained[0] / "images") == 0
    assert report_of(copied / "report")["baselines"] == floors
    other = toy.write_images(tmp_path / "other", n=40, seed=9)
    assert evaluate(copied, other) == 0
    assert report_of(copied / "report_unknown")["rows"]["role"] == "unknown"


def test_without_a_test_split_the_report_says_what_it_was_made_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = toy.write_images(tmp_path / "images", n=40)

    def no_test(data: Data) -> Manifest:
        made = toy.build_manifest(data)
        return with_split(made, made.table["split"].replace({"test": "train"}))

    domain = replace(toy.DOMAIN, build_manifest=no_test)
    words = ["train", "--data.root", str(root), "--run.dir", str(tmp_path / "run"), "--recipe.epochs", "1"]
    assert cli.main(domain, [*words, "--run.bootstrap", "0"]) == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    out = " ".join(capsys.readouterr().out.split())
    assert "held-out" not in out and "that chose epoch, temperature and thresholds" in out and "--split val" not in out
    assert not bundle.metrics and not (bundle.path / "report").exists()
    page = (bundle.path / "report_thresholds" / "report.html").read_text()
    assert "that chose epoch, temperature and thresholds" in page and "held-out" not in page
    assert "Measured on the images that chose" in (bundle.path / "MODEL_CARD.md").read_text()


def test_a_bundle_is_measured_on_data_of_another_place(
    trained: tuple[Path, pipeline.Outcome], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other images, other names, one finding not annotated, no split; the held-out report at home stays as it was."""
    root = toy.write_images(tmp_path / "elsewhere", n=60, seed=5)

    def elsewhere(data: Data) -> Manifest:
        made = toy.build_manifest(data)
        table = made.table.rename(columns={"left": "port side"}).drop(columns="right").assign(split="", other=0.0)
        return Manifest(table, ("port side", "other"), "harbour")

    domain = replace(toy.DOMAIN, build_manifest=elsewhere)
    words = ["evaluate", str(copied), "--data.root", str(root), "--run.bootstrap", "20"]
    before = (copied / "report" / "report.json").read_bytes()
    assert cli.main(domain, words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "none of the bundle's classes" in error and "--class_map" in error
    assert cli.main(domain, [*words, "--class_map", "{port side: left}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "port side is left" in out and "not annotated here" in out and "never saw" in out and "Labels that" in out
    assert (copied / "report" / "report.json").read_bytes() == before
    report = report_of(copied / "report_external")
    assert report["n"] == 60 and report["not_annotated"] == ["right"] and report["averaged_classes"] == ["left"]
    assert report["rows"] == {
        "split": "all",
        "role": "untouched",
        "counts": {"untouched": 60},
        "home": False,
        "data": "harbour",
    }
    home = json.loads(before)["classes"]["left"]
    assert report["home"]["classes"]["left"]["auroc"] == home["auroc"] and report["home"]["both"] == ["left"]
    assert "cross-validated by group" in report["baselines"]["thumbnail"]["note"]
    page = (copied / "report_external" / "report.html").read_text()
    assert "Here beside at home" in page and "not annotated here" in page and "harbour" in page
    read_bundle(copied)


def test_images_without_scores_are_counted_and_many_are_an_error(
    trained: tuple[Path, pipeline.Outcome], copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A file that is none, and an image of which the model makes no number: a white one, here."""
    plain = Predictor.logits

    def logits(self: Predictor, images: torch.Tensor, *, streams: int = 1) -> np.ndarray:
        out = plain(self, images, streams=streams)
        out[(images.flatten(1).float().mean(dim=1) > 250).numpy()] = np.nan
        return out

    monkeypatch.setattr(Predictor, "logits", logits)
    other = toy.write_images(tmp_path / "other", n=40, seed=9)
    (other / "999_10.npy").write_bytes(b"nothing")
    np.save(other / "998_01.npy", np.ones((32, 32), np.float32))
    assert evaluate(copied, other, "--out", str(tmp_path / "out")) == 0
    report = report_of(tmp_path / "out")
    assert report["errors"]["n"] == 2 and any("no finite logits" in text for text in report["errors"]["first"])
    assert report["n"] == 40 and "999_10" in (tmp_path / "out" / "report.html").read_text()
    for file in sorted(other.glob("0*.npy"))[:8]:
        np.save(file, np.ones((32, 32), np.float32))
    assert evaluate(copied, other, "--out", str(tmp_path / "out")) == 2
    assert "have no scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["fly"], 2, "'fly' is no command"),
        (["predict", "nowhere", "x.npy"], 2, "is not a bundle"),
        (["predict"], 2, "Call it as"),
        (["train", "--recipe.lrr", "1"], 2, "lrr"),
        (["train", "--data.root", "nowhere", "--recipe.epochs", "-3"], 2, "epochs"),
    ],
)
def test_errors_are_two_lines_and_a_status(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(toy.DOMAIN, words) == status
    text = capsys.readouterr().err
    assert message in text and "try:" in text and "Traceback" not in text


def test_a_bundle_of_another_domain_is_refused(
    trained: tuple[Path, pipeline.Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = trained
    other = replace(toy.DOMAIN, name="other")
    assert cli.main(other, ["predict", str(base / "run" / "bundle"), "x.npy"]) == 2
    assert "bundle of toy" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_explain_command(
    trained: tuple[Path, pipeline.Outcome], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _ = trained
    film = next((base / "images").glob("0*_11.npy"))
    words = [
        "explain",
        str(base / "run" / "bundle"),
        str(film),
        "--finding",
        "left",
        "--method",
        method,
        "--out",
        str(tmp_path / "map.png"),
    ]
    assert cli.main(toy.DOMAIN, words) == 0
    picture = cv2.imread(str(tmp_path / "map.png"))
    assert picture is not None and picture.shape[1] > 2 * picture.shape[0] * 0.8
    assert "left: probability" in capsys.readouterr().out
    assert cli.main(toy.DOMAIN, [*words[:4], "middle"]) == 2
    assert "knows left, right" in capsys.readouterr().err.replace("\n", " ")


def test_the_report_shows_where_the_calls_come_from(trained: tuple[Path, pipeline.Outcome]) -> None:
    page = (trained[1].bundle.path / "report" / "report.html").read_text()
    assert "left: the surest right call" in page and "right: the surest right call" in page


def test_a_dry_run_estimates_and_leaves_nothing(tmp_path: Path) -> None:
    root = toy.write_images(tmp_path / "images", n=20)
    config = toy.config(root, tmp_path / "run")
    manifest, memory = pipeline.dry_run(toy.DOMAIN, config)
    assert len(manifest) == 20 and not (tmp_path / "run").exists()
    assert memory["optimiser"] == 2 * memory["parameters"] > 0 and memory["gradients"] <= memory["parameters"]
    large, double = (
        pipeline.dry_run(toy.DOMAIN, replace(config, recipe=replace(config.recipe, batch_size=size)))[1]
        for size in (32, 64)
    )
    assert 1.8 < double["activations"] / large["activations"] < 2.1
