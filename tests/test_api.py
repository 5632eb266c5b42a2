"""``import vitdomains as vd``: what a notebook sees, with the examples of its docstrings."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from PIL import Image

import vitdomains as vd
from tests.small_run import FINDINGS, SmallRun, small_run
from tests.zeroshot import tiny
from vitdomains import api
from vitdomains.core.commands.cli import main
from vitdomains.core.config.schema import Source
from vitdomains.core.errors import BundleError, ConfigError, ExplainError
from vitdomains.cxr import DOMAIN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: SmallRun) -> vd.Model:
    return vd.load(run.bundle, threads=1, precision="fp32")


def _film(run: SmallRun) -> Path:
    return next(p for p in sorted(run.films.rglob("*")) if p.is_file())


def test_importing_it_loads_nothing_that_computes() -> None:
    code = "import sys, vitdomains as vd; vd.load; print([m for m in ('torch', 'numpy', 'pandas', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_public_is_listed_and_found() -> None:
    assert set(vd.__all__) == {*api.__all__, "__version__"}
    assert all(getattr(vd, name) is not None for name in vd.__all__)
    assert set(vd.__all__) <= set(dir(vd))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vd.nonsense  # noqa: B018


def test_the_examples_of_the_docstrings_run(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/bundle").symlink_to(run.bundle)
    (tmp_path / "film.dcm").write_bytes(_film(run).read_bytes())
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=16, height=16, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 5000000),
    ) as scene:  # fmt: skip
        scene.write(np.random.default_rng(0).integers(1, 255, (3, 16, 16), dtype=np.uint8))
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    tiny.clip().save(tmp_path / "towers")
    keys = {
        "data": {"root": str(run.root), "sources": [{"name": "csv", "csv": "manifest.csv"}], "classes": list(FINDINGS),
                 "image_size": 64, "cache": "memory"},
        "model": {"name": "vit:Ti/16", "channels": 1, "options": {"depth": 1}},
        "recipe": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0.0, "precision": "fp32"},
        "run": {"bootstrap": 10, "threads": 1, "accelerator": "cpu"},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(keys))
    found = doctest.testmod(api)
    assert found.attempted > 12
    assert found.failed == 0


def test_a_call_gives_what_the_command_writes(run: SmallRun, model: vd.Model, tmp_path: Path) -> None:
    film, bad, out = _film(run), tmp_path / "bad.dcm", tmp_path / "out.csv"
    bad.write_text("no film")
    words = [
        "predict",
        str(run.bundle),
        str(film),
        str(bad),
        "--out",
        str(out),
        "--threads",
        "1",
        "--precision",
        "fp32",
    ]
    assert main(DOMAIN, words) == 0
    written = pd.read_csv(out, keep_default_na=False, na_values={name: [""] for name in FINDINGS})
    table = model.predict([film, bad], progress=False)
    assert list(table.columns) == list(written.columns)
    np.testing.assert_allclose(table[list(FINDINGS)], written[list(FINDINGS)], atol=1e-6)
    assert list(table["error"]) == list(written["error"])
    one = model(film)
    np.testing.assert_allclose(list(one.scores.values()), table.loc[0, list(FINDINGS)].astype(float), atol=1e-6)
    assert "|".join(one.calls) == table.loc[0, "labels"]
    assert "neither DICOM" in model(bad).error
    assert model(bad).scores == {}


def test_an_array_scores_as_the_file_that_holds_it(run: SmallRun, model: vd.Model) -> None:
    film = vd.read_film(_film(run))
    by_file, by_array = model(_film(run)), model(film.pixels)
    np.testing.assert_allclose(list(by_array.scores.values()), list(by_file.scores.values()), atol=2e-3)
    grey = np.random.default_rng(1).integers(0, 256, (50, 60), dtype=np.uint8)
    np.testing.assert_allclose(
        list(model(grey).scores.values()), list(model(grey.astype(np.uint16) * 257).scores.values()), atol=1e-4
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 4), np.int64),
        np.zeros(5, np.uint8),
        np.full((4, 4), 255.0),
        np.full((4, 4), np.nan),
        np.zeros((0, 3)),
    ],
)
def test_an_array_without_a_scale_is_refused(model: vd.Model, image: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        model(image)


def test_a_model_and_a_prediction_can_be_looked_at(run: SmallRun, model: vd.Model) -> None:
    found = model(_film(run))
    assert repr(model).startswith("Model(cxr, vit:Ti/16, 3 classes, torch in fp32")
    assert found.scores.keys() == model.thresholds.keys() == set(FINDINGS)
    assert "Effusion" in repr(found)
    assert "<td>Effusion</td>" in found._repr_html_()
    assert "Research use only" in model.card


def test_explaining_saves_pictures(run: SmallRun, model: vd.Model, tmp_path: Path) -> None:
    made = model.explain(_film(run), ["Effusion", "Nodule"])
    assert made.heatmaps["Effusion"].shape == vd.read_film(_film(run)).pixels.shape
    assert made._repr_png_().startswith(b"\x89PNG")
    assert made.save(tmp_path / "o.PNG").read_bytes().startswith(b"\x89PNG")
    assert (model.explain(vd.read_film(_film(run)).pixels, "Nodule").heatmaps["Nodule"] >= 0).all()
    with pytest.raises(ExplainError, match="knows no finding Foot"):
        model.explain(_film(run), "Foot")
    with pytest.raises(ConfigError, match="ends in none of"):
        made.save(tmp_path / "o.gif")


def test_errors_name_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        vd.load(tmp_path)
    with pytest.raises(ConfigError, match="no domain"):
        vd.train("pathology")
    with pytest.raises(ConfigError, match=r"recipe\.lr"):
        vd.train("cxr", **{"recipe.lrr": 1})
    with pytest.raises(ConfigError, match="one twice"):
        vd.zero_shot([], ["a", "a"])
    with pytest.raises(ConfigError):
        vd.create_model("vit:Ti/16", 3, colour="red")


def test_evaluating_writes_nothing(run: SmallRun, model: vd.Model) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.bundle.rglob("*")}
    found = vd.evaluate(model, split="test", **{"run.bootstrap": 10})
    assert 0 <= found.metrics["auroc"]["value"] <= 1
    assert len(found.predictions) > 0
    assert before == {p: p.stat().st_mtime_ns for p in run.bundle.rglob("*")}


def test_training_takes_values_as_well_as_files(run: SmallRun) -> None:
    base = Source(name="csv", csv="manifest.csv")
    config = api._configured(DOMAIN, None, {"data.root": run.root, "data.sources": [vars(base)], "recipe.epochs": 3})
    assert config.recipe.epochs == 3
    assert config.data.sources == [base]
