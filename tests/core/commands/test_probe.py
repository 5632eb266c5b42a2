"""The probes: neighbours vote as in the paper, the command measures any backbone, nothing of the head gets in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core import toy
from tests.core.models.test_build import HF, SWIN, VIT
from vitdomains.core.commands import cli
from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import build_model
from vitdomains.core.probe import headless, knn_scores, linear_probe

ONE_HOT = np.eye(2)


BACKBONES = [
    ("vit:Ti/16", {"depth": 1, "pool": "token+avg"}, 32),
    ("vit:Ti/16", {"depth": 1, "distilled": True}, 32),
    ("timm:deit_tiny_distilled_patch16_224", VIT, 32),
    ("timm:swin_tiny_patch4_window7_224", SWIN, 64),
    ("timm:convnext_atto", {}, 32),
    ("hf:dinov2", {**HF, "mlp_ratio": 2}, 32),
    ("hf:deit", {**HF, "architectures": ["DeiTForImageClassificationWithTeacher"]}, 32),
]


@pytest.mark.parametrize(
    ("name", "options", "size"), BACKBONES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_features_are_what_the_head_sees(name: str, options: dict[str, object], size: int) -> None:
    """The headless model does not know how many classes its head had, and a linear head on its features gives the logits."""
    x = torch.randn(2, 3, size, size)
    torch.manual_seed(0)
    model = build_model(Model(name=name, options=options), 5, image_size=size).eval()
    body = {n: p.clone() for n, p in model.state_dict().items()}
    with torch.inference_mode():
        whole = model(x)
        features = headless(model)(x)
    assert features.ndim == 2 and len(features) == 2
    removed = {n: p for n, p in body.items() if n not in model.state_dict()}
    heads = [p for p in removed.values() if p.ndim == 2]
    if len(heads) == 1:  # with a distillation head the logits are a mean of two
        (weight,), (bias,) = heads, [p for p in removed.values() if p.ndim == 1 and len(p) == 5]
        assert torch.allclose(features @ weight.T + bias, whole, atol=1e-4)
    else:
        assert len(heads) == 2


def test_pooled_logits_are_no_features() -> None:
    with pytest.raises(ConfigError, match="no pooled features"):
        headless(build_model(Model(name="vit:Ti/16", options={"pool": "lse", "depth": 1}), 3, image_size=32))


def test_neighbours_vote_by_their_similarity() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    y = ONE_HOT[[0, 0, 1]]
    new = np.array([[1.0, 1.0], [5.0, 0.0]])
    assert np.allclose(knn_scores(x, y, new, k=3)[0], [2 / 3, 1 / 3])
    far = np.exp((0 - 1) / 0.07)
    assert np.allclose(knn_scores(x, y, new, k=3)[1], [2 / (2 + far), far / (2 + far)])
    assert np.array_equal(knn_scores(x, y, new, k=1)[1], [1.0, 0.0])
    assert np.allclose(knn_scores(x, y, new, k=99, temperature=1e6), [[2 / 3, 1 / 3]] * 2, atol=1e-5)
    wide = knn_scores(x, y, new, k=2, temperature=0.5)
    assert np.allclose(wide[1], [1.0, 0.0]) and np.isclose(wide[0].sum(), 1.0)
    assert np.array_equal(knn_scores(x, y, new, k=3), knn_scores(x, y, new, k=3, chunk=1))


def test_unknown_labels_do_not_vote() -> None:
    x, new = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), np.array([[1.0, 0.0]])
    y = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, 1.0], [0.0, 0.0]])
    scores = knn_scores(x, y, new, k=2)
    assert scores[0, 0] == 1.0  # the other neighbour does not know
    assert scores[0, 1] == 0.5  # no neighbour knows: the share of positives


def test_the_strength_is_chosen_on_the_validation_split() -> None:
    rng = np.random.default_rng(0)
    y = ONE_HOT[rng.integers(0, 2, 300)]
    x = rng.normal(size=(300, 40)) + 1.5 * y[:, :1] * np.eye(40)[0]
    scores, strength = linear_probe(x[:100], y[:100], x[100:200], y[100:200], x[200:], "singlelabel")
    assert strength < 1.0  # forty inputs and a hundred images: shrinkage helps
    assert np.mean(scores.argmax(axis=1) == y[200:].argmax(axis=1)) > 0.7


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = toy.write_images(tmp_path / "images", n=80)
    words = ["probe", "--data.root", str(root), "--run.dir", str(tmp_path / "run"), "--k", "5"]
    assert cli.main(toy.DOMAIN, words) == 0
    shown = capsys.readouterr().out
    assert "linear probe, C = " in shown and "5-NN" in shown and "auroc" in shown
    made = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert made["images"] == {"train": 48, "val": 16, "test": 16} and made["features"] == 192 and made["k"] == 5
    linear = made["test"]["linear"]["auroc"]
    assert 0.5 < linear["value"] <= 1 and linear["low"] <= linear["value"] <= linear["high"]


@pytest.mark.parametrize("words", [["--k", "0"], ["--recipe.lr"], ["--model.options", "{pool: lse}"]])
def test_what_cannot_be_probed_is_said(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = toy.write_images(tmp_path / "images", n=20)
    assert cli.main(toy.DOMAIN, ["probe", "--data.root", str(root), "--run.dir", str(tmp_path), *words]) == 2
    assert "error: " in capsys.readouterr().err
