"""How metrics see their rows: labels of NaN left out, R sets of row weights at once, one column per class.

``binary`` and ``multiclass`` turn a kernel, which only ever meets known labels and a weight matrix [N, R], into a
public metric.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, overload

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
        # Options given per class ([K]) are handed out one by one, others go to every class.
        per_class = {
            k: v for k, v in options.items() if isinstance(v, (Sequence, np.ndarray)) and not isinstance(v, str)
        }
        values = np.full((y.shape[1], w.shape[1]), np.nan)
        for k in range(y.shape[1]):
            rows = ~np.isnan(y[:, k])
            if rows.any():
                own = options | {name: value[k] for name, value in per_class.items()}
                values[k] = kernel(y[rows, k] > 0.5, s[rows, k], w if rows.all() else w[rows], **own)
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
