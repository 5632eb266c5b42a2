"""Trivial baselines that a model's score is read against: shuffled labels, metadata only, 32 x 32 thumbnails.

- shuffled labels: the model's own scores against labels dealt out at random; what chance gives on these very images.
- metadata only: a logistic regression on view, image size, age, sex: how far the circumstances of an image give the
answer away.
- thumbnail regression: a logistic regression on images of 32 x 32 pixels: how far brightness and coarse shape do.

The regressions are fitted on the training split; on data of another place, where there is none, by cross-validation on the
measured images themselves, whole groups at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

from vitdomains.core.metrics import scores as metrics
from vitdomains.core.metrics.bootstrap import Draws, draw, estimate, replicate
from vitdomains.core.metrics.calibrate import Kind
from vitdomains.core.metrics.scores import Array, Indices, Mask, Metric, class_indices

logger = logging.getLogger(__name__)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of C tried for thumbnails (standardised pixels): a thousand collinear inputs want much shrinkage."""
METADATA_STRENGTH = 1.0
MAX_ROWS = 5000
"""Rows that a baseline is fitted on; more hardly move a model of this kind and take minutes."""
_CHUNK = 2000
_FOLDS = 3
_MAX_CATEGORIES = 30

METRICS: dict[Kind, dict[str, Metric]] = {
    "multilabel": {"auroc": metrics.auroc, "average_precision": metrics.average_precision},
    "singlelabel": {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1},
}
"""What is reported of a simple model; the first chooses its strength."""


Predict = Callable[[Array], Array]
"""Inputs [M, D] -> probabilities [M, K]."""


@dataclass(frozen=True)
class Sample:
    """Images as a baseline sees them.

    Attributes:
        targets: [N, K] labels 1, 0 or NaN.
        groups: [N] what the bootstrap draws and cross-validation keeps together.
        thumbnails: Rows -> their small images [n, D], made when they are asked for; None: no such baseline.
        metadata: N rows of what is known beside the image (view, width, height, age, sex); numbers are used as such, text of
            few values one-hot; None or constant: no such baseline.
    """

    targets: Array
    groups: npt.NDArray[Any]
    thumbnails: Callable[[Indices], Array] | None = None
    metadata: pd.DataFrame | None = None


def logistic_scores(x: Array, y: Array, x_new: Array, kind: Kind, strength: float, *, max_iter: int = 300) -> Array:
    """Probabilities [M, K] of logistic regressions on x [N, D], y [N, K]; with one outcome only: its share."""
    return _fit(x, y, kind, strength, max_iter)(x_new)


def _fit(x: Array, y: Array, kind: Kind, strength: float, max_iter: int = 300) -> Predict:
    """Logistic regressions of y [N, K] on x [N, D]; with one outcome only its share, whatever the input."""

    def fitted(rows: Mask, outcome: npt.NDArray[Any]) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=max_iter, tol=1e-3).fit(x[rows], outcome)

    # Of each model: which columns of the scores it fills; of one that cannot be fitted, the constant.
    models: list[tuple[list[int], LogisticRegression | float]] = []
    if kind == "singlelabel":
        truth = class_indices(y)
        rows = truth >= 0
        seen = np.unique(truth[rows]).tolist()
        models.append((seen, fitted(rows, truth[rows]) if len(seen) > 1 else 1.0))
    else:
        for k in range(y.shape[1]):
            rows = ~np.isnan(y[:, k])
            outcome = y[rows, k] > 0.5
            both = bool(outcome.any() and not outcome.all())
            models.append(([k], fitted(rows, outcome) if both else float(outcome.mean()) if rows.any() else 0.5))

    def predict(new: Array) -> Array:
        out = np.zeros((len(new), y.shape[1]))
        for columns, model in models:
            out[:, columns] = model if isinstance(model, float) else model.predict_proba(new)[:, -len(columns) :]
        return out

    return predict


def _choose_strength(x: Array, y: Array, groups: npt.NDArray[Any], kind: Kind) -> float:
    """C with the best score in a grouped cross-validation within the training rows, over the pooled predictions."""
    if len(np.unique(groups)) < 2:
        return STRENGTHS[1]
    lead = next(iter(METRICS[kind].values()))
    parts = _folds(groups)
    merits = []
    for strength in STRENGTHS:
        scores = np.zeros(y.shape)
        for train, held_out in parts:
            scores[held_out] = logistic_scores(x[train], y[train], x[held_out], kind, strength)
        merits.append(lead(y, scores))
    return STRENGTHS[int(np.argmax(np.nan_to_num(merits, nan=-1.0)))]


def _thumbnail_model(x: Array, y: Array, groups: npt.NDArray[Any], kind: Kind) -> tuple[Predict, str]:
    """From thumbnails [N, D]: what turns others into scores, and what was fitted."""
    scaler = StandardScaler().fit(x)
    columns = scaler.transform(x)
    basis: Array | None = None
    if len(x) < x.shape[1]:
        # An L2 penalty does not see rotations, and the rows span at most N directions: same model, fewer columns.
        basis = np.linalg.svd(columns, full_matrices=False)[2].T
        columns = columns @ basis
    strength = _choose_strength(columns, y, groups, kind)
    predict = _fit(columns, y, kind, strength)

    def scores(new: Array) -> Array:
        scaled = scaler.transform(new)
        return predict(scaled if basis is None else scaled @ basis)

    return scores, f"C = {strength:g} by cross-validation"


def _metadata_columns(meta: pd.DataFrame, new: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Columns that vary: those of numbers, and those of few values."""
    columns = [name for name in meta.columns if name in new.columns and meta[name].nunique(dropna=False) > 1]
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(meta[name]) and meta[name].notna().any()]
    named = [name for name in columns if name not in numeric and meta[name].nunique() <= _MAX_CATEGORIES]
    return numeric, named


def _metadata_model(
    meta: pd.DataFrame, y: Array, kind: Kind, numeric: Sequence[str], named: Sequence[str]
) -> Callable[[pd.DataFrame], Array]:
    def typed(frame: pd.DataFrame) -> pd.DataFrame:
        texts = {name: frame[name].astype("object").where(frame[name].notna(), "").astype(str) for name in named}
        return pd.DataFrame({name: frame[name].astype(float) for name in numeric} | texts)

    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    prepare = make_column_transformer(
        (make_pipeline(impute, StandardScaler()), list(numeric)),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(named)),
    )
    predict = _fit(np.asarray(prepare.fit_transform(typed(meta))), y, kind, METADATA_STRENGTH)
    return lambda new: predict(np.asarray(prepare.transform(typed(new))))


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


def _score(y: Array, s: Array, draws: Draws, kind: Kind) -> Scored:
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


def baselines(
    test: Sample,
    scores: npt.ArrayLike,
    kind: Kind = "multilabel",
    train: Sample | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Trivial baselines, each measured on the images that the model is measured on.

    Args:
        test: M images.
        scores: [M, K] the model's probabilities, for the shuffled baseline and the margins.
        kind: The task's kind.
        train: What the regressions are fitted on; None: on ``test`` itself, by cross-validation over groups.
        bootstrap: Replicates behind the intervals.
        seed: Of the shuffle, the draws and the choice of rows.

    Returns:
        ``shuffled``, ``metadata``, ``thumbnail`` (those that can be had) -> ``auroc`` and ``average_precision``
        (macro), or ``accuracy`` and ``macro_f1``, as ``{value, low, high}``; ``margin``: the same of model minus
        baseline, paired by replicate; ``note``: what was fitted.
    """
    y, s = np.asarray(test.targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = draw(test.groups, bootstrap, seed)
    model = _score(y, s, draws, kind)
    shuffled = _shuffled_labels(y, rng, kind)
    out = {"shuffled": _against(model, _score(shuffled, s, draws, kind), "the model's scores against permuted labels")}
    own = train or test
    rows = _subset(np.asarray(own.groups), rng)
    if train is None:
        if len(np.unique(np.asarray(test.groups)[rows])) < _FOLDS:
            return out
        y, s, draws = y[rows], s[rows], draws.rows(rows)
        model = _score(y, s, draws, kind)
        note = f"cross-validated by group on {len(rows):,} of the {len(test.targets):,} images"
    else:
        note = f"fitted on {len(rows):,} of {len(train.targets):,} training images"
    labels, groups = np.asarray(own.targets, dtype=np.float64)[rows], np.asarray(own.groups)[rows]
    if own.metadata is not None and test.metadata is not None:
        meta = own.metadata.reset_index(drop=True).iloc[rows]
        numeric, named = _metadata_columns(meta, test.metadata)
        if not numeric + named:
            logger.info("no metadata baseline: no column of %s varies", list(meta.columns))
        else:
            if train is None:
                found = np.zeros(y.shape)
                for fit, held_out in _folds(groups):
                    predict = _metadata_model(meta.iloc[fit], labels[fit], kind, numeric, named)
                    found[held_out] = predict(meta.iloc[held_out])
            else:
                found = _metadata_model(meta, labels, kind, numeric, named)(test.metadata)
            text = f"{', '.join(numeric + named)}; {note}"
            out["metadata"] = _against(model, _score(y, found, draws, kind), text)
    if own.thumbnails is not None and test.thumbnails is not None:
        pixels, found = np.asarray(own.thumbnails(rows), dtype=np.float64), np.zeros(y.shape)
        if train is None:
            strength = "C by cross-validation"
            for fit, held_out in _folds(groups):
                found[held_out] = _thumbnail_model(pixels[fit], labels[fit], groups[fit], kind)[0](pixels[held_out])
        else:
            regression, strength = _thumbnail_model(pixels, labels, groups, kind)
            for at in range(0, len(y), _CHUNK):
                chunk = np.arange(at, min(at + _CHUNK, len(y)))
                found[chunk] = regression(np.asarray(test.thumbnails(chunk), dtype=np.float64))
        out["thumbnail"] = _against(model, _score(y, found, draws, kind), f"{strength}; {note}")
    return out


Scored = tuple[dict[str, float], dict[str, Array]]


def _against(model: Scored, baseline: Scored, note: str) -> dict[str, Any]:
    """A baseline's metrics, and how far the model is ahead of it, replicate by replicate."""
    (reached, spread), (value, own) = model, baseline
    return {
        **{name: estimate(value[name], own[name]) for name in value},
        "margin": {name: estimate(reached[name] - value[name], spread[name] - own[name]) for name in value},
        "note": note,
    }


def _folds(groups: npt.NDArray[Any]) -> list[tuple[Indices, Indices]]:
    """(rows to fit on, rows held out), no group on both sides."""
    return list(GroupKFold(min(_FOLDS, len(np.unique(groups)))).split(groups, groups=groups))
