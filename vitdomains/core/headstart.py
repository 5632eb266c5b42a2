"""A head that starts where a linear probe ends, before the layers below it are trained with it.

Between the model and the loop. A random head sends random gradients into pretrained layers and distorts what they know;
fitted first on their features, it does not (LP-FT: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", section 3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vitdomains.core.data.dataset import Batch
from vitdomains.core.errors import ConfigError
from vitdomains.core.metrics.scores import class_indices
from vitdomains.core.tasks import Task
from vitdomains.core.training.batches import Forward

logger = logging.getLogger(__name__)


def linear_head(model: nn.Module, n_classes: int) -> nn.Linear:
    """The layer that gives the logits.

    Raises:
        ConfigError: The logits come from no single linear layer, as with an mlp head or pooled patch logits.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == n_classes]
    last = found[-1] if found else None
    if last is None or len(found) > 1 or getattr(model, "combine", None) is not None:
        raise ConfigError(
            "recipe.head_init = probe needs a model whose logits come from one linear layer.",
            hint="Use model.head linear, no distillation token and another pool than lse; or recipe.head_init random.",
        )
    return last


@torch.no_grad()
def head_inputs(
    model: nn.Module, head: nn.Linear, forward: Forward, batches: Iterable[Batch]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What enters the head, [N, D], and the targets, [N, K], of one pass over ``batches`` without dropout."""
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float().cpu()))
    training, targets = model.training, []
    model.eval()
    try:
        for inputs, target, _ in batches:
            forward(inputs)
            targets.append(target)
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(features).numpy().astype(np.float64), torch.cat(targets).numpy().astype(np.float64)


def fit_head(head: nn.Linear, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], task: Task, c: float) -> None:
    """Put scikit-learn's logistic regression on standardised features into ``head``, in place.

    Args:
        head: D inputs, K outputs.
        x: Features [N, D].
        y: Targets [N, K]: 1, 0 or NaN; a class without both outcomes keeps the weights that it has.
        task: One regression a class for independent findings, one for all classes otherwise.
        c: Inverse strength of the L2 penalty.
    """
    scaler = StandardScaler().fit(x)
    z = scaler.transform(x)
    if task.kind == "singlelabel":
        truth = class_indices(y)
        fitted = LogisticRegression(C=c, max_iter=1000).fit(z[truth >= 0], truth[truth >= 0])
        coefficients, intercepts = fitted.coef_, fitted.intercept_
        if len(fitted.classes_) == 2:  # one row, the log odds of the second class
            coefficients, intercepts = np.vstack([0 * coefficients, coefficients]), np.append(0.0, intercepts)
        parts = list(zip(fitted.classes_.astype(int), coefficients, intercepts, strict=True))
    else:
        parts = []
        for k in range(y.shape[1]):
            known = ~np.isnan(y[:, k])
            if len(np.unique(y[known, k])) == 2:
                one = LogisticRegression(C=c, max_iter=1000).fit(z[known], y[known, k])
                parts.append((k, one.coef_[0], one.intercept_[0]))
    with torch.no_grad():
        for k, weight, bias in parts:
            raw = weight / scaler.scale_
            head.weight[k] = torch.from_numpy(raw).to(head.weight)
            head.bias[k] = float(bias - raw @ scaler.mean_)
    logger.info("head: %d of %d classes start from a linear probe on %d images", len(parts), y.shape[1], len(x))
