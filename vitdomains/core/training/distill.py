"""Teachers for distillation: a bundle, or any model with weights; logits are cached where an image never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import load_model, read_bundle
from vitdomains.core.config.schema import Config, Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import build_model, default_mean_std
from vitdomains.core.training.batches import Forward
from vitdomains.core.training.feature_cache import cached_features

Teach = Callable[[Tensor, Sequence[str], int], Tensor]
"""Inputs and ids of a batch, and the epoch -> the teacher's logits [B, K]."""


@dataclass(frozen=True)
class Teacher:
    """``logits`` gives [B, K] for images [B, C, H, W] normalised for the student; ``content`` is a hash of all it depends on."""

    logits: Forward
    content: str


def load_teacher(config: Config, spec: PreprocessSpec, classes: tuple[str, ...]) -> Teacher:
    """The teacher of ``config.recipe``, for images as the student gets them.

    The student's normalisation is undone and the teacher's applied, so the two may come from different schools.

    Raises:
        ConfigError: The teacher's classes are not the student's, or it was given no weights.
    """
    name = config.recipe.teacher
    if (Path(name) / "bundle.json").is_file():
        bundle = read_bundle(name)
        if bundle.classes != classes:
            raise ConfigError(
                f"The teacher {name} knows {', '.join(bundle.classes)}.",
                hint=f"Set data.classes to these, or train one for {', '.join(classes)}.",
            )
        model, own = load_model(bundle), bundle.preprocess
        mean, std, size = own.mean, own.std, own.height
    else:
        if not config.recipe.teacher_weights:
            raise ConfigError(
                f"recipe.teacher = {name!r} has no weights.",
                hint="Set recipe.teacher_weights, or name a bundle that was trained on these classes.",
            )
        teacher = Model(name=name, weights=config.recipe.teacher_weights, channels=config.model.channels)
        size = spec.height
        model, (mean, std) = build_model(teacher, len(classes), image_size=size), default_mean_std(teacher)
    return Teacher(_logits(model.eval().requires_grad_(False), spec, mean, std, size), _content(model, mean, std, size))


def _logits(
    model: nn.Module, spec: PreprocessSpec, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> Forward:
    def logits(images: Tensor) -> Tensor:
        model.to(images.device)
        shift = [images.new_tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std, mean, std)]
        raw = images * shift[1] + shift[0]
        if images.shape[-1] != size:
            raw = torch.nn.functional.interpolate(raw, (size, size), mode="bilinear", antialias=True)
        return model((raw - shift[2]) / shift[3])  # type: ignore[no-any-return]

    return logits


def _content(model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> str:
    digest = hashlib.sha256(repr((type(model).__name__, mean, std, size)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def teaching(
    teacher: Teacher, train: ImageDataset, spec: PreprocessSpec, config: Config, folder: Path, device: torch.device
) -> Teach:
    """What gives the loop the teacher's logits: the cache in ``folder`` where every image has few views, else the teacher.

    The logits are cached where nothing is drawn at random (no augmentation, no mixing, one size), and for the views of frozen
    blocks. What changes with every epoch cannot be asked ahead: a teacher must see what the student sees (Beyer et al. 2022,
    "Knowledge distillation: A good teacher is patient and consistent", section 3.1).
    """
    recipe, run = config.recipe, config.run
    still = train.augment is None and not (recipe.mixup or recipe.cutmix or recipe.progressive_sizes)
    views = recipe.frozen_cache_views or int(still and run.devices * run.num_nodes == 1)
    if not views:
        return lambda inputs, ids, epoch: teacher.logits(normalise(inputs.to(device), spec)).float()
    cached = [
        cached_features("teacher", teacher.logits, teacher.content, train, spec, config, folder, device, view)
        for view in range(views)
    ]
    row = {identity: i for i, identity in enumerate(train.ids)}

    def looked_up(inputs: Tensor, ids: Sequence[str], epoch: int) -> Tensor:
        rows = np.array([row[identity] for identity in ids])
        return torch.from_numpy(cached[epoch % views][rows]).to(device)

    return looked_up
