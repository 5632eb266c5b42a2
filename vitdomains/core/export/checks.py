"""The two gates of an artefact: its outputs are those of the model it came from, and the task's metric does not fall.

Both look at real images of the validation split, which no training step has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdomains.core.errors import ExportError
from vitdomains.core.inference.runtimes import Forward
from vitdomains.core.tasks import Task

BATCHES = (1, 3, 8)
"""Batch sizes at which parity is checked: one, an odd one, and more than either."""

ALLOWED_LOSS = 0.005
"""Default of the accuracy gate: 0.005 AUROC, or half a percentage point of top-1 accuracy."""


@dataclass(frozen=True)
class Yardstick:
    """What an artefact is held against.

    Attributes:
        batches: Gives the inputs of the validation split, in order, each time it is called.
        sample: The first real inputs, [8, ...], and ``sample_outputs`` [8, K], what the source model makes of them.
        outputs: What the source model makes of the whole split, [N, K].
        targets: Labels, [N, K].
        scores: Outputs [N, K] -> calibrated probabilities [N, K].
        task: Names the metric.
    """

    batches: Callable[[], Iterator[np.ndarray]]
    sample: np.ndarray
    sample_outputs: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray
    scores: Callable[[np.ndarray], np.ndarray]
    task: Task

    @property
    def scale(self) -> float:
        """The largest output, but at least 1: what tolerances are a share of."""
        return float(max(1.0, np.abs(self.outputs).max()))

    def metric(self, outputs: np.ndarray, rows: int | None = None) -> float:
        """The task's validation metric of outputs [n, K] of the first ``rows`` images, or of all.

        Raises:
            ExportError: The labels do not define it.
        """
        (value,) = self.task.monitored(self.targets[:rows], self.scores(outputs)).values()
        if np.isnan(value):
            raise ExportError(
                f"The validation split does not define {self.task.monitor}: no class has both outcomes.",
                hint="Give data with more labelled images: --data.root, --data.sources.",
            )
        return float(value)


@dataclass(frozen=True)
class Check:
    """What the gates saw of one artefact in one precision.

    ``differences`` is the largest difference of an output by batch size, ``limit`` what it may be; ``reference`` and ``value``
    are the metric of the source model and of the artefact; ``agreement`` the share of images with the same top class.
    """

    runtime: str
    precision: str
    differences: dict[int, float]
    limit: float
    metric: str
    reference: float
    value: float
    allowed: float
    agreement: float

    @property
    def lost(self) -> float:
        """How much of the metric is lost; below zero where it rose."""
        return self.reference - self.value

    @property
    def problem(self) -> str:
        """Which gate it failed, in words; empty where it passed both."""
        worst = max(self.differences.values())
        if not worst <= self.limit:  # a NaN fails too
            return f"outputs differ by {worst:.2g}, at most {self.limit:.2g} is allowed"
        if not self.lost <= self.allowed:
            return f"{self.metric} falls from {self.reference:.4f} to {self.value:.4f}, by more than {self.allowed:g}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types for ``bundle.json``."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "largest_difference": {str(size): float(f"{value:.3g}") for size, value in self.differences.items()},
            "limit": float(f"{self.limit:.3g}"),
            "metric": self.metric,
            "reference": round(self.reference, 5),
            "value": round(self.value, 5),
            "allowed_loss": self.allowed,
            "agreement": round(self.agreement, 5),
            "passed": not self.problem,
        }


def check(
    forward: Forward, yard: Yardstick, *, runtime: str, precision: str, tolerance: float, allowed: float
) -> Check:
    """Send an artefact through both gates."""
    differences = parity(forward, yard)
    outputs = np.concatenate([forward(batch) for batch in yard.batches()])
    same = (outputs.argmax(axis=1) == yard.outputs.argmax(axis=1)).mean()
    return Check(
        runtime, precision, differences, tolerance * yard.scale, yard.task.monitor, yard.metric(yard.outputs),
        yard.metric(outputs) if np.isfinite(outputs).all() else float("nan"), allowed, float(same),
    )  # fmt: skip


def parity(forward: Forward, yard: Yardstick) -> dict[int, float]:
    """Largest difference of any output to the source model's, for each batch size."""
    return {n: float(np.abs(forward(yard.sample[:n]) - yard.sample_outputs[:n]).max()) for n in BATCHES}
