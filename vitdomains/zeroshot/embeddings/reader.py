"""From a file, or a window of a scene, to the three bands that a CLIP-like model takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.domain import ReadImage
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.read.pixels import (
    band_numbers,
    filled,
    is_picture,
    last_axis,
    read_8_bit,
    read_picture,
    refuse_turned,
)
from vitdomains.core.geo.read.raster import Extent, describe_raster, read_window

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_HINT = (
    "Say what to look at: --bands RED,GREEN,BLUE (names or numbers) and --stretch LOW,HIGH in the file's own numbers."
)


def with_bands(
    spec: PreprocessSpec, bands: tuple[str, ...], stretch: tuple[float, float] = (0.0, 255.0)
) -> PreprocessSpec:
    """The preprocessing of a model for rasters of another kind than 8-bit RGB.

    Pixels stay in the file's own numbers; the stretch, the same for every tile, is folded into mean and standard deviation:
    ``low`` becomes what black is to the model, ``high`` what white is.

    Raises:
        ConfigError: Not three bands, or an empty stretch.
    """
    low, high = stretch
    if len(bands) != spec.channels or not high > low:
        raise ConfigError(
            f"--bands {','.join(bands)} --stretch {low:g},{high:g} cannot be.",
            hint=f"Name {spec.channels} bands, and a stretch from low to high.",
        )
    mean = tuple(low + m * (high - low) for m in spec.mean)
    std = tuple(s * (high - low) for s in spec.std)
    return replace(spec, bands=bands, mean=mean, std=std, storage="float32")


def reader(spec: PreprocessSpec) -> ReadImage:
    """What reads image files for a model with this preprocessing; it travels to worker processes."""
    return partial(read_image, spec=spec)


def read_image(path: str | Path, spec: PreprocessSpec | None = None) -> Array:
    """[H, W, 3] or grey [H, W, 1]: uint8, or float32 in the file's own numbers where ``spec`` names bands.

    Raises:
        ImageError: The file is not there, is no picture, or not of 8 bits with no bands named.
    """
    if not (spec and spec.bands) and is_picture(path):
        return read_picture(path, hint=_HINT)
    return read_pixels(path, None, spec)[0]


def read_pixels(path: str | Path, window: Extent | None, spec: PreprocessSpec | None = None) -> tuple[Array, Bools]:
    """A window (column, row, width, height) of a raster, and which of its pixels hold data.

    Returns:
        [H, W, C], uint8 or float32 as ``read_image``, and bool [H, W]. Pixels without data are the model's mean.

    Raises:
        ImageError: As ``read_window``; a band that is not there; no 8-bit RGB and no bands named.
    """
    if spec is None or not spec.bands:
        pixels, valid = read_8_bit(path, window, spec.mean if spec else (0.0,), hint=_HINT)
        return np.ascontiguousarray(pixels), valid
    refuse_turned(path)
    found = read_window(path, window, bands=band_numbers(describe_raster(path), spec.bands))
    return np.ascontiguousarray(filled(last_axis(found.pixels), found.valid, spec.mean)), found.valid
