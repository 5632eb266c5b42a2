"""Metrics against scikit-learn, on random data with ties, weights and unknown labels; the bootstrap by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from vitdomains.core.evaluation.evaluate import evaluate
from vitdomains.core.metrics import scores
from vitdomains.core.metrics.bootstrap import draw, estimate, interval, replicate


def grouped_bootstrap(metric, y, s, groups, n=1000, seed=0):
    """(value, low, high) of a metric, as reports make them."""
    found = replicate(lambda w: {"metric": metric(y, s, weight=w)}, draw(groups, n, seed))
    return tuple(estimate(metric(y, s), found.get("metric", np.empty(0))).values())


@st.composite
def labelled_scores(draw_value):
    """Both outcomes, few distinct scores (so many ties), weights that may be zero."""
    n = draw_value(st.integers(2, 40))
    y = draw_value(hnp.arrays(np.int8, n, elements=st.integers(0, 1)))
    y[0], y[1] = 0, 1
    s = draw_value(hnp.arrays(np.int8, n, elements=st.integers(0, 6))) / 6.0
    w = draw_value(hnp.arrays(np.int8, n, elements=st.integers(0, 3))).astype(float)
    w[:2] = np.maximum(w[:2], 1.0)
    return y.astype(float), s, w


@settings(max_examples=80, deadline=None)
@given(labelled_scores())
def test_binary_metrics_equal_scikit_learn(sample):
    y, s, w = sample
    threshold = 0.5
    called = s >= threshold
    assert scores.auroc(y, s) == pytest.approx(sk.roc_auc_score(y, s))
    assert scores.auroc(y, s, weight=w) == pytest.approx(sk.roc_auc_score(y, s, sample_weight=w))
    assert scores.average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s))
    assert scores.average_precision(y, s, weight=w) == pytest.approx(sk.average_precision_score(y, s, sample_weight=w))
    together = scores.binary_metrics(y > 0.5, s, w[:, None], threshold)
    assert together["brier"] == pytest.approx(sk.brier_score_loss(y, s, sample_weight=w))
    for metric, label, score in (
        ("sensitivity", 1, sk.recall_score),
        ("specificity", 0, sk.recall_score),
        ("ppv", 1, sk.precision_score),
        ("npv", 0, sk.precision_score),
        ("f1", 1, sk.f1_score),
    ):
        expected = score(y, called, pos_label=label, sample_weight=w, zero_division=np.nan)
        assert together[metric] == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(labelled_scores())
def test_all_metrics_at_once_equal_them_one_by_one(sample):
    y, s, w = sample
    weights = np.stack([np.ones_like(w), w], axis=1)
    together = scores.binary_metrics(y > 0.5, s, weights, 0.4)
    assert tuple(together) == scores.BINARY_METRICS
    for name in ("auroc", "average_precision", "f1", "ece"):
        options = {"threshold": 0.4} if name == "f1" else {}
        alone = getattr(scores, name)(y, s, weight=weights, **options)
        np.testing.assert_allclose(together[name], alone, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_multiclass_metrics_equal_scikit_learn(k, n, seed):
    rng = np.random.default_rng(seed)
    truth, s, w = rng.integers(0, k, n), rng.dirichlet(np.ones(k), n), rng.integers(0, 3, n) + 0.5
    truth[:2] = 0, 1  # chance agreement of 1 leaves kappa undefined, there and here
    predicted = s.argmax(axis=1)
    one_hot = np.eye(k)[truth]
    assert scores.accuracy(truth, s, weight=w) == pytest.approx(sk.accuracy_score(truth, predicted, sample_weight=w))
    assert scores.macro_f1(one_hot, s) == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert scores.kappa(one_hot, s, weight=w) == pytest.approx(sk.cohen_kappa_score(truth, predicted, sample_weight=w))
    assert scores.nll(truth, s, weight=w) == pytest.approx(
        sk.log_loss(truth, s, sample_weight=w, labels=range(k)), rel=1e-6
    )
    assert scores.multiclass_brier(truth, s) == pytest.approx(np.mean(((s - one_hot) ** 2).sum(axis=1)))


def test_unknown_labels_are_left_out():
    rng = np.random.default_rng(0)
    y, s = (rng.random((200, 3)) < 0.4).astype(float), rng.random((200, 3))
    y[rng.random(y.shape) < 0.3] = np.nan
    expected = [sk.roc_auc_score(y[~np.isnan(y[:, k]), k], s[~np.isnan(y[:, k]), k]) for k in range(3)]
    assert scores.auroc(y, s) == pytest.approx(np.mean(expected))
    one_hot = np.eye(4)[rng.integers(0, 4, 50)]
    one_hot[:10] = np.nan
    s = rng.dirichlet(np.ones(4), 50)
    assert scores.accuracy(one_hot, s) == pytest.approx(np.mean(s[10:].argmax(1) == one_hot[10:].argmax(1)))


@pytest.mark.parametrize("label", [0.0, 1.0, np.nan])
def test_one_outcome_only_is_nan(label):
    y, s = np.full(5, label), np.linspace(0, 1, 5)
    assert np.isnan(scores.auroc(y, s))
    assert np.isnan(scores.auroc(y, s, weight=np.ones((5, 2)))).all()
    if label != 1.0:
        assert np.isnan(scores.average_precision(y, s))
        assert np.isnan(scores.f1(y, s))
    # An undefined class has no say in a macro value.
    both = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert scores.auroc(np.stack([y, both], 1), np.stack([s, s], 1)) == 1.0


def test_a_threshold_decides_what_is_called():
    y, s = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.6, 0.3], [0.1, 0.1]])
    assert scores.f1(y, s, threshold=0.5) == 0.5 and scores.f1(y, s, threshold=0.2) == 1.0
    found = evaluate(y, s, [0, 1], "ab", (0.5, 0.2), bootstrap=0)
    assert found["macro"]["sensitivity"]["value"] == 1.0  # thresholds may differ by class


def test_bad_shapes_and_two_classes_in_a_row_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        scores.auroc(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="more than one class"):
        scores.accuracy(np.ones((2, 2)), np.full((2, 2), 0.5))


def test_equal_width_ece_equals_monai():
    from monai.metrics import calibration_binning  # slow to import, and needed here only
    from torch import as_tensor

    rng = np.random.default_rng(1)
    s = rng.random(400)
    y = (rng.random(400) < s**1.5).astype(float)
    mean_p, mean_y, count = calibration_binning(
        as_tensor(s).reshape(1, 1, -1), as_tensor(y).reshape(1, 1, -1), num_bins=15
    )
    gap = (abs(mean_p - mean_y) * count).nansum() / count.sum()
    assert scores.ece(y, s, binning="width") == pytest.approx(float(gap), abs=1e-6)


def test_equal_mass_ece_by_hand():
    s = np.repeat([0.2, 0.8], 50)
    y = np.concatenate([np.arange(50) < 10, np.arange(50) < 30]).astype(float)  # observed 0.2 and 0.6
    assert scores.ece(y, s) == pytest.approx(0.5 * 0.2)
    assert np.bincount(scores.bin_indices(np.linspace(0, 1, 150)), minlength=15).tolist() == [10] * 15


def test_perfectly_calibrated_scores_have_a_small_ece():
    rng = np.random.default_rng(2)
    s = rng.random(20_000)
    y = (rng.random(20_000) < s).astype(float)
    assert scores.ece(y, s) < 0.015
    assert scores.ece(y, np.clip(s * 1.5, 0, 1)) > 0.1


def test_bootstrap_equals_copying_the_drawn_rows():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 12, 80)
    y, s = (rng.random(80) < 0.4).astype(float), rng.integers(0, 9, 80) / 8
    draws = draw(groups, 30, seed=5)
    assert draws.groups == 12
    assert (draws.counts.sum(axis=0) == 12).all()
    weights = np.concatenate(list(draws.weights()), axis=1)
    got = scores.auroc(y, s, weight=weights)
    for r in range(30):
        rows = np.repeat(np.arange(80), weights[:, r].astype(int))
        assert got[r] == pytest.approx(sk.roc_auc_score(y[rows], s[rows]))
    value, low, high = grouped_bootstrap(scores.auroc, y, s, groups, n=30, seed=5)
    assert (low, high) == pytest.approx(tuple(np.percentile(got, [2.5, 97.5])))
    assert value == pytest.approx(sk.roc_auc_score(y, s))


def test_intervals_follow_groups_not_rows():
    """Ten copies of each row add no evidence: by group the interval stays, by row it shrinks to a third."""
    rng = np.random.default_rng(4)
    y = (rng.random(60) < 0.5).astype(float)
    s = y + rng.normal(size=60)
    copies, groups = np.repeat(np.arange(60), 10), np.repeat(np.arange(60), 10)
    _, low, high = grouped_bootstrap(scores.auroc, y, s, np.arange(60), n=400)
    _, low_g, high_g = grouped_bootstrap(scores.auroc, y[copies], s[copies], groups, n=400)
    _, low_r, high_r = grouped_bootstrap(scores.auroc, y[copies], s[copies], np.arange(600), n=400)
    # Replicates are the same up to the order in which groups are named.
    assert high_g - low_g == pytest.approx(high - low, rel=0.2)
    assert high_r - low_r < 0.5 * (high_g - low_g)


def test_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    truth = 0.7602  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    hits = 0
    for _ in range(120):
        y = (rng.random(200) < 0.5).astype(float)
        _, low, high = grouped_bootstrap(scores.auroc, y, y + rng.normal(size=200), np.arange(200), n=200)
        hits += low <= truth <= high
    assert 104 <= hits <= 120


def test_no_interval_where_there_is_no_spread():
    y, s = np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.9, 0.4])
    value, low, high = grouped_bootstrap(scores.auroc, y, s, ["a", "a", "a"])
    assert value == 1.0
    assert np.isnan([low, high]).all()
    assert np.isnan(interval(np.array([np.nan, np.nan, 0.5]))).all()


def test_bootstrap_of_a_large_split_takes_seconds():
    rng = np.random.default_rng(7)
    y = (rng.random((5000, 14)) < 0.1).astype(float)
    s = rng.random((5000, 14))
    start = time.process_time()
    grouped_bootstrap(scores.auroc, y, s, rng.integers(0, 1500, 5000), n=1000)
    assert time.process_time() - start < 15.0  # about 1.2 s on one idle core
