"""Labels and scores of a split -> the report: metrics with intervals over groups, per class, averaged, by sub-group.

A report is plain JSON. ``classes.NAME.METRIC``, ``macro.METRIC`` (mean over the classes that have both
outcomes, listed in ``averaged_classes``), ``weighted.METRIC`` (the same, weighted by positives) and, for single-label
tasks, ``overall.METRIC`` are ``{value, low, high}``, null where undefined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import VitDomainsError
from vitdomains.core.evaluation.report import finite, terminal_table, write_report
from vitdomains.core.metrics import scores as metrics
from vitdomains.core.metrics.bootstrap import LEVEL, Draws, draw, estimate, replicate
from vitdomains.core.metrics.calibrate import Kind
from vitdomains.core.metrics.scores import Array, Mask, class_indices, mean_defined

__all__ = ["MIN_SUBGROUP", "evaluate", "headline", "predictions_table", "summary", "terminal_table", "write_report"]

Report = dict[str, Any]

MIN_SUBGROUP = 20
"""A class is reported within a sub-group only from this many labelled rows on, with both outcomes among them."""
MAX_SUBGROUPS = 20
"""A column with more distinct values than this is no sub-group column."""
MISSING = "(not given)"
_CENTRED = ("ece", "overall.ece")


def _multilabel_statistics(y: Array, s: Array, w: Array, thresholds: Sequence[float]) -> dict[str, Array]:
    """All binary metrics of all classes, [K, R] by name; a row of NaN where a class has no known label."""
    out = {name: np.full((y.shape[1], w.shape[1]), np.nan) for name in metrics.BINARY_METRICS}
    for k in range(y.shape[1]):
        rows = ~np.isnan(y[:, k])
        if rows.any():
            weights = w if rows.all() else w[rows]
            for name, value in metrics.binary_metrics(y[rows, k] > 0.5, s[rows, k], weights, thresholds[k]).items():
                out[name][k] = value
    return out


def _singlelabel_statistics(truth: npt.NDArray[np.intp], s: Array, w: Array) -> dict[str, Array]:
    """Overall metrics [R] under ``overall.NAME`` and per-class metrics [K, R] under NAME; every true class is known."""
    if len(s) == 0:
        overall = dict.fromkeys(("accuracy", "kappa", "ece", "brier", "nll"), np.full(w.shape[1], np.nan))
        per_class = dict.fromkeys(("precision", "recall", "f1"), np.full((s.shape[1], w.shape[1]), np.nan))
    else:
        matrix = metrics.confusion(truth, s.argmax(axis=1), s.shape[1], w)
        overall, per_class = metrics.confusion_metrics(matrix)
        calibrated = {"ece": metrics.top_label_ece, "brier": metrics.multiclass_brier, "nll": metrics.nll}
        overall |= {name: metric(truth, s, weight=w) for name, metric in calibrated.items()}
    return {f"overall.{name}": value for name, value in overall.items()} | per_class


@dataclass(frozen=True)
class _Sample:
    """Rows that are measured together: labels and scores [N, K], their replicates, and what holds for all of them."""

    y: Array
    s: Array
    draws: Draws
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    kind: Kind

    def rows(self, mask: Mask) -> _Sample:
        return replace(self, y=self.y[mask], s=self.s[mask], draws=self.draws.rows(mask))

    def statistics(self, w: Array) -> dict[str, Array]:
        """Per-class metrics [K, R] and, for single-label tasks, ``overall.NAME`` [R]."""
        if self.kind == "multilabel":
            return _multilabel_statistics(self.y, self.s, w, self.thresholds)
        truth = class_indices(self.y)
        rows = truth >= 0
        return _singlelabel_statistics(truth[rows], self.s[rows], w[rows])


def _block(sample: _Sample, shown: Mask, averaged: Mask) -> Report:
    """Metrics of a sample: of the classes in ``shown`` ([K]), and the means over those in ``averaged`` ([K])."""
    y = sample.y
    point = sample.statistics(np.ones((len(y), 1)))
    boot = replicate(sample.statistics, sample.draws) or {name: value[..., :0] for name, value in point.items()}
    positives = np.nansum(y > 0.5, axis=0).astype(np.float64)
    known = (~np.isnan(y)).sum(axis=0).astype(np.float64)
    names = [name for name in point if not name.startswith("overall.")]
    report: Report = {"n": len(y), "groups": len(np.unique(sample.draws.index)), "classes": {}}
    for k, name in enumerate(sample.classes):
        entry: Report = {"n": int(known[k]), "n_positive": int(positives[k])}
        if sample.kind == "multilabel":
            share = positives[k] / known[k] if known[k] else float("nan")
            entry |= {"prevalence": float(share), "threshold": float(sample.thresholds[k])}
        if shown[k]:
            entry |= {n: estimate(float(point[n][k, 0]), boot[n][k], centred=n in _CENTRED) for n in names}
        report["classes"][name] = entry
    for average, weight in (("macro", None), ("weighted", positives[averaged])):
        report[average] = {}
        for n in names:
            value = mean_defined(point[n][averaged], weight)
            # Replicates average the classes that the sample itself defines: a class that it cannot judge has no say.
            spread = mean_defined(np.where(np.isnan(point[n]), np.nan, boot[n])[averaged], weight)
            report[average][n] = estimate(float(value[0]), spread, centred=n in _CENTRED)
    if sample.kind == "singlelabel":
        overall = [n for n in point if n.startswith("overall.")]
        report["overall"] = {
            n.removeprefix("overall."): estimate(float(point[n][0]), boot[n], centred=n in _CENTRED) for n in overall
        }
    return report


def _judgeable(y: Array, kind: Kind) -> Mask:
    """Classes that averages are over, [K]: those with both outcomes, whatever the metric; of single labels those annotated."""
    if kind == "singlelabel":
        return np.asarray(~np.isnan(y).all(axis=0), dtype=np.bool_)
    # A comparison with NaN is false, so an unknown label counts for neither outcome.
    return np.asarray((y > 0.5).any(axis=0) & (y <= 0.5).any(axis=0), dtype=np.bool_)


def _suppress(y: Array, kind: Kind, minimum: int) -> tuple[Mask, list[str]]:
    """Which classes a sub-group can show, and why not the others ([K] each; an empty reason where shown)."""
    reasons = []
    for k in range(y.shape[1]):
        known = y[~np.isnan(y[:, k]), k] > 0.5
        if len(known) < minimum:
            reasons.append(f"only {len(known)} labelled rows, at least {minimum} are needed")
        elif kind == "multilabel" and (known.all() or not known.any()):
            reasons.append("no positive case" if not known.any() else "no negative case")
        elif kind == "singlelabel" and not known.any():
            reasons.append("no case of this class")
        else:
            reasons.append("")
    return np.array([not reason for reason in reasons], dtype=np.bool_), reasons


def _subgroups(column: pd.Series, sample: _Sample, minimum: int) -> Report:
    """One column's break-down: ``values.VALUE`` is a block as above, or ``{n, suppressed: reason}``.

    Macro values of the sub-groups of one column are means over the same classes, those that every reported sub-group
    can show: otherwise a sub-group that lacks a hard finding would look better for that alone.
    """
    names = column.astype("object").where(column.notna(), MISSING).astype(str).replace({"": MISSING, "nan": MISSING})
    order = sorted(names.unique())
    if len(order) > MAX_SUBGROUPS:
        return {"skipped": f"{len(order)} distinct values, at most {MAX_SUBGROUPS} make sub-groups: bin the column"}
    rows = {value: (names == value).to_numpy() for value in order}
    judged = {v: _suppress(sample.y[rows[v]], sample.kind, minimum) for v in order if rows[v].sum() >= minimum}
    usable = [shown for shown, _ in judged.values() if shown.any()]
    common = np.logical_and.reduce(usable) if usable else np.zeros(len(sample.classes), dtype=np.bool_)
    values: Report = {}
    for value in order:
        if value not in judged:
            n = int(rows[value].sum())
            values[value] = {"n": n, "suppressed": f"only {n} rows, at least {minimum} are needed"}
            continue
        shown, reasons = judged[value]
        if not shown.any():
            values[value] = {"n": int(rows[value].sum()), "suppressed": "no class can be judged: " + reasons[0]}
            continue
        values[value] = _block(sample.rows(rows[value]), shown, common)
        for k, name in enumerate(sample.classes):
            if not shown[k]:
                values[value]["classes"][name]["suppressed"] = reasons[k]
    return {"averaged_classes": [c for c, use in zip(sample.classes, common, strict=True) if use], "values": values}


def evaluate(
    targets: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: npt.ArrayLike,
    classes: Sequence[str],
    thresholds: Sequence[float],
    kind: Kind = "multilabel",
    *,
    subgroup_columns: pd.DataFrame | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    min_subgroup: int = MIN_SUBGROUP,
) -> Report:
    """Everything that is measured on one split.

    Args:
        targets: [N, K] labels 1, 0 or NaN (one-hot for single-label tasks).
        scores: [N, K] calibrated probabilities.
        groups: [N] what the bootstrap draws: patients, scenes, spatial blocks.
        classes: K names.
        thresholds: K operating points, from the validation split (not used by single-label tasks).
        kind: The task's kind.
        subgroup_columns: N rows; the report is broken down by each column.
        bootstrap: Replicates behind every interval; 0: no intervals.
        seed: Of the draws.
        min_subgroup: See ``MIN_SUBGROUP``.

    Returns:
        The report; see the module's head. ``confusion`` holds the counts of single-label tasks, rows by true class.

    Raises:
        VitDomainsError: A score of a labelled row is not finite, or there is nothing to evaluate.
        ValueError: Shapes do not fit together.
    """
    y, s = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 2 or y.shape != s.shape or y.shape[1] != len(classes) or len(thresholds) != len(classes):
        raise ValueError(
            f"targets {y.shape}, scores {s.shape}, {len(classes)} classes and {len(thresholds)} thresholds differ"
        )
    if len(np.asarray(groups)) != len(y) or (subgroup_columns is not None and len(subgroup_columns) != len(y)):
        raise ValueError("groups and subgroup_columns need one row for each row of targets")
    if not (~np.isnan(y)).any():
        raise VitDomainsError("There is no labelled image to evaluate.", hint="Check the split and the classes.")
    broken = int((~np.isfinite(s) & ~np.isnan(y)).any(axis=1).sum())
    if broken:
        raise VitDomainsError(
            f"The scores of {broken} labelled images are not finite.", hint="Leave out images that could not be read."
        )
    draws = draw(groups, bootstrap, seed)
    sample = _Sample(y, s, draws, tuple(classes), tuple(thresholds), kind)
    every = np.ones(len(classes), dtype=np.bool_)
    averaged = _judgeable(y, kind)
    report: Report = {"kind": kind, **_block(sample, every, averaged)}
    report["not_annotated"] = [name for name, cells in report["classes"].items() if not cells["n"]]
    report["averaged_classes"] = [name for name, use in zip(classes, averaged, strict=True) if use]
    report["bootstrap"] = {"replicates": draws.replicates, "seed": seed, "level": LEVEL, "unit": "group"}
    if kind == "singlelabel":
        truth = class_indices(y)
        rows = truth >= 0
        matrix = metrics.confusion(truth[rows], s[rows].argmax(axis=1), len(classes), np.ones((int(rows.sum()), 1)))
        report["confusion"] = {"classes": list(classes), "counts": matrix[:, :, 0].astype(int).tolist()}
    report["subgroups"] = {}
    if subgroup_columns is not None:
        for name, column in subgroup_columns.items():
            report["subgroups"][str(name)] = _subgroups(column.reset_index(drop=True), sample, min_subgroup)
    cleaned: Report = finite(report)
    return cleaned


def headline(report: Mapping[str, Any]) -> tuple[str, dict[str, float | None]]:
    """The one number: macro AUROC, or overall accuracy of a single-label task, with its interval."""
    if report["kind"] == "singlelabel":
        return "accuracy", dict(report["overall"]["accuracy"])
    return "auroc", dict(report["macro"]["auroc"])


def summary(report: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """What a bundle and its card keep of a report: the macro averages and, of a single-label task, the overall metrics."""
    return {**report.get("overall", {}), **report["macro"]}


def predictions_table(
    ids: Iterable[object],
    targets: npt.ArrayLike,
    scores: npt.ArrayLike,
    classes: Sequence[str],
    *,
    groups: npt.ArrayLike | None = None,
    further: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row an image: id, group, further columns, ``label:CLASS`` and ``score:CLASS``; plots are made from it."""
    y, s = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    columns: dict[str, Any] = {"id": list(ids)} | ({} if groups is None else {"group": np.asarray(groups)})
    columns |= (
        {} if further is None else {str(name): further[name].to_numpy() for name in further if name not in columns}
    )
    columns |= {f"label:{name}": y[:, k] for k, name in enumerate(classes)}
    columns |= {f"score:{name}": s[:, k] for k, name in enumerate(classes)}
    if any(len(values) != len(y) for values in columns.values()) or s.shape != y.shape:
        raise ValueError("ids, targets, scores and groups need the same number of rows")
    return pd.DataFrame(columns)
