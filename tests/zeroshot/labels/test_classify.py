"""From vectors to labels: calibration, prior, unknown, levels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.geo.map.tiles_table import UNKNOWN, tile_table
from vitdomains.zeroshot.labels.classify import Classifier, calibrated, corrected_for_prior, decide, top_k
from vitdomains.zeroshot.labels.prompts import make_prompts

PROMPTS = make_prompts(
    {
        "classes": [
            {"name": "forest", "parent": "natural/plants"},
            {"name": "grass", "parent": "natural/plants"},
            {"name": "water", "parent": "natural"},
            {"name": "town"},
            {"name": "cloud", "background": True},
        ]
    },
    ["{}"],
)
K = 5


def classifier(threshold: float = 0.0, kind: str = "softmax", scale: float = 10.0) -> Classifier:
    weights = scale * np.eye(K, 8, dtype=np.float32)
    return Classifier(PROMPTS, weights, np.zeros(K, np.float32), kind, (threshold,) * K)  # type: ignore[arg-type]


def decided(scores: list[list[float]], model: Classifier) -> pd.DataFrame:
    n = len(scores)
    plan = pd.DataFrame({"tile_id": [str(i) for i in range(n)], "scene": "s", "path": "p", "col": 0, "row": 0, "width": 1,
                         "height": 1})  # fmt: skip
    table = tile_table(plan, np.array(scores), PROMPTS.names, model_id="m", kind=model.task_kind,
                       thresholds=model.thresholds)  # fmt: skip
    return decide(table, model)


def test_scores_are_a_softmax_or_sigmoids_of_scaled_cosines() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = 10 * vectors[:, :K]
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier().probabilities(vectors), soft, atol=1e-5)
    np.testing.assert_allclose(classifier(kind="sigmoid").probabilities(vectors), 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert np.isnan(classifier().probabilities(np.full((1, 8), np.nan, np.float32))).all()


def test_the_label_is_at_the_level_that_is_certain() -> None:
    table = decided(
        [
            [0.70, 0.20, 0.05, 0.03, 0.02],  # certain of the class
            [0.40, 0.35, 0.10, 0.10, 0.05],  # only of plants
            [0.30, 0.22, 0.15, 0.30, 0.03],  # of natural, for plants are 0.52
            [0.30, 0.10, 0.10, 0.45, 0.05],  # of nothing: town has no group
            [0.05, 0.05, 0.05, 0.05, 0.80],  # background
            [np.nan] * K,
        ],
        classifier(threshold=0.6),
    )
    assert list(table["label"]) == ["forest", "plants", "natural", UNKNOWN, UNKNOWN, ""]
    np.testing.assert_allclose(table["probability"][:3], [0.70, 0.75, 0.67], atol=1e-6)
    table = decided([[0.40, 0.35, 0.10, 0.10, 0.05], [0.05, 0.05, 0.05, 0.05, 0.80]], classifier())
    assert list(table["label"]) == ["forest", UNKNOWN]


def test_with_sigmoids_a_tile_has_any_number_of_classes() -> None:
    table = decided([[0.9, 0.6, 0.1, 0.2, 0.9], [0.1, 0.1, 0.1, 0.1, 0.1]], classifier(0.5, "sigmoid"))
    assert list(table["label"]) == ["forest|grass", UNKNOWN]


def test_the_best_classes_are_listed_with_their_probabilities() -> None:
    table = decided([[0.1, 0.2, 0.0, 0.4, 0.3], [np.nan] * K], classifier())
    assert top_k(table, PROMPTS.names, 2) == ["town 0.400; cloud 0.300", ""]


def test_a_scene_is_corrected_for_its_own_shares() -> None:
    rng = np.random.default_rng(1)
    shares = np.array([0.8, 0.15, 0.05])
    truth = rng.choice(3, 6000, p=shares)
    x = rng.normal(size=(6000, 3)) + 1.5 * np.eye(3)[truth]  # posteriors under a uniform prior are a softmax of 1.5 x
    p = np.exp(1.5 * x)
    p /= p.sum(axis=1, keepdims=True)
    p[0] = np.nan
    corrected, found = corrected_for_prior(p)
    np.testing.assert_allclose(found, shares, atol=0.02)
    assert np.isnan(corrected[0]).all()
    np.testing.assert_allclose(corrected[1:].sum(axis=1), 1.0)
    before, after = ((q[1:].argmax(axis=1) == truth[1:]).mean() for q in (p, corrected))
    assert after > before + 0.04
    nothing, even = corrected_for_prior(np.full((2, 3), np.nan))
    assert np.isnan(nothing).all() and even == pytest.approx([1 / 3] * 3)


def test_a_labelled_sample_sets_temperature_and_thresholds() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 400)  # no cloud in the sample
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    vectors[np.arange(400), truth] += 2.0
    targets = np.eye(K)[truth]
    loud = classifier(scale=50.0)
    fitted = calibrated(loud, vectors, targets)
    assert fitted.temperature > 5 and fitted.calibrated_on == 400

    def nll(model: Classifier) -> float:
        return float(-np.log(model.probabilities(vectors)[np.arange(400), truth] + 1e-300).mean())

    assert nll(fitted) < nll(loud)
    assert all(0 < t < 1 for t in fitted.thresholds[:4]) and fitted.thresholds[4] == 0.0
