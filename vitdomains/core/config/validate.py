"""What makes sense: the range of every number, and the combinations that cannot work.

The types were checked when the configuration was read; here stands what a type cannot say. All problems are reported at
once, each with the key, what was given and what is allowed. What is possible but unwise is ``warnings.py``'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from vitdomains.core.config.schema import Config, Source
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import nearest

Allowed = Mapping[str, Collection[str]]
"""Allowed text by key, e.g. ``{"data.sources.name": SOURCES}``; replaces or extends ``CHOICES``."""


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers; its text reads after "a number"."""

    low: float
    high: float = math.inf
    above: bool = False  # low itself is out
    below: bool = False  # high itself is out

    def holds(self, value: float) -> bool:
        """Whether the value is finite and inside; NaN is not."""
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under and math.isfinite(value)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'of at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


_UNIT = Range(0, 1)
_SHARE = Range(0, 1, below=True)
_POSITIVE = Range(0, above=True)
_COUNT = Range(0)
_ONE_OR_MORE = Range(1)
_PIXELS = Range(8, 8192)

RANGES: dict[str, Range] = {
    "data.sources.limit": _COUNT,
    "data.min_positives": _COUNT,
    "data.max_lost": _UNIT,
    "data.val_fraction": _SHARE,
    "data.test_fraction": _SHARE,
    "data.split_seed": Range(0, 2**32 - 1),
    "data.block_size": _COUNT,
    "data.block_buffer": _COUNT,
    "data.image_size": _PIXELS,
    "model.image_size": Range(0, 8192),
    "model.channels": Range(1, 1024),
    "model.head_hidden": _ONE_OR_MORE,
    "model.drop_rate": _SHARE,
    "model.drop_path_rate": _SHARE,
    "recipe.epochs": _ONE_OR_MORE,
    "recipe.batch_size": _ONE_OR_MORE,
    "recipe.accumulate": _ONE_OR_MORE,
    "recipe.lr": Range(0, 10, above=True),
    "recipe.min_lr": _COUNT,
    "recipe.weight_decay": _COUNT,
    "recipe.layer_decay": Range(0, 1, above=True),
    "recipe.head_lr_scale": _POSITIVE,
    "recipe.head_init_c": _POSITIVE,
    "recipe.betas": _SHARE,
    "recipe.warmup_epochs": _COUNT,
    "recipe.clip_norm": _COUNT,
    "recipe.ema_decay": _SHARE,
    "recipe.early_stopping": _COUNT,
    "recipe.positive_weight": _ONE_OR_MORE,
    "recipe.label_smoothing": _SHARE,
    "recipe.randaugment_magnitude": Range(0, 10),
    "recipe.erasing": _UNIT,
    "recipe.mixup": _COUNT,
    "recipe.cutmix": _COUNT,
    "recipe.mix_off_epochs": _COUNT,
    "recipe.repeated_augmentation": _ONE_OR_MORE,
    "recipe.frozen_cache_views": _COUNT,
    "recipe.distillation_alpha": _UNIT,
    "recipe.distillation_tau": _POSITIVE,
    "recipe.sam_rho": _COUNT,
    "recipe.region_weight": _COUNT,
    "recipe.region_grid": _POSITIVE,
    "recipe.threshold_target": Range(0, 1, above=True, below=True),
    "run.seed": Range(0, 2**32 - 1),
    "run.devices": _ONE_OR_MORE,
    "run.num_nodes": _ONE_OR_MORE,
    "run.threads": _COUNT,
    "run.workers": _COUNT,
    "run.save_seconds": _COUNT,
    "run.log_every": _ONE_OR_MORE,
    "run.bootstrap": _COUNT,
}
"""Every numeric key, dotted; a key of a source stands without its place in the list."""

CHOICES: dict[str, Collection[str]] = {
    "recipe.augment": ("none", "imagenet", "cxr", "overhead", "multispectral"),
    "run.accelerator": ("auto", "cpu", "cuda", "mps"),
    "data.sources.uncertain": ("ignore", "zeros", "ones"),
}

Problem = tuple[str, str]
"""What was given and why it cannot be; what is allowed."""


def range_of(key: str) -> str:
    """Say the range of a numeric key, empty where it has none."""
    return str(RANGES.get(key, ""))


def input_size(config: Config) -> int:
    """Height and width of what the model sees, pixels."""
    return config.model.image_size or config.data.image_size


def validate(config: Config, *, allowed: Allowed | None = None) -> None:
    """Check ranges, choices and combinations.

    Args:
        config: A configuration whose types are right.
        allowed: Allowed text by key, for what only the caller knows: ``data.sources.name``, ``recipe.augment``,
            ``recipe.monitor`` or any other text key.

    Raises:
        ConfigError: All problems found, in the order of the keys.
    """
    problems = [*_ranges(config), *_choices(config, {**CHOICES, **(allowed or {})})]
    # Combinations of values that are wrong by themselves would only repeat what was said.
    problems = problems or [*_data(config), *_model(config), *_recipe(config), *_run(config)]
    if len(problems) == 1:
        raise ConfigError(problems[0][0], hint=problems[0][1])
    if problems:
        lines = [f"{what} {allow}" for what, allow in problems]
        raise ConfigError("\n".join([f"{len(lines)} values of the configuration are not possible:", *lines]))


def _values(config: Config, key: str) -> Iterator[tuple[str, object]]:
    """Find the values of a dotted key: one, or one a source."""
    section, name, *rest = key.split(".")
    value = getattr(getattr(config, section), name)
    if rest:
        for index, source in enumerate(value):
            yield f"{section}.{name}[{index}].{rest[0]}", getattr(source, rest[0])
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield f"{key}[{index}]", part
    else:
        yield key, value


def _ranges(config: Config) -> Iterator[Problem]:
    for key, limits in RANGES.items():
        for name, value in _values(config, key):
            if isinstance(value, (int, float)) and not limits.holds(value):
                yield f"{name} = {value:g} is out of range.", f"Give a number {limits}."


def _choices(config: Config, choices: Allowed) -> Iterator[Problem]:
    for key, known in choices.items():
        for name, value in _values(config, key):
            given = value.values() if isinstance(value, Mapping) else [value]
            for word in given:
                if word not in known:
                    close = nearest(str(word), sorted(known), 1)
                    meant = f"Did you mean {close[0]}? " if close else ""
                    yield f"{name} = {word!r} is not known.", f"{meant}Allowed: {', '.join(sorted(known))}."


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    held_out = data.val_fraction + data.test_fraction
    if held_out >= 1:
        yield (
            f"data.val_fraction + data.test_fraction = {held_out:g} leaves nothing to train on.",
            "Keep their sum below 1.",
        )
    for name in sorted({name for name in data.classes if data.classes.count(name) > 1}):
        yield f"data.classes names {name!r} twice.", "Name each class once."
    if any(not name.strip() for name in data.classes):
        yield "data.classes has an empty name.", "Give each class a name."
    yield from _scale(config)
    for index, source in enumerate(data.sources):
        yield from _source(f"data.sources[{index}]", source)


def _scale(config: Config) -> Iterator[Problem]:
    data, channels = config.data, config.model.channels
    if data.bands and len(data.bands) != channels:
        yield (
            f"data.bands names {len(data.bands)} bands, model.channels is {channels}.",
            f"Set model.channels to {len(data.bands)}.",
        )
    if len(set(data.bands)) < len(data.bands):
        yield f"data.bands = {data.bands} names a band twice.", "Name each band once."
    if bool(data.mean) != bool(data.std):
        yield "data.mean and data.std go together; one of them is empty.", "Give both, or neither."
    for key, values in (("mean", data.mean), ("std", data.std)):
        if values and len(values) not in (1, channels):
            yield f"data.{key} has {len(values)} numbers, model.channels is {channels}.", f"Give 1 or {channels}."
    if any(value <= 0 for value in data.std):
        yield f"data.std = {data.std} has a number that is not above 0.", "Give numbers above 0."


def _source(key: str, source: Source) -> Iterator[Problem]:
    if not source.name:
        yield f"{key}.name is empty.", "Name a reader, e.g. nih or csv."
    if not source.separator:
        yield f"{key}.separator is empty.", "Give the text between two labels, e.g. '|'."
    for column, values in source.keep.items():
        if not values:
            yield f"{key}.keep.{column} is an empty list and would keep nothing.", "List the values to keep."


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    if not re.fullmatch(r"(vit|timm|hf):\S+", model.name):
        yield f"model.name = {model.name!r} names no backbone.", "Give vit:SIZE/PATCH, timm:NAME or hf:NAME."
    elif model.name.startswith("vit:"):
        yield from _patches(config)
    freeze = model.freeze
    count = re.fullmatch(r"stage:[1-9]\d*|\d+", freeze)
    share = re.fullmatch(r"\d*\.\d+|\d+\.", freeze) and 0 <= float(freeze) <= 1
    if freeze not in ("none", "backbone") and not count and not share:
        yield (
            f"model.freeze = {freeze!r} is not understood.",
            "Give none, backbone, a count of blocks (6), a share of them from 0.0 to 1.0 (0.5), or stage:2.",
        )
    if 0 < model.image_size < _PIXELS.low:
        yield f"model.image_size = {model.image_size} is too small.", f"Give 0 or a number {_PIXELS}."


def _patches(config: Config) -> Iterator[Problem]:
    """The ViT from scratch takes no border pixels: each size must be a multiple of its patch."""
    match = re.fullmatch(r"vit:[A-Za-z]+/(\d+)", config.model.name)
    if not match or int(match[1]) == 0:
        yield f"model.name = {config.model.name!r} is not a ViT size.", "Give vit:SIZE/PATCH, e.g. vit:Ti/16."
        return
    patch = int(match[1])
    sizes = {"model.image_size" if config.model.image_size else "data.image_size": input_size(config)}
    sizes |= {f"recipe.progressive_sizes[{i}][1]": size for i, (_, size) in enumerate(config.recipe.progressive_sizes)}
    for key, size in sizes.items():
        if size > 0 and size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            near = f"{below} or {above}" if below else f"{above}"
            yield f"{key} = {size} is no multiple of the {patch}-px patches of {config.model.name}.", f"Give {near}."


def _recipe(config: Config) -> Iterator[Problem]:
    recipe = config.recipe
    if recipe.min_lr > recipe.lr:
        yield f"recipe.min_lr = {recipe.min_lr:g} is above recipe.lr = {recipe.lr:g}.", "Give a smaller recipe.min_lr."
    for key, value in (("warmup_epochs", recipe.warmup_epochs), ("mix_off_epochs", recipe.mix_off_epochs)):
        if value > recipe.epochs:
            yield f"recipe.{key} = {value:g} is longer than the {recipe.epochs} epochs.", "Give at most recipe.epochs."
    if (copies := recipe.repeated_augmentation) > recipe.batch_size:
        yield (
            f"recipe.repeated_augmentation = {copies} is more than a batch of {recipe.batch_size}.",
            "Give at most recipe.batch_size.",
        )
    yield from _progression(config)
    if recipe.region_weight and (config.model.options.get("pool") != "lse" or recipe.frozen_cache_views):
        yield (
            f"recipe.region_weight = {recipe.region_weight} needs logits of every patch.",
            "Set model.options to {pool: lse} and recipe.frozen_cache_views to 0, or recipe.region_weight to 0.",
        )
    if recipe.frozen_cache_views and config.model.freeze in ("none", "0", "0.0"):
        yield (
            f"recipe.frozen_cache_views = {recipe.frozen_cache_views} but no block is frozen.",
            "Set model.freeze, e.g. 0.5, or recipe.frozen_cache_views to 0.",
        )
    if recipe.teacher_weights and not recipe.teacher:
        yield "recipe.teacher_weights is given without a teacher.", "Name recipe.teacher."
    if recipe.precision == "fp16" and config.run.accelerator == "cpu":
        yield "recipe.precision = fp16 is for GPUs.", "Give auto, bf16 or fp32 with run.accelerator cpu."


def _progression(config: Config) -> Iterator[Problem]:
    steps = config.recipe.progressive_sizes
    shares, sizes = [share for share, _ in steps], [size for _, size in steps]
    key = "recipe.progressive_sizes"
    if any(not 0 < share <= 1 for share in shares) or any(a >= b for a, b in pairwise(shares)):
        yield f"{key} has the shares {shares}.", "Let them rise from above 0 to 1, e.g. [[0.6, 224], [1.0, 384]]."
    elif shares and shares[-1] != 1:
        yield f"{key} ends at {shares[-1]:g} of the training.", "Let the last share be 1.0."
    if any(a > b for a, b in pairwise(sizes)):
        yield f"{key} has the sizes {sizes}.", "Let them never shrink."
    for size in sizes:
        if not _PIXELS.low <= size <= input_size(config):
            yield (
                f"{key} has the size {size} px; the input is {input_size(config)} px.",
                f"Give sizes from {_PIXELS.low:g} px to the input size.",
            )


def _run(config: Config) -> Iterator[Problem]:
    run = config.run
    if not run.dir.strip() or "\0" in run.dir:
        yield f"run.dir = {run.dir!r} is no folder name.", "Give a folder, e.g. runs/mine."
    if run.resume and run.overwrite:
        yield "run.resume and run.overwrite are both true.", "Go on with the run, or start anew: give one."
    if config.model.weights and "\0" in config.model.weights:
        yield "model.weights holds a null byte.", "Give a file, a hub id or pretrained."
