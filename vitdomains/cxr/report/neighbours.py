"""How often held-out films with about the same score did have the finding, from the bundle's own report.

A calibrated score of 0.7 is a promise about many films, not about one. So beside a score stands how often films with about
that score did have the finding, with an interval that says how many films that rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitdomains.core.errors import BundleError
from vitdomains.core.evaluation.roles import read_report, untouched
from vitdomains.core.metrics.bootstrap import wilson

NEIGHBOURS = 60
"""Held-out films that a score is compared with, at most; a tenth of all where these are fewer, but not less than 20."""
_LEAST = 20


@dataclass(frozen=True)
class Evidence:
    """Of the ``n`` held-out films with the nearest scores, between ``lowest`` and ``highest``, ``positives`` had the finding."""

    n: int
    positives: int
    lowest: float
    highest: float
    low: float
    high: float

    def text(self) -> str:
        """One sentence."""
        return (
            f"Of the {self.n} held-out films with the nearest scores ({self.lowest:.2f} to {self.highest:.2f}) {self.positives} "
            f"had it: {self.positives / self.n:.0%} (95 % interval {self.low:.0%} to {self.high:.0%})."
        )


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions of a bundle, by class: scores in ascending order, and the labels beside them; and its report."""

    scores: Mapping[str, NDArray[np.float64]]
    labels: Mapping[str, NDArray[np.bool_]]
    report: Mapping[str, Any]

    def evidence(self, name: str, probability: float) -> Evidence | None:
        """What held-out films say of this score; None where too few were labelled."""
        scores = self.scores.get(name)
        if scores is None or len(scores) < _LEAST or not math.isfinite(probability):
            return None
        count = min(len(scores), max(_LEAST, min(NEIGHBOURS, len(scores) // 10)))
        # The window of ``count`` scores around this one whose farther end is nearest.
        centre = int(np.searchsorted(scores, probability))
        first = max(0, min(centre - count // 2, len(scores) - count))
        while first > 0 and probability - scores[first - 1] < scores[first + count - 1] - probability:
            first -= 1
        while first + count < len(scores) and scores[first + count] - probability < probability - scores[first]:
            first += 1
        inside = slice(first, first + count)
        positives = int(self.labels[name][inside].sum())
        low, high = wilson(positives, count)
        return Evidence(count, positives, float(scores[inside][0]), float(scores[inside][-1]), low, high)

    def calibration(self, name: str) -> str:
        """How good the scores of a class are, in a sentence; empty where the report does not say."""
        cells = self.report.get("classes", {}).get(name, {})
        parts = []
        for key, title in (("auroc", "AUROC"), ("ece", "expected calibration error")):
            cell = cells.get(key) or {}
            if cell.get("value") is not None:
                spread = f" ({cell['low']:.2f} to {cell['high']:.2f})" if cell.get("low") is not None else ""
                parts.append(f"{title} {cell['value']:.2f}{spread}")
        if not parts:
            return ""
        return (
            f"{', '.join(parts)} on {cells.get('n', 0)} held-out films, {cells.get('n_positive', 0)} of them with it."
        )


def read_held_out(bundle: Path, classes: Sequence[str]) -> HeldOut:
    """The held-out predictions that lie in a bundle's folder; empty where it was written without a report.

    Rows that training saw are left out, and the report with them.

    Raises:
        BundleError: The report is there and cannot be read.
    """
    folder = bundle / "report"
    if not (folder / "predictions.csv").is_file() or not (folder / "report.json").is_file():
        return HeldOut({}, {}, {})
    try:
        table, content = pd.read_csv(folder / "predictions.csv"), read_report(folder)
    except (ValueError, OSError) as error:
        raise BundleError(
            f"The report in {bundle} cannot be read: {error}.", hint="Write it again with evaluate."
        ) from error
    unseen = untouched(table)
    if not unseen.all():
        table, content = table[unseen], {}  # figures of images that training saw are no evidence
    scores, labels = {}, {}
    for name in classes:
        if {f"score:{name}", f"label:{name}"} <= set(table.columns):
            known = table[[f"score:{name}", f"label:{name}"]].dropna().sort_values(f"score:{name}")
            scores[name] = known.iloc[:, 0].to_numpy(np.float64)
            labels[name] = known.iloc[:, 1].to_numpy(np.float64) > 0.5
    return HeldOut(scores, labels, content)
