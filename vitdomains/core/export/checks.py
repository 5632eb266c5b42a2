"""The two gates of an artefact: its outputs are those of the model it came from, and the task's metric does not fall.

Both look at real images of the validation split, which no training step has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vitdomains.core.export.reference import BATCHES, Reference
from vitdomains.core.inference.runtimes import Forward


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
    forward: Forward, reference: Reference, *, runtime: str, precision: str, tolerance: float, allowed: float
) -> Check:
    """Send an artefact through both gates."""
    differences = parity(forward, reference)
    outputs = np.concatenate([forward(batch) for batch in reference.batches()])
    same = (outputs.argmax(axis=1) == reference.outputs.argmax(axis=1)).mean()
    return Check(
        runtime, precision, differences, tolerance * reference.scale, reference.task.monitor, reference.metric(reference.outputs),
        reference.metric(outputs) if np.isfinite(outputs).all() else float("nan"), allowed, float(same),
    )  # fmt: skip


def parity(forward: Forward, reference: Reference) -> dict[int, float]:
    """Largest difference of any output to the source model's, for each batch size."""
    return {n: float(np.abs(forward(reference.sample[:n]) - reference.sample_outputs[:n]).max()) for n in BATCHES}


class _Bfloat16(TorchFunctionMode):
    """Every floating point value that a function takes or gives is rounded to bfloat16; sums are float32, as in hardware."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return tree_map(_rounded, func(*tree_map(_rounded, args), **tree_map(_rounded, kwargs or {})))


def _rounded(value: Any) -> Any:
    is_single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16).to(torch.float32) if is_single else value


def bf16_difference(module: nn.Module, reference: Reference) -> float:
    """Largest difference of an output where all of ``module`` is computed in bfloat16, emulated: for processors without it."""
    with torch.no_grad(), _Bfloat16():
        outputs = module.eval()(torch.from_numpy(reference.sample))
    return float(np.abs(outputs.numpy() - reference.sample_outputs).max())
