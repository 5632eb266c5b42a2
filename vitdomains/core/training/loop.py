"""The one training loop. Read ``fit``, then ``train_epoch``, then ``take_step``; nothing else trains.

``Dataset -> batch -> model -> logits -> Task -> loss``, on Lightning Fabric for devices, machines and precision.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.augment import mix
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ConfigError, TrainingError
from vitdomains.core.models.weights import load_weights, save_weights
from vitdomains.core.tasks import Task
from vitdomains.core.training import optim as recipes
from vitdomains.core.training.distill import Teacher
from vitdomains.core.training.setup import OnProgress, Session, save, start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Best validation metric, its epoch, images trained per second, and one row of metrics an epoch.

    ``rank`` is the number of this process among those that trained together: the others have nothing left to do.
    """

    best: float
    best_epoch: int
    images_per_second: float
    history: list[dict[str, float]] = field(default_factory=list)
    rank: int = 0


def fit(
    model: nn.Module,
    task: Task,
    train: ImageDataset,
    val: ImageDataset,
    spec: PreprocessSpec,
    config: Config,
    *,
    teacher: Teacher | None = None,
    on_progress: OnProgress = lambda done, total, text: None,
) -> FitResult:
    """Train ``model`` in place; it ends with the weights of the best or last epoch (``recipe.keep``), or their moving average.

    Every ``run.save_seconds`` the state goes to ``run.dir/checkpoint``; with ``run.resume`` training goes on from there, to
    the same end. The best epoch is the one with the highest ``recipe.monitor`` on ``val`` among those at the final image size.

    With several devices each process runs this function. Their gradients are averaged: the step is that of one process with
    as many times the batch size (where labels are unknown, that of as many accumulated batches). Batch norm and dropout see
    the share of their own process. The first process validates, writes and logs.

    Args:
        model: Gives logits [B, K] for [B, C, H, W]; (logits, distillation logits) where ``model.distilled_training`` is set.
        task: Loss and validation metric.
        train: Training images, augmented.
        val: Validation images, not augmented.
        spec: How a batch of images is normalised for this model.
        config: The whole configuration; ``recipe`` and ``run`` are used.
        teacher: Gives the logits to distil from.
        on_progress: Called after every step with steps done, steps in all, and a short text.

    Raises:
        TrainingError: The loss is not finite, or ``run.resume`` meets the state of another run.
        ConfigError: The recipe asks for a combination that cannot be had.
    """
    session = start(model, task, train, val, spec, config, teacher, on_progress)
    recipe, state, started = config.recipe, session.state, time.monotonic()
    for epoch in range(state["epoch"], recipe.epochs):
        size = recipes.size_at(epoch, recipe, spec.height)
        loss = train_epoch(session, epoch, size)
        kept = session.ema.module if session.ema else session.model
        # One process validates for all: what decides on the best epoch and on stopping must be the same number everywhere.
        values = session.fabric.broadcast(validate(kept, session, size) if session.fabric.is_global_zero else {})
        keep_best(session, kept, epoch, size, values)
        state["history"].append({"epoch": float(epoch), "size": float(size), "loss": loss, **values})
        shown = "  ".join(f"val {name} {value:.4f}" for name, value in values.items())
        logger.info("epoch %d/%d  %d px  loss %.4f  %s", epoch + 1, recipe.epochs, size, loss, shown)
        save(session, epoch + 1, 0)
        if recipe.early_stopping and epoch - state["best_epoch"] >= recipe.early_stopping:
            logger.info(
                "stopped early: %d epochs without a better %s", recipe.early_stopping, recipe.monitor or task.monitor
            )
            break
    if session.log:
        session.log.close()
    session.fabric.barrier()
    model.load_state_dict(load_weights(session.folder / "best.safetensors"))
    model.eval()
    rate = session.seen / max(1e-9, time.monotonic() - started)
    return FitResult(state["best"], state["best_epoch"], rate, state["history"], session.fabric.global_rank)


def train_epoch(session: Session, epoch: int, size: int) -> float:
    """One pass over the training images at one size; returns the mean loss of the steps run."""
    recipe, run, state, steps = session.config.recipe, session.config.run, session.state, session.feed.steps_per_epoch
    mixing = bool(recipe.mixup or recipe.cutmix) and epoch < recipe.epochs - recipe.mix_off_epochs
    updates = -(-steps // recipe.accumulate)  # optimiser steps an epoch, in which the schedule counts
    losses: list[Tensor] = []
    session.model.train()
    for step, (inputs, targets, ids) in enumerate(session.feed.train(epoch, size, state["step"]), start=state["step"]):
        # Dropout is a function of the step, so that a resumed run draws what an unbroken one would have drawn.
        torch.manual_seed(run.seed * 1_000_003 + state["global_step"] * 1009 + session.fabric.global_rank)
        rate = recipes.learning_rate(
            epoch * updates + step // recipe.accumulate, recipe.epochs * updates, recipe.warmup_epochs * updates, recipe
        )
        for group in session.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if mixing:
            generator = np.random.default_rng([run.seed, epoch, step])
            inputs, targets = mix(inputs, targets, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
        taught = ask(session, inputs, ids, epoch)
        weights = torch.tensor([session.weight_of[i] for i in ids], dtype=torch.float32) if session.weight_of else None
        last = step + 1 == steps
        due = last or (step + 1) % recipe.accumulate == 0
        share = batches_in_group(step, steps, recipe.accumulate)
        losses.append(take_step(session, inputs, targets, weights, taught, due, share))
        state["global_step"] += 1
        session.seen += len(ids) * session.fabric.world_size
        if last or state["global_step"] % run.log_every == 0:
            loss = finite(mean_loss(session, losses[-run.log_every :]), state["global_step"], rate)
            if session.log:
                session.log.write(
                    state["global_step"], epoch, {"train/loss": loss, "train/lr": rate, "train/size": float(size)}
                )
        session.on_progress(state["global_step"], session.total_steps, f"epoch {epoch + 1}/{recipe.epochs}, {size} px")
        if due and not last and time.monotonic() - session.saved_at > run.save_seconds:
            save(session, epoch, step + 1)
    return mean_loss(session, losses) if losses else math.nan


def mean_loss(session: Session, losses: list[Tensor]) -> float:
    """The mean over these steps and all devices; every process calls it and gets the same, so that all stop at a bad one."""
    mean: Tensor = session.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
    return mean.item()


@torch.no_grad()
def ask(session: Session, inputs: Tensor, ids: list[str], epoch: int) -> Tensor | None:
    """The teacher's logits [B, K], where there is a teacher."""
    if session.teach is None:
        return None
    with session.fabric.autocast():
        return session.teach(inputs, ids, epoch)


def take_step(
    session: Session, inputs: Tensor, targets: Tensor, weights: Tensor | None, taught: Tensor | None,
    updates: bool, share: int,
) -> Tensor:  # fmt: skip
    """Backward of one batch, its loss divided by ``share``; where ``updates``, the optimiser's step. Returns the loss."""
    recipe, fabric, optimizer = session.config.recipe, session.fabric, session.optimizer
    targets = targets.to(fabric.device)
    weights = weights.to(fabric.device) if weights is not None else None

    def backward() -> Tensor:
        with fabric.autocast():
            loss = batch_loss(session, inputs, targets, weights, taught)
        fabric.backward(loss / share)
        return loss.detach()

    with fabric.no_backward_sync(session.wrapped, enabled=not updates and fabric.world_size > 1):
        loss = backward()
    if updates:
        if recipe.sam_rho:
            moved = recipes.sam_ascend(optimizer, recipe.sam_rho)
            backward()
            recipes.sam_descend(moved)
        if recipe.clip_norm:
            fabric.clip_gradients(session.wrapped, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if session.ema:
            session.ema.update(session.model, step=session.state["global_step"])
    return loss


def batch_loss(
    session: Session, inputs: Tensor, targets: Tensor, weights: Tensor | None, taught: Tensor | None
) -> Tensor:
    """The task's loss, that of the regions where their labels follow those of the image, and the teacher's where there is one."""
    recipe, labels = session.config.recipe, len(session.task.classes)
    output: Any = session.forward(inputs)
    logits, extra = output if isinstance(output, tuple) else (output, output)
    loss = session.task.loss(logits.float(), targets[:, :labels], weights)
    if targets.shape[1] > labels:
        loss = loss + recipe.region_weight * recipes.region_loss(extra, targets[:, labels:], recipe.region_grid)
    if taught is None:
        return loss
    distilling = recipes.distillation_loss(session.task, (logits if extra.ndim == 4 else extra).float(), taught, recipe)
    return (1 - recipe.distillation_alpha) * loss + recipe.distillation_alpha * distilling


@torch.no_grad()
def validate(module: nn.Module, session: Session, size: int) -> dict[str, float]:
    """Loss and the task's metrics of ``module`` on the validation images at one size."""
    module.eval()
    forward = session.feed.forward(module)
    logits, targets = [], []
    for inputs, target, _ in session.feed.val(size):
        with session.fabric.autocast():
            logits.append(forward(inputs).float().cpu())
        targets.append(target)
    z, y = torch.cat(logits), torch.cat(targets)
    loss = replace(session.task, label_smoothing=0.0).loss(z, y).item()
    return {"loss": loss, **session.task.monitored(y.numpy(), session.task.scores(z.numpy()))}


def keep_best(session: Session, module: nn.Module, epoch: int, size: int, values: dict[str, float]) -> None:
    """Keep the weights if they are the best so far, or always; a new image size starts the comparison anew."""
    state, monitor = session.state, session.config.recipe.monitor or session.task.monitor
    if monitor not in values:
        raise ConfigError(
            f"recipe.monitor = {monitor!r} is not a validation metric.", hint=f"Use one of {', '.join(values)}."
        )
    value = -values[monitor] if monitor == "loss" else values[monitor]
    if session.config.recipe.keep == "last" or size != state["best_size"] or not value <= state["best"]:
        state.update(best=value, best_epoch=epoch, best_size=size)
        if session.fabric.is_global_zero:
            save_weights(session.folder / "best.safetensors", module.state_dict())
    if session.log:
        session.log.write(state["global_step"], epoch, {f"val/{name}": v for name, v in values.items()})


def batches_in_group(step: int, steps: int, accumulate: int) -> int:
    """How many batches share the optimiser step of ``step``; the last group of an epoch may be short."""
    return min(accumulate, steps - step // accumulate * accumulate)


def finite(loss: float, step: int, rate: float) -> float:
    """The loss, or an error that says what usually helps."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss} at step {step} (learning rate {rate:.2g}).",
            hint="Lower recipe.lr, lengthen recipe.warmup_epochs, set recipe.clip_norm to 1, or use recipe.precision=fp32.",
        )
    return loss
