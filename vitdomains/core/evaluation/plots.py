"""The report's pictures: ROC, precision-recall, reliability, confusion matrix and metrics with their intervals.

Figures are made through matplotlib's object interface: no pyplot, no window, nothing left open. Each comes as PNG (a
file to paste elsewhere) and as SVG whose ink is ``currentColor``, which follows a page into dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitdomains.core.metrics.bootstrap import wilson
from vitdomains.core.metrics.scores import Array, Mask, bin_indices, class_indices, top_label

INK = "#1a1b1e"
"""Colour of text and axes; exactly this string becomes ``currentColor`` in SVG, so no other element may use it."""
LINE, ACCENT, FAINT = "#2f7ed8", "#d9602b", "#9aa0a8"
MAX_PANELS = 24
"""Curves are drawn for at most this many classes, those with the most positives."""
MAX_POINTS = 300
"""Points of one curve in a picture."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitdomains",
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
}


def render(figure: Figure) -> tuple[bytes, str]:
    """A figure as PNG bytes on white, and as an SVG element on nothing, in the ink of the page."""
    with matplotlib.rc_context(_STYLE):
        png, svg = io.BytesIO(), io.StringIO()
        FigureCanvasAgg(figure)
        figure.savefig(png, format="png", dpi=144, facecolor="white", metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.getvalue(), flags=re.DOTALL)
    return png.getvalue(), text[text.index("<svg") :].replace(INK, "currentColor")


def _panels(count: int, x_label: str, y_label: str, side: float = 1.75) -> tuple[Figure, list[Axes]]:
    """A grid of square panels, as wide as a page; margins are set in inches, since solving for them is slow."""
    columns = min(5, max(1, count))
    rows = math.ceil(count / columns)
    left, right, bottom, top, gap = 0.65, 0.15, 0.6, 0.3, 0.42
    width = left + columns * side + (columns - 1) * 0.2 + right
    height = bottom + rows * side + (rows - 1) * gap + top
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height, wspace=0.2 / side, hspace=gap / side
    )
    figure.supxlabel(x_label, fontsize=9, y=0.12 / height)
    figure.supylabel(y_label, fontsize=9, x=0.12 / width)
    axes = [axis for line in figure.subplots(rows, columns, squeeze=False) for axis in line]
    for axis in axes[count:]:
        axis.remove()
    for place, axis in enumerate(axes[:count]):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.tick_params(labelbottom=place + columns >= count, labelleft=place % columns == 0)
    return figure, axes[:count]


def _thin(*columns: Array) -> tuple[Array, ...]:
    """At most ``MAX_POINTS`` rows, evenly spread over the path's length, ends kept."""
    if len(columns[0]) <= MAX_POINTS:
        return columns
    length = np.concatenate([[0.0], np.cumsum(sum(np.abs(np.diff(c)) for c in columns))])
    keep = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], MAX_POINTS)).clip(0, len(length) - 1))
    return tuple(column[keep] for column in columns)


def curve(y: Mask, s: Array) -> tuple[Array, Array, Array]:
    """False-positive rate, true-positive rate and precision at each distinct score, highest score first."""
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    tp = np.cumsum(y[order])[last].astype(np.float64)
    called = (last + 1).astype(np.float64)
    return (called - tp) / max(1, int((~y).sum())), tp / max(1, int(y.sum())), tp / called


def _known(predictions: pd.DataFrame, name: str) -> tuple[Mask, Array]:
    label = predictions[f"label:{name}"].to_numpy(np.float64)
    rows = ~np.isnan(label)
    return label[rows] > 0.5, predictions[f"score:{name}"].to_numpy(np.float64)[rows]


def plotted_classes(predictions: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Classes with both outcomes, in their order; the ``MAX_PANELS`` with the most positives if there are more."""
    positives = {
        name: int(y.sum()) for name in classes for y, _ in [_known(predictions, name)] if y.any() and not y.all()
    }
    most = sorted(positives, key=lambda name: -positives[name])[:MAX_PANELS]
    return [name for name in classes if name in most]


def roc(predictions: pd.DataFrame, classes: Sequence[str], thresholds: dict[str, float]) -> Figure:
    """One ROC panel a class; the dot is the operating point."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(classes), "1 - specificity", "sensitivity")
        for axis, name in zip(axes, classes, strict=True):
            y, s = _known(predictions, name)
            fpr, tpr, _ = curve(y, s)
            axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=":")
            axis.plot(*_thin(np.r_[0.0, fpr], np.r_[0.0, tpr]), color=LINE, linewidth=1.5)
            called = s >= thresholds[name]
            axis.plot(called[~y].mean(), called[y].mean(), "o", color=ACCENT, markersize=4.5)
            axis.set_title(name, fontsize=9)
    return figure


def precision_recall(predictions: pd.DataFrame, classes: Sequence[str], thresholds: dict[str, float]) -> Figure:
    """One precision-recall panel a class; dotted: the share of positives, what chance gives."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(classes), "sensitivity (recall)", "PPV (precision)")
        for axis, name in zip(axes, classes, strict=True):
            y, s = _known(predictions, name)
            _, recall, precision = curve(y, s)
            axis.axhline(float(y.mean()), color=FAINT, linewidth=0.8, linestyle=":")
            recall, precision = _thin(np.r_[0.0, recall], np.r_[precision[0], precision])
            axis.step(recall, precision, where="pre", color=LINE, linewidth=1.5)
            called = s >= thresholds[name]
            if called.any():
                axis.plot(called[y].mean(), y[called].mean(), "o", color=ACCENT, markersize=4.5)
            axis.set_title(name, fontsize=9)
    return figure


def _reliability(axis: Axes, outcome: Array, s: Array) -> None:
    """Observed share against mean score in ten bins of equal size, with Wilson's 95 % interval (Wilson 1927)."""
    bins = bin_indices(s, bins=10)
    axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=":")
    points = []
    for b in np.unique(bins):
        rows = bins == b
        points.append(
            (float(s[rows].mean()), float(outcome[rows].mean()), *wilson(int(outcome[rows].sum()), int(rows.sum())))
        )
    x, observed, low, high = np.array(points).T
    axis.vlines(x, low, high, color=LINE, linewidth=0.9, alpha=0.5)
    axis.plot(x, observed, "o-", color=LINE, linewidth=1.1, markersize=3)


def reliability(predictions: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """One reliability panel a class."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(classes), "predicted probability", "observed share")
        for axis, name in zip(axes, classes, strict=True):
            y, s = _known(predictions, name)
            _reliability(axis, y.astype(np.float64), s)
            axis.set_title(name, fontsize=9)
    return figure


def top_label_reliability(predictions: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Accuracy against the probability of the most probable class."""
    truth = class_indices(predictions[[f"label:{name}" for name in classes]].to_numpy(np.float64))
    rows = truth >= 0
    right, confidence = top_label(
        truth[rows], predictions[[f"score:{name}" for name in classes]].to_numpy(np.float64)[rows]
    )
    with matplotlib.rc_context(_STYLE):
        figure, (axis,) = _panels(1, "probability of the predicted class", "share that is right", side=3.6)
        _reliability(axis, right, confidence)
    return figure


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts, rows by true class; the shade is the share of the row."""
    matrix = np.asarray(counts, dtype=np.float64)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    k = len(classes)
    side = min(11.0, 1.8 + 0.42 * k)
    size = 8.5 if k <= 12 else 6.5
    with matplotlib.rc_context({**_STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axis = figure.subplots()
        axis.pcolormesh(share, cmap="Blues", vmin=0.0, vmax=1.0)
        axis.invert_yaxis()
        centres = np.arange(k) + 0.5
        axis.set_xticks(centres, list(classes), rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axis.set_yticks(centres, list(classes), fontsize=size)
        axis.set(xlabel="predicted", ylabel="true", aspect="equal")
        for i, j in zip(*np.nonzero(matrix), strict=True):
            # Cells keep their shade in dark mode, so their text may not follow the page.
            tone = "#ffffff" if share[i, j] > 0.55 else "#222222"
            axis.text(
                j + 0.5, i + 0.5, f"{int(matrix[i, j])}", ha="center", va="center", fontsize=size - 0.5, color=tone
            )
    return figure


def forest(rows: Sequence[tuple[str, dict[str, float | None]]], label: str, chance: float | None = None) -> Figure:
    """One line a row: name, interval and value of a metric; rows without a value are left out."""
    shown = [(name, cell) for name, cell in rows if cell.get("value") is not None]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.24 * max(1, len(shown))), layout="constrained")
        axis = figure.subplots()
        if chance is not None:
            axis.axvline(chance, color=FAINT, linewidth=0.8, linestyle=":")
        for place, (_, cell) in enumerate(shown):
            value, low, high = (
                np.nan if cell[key] is None else float(cell[key] or 0.0) for key in ("value", "low", "high")
            )
            axis.plot([low, high], [place, place], color=LINE, linewidth=1.6, solid_capstyle="butt")
            axis.plot([value], [place], "o", color=LINE, markersize=4.5)
        axis.set_yticks(range(len(shown)), [name for name, _ in shown])
        axis.set_ylim(max(1, len(shown)) - 0.5, -0.5)
        axis.set_xlabel(label)
        axis.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
    return figure
