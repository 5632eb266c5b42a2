"""The bundle: what is written is what is read, and nothing that was changed since is accepted."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitdomains.core.bundle import Bundle, load_model, read_bundle, update_bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import BundleError
from vitdomains.core.models.build import build_model

MODEL = Model(name="vit:Ti/16", channels=1, image_size=32, options={"depth": 1})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(
        path=tmp_path / "bundle", domain="toy", task_kind="multilabel", classes=("left", "right"), model=MODEL,
        preprocess=PreprocessSpec(32, 32, "letterbox", 1, (0.5,), (0.25,)), temperature=(1.5,), thresholds=(0.4, 0.6),
        threshold_rule="youden", metrics={"auroc": {"value": 0.9, "low": None, "high": None}}, data_card="squares",
        provenance={"seed": 0}, exports={}, files={},
    )  # fmt: skip
    weights = build_model(MODEL, 2).state_dict()
    return write_bundle(made, weights, lambda folder: (folder / "MODEL_CARD.md").write_text("card"))


def test_round_trip(bundle: Bundle) -> None:
    read = read_bundle(bundle.path)
    assert read == bundle
    assert set(read.files) == {"model.safetensors", "MODEL_CARD.md"}
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(load_model(read)(x), load_model(bundle)(x), rtol=0, atol=0)
    assert json.loads((bundle.path / "bundle.json").read_text())["id"] == read.id


def test_a_changed_file_is_refused(bundle: Bundle) -> None:
    weights = bundle.path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(BundleError, match="sha256 differs"):
        read_bundle(bundle.path)


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / "MODEL_CARD.md").unlink()
    with pytest.raises(BundleError, match="lacks MODEL_CARD.md"):
        read_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "bundle format 99"),
        ({"thresholds": [0.5]}, "1 thresholds"),
        ({"files": {"../../etc/passwd": "0"}}, "outside the bundle"),
        ({"surprise": 1}, "does not describe a bundle"),
        ({"files": {}}, "lists no model.safetensors"),
    ],
)
def test_a_wrong_description_is_refused(bundle: Bundle, change: dict[str, object], message: str) -> None:
    path = bundle.path / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.path)


def test_a_torn_description_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "bundle.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(BundleError, match="cannot be read"):
        read_bundle(bundle.path)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        read_bundle(tmp_path)


def test_the_id_stands_for_the_predictions(bundle: Bundle) -> None:
    reported = update_bundle(bundle, lambda folder: (folder / "extra.txt").write_text("more"), metrics={})
    assert reported.id == bundle.id
    assert read_bundle(bundle.path).files.keys() == {"model.safetensors", "MODEL_CARD.md", "extra.txt"}
    assert replace(bundle, thresholds=(0.4, 0.7)).id != bundle.id


def test_a_failed_write_leaves_the_old_bundle(bundle: Bundle) -> None:
    def fail(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_bundle(bundle, {}, fail)
    assert read_bundle(bundle.path).id == bundle.id
    assert os.listdir(bundle.path.parent) == ["bundle"]
