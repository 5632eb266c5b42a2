"""Floors: chance where there is nothing to learn, high where the metadata or the thumbnail gives the answer away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.evaluation.baselines import floors, thumbnail
from vitdomains.core.metrics import scores as metrics


def sample(n, seed):
    """Three classes: the first follows the view, the second the top left of the thumbnail, the third nothing."""
    rng = np.random.default_rng(seed)
    view = rng.integers(0, 2, n)
    pixels = rng.normal(size=(n, 16, 16))
    y = np.stack(
        [rng.random(n) < 0.15 + 0.7 * view, pixels[:, :4, :4].mean(axis=(1, 2)) > 0, rng.random(n) < 0.3], axis=1
    ).astype(float)
    y[rng.random(y.shape) < 0.1] = np.nan
    meta = pd.DataFrame(
        {
            "view": np.where(view, "AP", "PA"),
            "age": np.where(rng.random(n) < 0.2, np.nan, rng.normal(50, 9, n)),
            "id": [f"p{i}" for i in range(n)],  # too many values to be a category
            "site": "one",
        }
    )
    return y, pixels, meta


def test_floors_find_what_is_there_and_no_more():
    y, pixels, meta = sample(300, 0)
    y_test, pixels_test, meta_test = sample(240, 1)
    meta_test.loc[0, "view"] = "LATERAL"  # a value that training never saw
    scores = np.clip(np.nan_to_num(y_test, nan=0.5) * 0.6 + np.random.default_rng(2).random(y_test.shape) * 0.4, 0, 1)
    found = floors(
        y, y_test, scores, np.arange(240) // 2, train_groups=np.arange(300) // 3,
        train_thumbnails=pixels, test_thumbnails=pixels_test, train_meta=meta, test_meta=meta_test, bootstrap=200,
    )  # fmt: skip
    assert list(found) == ["shuffled", "metadata", "thumbnail"]
    for cells in found.values():
        cell = cells["auroc"]
        assert cell["low"] <= cell["value"] <= cell["high"]
        margin = cells["margin"]["auroc"]
        assert margin["value"] == pytest.approx(metrics.auroc(y_test, scores) - cell["value"])
        assert margin["low"] > 0  # this model knows the labels
    # One class of three can be told, two are chance: about (0.85 + 0.5 + 0.5) / 3.
    assert found["shuffled"]["auroc"]["low"] < 0.5 < found["shuffled"]["auroc"]["high"]
    assert 0.56 < found["metadata"]["auroc"]["value"] < 0.68
    assert 0.56 < found["thumbnail"]["auroc"]["value"] < 0.70
    assert found["metadata"]["note"].startswith("age, view; fitted on 300 of 300")
    again = floors(y, y_test, scores, np.arange(240) // 2, bootstrap=200)
    assert again == {"shuffled": found["shuffled"]}


def test_single_label_floors_are_accuracies():
    rng = np.random.default_rng(3)
    truth, truth_test = rng.integers(0, 3, 150), rng.integers(0, 3, 120)
    pixels, pixels_test = rng.normal(size=(150, 64)), rng.normal(size=(120, 64))
    pixels[:, 0] += 3 * (truth == 1)
    pixels_test[:, 0] += 3 * (truth_test == 1)
    one_hot, one_hot_test = np.eye(4)[truth], np.eye(4)[truth_test]  # the fourth class has no case
    found = floors(
        one_hot, one_hot_test, 0.1 + 0.6 * one_hot_test, np.arange(120), "singlelabel",
        train_thumbnails=pixels, test_thumbnails=pixels_test, bootstrap=100,
    )  # fmt: skip
    assert found["shuffled"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=0.12)
    assert found["thumbnail"]["accuracy"]["value"] > 0.45
    assert set(found["thumbnail"]) == {"accuracy", "macro_f1", "margin", "note"}


def test_a_class_without_both_outcomes_and_constant_metadata_do_no_harm():
    y = np.zeros((40, 2))
    y[:20, 0] = 1
    pixels = np.random.default_rng(4).normal(size=(40, 9))
    found = floors(
        y, y, np.full((40, 2), 0.5), np.arange(40), train_thumbnails=pixels, test_thumbnails=pixels,
        train_meta=pd.DataFrame({"view": ["PA"] * 40}), test_meta=pd.DataFrame({"view": ["PA"] * 40}), bootstrap=20,
    )  # fmt: skip
    assert list(found) == ["shuffled", "thumbnail"]
    assert found["shuffled"]["auroc"]["value"] == 0.5


def test_thumbnail_is_an_area_mean():
    image = np.zeros((64, 128), np.float32)
    image[:, :64] = 1.0
    small = thumbnail(image, 4).reshape(4, 4)
    np.testing.assert_allclose(small, [[1, 1, 0, 0]] * 4)
    assert thumbnail(np.zeros((50, 40, 3))).shape == (32 * 32 * 3,)
