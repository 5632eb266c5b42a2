"""Augmentation: policies by name, RandAugment, erasing; MixUp and CutMix within a batch.

The operations are those of albumentations. Each call is given its own random generator, so an augmented image is a
function of that generator alone, in any thread or process. A policy says what the field says leaves the label alone:
chest films are never mirrored (the heart is on the left), tiles seen from above have no up.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdomains.core.config.schema import Recipe
from vitdomains.core.data.preprocess import Array, Storage
from vitdomains.core.errors import ConfigError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the package index for its newest version
import albumentations as A

Transforms = list[Any]
Policy = Callable[[int, int, int], Transforms]
_THREAD = threading.local()


class BandJitter(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations' own way to add an operation
    """Gain and noise drawn for each band; unlike albumentations' own, right for any scale of the values.

    Args:
        gain: Largest relative change of a band, 0..1.
        noise: Standard deviation of the noise as a share of the band's own, 0..1.
        p: Probability.
    """

    def __init__(self, gain: float = 0.1, noise: float = 0.03, p: float = 0.8) -> None:
        super().__init__(p=p)
        self.gain = gain
        self.noise = noise

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        image = data["image"]
        gains = self.random_generator.uniform(1 - self.gain, 1 + self.gain, image.shape[2])
        noise = self.random_generator.standard_normal(image.shape, dtype=np.float32)
        return {"gains": gains.astype(np.float32), "noise": noise * self.random_generator.uniform(0, self.noise)}

    def apply(self, img: Array, gains: Array, noise: Array, **_: Any) -> Array:
        spread = img.std(axis=(0, 1), dtype=np.float32)
        jittered: Array = img * gains + noise * spread
        if img.dtype == np.uint8:
            jittered = np.rint(jittered.clip(0, 255))
        return jittered.astype(img.dtype)


def _symmetries(height: int, width: int) -> Transforms:
    """The dihedral group of the square; of an oblong only what keeps its shape."""
    return [A.D4(p=1)] if height == width else [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def _imagenet(height: int, width: int, channels: int) -> Transforms:
    # Scale and ratio of Szegedy et al. 2015 and jitter of DeiT (Touvron et al. 2021, table 9).
    crop = A.RandomResizedCrop(size=(height, width), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), p=1)
    return [crop, A.HorizontalFlip(p=0.5), _colour(0.3, 0.0 if channels == 1 else 0.3, 0.0)]


def _cxr(height: int, width: int, channels: int) -> Transforms:
    # Positioning, exposure and detector, each within what passes quality control; no mirroring.
    return [
        A.Affine(rotate=(-10, 10), scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), fill=0, p=0.9),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
        A.RandomGamma(gamma_limit=(80, 125), p=0.5),
        A.OneOf([A.GaussNoise(std_range=(0.005, 0.025)), A.GaussianBlur(blur_limit=(3, 5))], p=0.3),
    ]


def _overhead(height: int, width: int, channels: int) -> Transforms:
    return [*_symmetries(height, width), _colour(0.2, 0.0 if channels == 1 else 0.2, 0.02, p=0.8)]


def _multispectral(height: int, width: int, channels: int) -> Transforms:
    return [*_symmetries(height, width), BandJitter()]


POLICIES: dict[str, Policy] = {
    "none": lambda height, width, channels: [],
    "imagenet": _imagenet,
    "cxr": _cxr,
    "overhead": _overhead,
    "multispectral": _multispectral,
}
"""Name -> (height, width, channels of the image) -> albumentations transforms."""

ANY_SCALE = frozenset({"none", "multispectral"})
"""Policies for floating-point images of any scale; the others take uint8, or float in 0..1."""


def _colour(tone: float, saturation: float, hue: float, p: float = 1.0) -> Any:
    return A.ColorJitter(
        brightness=(1 - tone, 1 + tone),
        contrast=(1 - tone, 1 + tone),
        saturation=(1 - saturation, 1 + saturation),
        hue=(-hue, hue),
        p=p,
    )


def _factor(name: str, value: float) -> Any:
    still = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    return A.ColorJitter(**(still | {name: (value, value)}), p=1)


def randaugment(magnitude: int, channels: int) -> Any:
    """Two operations drawn from the RandAugment list (Cubuk et al. 2020), all at one magnitude, with a random sign.

    Args:
        magnitude: 0..10; 10 is a rotation by 30 degrees, a shear by 0.3, a shift by 0.45 of the side, a factor
            of 1 +- 0.9.
        channels: Channels of the image; colour is left out of all but three.
    """
    level = magnitude / 10

    def signed(make: Callable[[float], Any], value: float) -> Any:
        return A.OneOf([make(value), make(-value)], p=1)

    def affine(**change: Any) -> Any:
        return A.Affine(**change, fill=0, p=1)

    shear = float(np.degrees(np.arctan(0.3 * level)))
    bits = 8 - round(4 * level)
    operations = [
        A.NoOp(p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
        signed(lambda v: affine(rotate=(v, v)), 30 * level),
        signed(lambda v: affine(shear={"x": (v, v), "y": (0, 0)}), shear),
        signed(lambda v: affine(shear={"x": (0, 0), "y": (v, v)}), shear),
        signed(lambda v: affine(translate_percent={"x": (v, v), "y": (0, 0)}), 0.45 * level),
        signed(lambda v: affine(translate_percent={"x": (0, 0), "y": (v, v)}), 0.45 * level),
        signed(lambda v: _factor("brightness", 1 + v), 0.9 * level),
        signed(lambda v: _factor("contrast", 1 + v), 0.9 * level),
        A.Sharpen(alpha=(0.5 * level, 0.5 * level), lightness=(1.0, 1.0), p=1),
        A.Solarize(threshold_range=(1 - level, 1 - level), p=1),
        A.Posterize(num_bits=(bits, bits), p=1) if bits < 8 else A.NoOp(p=1),
    ]
    if channels == 3:
        operations.append(signed(lambda v: _factor("saturation", 1 + v), 0.9 * level))
    return A.SomeOf(operations, n=2, replace=True, p=1)


@dataclass(frozen=True)
class Augmenter:
    """A policy with RandAugment and erasing on top; callable, hashable, travels to worker processes."""

    policy: str
    magnitude: int
    erasing: float

    def __call__(self, image: Array, generator: np.random.Generator, bits: Array | None = None) -> Array:
        """Augment [h, w] or [h, w, C]; the result has the same shape and type and does not share memory.

        ``bits``, uint8 [h, w, n] masks as bit fields, are moved along in place, by the nearest pixel.

        Raises:
            ConfigError: The policy does not fit the channels or the range of the image.
        """
        bands = image if image.ndim == 3 else image[:, :, None]
        if self.policy not in ANY_SCALE:
            self._check(bands)
        compose = self._compose(*bands.shape)
        compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        if bits is None:
            result: Array = compose(image=np.array(bands))["image"]
        else:
            moved = compose(image=np.array(bands), mask=bits.copy())
            result, bits[:] = moved["image"], moved["mask"].reshape(bits.shape)
        return np.ascontiguousarray(result.reshape(image.shape), dtype=image.dtype)

    def _check(self, bands: Array) -> None:
        if self.policy in ("imagenet", "overhead") and bands.shape[2] not in (1, 3):
            raise ConfigError(
                f"recipe.augment = {self.policy} changes colours; the images have {bands.shape[2]} channels.",
                hint="Use recipe.augment=multispectral.",
            )
        if bands.dtype != np.uint8 and (bands.min() < 0 or bands.max() > 1):
            raise ConfigError(
                f"recipe.augment = {self.policy} takes values of 0..1, not {bands.min():.3g}..{bands.max():.3g}.",
                hint="Use recipe.augment=multispectral, or scale the images in the reader.",
            )

    def _compose(self, height: int, width: int, channels: int) -> Any:
        """One pipeline a thread: it carries the random state of the image at hand."""
        pipelines: dict[tuple[object, ...], Any] = _THREAD.__dict__.setdefault("composes", {})
        key = (self, height, width, channels)
        if key not in pipelines:
            transforms = POLICIES[self.policy](height, width, channels)
            if self.magnitude:
                transforms.append(randaugment(self.magnitude, channels))
            if self.erasing:
                # Zhong et al. 2020, with noise as in DeiT; on values of any scale, noise of 0..1 would mean nothing.
                fill = 0.0 if self.policy in ANY_SCALE else "random"
                transforms.append(A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 3.3), fill=fill, p=self.erasing))
            pipelines[key] = A.Compose(transforms)
        return pipelines[key]


def build_augment(recipe: Recipe, storage: Storage = "uint8") -> Augmenter | None:
    """The augmentation that a recipe asks for; None where it asks for none.

    Raises:
        ConfigError: The policy is unknown, a value is out of range, or RandAugment is asked for on float images.
    """
    if recipe.augment not in POLICIES:
        raise ConfigError(f"recipe.augment is {recipe.augment!r}.", hint=f"The policies are {', '.join(POLICIES)}.")
    if not 0 <= recipe.randaugment_magnitude <= 10:
        raise ConfigError(f"recipe.randaugment_magnitude is {recipe.randaugment_magnitude}.", hint="Allowed are 0..10.")
    if not 0 <= recipe.erasing <= 1:
        raise ConfigError(f"recipe.erasing is {recipe.erasing}.", hint="It is a probability, 0..1.")
    if recipe.randaugment_magnitude and (storage != "uint8" or recipe.augment == "multispectral"):
        raise ConfigError(
            "recipe.randaugment_magnitude is for 8-bit images of one or three channels.",
            hint="Set it to 0 for multispectral or floating-point images.",
        )
    if recipe.augment == "none" and not recipe.randaugment_magnitude and not recipe.erasing:
        return None
    return Augmenter(recipe.augment, recipe.randaugment_magnitude, recipe.erasing)


def mix(
    images: Tensor, targets: Tensor, *, mixup: float, cutmix: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image with another of the batch.

    With both, each batch is mixed by one of them, with equal chance. Targets are mixed by the share of pixels that each
    image really has: for CutMix by the area of the rectangle after it was clipped at the border and rounded to pixels.

    Args:
        images: [B, C, H, W], uint8 (mixtures are rounded) or floating point.
        targets: [B, K] floating point: several labels or one-hot; NaN is unknown and stays so when mixed.
        mixup: Alpha of the Beta distribution of MixUp; 0: off.
        cutmix: Alpha of the Beta distribution of CutMix; 0: off.
        generator: Seeded by (seed, epoch, step).

    Returns:
        Images and targets of the same shapes and types; the inputs are not changed.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    by_area = cutmix > 0 and (mixup <= 0 or generator.random() < 0.5)
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    alpha = cutmix if by_area else mixup
    share = float(generator.beta(alpha, alpha))
    if by_area:
        top, bottom, left, right = cut_box(images.shape[-2], images.shape[-1], share, generator)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[partner, ..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    else:
        first = images.float() if images.dtype == torch.uint8 else images
        mixed = first * share + first[partner] * (1 - share)
        mixed = mixed.round_().to(torch.uint8) if images.dtype == torch.uint8 else mixed
    partners = targets[partner.to(targets.device)]
    return mixed, targets * share + partners * (1 - share)


def cut_box(height: int, width: int, share: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of 1 - ``share`` of the area about a uniform centre, clipped (CutMix, eq. 2)."""
    half_h, half_w = (round(side * np.sqrt(1 - share)) / 2 for side in (height, width))
    y, x = generator.integers(height), generator.integers(width)
    top, bottom = int(max(y - half_h, 0)), int(min(y + half_h, height))
    left, right = int(max(x - half_w, 0)), int(min(x + half_w, width))
    return top, bottom, left, right
