"""Metrics as pure functions of labels and scores; rows whose label is NaN (unknown) are left out.

Every function takes ``y_true``, ``y_score`` and an optional ``weight``. Labels and scores are [N], or [N, K] for the
mean over the classes where the metric is defined. ``weight`` is [N] (the result is a float) or [N, R] for R sets of
row weights at once (the result is [R]), which is how the bootstrap gets a thousand replicates for the price of one
sort. A metric that is undefined (AUROC with one outcome only, PPV without a positive call) is NaN, never an exception.
Scores are probabilities, 0..1; a row is called positive at ``y_score >= threshold``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


class Metric(Protocol):
    """``(y_true, y_score, *, weight)`` -> float, or [R] for ``weight`` [N, R]; ``threshold`` and others by name."""

    __name__: str

    @overload
    def __call__(
        self, y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, weight: None = None, **options: Any
    ) -> float: ...
    @overload
    def __call__(self, y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, weight: Array, **options: Any) -> Any: ...


def ratio(numerator: Array, denominator: Array) -> Array:
    """Elementwise quotient, NaN where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def mean_defined(values: Array, weight: Array | None = None) -> Array:
    """Mean over the first axis of the entries that are not NaN; NaN where there is none.

    Args:
        values: [K, ...].
        weight: [K], not negative; all the same if absent.
    """
    known = ~np.isnan(values)
    w = known.astype(np.float64) if weight is None else known * weight.reshape(-1, *[1] * (values.ndim - 1))
    return ratio(np.sum(np.where(known, values, 0.0) * w, axis=0), np.sum(w, axis=0))


def _columns(weight: npt.ArrayLike | None, n: int) -> tuple[Array, bool]:
    """Row weights as [N, R], and whether the caller wants a float."""
    w = np.ones((n, 1)) if weight is None else np.asarray(weight, dtype=np.float64)
    if w.shape[0] != n:
        raise ValueError(f"weight has {w.shape[0]} rows, y_true has {n}")
    return (w[:, None], True) if w.ndim == 1 else (w, weight is None)


def binary(kernel: Callable[..., Array]) -> Metric:
    """A metric from a kernel ``(y [N] bool, s [N], w [N, R], **options) -> [R]``, which sees known labels only."""

    @functools.wraps(kernel)
    def metric(
        y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, weight: npt.ArrayLike | None = None, **options: Any
    ) -> float | Array:
        y, s = np.asarray(y_true, dtype=np.float64), np.asarray(y_score, dtype=np.float64)
        if y.shape != s.shape or y.ndim not in (1, 2):
            raise ValueError(f"y_true {y.shape} and y_score {s.shape} must have the same shape, [N] or [N, K]")
        w, scalar = _columns(weight, len(y))
        if y.ndim == 1:
            y, s = y[:, None], s[:, None]
        values = np.full((y.shape[1], w.shape[1]), np.nan)
        for k in range(y.shape[1]):
            rows = ~np.isnan(y[:, k])
            if rows.any():
                values[k] = kernel(y[rows, k] > 0.5, s[rows, k], w if rows.all() else w[rows], **options)
        mean = mean_defined(values)
        return float(mean[0]) if scalar else mean

    return metric  # type: ignore[return-value]


def multiclass(kernel: Callable[..., Array]) -> Metric:
    """A metric from a kernel ``(truth [N] int, s [N, K], w [N, R]) -> [R]``; labels: indices [N] or one-hot."""

    @functools.wraps(kernel)
    def metric(
        y_true: npt.ArrayLike, y_score: npt.ArrayLike, *, weight: npt.ArrayLike | None = None, **options: Any
    ) -> float | Array:
        s = np.asarray(y_score, dtype=np.float64)
        truth = class_indices(y_true)
        if s.ndim != 2 or len(s) != len(truth):
            raise ValueError(f"y_score {s.shape} must be [N, K] with the {len(truth)} rows of y_true")
        w, scalar = _columns(weight, len(s))
        rows = truth >= 0
        values = kernel(truth[rows], s[rows], w[rows], **options) if rows.any() else np.full(w.shape[1], np.nan)
        return float(values[0]) if scalar else values

    return metric  # type: ignore[return-value]


def class_indices(y_true: npt.ArrayLike) -> Indices:
    """True class of each row, [N]; -1 where it is unknown (a NaN, or no class of a one-hot row [N, K] is 1)."""
    y = np.asarray(y_true, dtype=np.float64)
    if y.ndim == 1:
        return np.where(np.isnan(y), -1, np.nan_to_num(y)).astype(np.intp)
    positive = np.nan_to_num(y) > 0.5
    if (positive.sum(axis=1) > 1).any():
        raise ValueError("a row of a single-label task has more than one class")
    return np.where(positive.any(axis=1), positive.argmax(axis=1), -1).astype(np.intp)


ECE_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""


# Ranking: one sort serves every replicate.


def ranking(y: Mask, s: Array, w: Array) -> tuple[Array, Array]:
    """Weighted AUROC and average precision of R replicates, ([R], [R]).

    AUROC is the Mann-Whitney probability that a positive outranks a negative, ties counting one half (Hanley and McNeil
    1982). Average precision is the sum over distinct scores of recall gained times precision there, without
    interpolation, as in scikit-learn. Both need the cumulative weights at the scores of positives only.

    Args:
        y: [N] outcomes.
        s: [N] scores.
        w: [N, R] row weights.
    """
    nan = np.full(w.shape[1], np.nan)
    if not y.any():
        return nan, nan
    order = np.argsort(-s[y], kind="stable")
    positive_scores = -s[y][order]  # ascending
    last = np.flatnonzero(np.append(np.diff(positive_scores) > 0, True))  # end of each run of equal scores
    # Rows are gathered before they are summed: a cumulative sum down the rows runs over R contiguous numbers.
    tp = np.cumsum(w[np.flatnonzero(y)[order]], axis=0)[last]  # [J, R] positives at or above each distinct score
    gained = np.diff(tp, axis=0, prepend=0.0)
    negatives = np.flatnonzero(~y)
    negatives = negatives[np.argsort(-s[negatives], kind="stable")]
    fp_sum = np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w[negatives], axis=0)])  # [N- + 1, R]
    negative_scores = -s[negatives]
    above = fp_sum[np.searchsorted(negative_scores, positive_scores[last], side="left")]
    fp = fp_sum[np.searchsorted(negative_scores, positive_scores[last], side="right")]
    total_p, total_n = tp[-1], fp_sum[-1]
    outranked = total_n * total_p - 0.5 * np.einsum("jr,jr->r", gained, above + fp)
    called = tp + fp
    precision = tp / np.where(called > 0, called, 1.0)
    return ratio(outranked, total_n * total_p), ratio(np.einsum("jr,jr->r", gained, precision), total_p)


@binary
def auroc(y: Mask, s: Array, w: Array) -> Array:
    """Area under the ROC curve, ties counting one half; NaN with one outcome only."""
    return ranking(y, s, w)[0]


@binary
def average_precision(y: Mask, s: Array, w: Array) -> Array:
    """Area under the precision-recall steps, not interpolated; NaN without positives."""
    return ranking(y, s, w)[1]


# At a threshold.


def decision_metrics(tp: Array, fp: Array, fn: Array, tn: Array) -> dict[str, Array]:
    """Sensitivity, specificity, PPV, NPV and F1 from confusion counts, [...] each.

    F1 is NaN without positives in the data: 0 would punish a class that cannot be found.
    """
    f1 = ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "f1": np.where(tp + fn > 0, f1, np.nan),
    }


def _decided(y: Mask, s: Array, threshold: float) -> Array:
    """Indicator rows of true positive, false positive, false negative, true negative, [4, N]."""
    called = s >= threshold
    return np.stack([called & y, called & ~y, ~called & y, ~called & ~y]).astype(np.float64)


@binary
def f1(y: Mask, s: Array, w: Array, threshold: float = 0.5) -> Array:
    """Harmonic mean of PPV and sensitivity at ``threshold``; NaN without positives."""
    return decision_metrics(*(_decided(y, s, threshold) @ w))["f1"]


# Calibration.

Binning = Literal["mass", "width"]


def bin_indices(s: Array, bins: int = ECE_BINS, binning: Binning = "mass") -> Indices:
    """Bin of each score, [N] in 0..bins-1.

    ``mass``: bin edges at the quantiles of the scores, so every bin holds about as many rows (Nixon et al. 2019); equal
    scores share a bin. ``width``: edges at multiples of 1 / bins (Guo et al. 2017), which for a rare finding puts
    nearly all rows into the first bin.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    if binning == "mass":
        edges = np.unique(np.quantile(s, edges))
    return np.searchsorted(edges, s, side="right").astype(np.intp)


def _bin_gaps(y: Array, s: Array, bins: int, binning: Binning) -> Array:
    """Rows whose product with the weights is each bin's sum of (score - outcome), [bins, N]."""
    gaps = np.zeros((bins, len(s)))
    gaps[bin_indices(s, bins, binning), np.arange(len(s))] = s - y
    return gaps


@binary
def ece(y: Mask, s: Array, w: Array, bins: int = ECE_BINS, binning: Binning = "mass") -> Array:
    """Expected calibration error: mean over rows of |mean score - share of positives| of the row's bin, 0..1.

    Bins are laid over the scores of all rows whatever their weights, so replicates share them. See ``bin_indices``.
    """
    return ratio(np.abs(_bin_gaps(y.astype(np.float64), s, bins, binning) @ w).sum(axis=0), w.sum(axis=0))


BINARY_METRICS = (
    "auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "f1", "brier", "ece",
)  # fmt: skip
"""Names and order of what ``binary_metrics`` gives."""


def binary_metrics(y: Mask, s: Array, w: Array, threshold: float) -> dict[str, Array]:
    """All of ``BINARY_METRICS`` for one class and R sets of weights, [R] each: one sort and one matrix product."""
    area, precision = ranking(y, s, w)
    linear = np.vstack([_decided(y, s, threshold), (s - y) ** 2, _bin_gaps(y.astype(np.float64), s, ECE_BINS, "mass")])
    sums = linear @ w  # [4 + 1 + bins, R]
    total = w.sum(axis=0)
    return {
        "auroc": area,
        "average_precision": precision,
        **decision_metrics(*sums[:4]),
        "brier": ratio(sums[4], total),
        "ece": ratio(np.abs(sums[5:]).sum(axis=0), total),
    }


# Single-label tasks.


def confusion(truth: Indices, predicted: Indices, classes: int, w: Array) -> Array:
    """Weighted confusion matrices, [K true, K predicted, R]."""
    cells = truth * classes + predicted
    out = np.zeros((classes * classes, w.shape[1]))
    np.add.at(out, cells, w)
    return out.reshape(classes, classes, -1)


def confusion_metrics(matrix: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Overall and per-class metrics of confusion matrices.

    Args:
        matrix: [K true, K predicted, R].

    Returns:
        ``accuracy`` and ``kappa`` (Cohen 1960), [R]; ``precision``, ``recall`` and ``f1``, [K, R], NaN for a class
        without predictions, without rows, without either.
    """
    hits = np.einsum("iir->ir", matrix)
    actual, called, total = matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum(axis=(0, 1))
    accuracy_ = ratio(hits.sum(axis=0), total)
    chance = ratio((actual * called).sum(axis=0), total**2)
    overall = {"accuracy": accuracy_, "kappa": ratio(accuracy_ - chance, 1.0 - chance)}
    per_class = {
        "precision": ratio(hits, called),
        "recall": ratio(hits, actual),
        "f1": ratio(2 * hits, actual + called),
    }
    return overall, per_class


def top_label(truth: Indices, s: Array) -> tuple[Array, Array]:
    """Whether the most probable class is right (1 or 0), and its probability, [N] each."""
    predicted = s.argmax(axis=1)
    return (predicted == truth).astype(np.float64), s[np.arange(len(s)), predicted]


@multiclass
def accuracy(truth: Indices, s: Array, w: Array) -> Array:
    """Share of rows whose most probable class is the true one (overall accuracy)."""
    return ratio(top_label(truth, s)[0] @ w, w.sum(axis=0))


@multiclass
def macro_f1(truth: Indices, s: Array, w: Array) -> Array:
    """Mean of the per-class F1 over the classes that occur as truth or prediction."""
    return mean_defined(confusion_metrics(confusion(truth, s.argmax(axis=1), s.shape[1], w))[1]["f1"])


@multiclass
def kappa(truth: Indices, s: Array, w: Array) -> Array:
    """Cohen's kappa: agreement beyond chance, at most 1; NaN where chance agreement is 1 (Cohen 1960)."""
    return confusion_metrics(confusion(truth, s.argmax(axis=1), s.shape[1], w))[0]["kappa"]


@multiclass
def multiclass_brier(truth: Indices, s: Array, w: Array) -> Array:
    """Mean over rows of the squared distance of probabilities and one-hot truth, 0..2 (Brier 1950)."""
    distance = ((s - np.eye(s.shape[1])[truth]) ** 2).sum(axis=1)
    return ratio(distance @ w, w.sum(axis=0))


@multiclass
def nll(truth: Indices, s: Array, w: Array) -> Array:
    """Mean negative log probability of the true class, nats; probabilities below 1e-12 count as that."""
    cost = -np.log(np.clip(s[np.arange(len(s)), truth], 1e-12, 1.0))
    return ratio(cost @ w, w.sum(axis=0))


@multiclass
def top_label_ece(truth: Indices, s: Array, w: Array, bins: int = ECE_BINS, binning: Binning = "mass") -> Array:
    """Expected calibration error of the most probable class's probability (Guo et al. 2017), 0..1."""
    right, confidence = top_label(truth, s)
    return ratio(np.abs(_bin_gaps(right, confidence, bins, binning) @ w).sum(axis=0), w.sum(axis=0))
