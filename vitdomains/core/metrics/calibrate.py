"""Temperature scaling and operating points, from the validation split alone.

Nothing here may see the test split; both results live in the bundle.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from vitdomains.core.errors import ConfigError
from vitdomains.core.metrics.scores import Array, Mask, class_indices

logger = logging.getLogger(__name__)

Kind = Literal["multilabel", "singlelabel"]
Rule = Literal["youden", "sensitivity", "specificity", "f1"]

TEMPERATURES = (0.05, 20.0)
"""Range of the temperature: at its ends, the validation split says no more than that scores separate it, or do not."""
FEW_POSITIVES = 10
"""Below this many positives (or negatives) in the validation split, an operating point is noted as uncertain."""
DEFAULT_THRESHOLD = 0.5


def _binary_nll(logits: Array, outcome: Array, temperature: float) -> float:
    """Mean binary cross-entropy at a temperature, nats; logits and outcomes [N]."""
    return float(np.logaddexp(0.0, (1.0 - 2.0 * outcome) * logits / temperature).mean())


def _softmax_nll(logits: Array, truth: npt.NDArray[np.intp], temperature: float) -> float:
    """Mean cross-entropy at a temperature, nats; logits [N, K], true classes [N]."""
    z = logits / temperature
    return float((logsumexp(z, axis=1) - z[np.arange(len(z)), truth]).mean())


def _best_temperature(logits: Array, targets: Array, kind: Kind) -> float:
    """Temperature of least NLL; 1 where the labels cannot tell (fewer than two outcomes).

    The NLL is convex in 1 / T, so it has one minimum in log T, and a bounded scalar search finds it.
    """
    if kind == "singlelabel":
        truth = class_indices(targets)
        rows = truth >= 0
        if len(np.unique(truth[rows])) < 2:
            return 1.0
        known, labels = logits[rows], truth[rows]

        def cost(log_t: float) -> float:
            return _softmax_nll(known, labels, float(np.exp(log_t)))
    else:
        cells = ~np.isnan(targets)
        outcomes = targets[cells]
        if not (outcomes > 0.5).any() or (outcomes > 0.5).all():
            return 1.0
        values = logits[cells]

        def cost(log_t: float) -> float:
            return _binary_nll(values, outcomes, float(np.exp(log_t)))

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def fit_temperature(
    logits: npt.ArrayLike, targets: npt.ArrayLike, kind: Kind = "multilabel", per_class: bool = False
) -> tuple[float, ...]:
    """Temperature T that minimises the NLL of ``logits / T`` (Guo et al. 2017, sec. 4.2).

    Args:
        logits: [N, K] of the validation split, before any activation.
        targets: [N, K] labels 1, 0 or NaN (one-hot for single-label tasks).
        kind: The task's kind.
        per_class: One temperature a class; for multi-label tasks only, since dividing one class's logit alone would
            change which class of a single-label task wins.

    Returns:
        One temperature, or K of them; 1 where the labels hold one outcome only.

    Raises:
        ConfigError: ``per_class`` for a single-label task.
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if z.shape != y.shape or z.ndim != 2:
        raise ValueError(f"logits {z.shape} and targets {y.shape} must both be [N, K]")
    if not per_class:
        return (_best_temperature(z, y, kind),)
    if kind == "singlelabel":
        raise ConfigError("A single-label task has one temperature, not one per class.", hint="Use per_class=False.")
    return tuple(_best_temperature(z[:, [k]], y[:, [k]], kind) for k in range(z.shape[1]))


def _candidates(scores: Array) -> Array:
    """Thresholds between neighbouring distinct scores, ascending, with one below and one above them all.

    Midpoints, not the scores themselves: the same film read again may score a rounding error less.
    """
    distinct = np.unique(scores)
    above = max((distinct[-1] + 1.0) / 2.0, np.nextafter(distinct[-1], np.inf))
    return np.concatenate([[distinct[0] / 2.0], (distinct[:-1] + distinct[1:]) / 2.0, [above]])


def _threshold(y: Mask, s: Array, rule: Rule, target: float) -> float:
    """Operating point of one class from its known labels; both outcomes are present."""
    thresholds = _candidates(s)
    positives, negatives = np.sort(s[y]), np.sort(s[~y])
    tp = len(positives) - np.searchsorted(positives, thresholds, side="left")
    fp = len(negatives) - np.searchsorted(negatives, thresholds, side="left")
    sensitivity, specificity = tp / len(positives), 1.0 - fp / len(negatives)
    if rule == "sensitivity":  # the highest threshold that still finds enough: most specific
        return float(thresholds[np.flatnonzero(sensitivity >= target - 1e-12)[-1]])
    if rule == "specificity":  # the lowest that is specific enough: most sensitive
        return float(thresholds[np.flatnonzero(specificity >= target - 1e-12)[0]])
    merit = sensitivity + specificity if rule == "youden" else 2 * tp / (tp + fp + len(positives))
    # Counts make exact ties; the first is the more sensitive one.
    return float(thresholds[np.flatnonzero(merit >= merit.max() - 1e-12)[0]])


def choose_thresholds(
    targets: npt.ArrayLike, scores: npt.ArrayLike, rule: Rule = "youden", target: float = 0.9
) -> tuple[float, ...]:
    """Operating point of each class; a case is called positive at ``score >= threshold``.

    Args:
        targets: [N, K] labels of the validation split; NaN is unknown.
        scores: [N, K] calibrated probabilities.
        rule: ``youden``: largest sensitivity + specificity - 1 (Youden 1950); ``f1``: largest F1; ``sensitivity`` or
            ``specificity``: the threshold that reaches ``target`` at the least cost to the other. Ties go to the more
            sensitive.
        target: For the latter two, 0..1.

    Returns:
        K thresholds; 0.5 for a class with one outcome only, see ``calibration_notes``.

    Raises:
        ConfigError: Unknown rule, or a target outside 0..1.
    """
    if rule not in ("youden", "sensitivity", "specificity", "f1"):
        raise ConfigError(f"Unknown threshold rule {rule!r}.", hint="Use youden, sensitivity, specificity or f1.")
    if not 0.0 <= target <= 1.0:
        raise ConfigError(f"threshold_target is {target}, not within 0..1.", hint="Give a share, e.g. 0.9.")
    y, s = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 2:
        raise ValueError(f"targets {y.shape} and scores {s.shape} must both be [N, K]")
    chosen = []
    for k in range(y.shape[1]):
        rows = ~np.isnan(y[:, k])
        positive = y[rows, k] > 0.5
        both = positive.any() and not positive.all()
        chosen.append(_threshold(positive, s[rows, k], rule, target) if both else DEFAULT_THRESHOLD)
    return tuple(chosen)


def calibration_notes(targets: npt.ArrayLike, classes: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each class whose operating point the validation split cannot, or can barely, decide; logged."""
    y = np.asarray(targets, dtype=np.float64)
    notes = []
    for k, name in enumerate(classes):
        positives, negatives = int((y[:, k] > 0.5).sum()), int((y[:, k] <= 0.5).sum())
        if positives == 0 or negatives == 0:
            kind = "positive" if positives == 0 else "negative"
            notes.append(
                f"{name}: no {kind} case in the validation split; its threshold is {DEFAULT_THRESHOLD}, not chosen."
            )
        elif min(positives, negatives) < FEW_POSITIVES:
            kind, count = min(("positive", positives), ("negative", negatives), key=lambda pair: pair[1])
            cases = "case" if count == 1 else "cases"
            notes.append(f"{name}: only {count} {kind} {cases} in the validation split; its threshold is uncertain.")
    for note in notes:
        logger.warning(note)
    return tuple(notes)
