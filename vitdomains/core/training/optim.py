"""Parts of the recipe: linear-probe initialisation, parameter groups, schedule, losses, sharpness-aware step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vitdomains.core.config.schema import Config, Recipe
from vitdomains.core.data.dataset import Batch
from vitdomains.core.errors import ConfigError
from vitdomains.core.metrics.scores import class_indices
from vitdomains.core.models.introspect import heads, layer_ids, no_decay_names
from vitdomains.core.tasks import Task
from vitdomains.core.training.batches import Batches, Forward

logger = logging.getLogger(__name__)


def probe_head(model: nn.Module, task: Task, batches: Batches, config: Config, fabric: Any, height: int) -> None:
    """Start the head as a linear probe of what the first epoch shows, the same on every device.

    A random head sends random gradients into pretrained layers and distorts what they know; fitted first on their features, it
    does not (LP-FT: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
    section 3.3).
    """
    head = linear_head(model)
    with fabric.autocast():
        images = batches.train(0, size_at(0, config.recipe, height), 0)
        x, y = head_inputs(model, head, batches.forward(model), images)
    fit_head(head, x, y[:, : len(task.classes)], task, config.recipe.head_init_c)
    head.load_state_dict(fabric.broadcast(head.state_dict()))


def linear_head(model: nn.Module) -> nn.Linear:
    """The layer that gives the logits.

    Raises:
        ConfigError: The logits come from no single linear layer, as with an mlp head or pooled patch logits.
    """
    found = [m for head in heads(model) for m in head.modules() if isinstance(m, nn.Linear)]
    if len(found) != 1 or getattr(model, "combine", None) is not None:
        raise ConfigError(
            "recipe.head_init = probe needs a model whose logits come from one linear layer.",
            hint="Use model.head linear, no distillation token and another pool than lse; or recipe.head_init random.",
        )
    return found[0]


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


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW groups: one per depth and decay, each with its ``lr_scale``.

    The scale of depth ``d`` of ``D`` is ``layer_decay ** (D - d)`` (Clark et al. 2020; Bao et al. 2022), so the head, at
    depth D, keeps 1 (times ``head_lr_scale``) and the patch embedding gets the least. Weight decay
    spares what ``no_decay_names`` lists and every parameter of one dimension (bias, norm, LayerScale).

    Returns:
        Dictionaries with ``params``, ``weight_decay`` and ``lr_scale``; frozen parameters are left out.
    """
    depth = layer_ids(model)
    top = max(depth.values())
    spared = no_decay_names(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in spared
        layer = depth[name]
        scale = recipe.layer_decay ** (top - layer) * (recipe.head_lr_scale if layer == top else 1.0)
        group = groups.setdefault(
            (layer, decays),
            {"params": [], "weight_decay": recipe.weight_decay if decays else 0.0, "lr_scale": scale},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def learning_rate(step: float, total_steps: int, warmup_steps: float, recipe: Recipe) -> float:
    """Linear warm-up from zero, then one half cosine from ``lr`` to ``min_lr`` (Loshchilov and Hutter 2017, equation 5)."""
    if step < warmup_steps:
        return recipe.lr * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))


def size_at(epoch: int, recipe: Recipe, image_size: int) -> int:
    """Input size of an epoch under ``progressive_sizes``, pixels."""
    for until, size in recipe.progressive_sizes:
        if epoch < until * recipe.epochs:
            return size
    return image_size


def distillation_loss(task: Task, student: Tensor, teacher: Tensor, recipe: Recipe) -> Tensor:
    """The teacher's part of the loss for logits [B, K] (Touvron et al. 2021, section 4).

    Hard: the teacher's decision is the label (equation 3). Soft: Kullback-Leibler divergence at temperature tau, times tau
    squared (equation 2). For independent findings both are taken per finding, with the sigmoid in place of the softmax.
    """
    if task.kind == "multilabel":
        if recipe.distillation == "hard":
            return F.binary_cross_entropy_with_logits(student, (teacher > 0).to(student.dtype))
        tau = recipe.distillation_tau
        target = (teacher / tau).sigmoid()
        # Cross-entropy less the teacher's own entropy is the divergence; only the first has a gradient.
        divergence = F.binary_cross_entropy_with_logits(student / tau, target) - F.binary_cross_entropy(target, target)
        return divergence * tau**2
    if recipe.distillation == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    tau = recipe.distillation_tau
    return (
        F.kl_div(
            (student / tau).log_softmax(dim=1),
            (teacher / tau).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        * tau**2
    )


def region_loss(regions: Tensor, targets: Tensor, grid: int, positive_weight: float = 5.0) -> Tensor:
    """Binary cross-entropy of each cell of a grid against whether a finding lies there (Li et al. 2018, section 3).

    Args:
        regions: Logits of the patches, [B, K, h, w].
        targets: 1, 0 or NaN (no mask known for the image), [B, K * grid * grid].
        grid: Cells along each side.
        positive_weight: Weight of cells with a finding, which are few.
    """
    wanted = targets.unflatten(1, (regions.shape[1], grid, grid))
    # The coarser of the two grids decides: a cell has what the best of its parts has.
    side = min(grid, regions.shape[2])
    wanted, regions = F.adaptive_max_pool2d(wanted, side), F.adaptive_max_pool2d(regions.float(), side)
    known = ~wanted.isnan()
    weight = regions.new_tensor(positive_weight)
    each = F.binary_cross_entropy_with_logits(
        regions, torch.where(known, wanted, 0.0), pos_weight=weight, reduction="none"
    )
    return (each * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def sam_ascend(optimizer: torch.optim.Optimizer, rho: float) -> list[tuple[Tensor, Tensor]]:
    """Move every parameter by ``rho`` along the normalised gradient (Foret et al. 2021, equation 2); returns how to undo it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in parameters]))
    moved = []
    for parameter in parameters:
        step = parameter.grad * (rho / (norm + 1e-12))
        moved.append((parameter, parameter.detach().clone()))
        parameter.add_(step)
        parameter.grad = None
    return moved


@torch.no_grad()
def sam_descend(moved: list[tuple[Tensor, Tensor]]) -> None:
    """Put the parameters back, exactly, and leave the gradient of the perturbed point on them."""
    for parameter, value in moved:
        parameter.copy_(value)
