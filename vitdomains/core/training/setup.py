"""Device, optimiser, moving average and saved state of a training run, before its first step."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import Batch
from vitdomains.core.process import has_fast_bf16
from vitdomains.core.training.batches import Batches, Forward
from vitdomains.core.training.run_state import Identity, RunLog, load_state, save_state, trained_state

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, str], None]
"""Steps done, steps in all, a short text."""
Backward = Callable[[int], Tensor]
"""Adds the gradients of one batch, divided by a number of batches, to the parameters; returns the loss."""
Objective = Callable[["Training", Batch, int, int], Backward]
"""What is minimised: a batch, its epoch and its step -> its backward pass, which may be run again (sharpness-aware steps)."""
REMEDY = "Lower recipe.lr, lengthen recipe.warmup_epochs, set recipe.clip_norm to 1, or use recipe.precision=fp32."
ANEW = "Resume with the same configuration, choose another --run.dir, or start anew with --run.overwrite true."


@dataclass
class Training:
    """What the loop holds while it runs; ``state`` is the part that a resumed run gets back."""

    config: Config
    objective: Objective
    batches: Batches
    fabric: Any
    model: nn.Module  # as the caller gave it
    wrapped: nn.Module  # the same parameters, compiled and distributed
    forward: Forward  # inputs of a batch -> logits, through ``wrapped``
    optimizer: Any
    ema: ModelEmaV3 | None
    image_size: int
    state: dict[str, Any]
    log: RunLog | None
    on_step: OnStep
    remedy: str
    seen: int = 0
    saved_at: float = 0.0

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir) / "checkpoint"

    @property
    def total_steps(self) -> int:
        return self.config.recipe.epochs * self.batches.steps_per_epoch


def launch(config: Config) -> Any:
    """Lightning Fabric for the devices and the precision of the configuration, with the seed set."""
    recipe, run = config.recipe, config.run
    fabric: Any = lightning_fabric.Fabric(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        precision=precision(recipe.precision, run.accelerator),
    )
    if run.devices * run.num_nodes > 1:
        threads = torch.get_num_threads()
        fabric.launch()
        torch.set_num_threads(threads)  # launching sets them by a rule of its own
    torch.manual_seed(run.seed)
    return fabric


def start(
    model: nn.Module,
    groups: list[dict[str, Any]],
    make_batches: Callable[[], Batches],
    objective: Objective,
    config: Config,
    fabric: Any,
    identity: Identity,
    *,
    image_size: int = 0,
    initialise: Callable[[Batches], None] = lambda batches: None,
    hint: str = ANEW,
    remedy: str = REMEDY,
    on_step: OnStep,
) -> Training:
    """Build the optimiser and go to where a resumed run stopped.

    Args:
        model: On the device of ``fabric``.
        groups: Of AdamW, each with its ``lr_scale``.
        make_batches: Called once the model is set up.
        objective: What is minimised.
        config: ``recipe`` and ``run`` are used.
        fabric: From ``launch``.
        identity: What a state must share to be resumed.
        image_size: Input size, pixels.
        initialise: Called before the first step of a run that is not resumed.
        hint: How to start anew where the state is another run's.
        remedy: What helps where the loss is not finite.
        on_step: Called after every step.

    Raises:
        TrainingError: ``run.resume`` meets the state of another run.
    """
    recipe, run = config.recipe, config.run
    # The fused step unscales fp16 gradients by itself, which leaves nothing to clip.
    fused = precision(recipe.precision, run.accelerator) != "16-mixed"
    optimizer: Any = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
    wrapped, optimizer = fabric.setup(torch.compile(model) if recipe.compile else model, optimizer)
    batches = make_batches()
    forward = batches.forward(model if recipe.frozen_cache_views else wrapped)
    folder = Path(run.dir) / "checkpoint"
    state = (load_state(folder / "last.pt", identity, hint) if run.resume else None) or {
        "identity": identity, "epoch": 0, "step": 0, "global_step": 0,
        "best": -math.inf, "best_epoch": -1, "best_size": 0, "history": [],
    }  # fmt: skip
    if "model" not in state:
        initialise(batches)
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    if "model" in state:
        model.load_state_dict(state.pop("model"), strict=False)
        optimizer.load_state_dict(state.pop("optimizer"))
        if ema:
            ema.module.load_state_dict(state.pop("ema"), strict=False)
        logger.info("resumed at epoch %d, step %d", state["epoch"] + 1, state["step"])
    described = {"recipe": json.dumps(asdict(recipe))}
    log = RunLog(folder.parent, state["global_step"], run.mlflow, described) if fabric.is_global_zero else None
    return Training(config, objective, batches, fabric, model, wrapped, forward, optimizer, ema, image_size, state, log,
                    on_step, remedy, saved_at=time.monotonic())  # fmt: skip


def save(training: Training, epoch: int, step: int) -> None:
    """Write the state from which a resumed run goes on: before ``step`` of ``epoch``."""
    training.state.update(epoch=epoch, step=step)
    training.saved_at = time.monotonic()
    if training.fabric.is_global_zero:
        heavy = {"model": trained_state(training.model), "optimizer": training.optimizer.state_dict()}
        if training.ema:
            heavy["ema"] = trained_state(training.model, training.ema.module)
        save_state(training.folder / "last.pt", {**training.state, **heavy})


def precision(name: str, accelerator: str) -> Any:
    """Fabric's name for ``recipe.precision``; ``auto`` is bf16 where the processor computes in it."""
    gpu = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else has_fast_bf16()
        name = "bf16" if native else "fp16" if gpu else "fp32"
    return {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[name]
