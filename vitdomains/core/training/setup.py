"""What the training loop holds while it runs, how it begins and where it goes on after a stop."""

from __future__ import annotations

import hashlib
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
from torch import nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import manifest_hash
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.process import has_fast_bf16
from vitdomains.core.tasks import Task
from vitdomains.core.training import optim as recipes
from vitdomains.core.training.batches import Feed, Forward, frozen_feed, image_feed
from vitdomains.core.training.distill import Teach, Teacher, teaching
from vitdomains.core.training.optim import fit_head, head_inputs, linear_head
from vitdomains.core.training.run_state import RunLog, load_state, save_state

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]


@dataclass
class Session:
    """What the loop holds while it runs; ``state`` is the part that a resumed run gets back."""

    config: Config
    task: Task
    feed: Feed
    fabric: Any
    model: nn.Module  # as the caller gave it
    wrapped: nn.Module  # the same parameters, compiled and distributed
    forward: Forward  # inputs of the feed -> logits, through ``wrapped``
    optimizer: Any
    ema: ModelEmaV3 | None
    teach: Teach | None
    weight_of: dict[str, float]
    state: dict[str, Any]
    log: RunLog | None
    on_progress: OnProgress
    seen: int = 0
    saved_at: float = 0.0

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir) / "checkpoint"

    @property
    def total_steps(self) -> int:
        return self.config.recipe.epochs * self.feed.steps_per_epoch


def start(
    model: nn.Module, task: Task, train: ImageDataset, val: ImageDataset, spec: PreprocessSpec, config: Config,
    teacher: Teacher | None, on_progress: OnProgress,
) -> Session:  # fmt: skip
    """Put the model on its device, build the optimiser and the feed, and go to where a resumed run stopped."""
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
    model.to(fabric.device)
    if recipe.region_weight:
        model.region_training = True  # type: ignore[assignment]
    if teacher is not None and getattr(model, "dist_token", None) is not None:
        model.distilled_training = True  # type: ignore[assignment]
    groups = [{k: v for k, v in group.items() if k != "names"} for group in recipes.parameter_groups(model, recipe)]
    # The fused step unscales fp16 gradients by itself, which leaves nothing to clip.
    fused = precision(recipe.precision, run.accelerator) != "16-mixed"
    optimizer: Any = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)
    wrapped, optimizer = fabric.setup(torch.compile(model) if recipe.compile else model, optimizer)
    folder, cache = Path(run.dir) / "checkpoint", Path(config.data.cache_dir or Path(run.dir) / "cache")
    teach = teaching(teacher, train, spec, config, cache, fabric.device) if teacher else None
    if recipe.frozen_cache_views:
        feed = frozen_feed(model, train, val, spec, config, cache, fabric.device)
        forward = feed.forward(model)
    else:
        feed = image_feed(train, val, spec, config, fabric.device, fabric.global_rank, fabric.world_size)
        forward = feed.forward(wrapped)
    fingerprint = run_fingerprint(config, train, val)
    state = (load_state(folder / "last.pt", fingerprint) if run.resume else None) or {
        "fingerprint": fingerprint, "epoch": 0, "step": 0, "global_step": 0,
        "best": -math.inf, "best_epoch": -1, "best_size": 0, "history": [],
    }  # fmt: skip
    if recipe.head_init == "probe" and "model" not in state:
        _start_head(model, task, feed, config, fabric, spec.height)
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    if "model" in state:
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        if ema:
            ema.module.load_state_dict(state.pop("ema"))
        logger.info("resumed at epoch %d, step %d", state["epoch"] + 1, state["step"])
    described = {"recipe": json.dumps(asdict(recipe))}
    log = RunLog(folder.parent, state["global_step"], run.mlflow, described) if fabric.is_global_zero else None
    table = train.manifest.table
    weight_of = dict(zip(table["id"], table["weight"], strict=True)) if "weight" in table else {}
    return Session(config, task, feed, fabric, model, wrapped, forward, optimizer, ema, teach, weight_of, state, log,
                   on_progress, saved_at=time.monotonic())  # fmt: skip


def _start_head(model: nn.Module, task: Task, feed: Feed, config: Config, fabric: Any, height: int) -> None:
    """The head as a linear probe of what the first epoch shows, the same on every device."""
    head = linear_head(model, len(task.classes))
    with fabric.autocast():
        images = feed.train(0, recipes.size_at(0, config.recipe, height), 0)
        x, y = head_inputs(model, head, feed.forward(model), images)
    fit_head(head, x, y[:, : len(task.classes)], task, config.recipe.head_init_c)
    head.load_state_dict(fabric.broadcast(head.state_dict()))


def save(session: Session, epoch: int, step: int) -> None:
    """Write the state from which a resumed run goes on: before ``step`` of ``epoch``."""
    session.state.update(epoch=epoch, step=step)
    session.saved_at = time.monotonic()
    if session.fabric.is_global_zero:
        heavy = {"model": session.model.state_dict(), "optimizer": session.optimizer.state_dict()}
        if session.ema:
            heavy["ema"] = session.ema.module.state_dict()
        save_state(session.folder / "last.pt", {**session.state, **heavy})


def precision(name: str, accelerator: str) -> Any:
    """Fabric's name for ``recipe.precision``; ``auto`` is bf16 where the processor computes in it."""
    gpu = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else has_fast_bf16()
        name = "bf16" if native else "fp16" if gpu else "fp32"
    return {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[name]


def run_fingerprint(config: Config, train: ImageDataset, val: ImageDataset) -> str:
    """Hash of all that must be the same for a run to be resumed: model, recipe, seed, images and labels."""
    parts = [
        asdict(config.model),
        asdict(config.recipe),
        config.run.seed,
        config.run.devices,
        manifest_hash(train.manifest),
        manifest_hash(val.manifest),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
