"""The one training loop. Read ``fit``, ``run_epochs``, ``train_epoch``, ``take_step``; nothing else trains.

``Dataset -> batch -> model -> logits -> Task -> loss``, on Lightning Fabric for devices, machines and precision.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.augment import mix
from vitdomains.core.data.dataset import Batch, ImageDataset
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ConfigError, TrainingError
from vitdomains.core.models.weights import load_weights, save_weights
from vitdomains.core.tasks import Task
from vitdomains.core.training import optim as recipes
from vitdomains.core.training.batches import Batches, frozen_batches, image_batches
from vitdomains.core.training.distill import Teach, Teacher, teaching
from vitdomains.core.training.optim import parameter_groups, probe_head
from vitdomains.core.training.run_state import run_identity
from vitdomains.core.training.setup import Backward, Objective, OnStep, Training, launch, save, start

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
    on_progress: OnStep = lambda done, total, text: None,
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
        TrainingError: The loss or all validation outputs are not finite, or ``run.resume`` meets the state of another run.
        ConfigError: The recipe asks for a combination that cannot be had.
    """
    training = set_up(model, task, train, val, spec, config, teacher, on_progress)
    started = time.monotonic()
    run_epochs(training, task)
    if not (training.folder / "best.safetensors").is_file():
        raise TrainingError("After no epoch were the validation outputs finite numbers.", hint=training.remedy)
    model.load_state_dict(load_weights(training.folder / "best.safetensors"))
    model.eval()
    rate, state = training.seen / max(1e-9, time.monotonic() - started), training.state
    return FitResult(state["best"], state["best_epoch"], rate, state["history"], training.fabric.global_rank)


def set_up(
    model: nn.Module, task: Task, train: ImageDataset, val: ImageDataset, spec: PreprocessSpec, config: Config,
    teacher: Teacher | None, on_progress: OnStep,
) -> Training:  # fmt: skip
    """Put the model on its device, make batches and objective, and go to where a resumed run stopped."""
    recipe, run = config.recipe, config.run
    fabric = launch(config)
    model.to(fabric.device)
    if recipe.region_weight:
        model.region_training = True  # type: ignore[assignment]
    if teacher is not None and getattr(model, "dist_token", None) is not None:
        model.distilled_training = True  # type: ignore[assignment]
    cache = Path(config.data.cache_dir or Path(run.dir) / "cache")
    teach = teaching(teacher, train, spec, config, cache, fabric.device) if teacher else None
    weights = getattr(getattr(model, "weights_file", None), "sha256", "")
    identity = run_identity(config, spec, train, val, weights, teacher.content if teacher else "")

    def make_batches() -> Batches:
        if recipe.frozen_cache_views:
            return frozen_batches(model, train, val, spec, config, cache, fabric.device)
        return image_batches(train, val, spec, config, fabric.device, fabric.global_rank, fabric.world_size)

    def initialise(batches: Batches) -> None:
        if recipe.head_init == "probe":
            probe_head(model, task, batches, config, fabric, spec.height)

    return start(
        model, parameter_groups(model, recipe), make_batches, _supervised(task, teach, train), config, fabric, identity,
        image_size=spec.height, initialise=initialise, on_step=on_progress,
    )  # fmt: skip


def run_epochs(training: Training, task: Task | None = None) -> None:
    """Train from where ``training`` stands to the last epoch, or to where it stops early; ``task`` validates after each."""
    recipe, state, fabric = training.config.recipe, training.state, training.fabric
    while state["epoch"] < recipe.epochs and not stopped_early(training):
        epoch = state["epoch"]
        size = recipes.size_at(epoch, recipe, training.image_size)
        row = {"epoch": float(epoch), "size": float(size), "loss": train_epoch(training, epoch, size)}
        if task is not None:
            module = training.ema.module if training.ema else training.model
            # One process validates for all: what decides on the best epoch and on stopping must be the same number everywhere.
            values = fabric.broadcast(validate(module, training, task, size) if fabric.is_global_zero else {})
            keep_best(training, module, recipe.monitor or task.monitor, epoch, size, values)
            row |= values
            shown = "  ".join(f"val {name} {value:.4f}" for name, value in values.items())
            logger.info("epoch %d/%d  %d px  loss %.4f  %s", epoch + 1, recipe.epochs, size, row["loss"], shown)
        state["history"].append(row)
        save(training, epoch + 1, 0)
    if stopped_early(training):
        logger.info("stopped early: %d epochs without a better validation", recipe.early_stopping)
    if training.log:
        training.log.close()
    fabric.barrier()


def stopped_early(training: Training) -> bool:
    """Whether the epochs since the best one are as many as ``recipe.early_stopping``; also true of a run that is resumed."""
    state, patience = training.state, training.config.recipe.early_stopping
    return bool(patience and state["step"] == 0 and state["epoch"] - 1 - state["best_epoch"] >= patience)


def train_epoch(training: Training, epoch: int, size: int) -> float:
    """One pass over the training images at one size; returns the mean loss of the steps run."""
    recipe, run, state = training.config.recipe, training.config.run, training.state
    steps = training.batches.steps_per_epoch
    updates = -(-steps // recipe.accumulate)  # optimiser steps an epoch, in which the schedule counts
    losses: list[Tensor] = []
    group: list[Backward] = []  # the batches of one optimiser step
    training.model.train()
    for step, batch in enumerate(training.batches.train(epoch, size, state["step"]), start=state["step"]):
        # Dropout is a function of the step, so that a resumed run draws what an unbroken one would have drawn.
        torch.manual_seed(run.seed * 1_000_003 + state["global_step"] * 1009 + training.fabric.global_rank)
        rate = recipes.learning_rate(
            epoch * updates + step // recipe.accumulate, recipe.epochs * updates, recipe.warmup_epochs * updates, recipe
        )
        for part in training.optimizer.param_groups:
            part["lr"] = rate * part["lr_scale"]
        last = step + 1 == steps
        due = last or (step + 1) % recipe.accumulate == 0
        share = batches_in_group(step, steps, recipe.accumulate)
        group.append(training.objective(training, batch, epoch, step))
        losses.append(accumulate(training, group[-1], share, sync=due))
        if due:
            take_step(training, group, share)
        if due or not recipe.sam_rho:
            group.clear()
        state["global_step"] += 1
        training.seen += len(batch[2]) * training.fabric.world_size
        if last or state["global_step"] % run.log_every == 0:
            loss = finite(mean_loss(training, losses[-run.log_every :]), state["global_step"], rate, training.remedy)
            if training.log:
                training.log.write(
                    state["global_step"], epoch, {"train/loss": loss, "train/lr": rate, "train/size": float(size)}
                )
        training.on_step(state["global_step"], training.total_steps, f"epoch {epoch + 1}/{recipe.epochs}, {size} px")
        if due and not last and time.monotonic() - training.saved_at > run.save_seconds:
            save(training, epoch, step + 1)
    return mean_loss(training, losses) if losses else math.nan


def mean_loss(training: Training, losses: list[Tensor]) -> float:
    """The mean over these steps and all devices; every process calls it and gets the same, so that all stop at a bad one."""
    mean: Tensor = training.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
    return mean.item()


def accumulate(training: Training, backward: Backward, share: int, *, sync: bool) -> Tensor:
    """The gradients of one batch divided by ``share``; those of all devices are averaged where ``sync``. Returns the loss."""
    fabric = training.fabric
    with fabric.no_backward_sync(training.wrapped, enabled=not sync and fabric.world_size > 1):
        return backward(share)


def take_step(training: Training, group: list[Backward], share: int) -> None:
    """The optimiser's step after the batches of ``group``, whose gradients are on the parameters.

    Sharpness-aware: the gradients of all of them are taken again at the perturbed point (Foret et al. 2021, algorithm 1).
    """
    recipe, fabric, optimizer = training.config.recipe, training.fabric, training.optimizer
    if recipe.sam_rho:
        moved = recipes.sam_ascend(optimizer, recipe.sam_rho)
        for backward in group:
            accumulate(training, backward, share, sync=backward is group[-1])
        recipes.sam_descend(moved)
    if recipe.clip_norm:
        fabric.clip_gradients(training.wrapped, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if training.ema:
        training.ema.update(training.model, step=training.state["global_step"])


def _supervised(task: Task, teach: Teach | None, train: ImageDataset) -> Objective:
    """The task's loss on (mixed) batches, that of the regions and the teacher's where there are such."""
    table = train.manifest.table
    weight_of = dict(zip(table["id"], table["weight"], strict=True)) if "weight" in table else {}

    def objective(training: Training, batch: Batch, epoch: int, step: int) -> Backward:
        recipe, fabric = training.config.recipe, training.fabric
        inputs, targets, ids = batch
        if (recipe.mixup or recipe.cutmix) and epoch < recipe.epochs - recipe.mix_off_epochs:
            generator = np.random.default_rng([training.config.run.seed, epoch, step])
            inputs, targets = mix(inputs, targets, mixup=recipe.mixup, cutmix=recipe.cutmix, generator=generator)
        taught = None
        if teach is not None:
            with torch.no_grad(), fabric.autocast():
                taught = teach(inputs, ids, epoch)
        weights = torch.tensor([weight_of[i] for i in ids], dtype=torch.float32) if weight_of else None
        targets = targets.to(fabric.device)
        weights = weights.to(fabric.device) if weights is not None else None

        def backward(share: int) -> Tensor:
            with fabric.autocast():
                loss = batch_loss(training, task, inputs, targets, weights, taught)
            fabric.backward(loss / share)
            return loss.detach()

        return backward

    return objective


def batch_loss(
    training: Training, task: Task, inputs: Tensor, targets: Tensor, weights: Tensor | None, taught: Tensor | None
) -> Tensor:
    """The task's loss, that of the regions where their labels follow those of the image, and the teacher's where there is one."""
    recipe, labels = training.config.recipe, len(task.classes)
    output: Any = training.forward(inputs)
    logits, extra = output if isinstance(output, tuple) else (output, output)
    loss = task.loss(logits.float(), targets[:, :labels], weights)
    if targets.shape[1] > labels:
        loss = loss + recipe.region_weight * recipes.region_loss(extra, targets[:, labels:], recipe.region_grid)
    if taught is None:
        return loss
    distilling = recipes.distillation_loss(task, (logits if extra.ndim == 4 else extra).float(), taught, recipe)
    return (1 - recipe.distillation_alpha) * loss + recipe.distillation_alpha * distilling


@torch.no_grad()
def validate(module: nn.Module, training: Training, task: Task, size: int) -> dict[str, float]:
    """Loss and the task's metrics of ``module`` on the validation images at one size."""
    module.eval()
    forward = training.batches.forward(module)
    logits, targets = [], []
    for inputs, target, _ in training.batches.val(size):
        with training.fabric.autocast():
            logits.append(forward(inputs).float().cpu())
        targets.append(target)
    z, y = torch.cat(logits), torch.cat(targets)
    loss = replace(task, label_smoothing=0.0).loss(z, y).item()
    return {"loss": loss, **task.monitored(y.numpy(), task.scores(z.numpy()))}


def keep_best(
    training: Training, module: nn.Module, monitor: str, epoch: int, size: int, values: dict[str, float]
) -> None:
    """Keep the weights if they are the best so far, or always; a new image size starts the comparison anew."""
    state = training.state
    if monitor not in values:
        raise ConfigError(
            f"recipe.monitor = {monitor!r} is not a validation metric.", hint=f"Use one of {', '.join(values)}."
        )
    value = -values[monitor] if monitor == "loss" else values[monitor]
    # A model that makes no number of some image is never the best; a metric that is not defined leaves the latest standing.
    usable = math.isfinite(values["loss"])
    better = size != state["best_size"] or not value <= state["best"]
    if training.config.recipe.keep == "last" or (usable and better):
        state.update(best=value, best_epoch=epoch, best_size=size)
        if training.fabric.is_global_zero:
            save_weights(training.folder / "best.safetensors", module.state_dict())
    if training.log:
        training.log.write(state["global_step"], epoch, {f"val/{name}": v for name, v in values.items()})


def batches_in_group(step: int, steps: int, accumulate: int) -> int:
    """How many batches share the optimiser step of ``step``; the last group of an epoch may be short."""
    return min(accumulate, steps - step // accumulate * accumulate)


def finite(loss: float, step: int, rate: float, remedy: str) -> float:
    """The loss, or an error that says what usually helps."""
    if not math.isfinite(loss):
        raise TrainingError(f"The loss is {loss} at step {step} (learning rate {rate:.2g}).", hint=remedy)
    return loss
