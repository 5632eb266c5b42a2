"""Multi-label and single-label tasks: loss, probabilities and validation metric.

A task is a frozen value: it turns logits and targets into a loss and logits into
probabilities, and names the validation metric. Models return logits, always. Targets are float ``[B, K]`` with 1, 0 or
NaN; NaN means unknown and counts nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitdomains.core.config.schema import Recipe
from vitdomains.core.errors import ConfigError
from vitdomains.core.metrics.scores import accuracy, auroc


@dataclass(frozen=True)
class MultiLabel:
    """Independent yes/no questions, e.g. the findings of a chest film.

    ``loss_name`` is binary cross-entropy or the asymmetric loss with focusing 4 on negatives, 1 on positives and margin 0.05
    (Ridnik et al. 2021, equation 7). ``positive_weight`` multiplies the loss of positives, one value a class.
    """

    classes: tuple[str, ...]
    loss_name: Literal["bce", "asymmetric"] = "bce"
    positive_weight: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    kind: ClassVar[str] = "multilabel"
    monitor: ClassVar[str] = "auroc"

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean loss over the known labels; ``weights`` [B] scales each image. Zero, with a gradient, if none is known."""
        known = ~targets.isnan()
        target = torch.where(known, targets, 0.0)
        target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.loss_name == "asymmetric":
            each = _asymmetric(logits, target)
        else:
            weight = logits.new_tensor(self.positive_weight) if self.positive_weight else None
            each = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
        share = known.to(each.dtype) if weights is None else known * weights[:, None]
        return (each * share).sum() / share.sum().clamp(min=1e-9)

    def scores(self, logits: np.ndarray, temperature: tuple[float, ...] = (1.0,)) -> np.ndarray:
        """Probabilities [N, K] of logits [N, K], each class divided by its temperature."""
        scaled = np.asarray(logits, dtype=np.float64) / np.asarray(temperature)
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scaled)))  # the sigmoid, in a form that cannot overflow

    def monitored(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Macro AUROC over the classes with both outcomes, for [N, K] targets and scores; NaN where a score is none."""
        return {"auroc": auroc(targets, scores) if np.isfinite(scores).all() else math.nan}


@dataclass(frozen=True)
class SingleLabel:
    """One class of several, e.g. the land use of a tile. Targets are one-hot or mixed rows; a NaN row is unknown."""

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    kind: ClassVar[str] = "singlelabel"
    monitor: ClassVar[str] = "accuracy"

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy over the images whose class is known; ``weights`` [B] scales each image."""
        known = ~targets.isnan().any(dim=1)
        target = torch.where(known[:, None], targets, 0.0)
        each = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing, reduction="none")
        share = known.to(each.dtype) if weights is None else known * weights
        return (each * share).sum() / share.sum().clamp(min=1e-9)

    def scores(self, logits: np.ndarray, temperature: tuple[float, ...] = (1.0,)) -> np.ndarray:
        """Probabilities [N, K] that sum to one over the classes."""
        scaled = np.asarray(logits, dtype=np.float64) / np.asarray(temperature)
        e = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    def monitored(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Top-1 accuracy of [N, K] scores against [N, K] one-hot targets; NaN where a score is none."""
        return {"accuracy": accuracy(targets, scores) if np.isfinite(scores).all() else math.nan}


Task = MultiLabel | SingleLabel
Kind = Literal["multilabel", "singlelabel"]


def _asymmetric(
    logits: Tensor, target: Tensor, positive: float = 1.0, negative: float = 4.0, margin: float = 0.05
) -> Tensor:
    p = logits.sigmoid()
    p_negative = (p - margin).clamp(min=0.0)
    gain = target * (1 - p) ** positive * F.logsigmoid(logits)
    loss = (1 - target) * p_negative**negative * torch.log1p(-p_negative.clamp(max=1 - 1e-7))
    return -(gain + loss)


def build_task(
    kind: str, classes: tuple[str, ...], recipe: Recipe | None = None, targets: np.ndarray | None = None
) -> Task:
    """The task of a run, or of a bundle when there is no ``recipe`` any more.

    Args:
        kind: ``multilabel`` or ``singlelabel``.
        classes: Class names, in the order of the logits.
        recipe: Loss, smoothing and the bound of the positive weights.
        targets: Training targets [N, K]; needed where ``recipe.positive_weight`` is above 1.

    Raises:
        ConfigError: The loss does not fit the kind of task.
    """
    recipe = recipe or Recipe()
    fitting = {"multilabel": ("auto", "bce", "asymmetric"), "singlelabel": ("auto", "cross_entropy")}
    if kind not in fitting:
        raise ConfigError(f"task {kind!r} is not known.", hint="Use multilabel or singlelabel.")
    if recipe.loss not in fitting[kind]:
        raise ConfigError(
            f"recipe.loss = {recipe.loss!r} does not fit a {kind} task.", hint=f"Use one of {', '.join(fitting[kind])}."
        )
    if kind == "singlelabel":
        return SingleLabel(classes, recipe.label_smoothing)
    weight: tuple[float, ...] = ()
    if recipe.positive_weight > 1 and targets is not None:
        positives, negatives = np.nansum(targets == 1, axis=0), np.nansum(targets == 0, axis=0)
        weight = tuple(np.clip(negatives / np.maximum(positives, 1), 1.0, recipe.positive_weight).tolist())
    return MultiLabel(classes, "asymmetric" if recipe.loss == "asymmetric" else "bce", weight, recipe.label_smoothing)
