"""Preprocessing shared by training and inference: one description of size, padding and scale.

``prepare`` turns a decoded image into the fixed-size array that is cached, ``normalise`` turns a batch of those into
what the model takes, and ``geometry`` says where a pixel of the model's input lies in the original. All three read
nothing but a ``PreprocessSpec``, which travels in the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitdomains.core.errors import ConfigError

Resize = Literal["letterbox", "crop", "squash"]
Storage = Literal["uint8", "float32"]
Resample = Literal["area", "bilinear", "bicubic"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes the input of a model; serialisable, part of the bundle."""

    height: int
    """Height of the model's input, pixels."""
    width: int
    """Width of the model's input, pixels."""
    resize: Resize
    """letterbox: whole image, padded; crop: the largest centred part that fits; squash: aspect ratio not kept."""
    channels: int
    """Channels that the model takes; a grey image is repeated to them as the very last step."""
    mean: tuple[float, ...]
    """Mean that is subtracted, one or one per channel, in units of the image (0..1 for uint8 storage)."""
    std: tuple[float, ...]
    """Standard deviation that is divided by, one or one per channel, in the same units."""
    storage: Storage = "uint8"
    """Type in which a prepared image is kept: uint8 (0..1 rounded to 256 levels) or float32 (any scale)."""
    fill: float = 0.0
    """Value of padding and of non-finite pixels, in units of the image."""
    bands: tuple[str, ...] = ()
    """Names of the bands that the reader takes from a file, in the order of the channels; empty: the file as it is."""
    sensor: str = ""
    """Name of the sensor that gives the bands their order and scale; empty: none is known."""
    baseline: str = ""
    """Sentinel-2's processing baseline of files that do not say theirs, or ``harmonized``; empty: those are refused."""
    units: Literal["", "stored", "physical"] = ""
    """Whether numbers of files that leave it in doubt are in the sensor's unit already; empty: those are refused."""
    resample: Resample = "area"
    """area: see ``resize_array``; bilinear, bicubic: the antialiased filters of Pillow and torchvision, as CLIP and SigLIP were
    trained with, and ``crop`` cuts after resizing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        for name, allowed in (("resize", Resize), ("storage", Storage), ("resample", Resample)):
            names = get_args(allowed)
            _require(getattr(self, name) in names, name, getattr(self, name), f"one of {', '.join(names)}")
        for name in ("height", "width", "channels"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            _require(len(value) in (1, self.channels), name, value, f"1 or {self.channels} numbers")
            _require(bool(np.isfinite(value).all()), name, value, "finite")
        _require(min(self.std) > 0, "std", self.std, "above 0")
        _require(bool(np.isfinite(self.fill)), "fill", self.fill, "finite")
        object.__setattr__(self, "bands", tuple(self.bands))
        named = not self.bands or (len(self.bands) == self.channels and len(set(self.bands)) == self.channels)
        _require(named, "bands", self.bands, f"none, or {self.channels} different names")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON types."""
        made = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in made.items() if value or key not in ("baseline", "units")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessSpec:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: A key is unknown or missing, or a value is impossible.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted(known - {"storage", "fill", "bands", "sensor", "baseline", "units", "resample"} - set(values))
        if unknown or missing:
            raise ConfigError(
                f"Preprocessing with unknown keys {unknown} and missing keys {missing}.",
                hint=f"The keys are {', '.join(f.name for f in fields(cls))}.",
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"Preprocessing has a value of the wrong type: {error}.") from error


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"Preprocessing: {key} is {value!r}.", hint=f"It has to be {allowed}.")


def resized_spec(spec: PreprocessSpec, size: int | tuple[int, int]) -> PreprocessSpec:
    """The same preprocessing at another size: pixels, one number for a square or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return replace(spec, height=height, width=width)


@dataclass(frozen=True)
class _Layout:
    """Which part of the original lands in which part of the input; pixels, (y, x, height, width)."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


def _layout(spec: PreprocessSpec, shape: tuple[int, int]) -> _Layout:
    height, width = shape
    if height < 1 or width < 1:
        raise ConfigError(f"An image of {height} x {width} pixels cannot be resized.", hint="Check the reader.")
    source, target = (0, 0, height, width), (0, 0, spec.height, spec.width)
    if spec.resize == "letterbox":
        scale = min(spec.height / height, spec.width / width)
        inner_h = min(max(round(height * scale), 1), spec.height)
        inner_w = min(max(round(width * scale), 1), spec.width)
        target = ((spec.height - inner_h) // 2, (spec.width - inner_w) // 2, inner_h, inner_w)
    elif spec.resize == "crop":
        # Cropping comes before resizing: a strip of 10 x 100,000 pixels never becomes a huge intermediate.
        crop_h = min(max(round(width * spec.height / spec.width), 1), height)
        crop_w = min(max(round(height * spec.width / spec.height), 1), width)
        source = ((height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w)
    return _Layout(source, target)


def resize_array(image: Array, height: int, width: int) -> Array:
    """Resize [H, W] or [H, W, C] so that pixel areas, not pixel centres, correspond: no shift at any scale.

    Each axis that shrinks is averaged over the area that a new pixel covers (no aliasing); each axis that grows is
    interpolated linearly (no overshoot, so the range is kept).
    """
    if image.ndim == 3 and image.shape[2] > 4:  # cv2 averages at most four channels at once
        bands = [resize_array(image[:, :, c], height, width) for c in range(image.shape[2])]
        return np.stack(bands, axis=-1)
    if image.dtype == np.uint8 and (height > image.shape[0] or width > image.shape[1]):
        # Of eight bits cv2 makes a level too little in one of ten pixels: its coefficients have eleven bits, the rest is cut off.
        return np.rint(resize_array(image.astype(np.float32), height, width)).astype(np.uint8)
    image = np.ascontiguousarray(image)
    shrunk = (min(image.shape[1], width), min(image.shape[0], height))  # cv2 counts (x, y)
    if shrunk != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def thumbnail(image: Array, size: int = 32) -> npt.NDArray[np.float32]:
    """An image [H, W] or [H, W, C] squashed to ``size`` x ``size`` pixels by area averaging, float32 in its own unit."""
    return np.asarray(resize_array(np.asarray(image, dtype=np.float32), size, size))


def resize_filtered(image: Array, height: int, width: int, resample: Resample, *, crop: bool = False) -> Array:
    """Resize [H, W] or [H, W, C] with a filter that widens as the image shrinks; the numbers are torchvision's.

    With ``crop`` the shorter side is brought to size and the middle is cut out afterwards, as image processors of CLIP do.
    """
    in_h, in_w = image.shape[:2]
    inner_h, inner_w = height, width
    if crop:
        # No strip becomes a huge intermediate: of a very long one only the middle is looked at, beyond the filter's reach.
        most_h, most_w = (4 * max(1, round(side)) for side in (in_w * height / width, in_h * width / height))
        if in_h > most_h or in_w > most_w:
            top, left = max(0, in_h - most_h) // 2, max(0, in_w - most_w) // 2
            return resize_filtered(image[top : top + most_h, left : left + most_w], height, width, resample, crop=True)
        wide = in_w * height >= in_h * width
        inner_h, inner_w = (height, height * in_w // in_h) if wide else (width * in_h // in_w, width)
    planes = torch.from_numpy(np.ascontiguousarray(image))
    planes = planes.permute(2, 0, 1)[None] if image.ndim == 3 else planes[None, None]
    if (inner_h, inner_w) != (in_h, in_w):
        planes = F.interpolate(planes, (inner_h, inner_w), mode=resample, antialias=True)
    top, left = round((inner_h - height) / 2), round((inner_w - width) / 2)
    out = planes[0, :, top : top + height, left : left + width].numpy()
    if image.ndim == 2:
        return np.asarray(out[0])
    # cv2 interleaves planes several times as fast as a strided copy.
    return cv2.merge(list(out)) if len(out) <= 4 else np.ascontiguousarray(out.transpose(1, 2, 0))


def prepare(image: Array, spec: PreprocessSpec) -> Array:
    """Bring a decoded image to the input size and the storage type.

    Args:
        image: [H, W] (grey) or [H, W, C]; float in 0..1 (any scale with float32 storage) or uint8 (0..255 for 0..1).
            Non-finite pixels count as ``spec.fill``.
        spec: The preprocessing.

    Returns:
        [h, w] for a grey image, else [h, w, C], of type ``spec.storage``, C-contiguous and not shared with ``image``.

    Raises:
        ConfigError: The image is not grey and its channels are not the model's, or it has no pixels.
        TypeError: The pixels are neither floating point nor uint8.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in (2, 3):
        raise ConfigError(f"An image of shape {image.shape} is neither [H, W] nor [H, W, C].", hint="Check the reader.")
    if image.ndim == 3 and image.shape[2] != spec.channels:
        raise ConfigError(
            f"The image has {image.shape[2]} channels, the model takes {spec.channels}.",
            hint="Set model.channels, or give the reader the bands that the model knows.",
        )
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"prepare takes float or uint8 pixels, not {image.dtype}: the scale would be a guess")
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    layout = _layout(spec, (image.shape[0], image.shape[1]))
    y, x, height, width = layout.source
    inner_h, inner_w = layout.target[2:]
    if spec.resample == "area":
        part = image[y : y + height, x : x + width]
        shrink = partial(resize_array, height=inner_h, width=inner_w)
    else:
        part = image
        shrink = partial(
            resize_filtered, height=inner_h, width=inner_w, resample=spec.resample, crop=spec.resize == "crop"
        )
    resized = shrink(part)
    # Averaging spreads a non-finite pixel, so looking at the small result finds every one in the large original.
    if image.dtype != np.uint8 and not np.isfinite(resized).all():
        resized = shrink(np.where(np.isfinite(part), part, np.float32(spec.fill)))
    stored = _to_storage(resized, spec.storage)
    out = np.full((spec.height, spec.width, *image.shape[2:]), _stored_fill(spec), dtype=spec.storage)
    top, left, inner_h, inner_w = layout.target
    out[top : top + inner_h, left : left + inner_w] = stored
    return out


def prepare_bits(bits: Array, spec: PreprocessSpec) -> Array:
    """Bring a bit field of masks, uint8 [H, W, n] on the image, to the input size: nearest pixel, nothing set in the padding."""
    layout = _layout(spec, (bits.shape[0], bits.shape[1]))
    y, x, height, width = layout.source
    top, left, inner_h, inner_w = layout.target
    rows = y + ((np.arange(inner_h) + 0.5) * height / inner_h).astype(int)
    columns = x + ((np.arange(inner_w) + 0.5) * width / inner_w).astype(int)
    out = np.zeros((spec.height, spec.width, bits.shape[2]), np.uint8)
    out[top : top + inner_h, left : left + inner_w] = bits[rows[:, None], columns]
    return out


def _to_storage(image: Array, storage: Storage) -> Array:
    if storage == "uint8":
        if image.dtype == np.uint8:
            return image
        levels = np.clip(image, 0.0, 1.0)
        levels *= np.float32(255)
        np.rint(levels, out=levels)
        return levels.astype(np.uint8)
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image


def _stored_fill(spec: PreprocessSpec) -> float:
    return float(np.rint(np.clip(spec.fill, 0.0, 1.0) * 255)) if spec.storage == "uint8" else spec.fill


def normalise(batch: Tensor, spec: PreprocessSpec) -> Tensor:
    """Scale a batch of stored images to what the model takes: (x - mean) / std.

    Args:
        batch: [B, C', H, W], uint8 (0..255 for 0..1) or float (units of ``spec.mean``); C' is 1 or ``channels``.

    Returns:
        [B, channels, H, W] float32, on the device of ``batch``.

    Raises:
        ConfigError: C' is neither 1 nor ``channels``.
    """
    if batch.ndim != 4 or batch.shape[1] not in (1, spec.channels):
        raise ConfigError(
            f"A batch of shape {tuple(batch.shape)} does not fit a model of {spec.channels} channels.",
            hint="Batches are [B, C, H, W] with C = 1 or the model's channels.",
        )
    unit = 255.0 if batch.dtype == torch.uint8 else 1.0
    shape = (1, -1, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float64)
    mean = torch.tensor(spec.mean, dtype=torch.float64)
    scale = (1 / (std * unit)).float().view(shape).to(batch.device)
    shift = (-mean / std).float().view(shape).to(batch.device)
    # One pass over the memory; the repetition of a grey channel happens by broadcasting inside it.
    out = torch.addcmul(shift, batch.float(), scale)
    return out.expand(-1, spec.channels, -1, -1)


def geometry(spec: PreprocessSpec, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Affine map from the model's input to the original image.

    Args:
        shape: Height and width of the original, pixels.

    Returns:
        [2, 3] matrix A: (x, y) of the original = A @ (x', y', 1) for (x', y') of the input; integers are pixel centres.
    """
    layout = _layout(spec, shape)
    source_y, source_x, source_h, source_w = layout.source
    target_y, target_x, target_h, target_w = layout.target
    step_x, step_y = source_w / target_w, source_h / target_h
    return np.array(
        [
            [step_x, 0.0, source_x + (0.5 - target_x) * step_x - 0.5],
            [0.0, step_y, source_y + (0.5 - target_y) * step_y - 0.5],
        ]
    )
