"""Labels that are probably wrong: confident learning on probabilities of models that have not seen the label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from vitdomains.core.errors import ManifestError
from vitdomains.core.evaluation.baselines import logistic_scores
from vitdomains.core.metrics.scores import Array
from vitdomains.core.tasks import Kind

FOLDS = 5
MOST = 20_000
"""Rows that a fold is fitted on; of more a random part."""
STRENGTH = 0.01
"""C of the logistic regression on standardised features: strong, for it is to disagree with single labels."""
COLUMNS = ("id", "class", "given", "suggested", "quality", "error")


def held_out_scores(
    x: Array, y: Array, kind: Kind, groups: Sequence[object] | None = None, *, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Probabilities [N, K], each row from a logistic regression that saw neither the row nor its group.

    Args:
        x: Features [N, D], of a frozen model say.
        y: Labels [N, K]: 1, 0 or NaN.
        kind: One class a row, or any number.
        groups: [N] what stays on one side of a fold (patient, scene); None: each row by itself.
        seed: Of the folds.

    Raises:
        ManifestError: There are fewer than two groups.
    """
    owners = np.arange(len(x)) if groups is None else pd.factorize(np.asarray(groups, dtype=object))[0]
    folds = min(FOLDS, len(np.unique(owners)))
    if folds < 2:
        raise ManifestError("Labels of fewer than two groups cannot be checked.", hint="Give more images.")
    strata = np.nan_to_num(y).argmax(axis=1) if kind == "singlelabel" else np.nan_to_num(y).any(axis=1)
    out = np.empty(y.shape)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for rows, test in splitter.split(x, strata, owners):
        train = np.random.default_rng(seed).permutation(rows)[:MOST]
        scaler = StandardScaler().fit(x[train])
        out[test] = logistic_scores(
            scaler.transform(x[train]), y[train], scaler.transform(x[test]), kind, STRENGTH, max_iter=1000
        )
    return out


def label_errors(ids: Sequence[str], y: Array, scores: Array, classes: Sequence[str], kind: Kind) -> pd.DataFrame:
    """Every label with its quality, the most doubtful first: a queue for a reviewer, and weights for a training.

    Errors are found by confident learning (Northcutt, Jiang and Chuang 2021, Journal of Artificial Intelligence Research 70), as
    cleanlab implements it; quality is the probability of the given label (their self-confidence). With any number of classes a
    row, each class is checked by itself on the rows where it is known.

    Args:
        ids: [N].
        y: Given labels [N, K]: 1, 0 or NaN.
        scores: Probabilities [N, K] of models that did not see the row (``held_out_scores``).
        classes: K names.
        kind: One class a row, or any number.

    Returns:
        ``COLUMNS``: the id; the class that is checked (one class a row: the given one); what was given and is suggested (class
        names, or 1 and 0); quality 0..1; whether it is probably an error.
    """
    names, keys = np.asarray(classes, dtype=object), np.asarray(ids, dtype=object)
    if kind == "singlelabel":
        rows = np.flatnonzero(np.nansum(y, axis=1) == 1)
        given = np.nan_to_num(y[rows]).argmax(axis=1)
        quality, wrong = _confident(given, scores[rows])
        best = scores[rows].argmax(axis=1)
        table = pd.DataFrame(
            {"id": keys[rows], "class": names[given], "given": names[given], "suggested": names[best], "quality": quality,
             "error": wrong & (best != given)}
        )  # fmt: skip
    else:
        parts = []
        for k, name in enumerate(classes):
            rows = np.flatnonzero(~np.isnan(y[:, k]))
            given = y[rows, k].astype(int)
            if len(np.unique(given)) < 2:
                continue
            quality, wrong = _confident(given, np.column_stack([1 - scores[rows, k], scores[rows, k]]))
            best = (scores[rows, k] >= 0.5).astype(int)
            parts.append(pd.DataFrame({"id": keys[rows], "class": name, "given": given, "suggested": best,
                                       "quality": quality, "error": wrong & (best != given)}))  # fmt: skip
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    return table.sort_values(["error", "quality"], ascending=[False, True], kind="stable", ignore_index=True)


def _confident(given: npt.NDArray[np.int64], scores: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Quality [N] and whether each label is probably wrong."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    present = np.unique(given)  # cleanlab counts on every class being there
    own = np.searchsorted(present, given)
    p = np.clip(scores[:, present], 1e-9, None)
    p = p / p.sum(axis=1, keepdims=True)
    if len(present) < 2:
        return p[:, 0], np.zeros(len(given), bool)
    wrong = find_label_issues(own, p, filter_by="prune_by_noise_rate", n_jobs=1)
    return np.asarray(get_label_quality_scores(own, p), np.float64), np.asarray(wrong, bool)
