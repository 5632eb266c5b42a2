"""Confidence intervals by resampling whole groups (patients, scenes, blocks).

Images of one patient are alike, so rows are not independent: drawing rows would give intervals that are too narrow.
Groups are drawn with replacement and every row of a drawn group comes along (the cluster bootstrap: Efron and
Tibshirani 1993, ch. 8; Davison and Hinkley 1997, sec. 3.8). Drawing a group m times is the same as giving its rows
weight m, so a replicate is a column of weights and no row is ever copied. Intervals are percentile intervals (Efron
and Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdomains.core.metrics.scores import Array, Indices

LEVEL = 0.95
"""Coverage of every interval."""
_CELLS = 500_000
"""Row weights made at a time: about 4 MB, so that one block stays in the processor's cache."""


@dataclass(frozen=True)
class Draws:
    """Replicates of a sample of groups.

    Args:
        index: [N] group of each row, 0..G-1.
        counts: [G, R] how often each group was drawn in each replicate.
    """

    index: Indices
    counts: npt.NDArray[np.uint8]

    @property
    def groups(self) -> int:
        return len(self.counts)

    @property
    def replicates(self) -> int:
        return int(self.counts.shape[1])

    def rows(self, rows: npt.NDArray[Any]) -> Draws:
        """The same replicates seen by a subset of the rows."""
        return Draws(self.index[rows], self.counts)

    def weights(self) -> Iterator[Array]:
        """Row weights [N, r] of a few replicates at a time."""
        step = max(8, _CELLS // max(1, len(self.index)))
        for start in range(0, self.replicates, step):
            yield self.counts[:, start : start + step].astype(np.float64)[self.index]


def draw(groups: npt.ArrayLike, replicates: int, seed: int) -> Draws:
    """Draw G groups of G with replacement, ``replicates`` times; the same for the same names, count and seed."""
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    g = len(names)
    counts = np.zeros((g, replicates), dtype=np.uint8)
    # A group comes up about once; 255 times has no measurable probability, so a byte is enough.
    rng = np.random.default_rng(seed)
    for r in range(replicates if g else 0):
        counts[:, r] = np.bincount(rng.integers(0, g, g), minlength=g)
    if g == 1:
        counts = counts[:, :0]  # one group has no spread to measure
    return Draws(index.astype(np.intp), counts)


def interval(values: Array) -> tuple[float, float]:
    """Percentile interval of replicates [R]; (NaN, NaN) where fewer than half of them are defined."""
    known = values[~np.isnan(values)]
    if len(known) == 0 or 2 * len(known) < len(values):
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(known, [tail, 100.0 - tail])
    return float(low), float(high)


def wilson(positives: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, Journal of the American Statistical Association 22, 209-212)."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # half a second to import

    found = binomtest(positives, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def estimate(value: float, replicates: Array, *, centred: bool = False) -> dict[str, float]:
    """``{value, low, high}``; without a defined value there is no interval.

    Args:
        value: On the sample itself.
        replicates: [R].
        centred: Shift the replicates so that their mean is ``value`` (less the bootstrap estimate of bias, Efron and
            Tibshirani 1993, ch. 10), not below zero. For a calibration error: resampling adds noise to every bin and
            noise adds to a sum of absolute gaps, so that plain percentiles may lie above the value altogether.
    """
    low, high = interval(replicates) if not np.isnan(value) else (float("nan"), float("nan"))
    if centred and not np.isnan(low):
        shift = value - float(np.nanmean(replicates))
        low, high = max(0.0, low + shift), max(0.0, high + shift)
    return {"value": float(value), "low": low, "high": high}


def replicate(statistics: Callable[[Array], Mapping[str, Array]], draws: Draws) -> dict[str, Array]:
    """Statistics of all replicates.

    Args:
        statistics: From row weights [N, r] to arrays [..., r] by name.
        draws: Of the N rows.

    Returns:
        Arrays [..., R] by name; an empty dict without replicates.
    """
    parts = [statistics(w) for w in draws.weights()]
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in (parts[0] if parts else {})}
