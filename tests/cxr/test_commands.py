"""The chest X-ray commands on a handful of phantoms: from drawing them to predictions of DICOM files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vitdomains.core import pipeline
from vitdomains.core.bundle import read_bundle
from vitdomains.core.commands import cli
from vitdomains.core.config.parse import config_from_dict, config_to_dict
from vitdomains.core.config.schema import Config, Source
from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.cxr import DOMAIN, default_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "cxr"


@pytest.fixture(autouse=True)
def no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands restart their process for a faster allocator; a test runner must stay where it is."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("cxr")
    main = default_config()
    small = replace(
        main,
        data=replace(
            main.data, root=str(base / "phantoms"), sources=[Source(name="phantoms", limit=40)], image_size=64
        ),
        recipe=replace(main.recipe, epochs=2, progressive_sizes=[(0.5, 32), (1.0, 64)], batch_size=8),
        run=replace(main.run, dir=str(base / "run"), bootstrap=20, threads=1),
    )
    pipeline.train(DOMAIN, small)
    return base


def test_the_main_job_leaves_a_bundle(trained: Path) -> None:
    bundle = read_bundle(trained / "run" / "bundle")
    assert bundle.domain == "cxr" and bundle.data_card == "phantoms"
    report = json.loads((bundle.path / "report" / "report.json").read_text())
    assert {"shuffled", "metadata", "thumbnail"} <= set(report["baselines"])
    assert {"age", "width", "height", "view"} <= set(report["baselines"]["metadata"]["note"].split(";")[0].split(", "))
    assert "Not a medical device" in (bundle.path / "MODEL_CARD.md").read_text()
    assert "Not a medical device" in (bundle.path / "report" / "report.html").read_text()


def test_no_patient_in_what_is_exported(trained: Path) -> None:
    predictions = pd.read_csv(trained / "run" / "bundle" / "report" / "predictions.csv")
    assert "group" not in predictions and "patient" not in predictions


def test_predict_reads_folders_and_lists_what_is_wrong(trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"\0" * 128 + b"DICM")
    out = tmp_path / "predictions.csv"
    words = [
        "predict",
        str(trained / "run" / "bundle"),
        str(bad),
        str(trained / "phantoms" / "films"),
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    assert cli.main(DOMAIN, words) == 0
    table = pd.read_csv(out)
    assert len(table) == 41 and Path(table["path"][0]).name == "bad.dcm"
    assert table["error"].notna().tolist() == [True] + [False] * 40
    scores = table[list(read_bundle(trained / "run" / "bundle").classes)]
    assert scores[1:].to_numpy().min() >= 0 and scores[1:].to_numpy().max() <= 1


def test_explain_draws_a_phantom(trained: Path, tmp_path: Path) -> None:
    film = sorted((trained / "phantoms" / "films").iterdir())[0]
    words = [
        "explain",
        str(trained / "run" / "bundle"),
        str(film),
        "--finding",
        "Effusion",
        "--method",
        "rollout",
        "--out",
        str(tmp_path / "o.png"),
    ]
    assert cli.main(DOMAIN, words) == 0
    assert (tmp_path / "o.png").stat().st_size > 1000


def test_the_shipped_file_of_the_main_job_is_the_main_job() -> None:
    shipped = config_from_dict(read_yaml(str(CONFIGS / "phantoms.yaml")), Config())
    assert config_to_dict(shipped) == config_to_dict(default_config())


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_file_is_taken(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command itself; what the file does not say comes from the plain defaults, not from the main job."""
    with pytest.raises(SystemExit) as left:
        cli.main(DOMAIN, ["train", "--config", str(CONFIGS / name), "--print_config"])
    assert left.value.code == 0
    assert "image_size" in capsys.readouterr().out


def test_a_fine_tuned_config_goes_from_file_to_bundle_on_the_real_films(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "vit_tiny_patch16_224.tinyimagenet200.fp16.safetensors"
    words = ["train", "--data.root", str(shared / "data" / "nih_cxr14_subset"),
             "--data.sources", '[{"name": "nih", "csv": "Data_Entry_2017_subset.csv", "limit": 60}]', "--data.image_size", "96",
             "--data.classes", "Pneumonia,Infiltration", "--model.name", "vit:Ti/16", "--model.weights", str(weights),
             "--model.channels", "3", "--model.options", "{}", "--recipe.region_weight", "0", "--recipe.progressive_sizes", "[]",
             "--recipe.epochs", "1", "--run.dir", str(tmp_path / "run"), "--run.bootstrap", "10"]  # fmt: skip
    assert cli.main(DOMAIN, words) == 0
    bundle = read_bundle(tmp_path / "run" / "bundle")
    assert bundle.classes == ("Pneumonia", "Infiltration")
    assert bundle.provenance["weights"]["sha256"]
