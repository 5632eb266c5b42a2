"""Batches for the training loop: images, or the cached output of the frozen lower blocks.

Both have one shape, so the loop knows no difference: an iterator of ``(inputs, targets, ids)`` and the part of the model that
takes these inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import Batch, ImageDataset
from vitdomains.core.data.loading import batches
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.introspect import split_frozen
from vitdomains.core.training.feature_cache import Features, cached_features

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batches:
    """``train(epoch, size, start)`` and ``val(size)`` iterate batches; ``forward(module)`` takes their inputs to logits."""

    train: Callable[[int, int, int], Iterator[Batch]]
    val: Callable[[int], Iterator[Batch]]
    forward: Callable[[nn.Module], Forward]
    steps_per_epoch: int


def steps_per_epoch(n_images: int, batch_size: int, world: int = 1) -> int:
    """Whole batches in one epoch on each device (at least one: a short last batch is left out only where others exist)."""
    return max(1, n_images // (batch_size * world))


def image_batches(
    train: ImageDataset,
    val: ImageDataset,
    spec: PreprocessSpec,
    config: Config,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Batches of images from the cache, normalised on the device."""
    recipe, run = config.recipe, config.run
    steps = steps_per_epoch(len(train), recipe.batch_size, world)

    def train_batches(epoch: int, size: int, start: int) -> Iterator[Batch]:
        return batches(
            train, recipe.batch_size, shuffle=True, seed=run.seed, epoch=epoch, workers=run.workers, start=start,
            drop_last=len(train) >= recipe.batch_size * world, rank=rank, world=world,
            repeats=recipe.repeated_augmentation, size=size,
        )  # fmt: skip

    def val_batches(size: int) -> Iterator[Batch]:
        return batches(val, recipe.batch_size, shuffle=False, seed=0, epoch=0, workers=run.workers, size=size)

    def forward(module: nn.Module) -> Forward:
        return lambda images: module(normalise(images.to(device, non_blocking=True), spec))

    return Batches(train_batches, val_batches, forward, steps)


def frozen_batches(
    model: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    spec: PreprocessSpec,
    config: Config,
    folder: Path,
    device: torch.device,
) -> Batches:
    """Tokens after the frozen blocks, for ``frozen_cache_views`` augmented views of each training image.

    Epoch ``e`` trains on view ``e mod views``. The tokens stay as float16 in ``folder``, so that a second run with the
    same images and frozen weights starts at once.

    Raises:
        ConfigError: The model has no frozen lower part, or the recipe mixes or resizes images, which cached tokens cannot do.
    """
    recipe, run = config.recipe, config.run
    split = split_frozen(model)
    if split is None:
        raise ConfigError(
            f"recipe.frozen_cache_views = {recipe.frozen_cache_views}, but no lower blocks of {config.model.name} are frozen.",
            hint="Set model.freeze to a count or share of blocks (e.g. 0.5), or recipe.frozen_cache_views to 0.",
        )
    if recipe.mixup or recipe.cutmix or recipe.progressive_sizes or run.devices * run.num_nodes > 1:
        raise ConfigError(
            "recipe.frozen_cache_views cannot go with MixUp, CutMix, progressive sizes or several devices.",
            hint="Switch those off, or set recipe.frozen_cache_views to 0.",
        )
    lower, weights = split[0], frozen_weights_hash(model)
    # View 0 is the image as validation sees it; the others are augmented.
    views = [
        cached_features("tokens", lower, weights, train, spec, config, folder, device, view)
        for view in range(recipe.frozen_cache_views)
    ]
    held_out = cached_features("tokens", lower, weights, val, spec, config, folder, device, 0)
    steps = steps_per_epoch(len(train), recipe.batch_size)

    def rows(tokens: Features, dataset: ImageDataset, order: np.ndarray) -> Iterator[Batch]:
        for first in range(0, len(order), recipe.batch_size):
            chosen = np.sort(order[first : first + recipe.batch_size])  # the file is read forwards
            yield (
                torch.from_numpy(tokens[chosen]).to(device).float(),
                torch.from_numpy(dataset.targets[chosen]),
                [dataset.ids[i] for i in chosen],
            )

    def train_batches(epoch: int, size: int, start: int) -> Iterator[Batch]:
        order = np.random.default_rng([run.seed, epoch]).permutation(len(train))
        return rows(views[epoch % len(views)], train, order[start * recipe.batch_size : steps * recipe.batch_size])

    def forward(module: nn.Module) -> Forward:
        parts = split_frozen(module)
        assert parts is not None  # it is the model above, or its moving average
        return parts[1]

    return Batches(train_batches, lambda size: rows(held_out, val, np.arange(len(val))), forward, steps)


def frozen_weights_hash(model: nn.Module) -> str:
    """Hex sha256 of the parameters that are not trained: with the images, all that frozen tokens depend on."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
