"""Temperature and operating points: known answers, and classes that a validation split cannot judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.errors import ConfigError
from vitdomains.core.metrics import scores
from vitdomains.core.metrics.calibrate import calibration_notes, choose_thresholds, fit_temperature


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_multilabel_temperature_is_recovered(true_temperature):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(8000, 3)) * 2
    y = (rng.random(z.shape) < sigmoid(z)).astype(float)
    y[rng.random(z.shape) < 0.2] = np.nan
    (found,) = fit_temperature(z * true_temperature, y)
    assert found == pytest.approx(true_temperature, rel=0.06)
    each = fit_temperature(z * np.array([true_temperature, 1.0, 2.0]), y, per_class=True)
    assert each == pytest.approx((true_temperature, 1.0, 2.0), rel=0.1)


def test_singlelabel_temperature_is_recovered_and_lowers_the_nll():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6000, 5)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    truth = (p.cumsum(axis=1) > rng.random((6000, 1))).argmax(axis=1)
    y = np.eye(5)[truth]
    y[:50] = np.nan
    (found,) = fit_temperature(z * 2.5, y, "singlelabel")
    assert found == pytest.approx(2.5, rel=0.05)

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert scores.nll(y, softmax(z * 2.5 / found)) < scores.nll(y, softmax(z * 2.5))
    with pytest.raises(ConfigError, match="one temperature"):
        fit_temperature(z, y, "singlelabel", per_class=True)


def test_temperature_stays_finite_where_labels_cannot_tell():
    z = np.array([[-4.0, 1.0], [4.0, 2.0], [5.0, 0.3]])
    y = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, np.nan]])
    separated, one_outcome = fit_temperature(z, y, per_class=True)
    assert 0.05 <= separated <= 0.06  # any confidence is too little: the bound holds
    assert one_outcome == 1.0
    assert fit_temperature(z, np.full_like(y, np.nan)) == (1.0,)
    assert fit_temperature(z[:, :1] * 1e4, y[:, :1])[0] > 0  # huge logits do not overflow


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 12))
def test_thresholds_do_what_their_rule_says(seed, n, distinct):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n).astype(float)
    y[:2] = 0, 1
    s = rng.integers(0, distinct, n) / (distinct - 1)
    trial = np.concatenate([np.unique(s), [1.5]])

    def at(metric, threshold):
        return float(scores.binary_metrics(y > 0.5, s, np.ones((n, 1)), threshold)[metric][0])

    def youden(threshold):
        return at("sensitivity", threshold) + at("specificity", threshold)

    (best,) = choose_thresholds(y[:, None], s[:, None], "youden")
    assert youden(best) == pytest.approx(max(youden(t) for t in trial))
    (best,) = choose_thresholds(y[:, None], s[:, None], "f1")
    assert at("f1", best) == pytest.approx(max(at("f1", t) for t in trial))
    for rule, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")):
        (chosen,) = choose_thresholds(y[:, None], s[:, None], rule, 0.8)
        assert at(rule, chosen) >= 0.8
        assert at(other, chosen) == pytest.approx(max(at(other, t) for t in trial if at(rule, t) >= 0.8))


def test_thresholds_stand_between_scores():
    y, s = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.1], [0.2], [0.6], [0.9]])
    assert choose_thresholds(y, s) == pytest.approx((0.4,))
    assert choose_thresholds(y, s, "specificity", 1.0) == pytest.approx((0.4,))


def test_a_class_without_both_outcomes_gets_one_half_and_a_note(caplog):
    y = np.zeros((30, 4))
    y[:15, 1] = 1
    y[0, 2] = 1
    y[:, 3] = np.nan
    s = np.linspace(0, 1, 30)[:, None] * np.ones(4)
    thresholds = choose_thresholds(y, s)
    assert thresholds[0] == thresholds[3] == 0.5
    with caplog.at_level("WARNING"):
        notes = calibration_notes(y, ["none", "enough", "one", "unknown"])
    assert [note.split(":")[0] for note in notes] == ["none", "one", "unknown"]
    assert "no positive case" in notes[0]
    assert "only 1 positive case in" in notes[1]
    assert len(caplog.records) == 3


def test_impossible_rules_are_refused():
    y, s = np.array([[0.0], [1.0]]), np.array([[0.2], [0.8]])
    with pytest.raises(ConfigError, match="roc01"):
        choose_thresholds(y, s, "roc01")
    with pytest.raises(ConfigError, match="90"):
        choose_thresholds(y, s, "sensitivity", 90)
