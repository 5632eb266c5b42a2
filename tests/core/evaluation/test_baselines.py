"""Baselines: chance where there is nothing to learn, high where the metadata or the thumbnail gives the answer away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.evaluation import baselines as module
from vitdomains.core.evaluation.baselines import Sample, baselines
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


def test_baselines_find_what_is_there_and_no_more(monkeypatch):
    y, pixels, meta = sample(300, 0)
    y_test, pixels_test, meta_test = sample(240, 1)
    meta_test.loc[0, "view"] = "LATERAL"  # a value that training never saw
    scores = np.clip(np.nan_to_num(y_test, nan=0.5) * 0.6 + np.random.default_rng(2).random(y_test.shape) * 0.4, 0, 1)
    asked: list[int] = []

    def small(rows):
        asked.append(len(rows))
        return pixels_test[rows].reshape(len(rows), -1)

    test = Sample(y_test, np.arange(240) // 2, small, meta_test)
    train = Sample(y, np.arange(300) // 3, pixels.reshape(300, -1).__getitem__, meta)
    monkeypatch.setattr(module, "_CHUNK", 100)
    found = baselines(test, scores, "multilabel", train, bootstrap=200)
    assert asked == [100, 100, 40]  # never all of them at once
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
    again = baselines(Sample(y_test, np.arange(240) // 2), scores, bootstrap=200)
    assert again == {"shuffled": found["shuffled"]}


def test_without_a_training_split_they_are_cross_validated_by_group(monkeypatch):
    y, pixels, meta = sample(240, 1)
    y[:, 2] = np.nan
    scores = np.nan_to_num(y, nan=0.5)
    monkeypatch.setattr(module, "MAX_ROWS", 200)
    groups = np.arange(240) // 2
    found = baselines(Sample(y, groups, pixels.reshape(240, -1).__getitem__, meta), scores, bootstrap=50)
    assert 0.6 < found["metadata"]["auroc"]["value"] < 0.8 and 0.5 < found["thumbnail"]["auroc"]["value"] < 0.95
    assert "cross-validated by group on 200 of the 240 images" in found["metadata"]["note"]
    assert found["metadata"]["margin"]["auroc"]["value"] == pytest.approx(1 - found["metadata"]["auroc"]["value"])
    assert list(baselines(Sample(y, np.zeros(240), pixels.reshape(240, -1).__getitem__), scores, bootstrap=5)) == [
        "shuffled"
    ]


def test_single_label_baselines_are_accuracies():
    rng = np.random.default_rng(3)
    truth, truth_test = rng.integers(0, 3, 150), rng.integers(0, 3, 120)
    pixels, pixels_test = rng.normal(size=(150, 64)), rng.normal(size=(120, 64))
    pixels[:, 0] += 3 * (truth == 1)
    pixels_test[:, 0] += 3 * (truth_test == 1)
    one_hot, one_hot_test = np.eye(4)[truth], np.eye(4)[truth_test]  # the fourth class has no case
    test, train = (
        Sample(one_hot_test, np.arange(120), pixels_test.__getitem__),
        Sample(one_hot, np.arange(150), pixels.__getitem__),
    )
    found = baselines(test, 0.1 + 0.6 * one_hot_test, "singlelabel", train, bootstrap=100)
    assert found["shuffled"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=0.12)
    assert found["thumbnail"]["accuracy"]["value"] > 0.45
    assert set(found["thumbnail"]) == {"accuracy", "macro_f1", "margin", "note"}


def test_a_class_without_both_outcomes_and_constant_metadata_do_no_harm():
    y = np.zeros((40, 2))
    y[:20, 0] = 1
    pixels = np.random.default_rng(4).normal(size=(40, 9))
    images = Sample(y, np.arange(40), pixels.__getitem__, pd.DataFrame({"view": ["PA"] * 40}))
    found = baselines(images, np.full((40, 2), 0.5), "multilabel", images, bootstrap=20)
    assert list(found) == ["shuffled", "thumbnail"]
    assert found["shuffled"]["auroc"]["value"] == 0.5
