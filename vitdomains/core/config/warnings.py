"""Warns where a recipe is possible but the literature says that it goes wrong.

Nothing here stops a run. Each caution names the key, what was given, why that is unwise with the number, and who
showed it, so that whoever knows better can go on with open eyes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitdomains.core.config.schema import Config
from vitdomains.core.config.validate import input_size

FEW_IMAGES = 10_000
"""Training images below which a ViT without pretrained weights is warned about."""
FINE_TUNING_LR = 1e-4
"""Highest peak learning rate of AdamW for all layers of a pretrained ViT that passes without a word."""
LAYER_DECAY_LR = 1e-3
"""The same where layer-wise decay (0.75 or stronger) shields the lower blocks."""
SMALL_BATCH = 256
"""Effective batch below which a word is said."""
MIRRORING_POLICIES = ("imagenet", "overhead", "multispectral")
"""Augmentation policies that flip images left to right."""


@dataclass(frozen=True)
class Caution:
    """One thing that is likely to go wrong.

    Args:
        key: The dotted key to change.
        given: Its value, or what follows from it.
        reason: Why it is unwise, with the number and what to do instead.
        reference: Who showed it.
    """

    key: str
    given: str
    reason: str
    reference: str

    def __str__(self) -> str:
        return f"{self.key} = {self.given}: {self.reason} [{self.reference}]"


def lint(
    config: Config,
    *,
    n_images: int | None,
    pretrained_size: int | None,
    domain: str,
    positions_resampled: bool = False,
) -> list[Caution]:
    """Look a recipe over before the first step.

    Args:
        config: A valid configuration.
        n_images: Images in the training split; None: not known yet, and what depends on it is not said.
        pretrained_size: Input size that the weights were trained at, pixels; None: not known, or no weights.
        domain: Name of the domain, e.g. ``cxr``.
        positions_resampled: Whether the loader of the weights interpolates their position embeddings to the input size.

    Returns:
        The cautions in the order in which they should be read; empty for a sound recipe.
    """
    found = [
        _few_images(config, n_images),
        _high_lr(config),
        _no_warmup(config),
        _other_size(config, pretrained_size, positions_resampled=positions_resampled),
        _full_precision(config),
        _small_batch(config),
        _mirrored_chest(config, domain),
    ]
    return [caution for caution in found if caution is not None]


def _few_images(config: Config, n_images: int | None) -> Caution | None:
    if n_images is None or n_images >= FEW_IMAGES or config.model.weights:
        return None
    return Caution(
        "model.weights",
        f"none, with {n_images:,} training images",
        f"a ViT has no convolutional prior and overfits small data: below about {FEW_IMAGES:,} images pretrained "
        "weights decide the result (from scratch it lost to ResNets even on the 1.3 million images of ImageNet). "
        "Set model.weights to pretrained or a file.",
        "Dosovitskiy et al. 2021, arXiv:2010.11929, sec. 4.3; Matsoukas et al. 2021, arXiv:2108.09038",
    )


def _high_lr(config: Config) -> Caution | None:
    recipe = config.recipe
    if not config.model.weights or config.model.freeze == "backbone":  # a head alone starts at random and may go faster
        return None
    limit = LAYER_DECAY_LR if recipe.layer_decay <= 0.75 else FINE_TUNING_LR
    if recipe.lr <= limit:
        return None
    return Caution(
        "recipe.lr",
        f"{recipe.lr:g}",
        f"above about {limit:g} AdamW washes out what the pretrained blocks know; published fine-tunings of whole "
        "ViTs use 1e-5 (DeiT III at 384 px) to 1e-4, and 1e-3 only with a layer-wise decay of 0.75. Set recipe.lr to "
        f"{limit:g} or less; recipe.head_lr_scale speeds up the head alone.",
        "Touvron et al. 2022, arXiv:2204.07118; He et al. 2022, arXiv:2111.06377, table 9; Kumar et al. 2022, "
        "arXiv:2202.10054",
    )


def _no_warmup(config: Config) -> Caution | None:
    if config.recipe.warmup_epochs > 0:
        return None
    return Caution(
        "recipe.warmup_epochs",
        "0",
        "Adam's second moments mean little in the first steps, and a full learning rate then throws a transformer off; "
        "published recipes warm up for 5 epochs (DeiT) or 10,000 steps (ViT). Set recipe.warmup_epochs to 5 % of the "
        "epochs or more.",
        "Touvron et al. 2021, arXiv:2012.12877, table 9; Dosovitskiy et al. 2021, arXiv:2010.11929, table 3",
    )


def _other_size(config: Config, pretrained_size: int | None, *, positions_resampled: bool) -> Caution | None:
    if pretrained_size is None or not config.model.weights:
        return None
    sizes = dict.fromkeys([*(size for _, size in config.recipe.progressive_sizes), input_size(config)])
    other = [size for size in sizes if size != pretrained_size]
    # A size fixed in the backbone's own options overrides what the loader would have done.
    options = config.model.options
    fixed = any(options.get(name) not in (None, 0, input_size(config)) for name in ("img_size", "image_size"))
    if not other or (positions_resampled and not fixed):
        return None
    return Caution(
        "model.image_size",
        " and ".join(f"{size} px" for size in other),
        f"the weights know the positions of a {pretrained_size}-px grid; at another size their position embeddings "
        "must be interpolated in 2-D, else each patch gets the position of another. "
        f"Use {pretrained_size} px, or resample them.",
        "Dosovitskiy et al. 2021, arXiv:2010.11929, sec. 3.2; Touvron et al. 2019, arXiv:1906.06423",
    )


def _full_precision(config: Config) -> Caution | None:
    if config.recipe.precision != "fp32":
        return None
    return Caution(
        "recipe.precision",
        "fp32",
        "mixed precision reaches the same accuracy in about half the memory, and 16-bit matrix products run 2 to 6 "
        "times as fast on GPUs (7 times measured on a processor with AMX). Set recipe.precision to auto.",
        "Micikevicius et al. 2018, arXiv:1710.03740",
    )


def _small_batch(config: Config) -> Caution | None:
    recipe, run = config.recipe, config.run
    devices = run.devices * run.num_nodes
    effective = recipe.batch_size * recipe.accumulate * devices
    if effective >= SMALL_BATCH:
        return None
    needed = math.ceil(SMALL_BATCH / (recipe.batch_size * devices))
    return Caution(
        "recipe.accumulate",
        f"{recipe.accumulate}, an effective batch of {effective}",
        f"published ViT recipes step on 512 (fine-tuning) to 4,096 images; under {SMALL_BATCH} gradients are noisy "
        f"and their learning rates no longer fit. Set recipe.accumulate to {needed}, or lower recipe.lr in "
        "proportion; with a few hundred images the number of steps matters more.",
        "Dosovitskiy et al. 2021, arXiv:2010.11929, appendix B.1; Goyal et al. 2017, arXiv:1706.02677",
    )


def _mirrored_chest(config: Config, domain: str) -> Caution | None:
    if domain != "cxr" or config.recipe.augment not in MIRRORING_POLICIES:
        return None
    return Caution(
        "recipe.augment",
        config.recipe.augment,
        "it mirrors films left to right, which puts the heart on the wrong side (situs inversus, about 1 person in "
        "10,000) and swaps sides that the report names; four published geometric augmentations lowered the mean MCC "
        "of 17 networks on chest films from 0.51 to 0.44-0.49. Set recipe.augment to cxr.",
        "Elgendi et al. 2021, Front. Med. 8:629134, doi:10.3389/fmed.2021.629134",
    )
