"""What can be reached without looking at the images properly: the floors that a model's score is read against.

- shuffled labels: the model's own scores against labels dealt out at random; what chance gives on this very split.
- metadata only: a logistic regression on view, image size, age, sex: how far the circumstances of an image give the
answer away.
- thumbnail regression: a logistic regression on images of 32 x 32 pixels: how far brightness and coarse shape do.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from vitdomains.core.data.preprocess import resize_array
from vitdomains.core.metrics import scores as metrics
from vitdomains.core.metrics.bootstrap import Draws, draw, estimate, replicate
from vitdomains.core.metrics.calibrate import Kind
from vitdomains.core.metrics.scores import Array, Indices, Metric, class_indices

logger = logging.getLogger(__name__)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of C tried for thumbnails (standardised pixels): a thousand collinear inputs want much shrinkage."""
METADATA_STRENGTH = 1.0
MAX_ROWS = 5000
"""Training rows of a floor; more hardly move a model of this kind and take minutes."""
_FOLDS = 3
_MAX_CATEGORIES = 30

METRICS: dict[Kind, dict[str, Metric]] = {
    "multilabel": {"auroc": metrics.auroc, "average_precision": metrics.average_precision},
    "singlelabel": {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1},
}
"""What is reported of a simple model; the first chooses its strength."""


def logistic_scores(x: Array, y: Array, x_new: Array, kind: Kind, strength: float, *, max_iter: int = 300) -> Array:
    """Probabilities [M, K] of logistic regressions on x [N, D], y [N, K]; with one outcome only: its share."""
    out = np.zeros((len(x_new), y.shape[1]))
    if kind == "singlelabel":
        truth = class_indices(y)
        rows = truth >= 0
        if len(np.unique(truth[rows])) < 2:
            out[:, truth[rows][:1]] = 1.0
            return out
        model = LogisticRegression(C=strength, max_iter=max_iter, tol=1e-3).fit(x[rows], truth[rows])
        out[:, model.classes_] = model.predict_proba(x_new)
        return out
    for k in range(y.shape[1]):
        rows = ~np.isnan(y[:, k])
        outcome = y[rows, k] > 0.5
        if not outcome.any() or outcome.all():
            out[:, k] = float(outcome.mean()) if rows.any() else 0.5
            continue
        model = LogisticRegression(C=strength, max_iter=max_iter, tol=1e-3).fit(x[rows], outcome)
        out[:, k] = model.predict_proba(x_new)[:, 1]
    return out


def _choose_strength(x: Array, y: Array, groups: npt.NDArray[Any], kind: Kind) -> float:
    """C with the best score in a grouped cross-validation within the training rows, over the pooled predictions."""
    folds = min(_FOLDS, len(np.unique(groups)))
    if folds < 2:
        return STRENGTHS[1]
    lead = next(iter(METRICS[kind].values()))
    parts = list(GroupKFold(folds).split(x, groups=groups))
    merits = []
    for strength in STRENGTHS:
        scores = np.zeros(y.shape)
        for train, held_out in parts:
            scores[held_out] = logistic_scores(x[train], y[train], x[held_out], kind, strength)
        merits.append(lead(y, scores))
    return STRENGTHS[int(np.argmax(np.nan_to_num(merits, nan=-1.0)))]


def _thumbnail_scores(
    x: npt.ArrayLike, y: Array, x_new: npt.ArrayLike, groups: npt.NDArray[Any], kind: Kind
) -> tuple[Array, float]:
    train, test = (np.asarray(part, dtype=np.float64).reshape(len(np.asarray(part)), -1) for part in (x, x_new))
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if len(train) < train.shape[1]:
        # An L2 penalty does not see rotations, and the rows span at most N directions: same model, fewer columns.
        basis = np.linalg.svd(train, full_matrices=False)[2].T
        train, test = train @ basis, test @ basis
    strength = _choose_strength(train, y, groups, kind)
    return logistic_scores(train, y, test, kind, strength), strength


def _metadata_scores(meta: pd.DataFrame, y: Array, new: pd.DataFrame, kind: Kind) -> tuple[Array, list[str]] | None:
    """Scores from the columns that vary and are numbers or have few values, with their names; None without such."""
    columns = [name for name in meta.columns if name in new.columns and meta[name].nunique(dropna=False) > 1]
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(meta[name]) and meta[name].notna().any()]
    named = [name for name in columns if name not in numeric and meta[name].nunique() <= _MAX_CATEGORIES]
    if not numeric + named:
        return None

    def typed(frame: pd.DataFrame) -> pd.DataFrame:
        texts = {name: frame[name].astype("object").where(frame[name].notna(), "").astype(str) for name in named}
        return pd.DataFrame({name: frame[name].astype(float) for name in numeric} | texts)

    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), numeric),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), named),
    )
    x, x_new = prepare.fit_transform(typed(meta)), prepare.transform(typed(new))
    return logistic_scores(np.asarray(x), y, np.asarray(x_new), kind, METADATA_STRENGTH), numeric + named


def _shuffled_labels(y: Array, rng: np.random.Generator, kind: Kind) -> Array:
    """Labels permuted among the rows where they are known: class by class, or whole rows of a single-label task."""
    out = y.copy()
    if kind == "singlelabel":
        rows = np.flatnonzero(class_indices(y) >= 0)
        out[rows] = y[rng.permutation(rows)]
        return out
    for k in range(y.shape[1]):
        rows = np.flatnonzero(~np.isnan(y[:, k]))
        out[rows, k] = y[rng.permutation(rows), k]
    return out


def _score(y: Array, s: Array, draws: Draws, kind: Kind) -> tuple[dict[str, float], dict[str, Array]]:
    """Macro metrics and their replicates [R]."""
    used = METRICS[kind]
    found = replicate(lambda w: {name: metric(y, s, weight=w) for name, metric in used.items()}, draws)
    return {name: metric(y, s) for name, metric in used.items()}, found or dict.fromkeys(used, np.empty(0))


def _subset(groups: npt.NDArray[Any], rng: np.random.Generator) -> Indices:
    """Rows of whole groups, at most about ``MAX_ROWS``, in order."""
    if len(groups) <= MAX_ROWS:
        return np.arange(len(groups))
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    taken = np.zeros(len(names), dtype=np.bool_)
    taken[order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), MAX_ROWS, side="right")))]] = True
    return np.flatnonzero(taken[index])


def floors(
    train_targets: npt.ArrayLike,
    test_targets: npt.ArrayLike,
    test_scores: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    kind: Kind = "multilabel",
    *,
    train_groups: npt.ArrayLike | None = None,
    train_thumbnails: npt.ArrayLike | None = None,
    test_thumbnails: npt.ArrayLike | None = None,
    train_meta: pd.DataFrame | None = None,
    test_meta: pd.DataFrame | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Floors of a model, each measured on the test split as the model is.

    Args:
        train_targets: [N, K] labels of the training split; 1, 0 or NaN.
        test_targets: [M, K] labels of the test split.
        test_scores: [M, K] the model's probabilities, for the shuffled floor and the margins.
        test_groups: [M] what the bootstrap draws.
        kind: The task's kind.
        train_groups: [N] groups that cross-validation within the training split keeps together; rows, if absent.
        train_thumbnails: [N, ...] small images (32 x 32), any scale; absent: no such floor.
        test_thumbnails: [M, ...].
        train_meta: N rows of what is known beside the image (view, width, height, age, sex); numbers are used as such,
            text of few values one-hot; absent or constant: no such floor.
        test_meta: M rows.
        bootstrap: Replicates behind the intervals.
        seed: Of the shuffle, the draws and the choice of rows.

    Returns:
        ``shuffled``, ``metadata``, ``thumbnail`` (those that can be had) -> ``auroc`` and ``average_precision``
        (macro), or ``accuracy`` and ``macro_f1``, as ``{value, low, high}``; ``margin``: the same of model minus
        floor, paired by replicate; ``note``: what was fitted.
    """
    y_train, y_test, s_test = (np.asarray(a, dtype=np.float64) for a in (train_targets, test_targets, test_scores))
    rng = np.random.default_rng(seed)
    draws = draw(test_groups, bootstrap, seed)
    groups = np.arange(len(y_train)) if train_groups is None else np.asarray(train_groups)
    rows = _subset(groups, rng)
    fitted = f"fitted on {len(rows):,} of {len(y_train):,} training images"
    model_value, model_draws = _score(y_test, s_test, draws, kind)
    out: dict[str, dict[str, Any]] = {}

    def add(name: str, y: Array, s: Array, note: str) -> None:
        value, spread = _score(y, s, draws, kind)
        out[name] = {metric: estimate(value[metric], spread[metric]) for metric in value}
        out[name]["margin"] = {
            metric: estimate(model_value[metric] - value[metric], model_draws[metric] - spread[metric])
            for metric in value
        }
        out[name]["note"] = note

    add("shuffled", _shuffled_labels(y_test, rng, kind), s_test, "the model's scores against permuted labels")
    if train_meta is not None and test_meta is not None:
        meta = train_meta.reset_index(drop=True).iloc[rows]
        found = _metadata_scores(meta, y_train[rows], test_meta.reset_index(drop=True), kind)
        if found is None:
            logger.info("no metadata floor: no column of %s varies", list(train_meta.columns))
        else:
            add("metadata", y_test, found[0], f"{', '.join(found[1])}; {fitted}")
    if train_thumbnails is not None and test_thumbnails is not None:
        pixels = np.asarray(train_thumbnails)[rows]
        scores, strength = _thumbnail_scores(pixels, y_train[rows], test_thumbnails, groups[rows], kind)
        add("thumbnail", y_test, scores, f"C = {strength:g} by cross-validation; {fitted}")
    return out


def thumbnail(image: npt.NDArray[Any], size: int = 32) -> npt.NDArray[np.float32]:
    """An image [H, W] or [H, W, C] squashed to ``size`` x ``size`` pixels by area averaging, flat, in its own unit."""
    return resize_array(np.asarray(image, dtype=np.float32), size, size).ravel()
