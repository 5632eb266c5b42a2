"""From a file, or a window of a scene, to the three bands that a CLIP-like model takes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.domain import ReadImage
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.raster import Extent, RasterInfo, describe_raster, read_window

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img")
"""Endings that are read as rasters, with bands, masks and any type of pixel; all others are pictures."""
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
    """[H, W, 3] or grey [H, W]: uint8, or float32 in the file's own numbers where ``spec`` names bands.

    Raises:
        ImageError: The file is not there, is no picture, or not of 8 bits with no bands named.
    """
    if Path(path).suffix.lower() in RASTERS or (spec and spec.bands):
        return read_pixels(path, None, spec)[0]
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error
    return decode(raw, path)


def decode(raw: Array, path: str | Path) -> Array:
    """uint8 [H, W, 3] RGB from the bytes of a picture, turned as its EXIF says; ``path`` is for the error.

    Raises:
        ImageError: They are no picture, one of more than 8 bits, or more pixels than OpenCV decodes.
    """
    try:  # any depth: scaling 16 bits down would turn most sensors' data black
        found = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if len(raw) else None
    except cv2.error as error:
        raise ImageError(
            path, f"cannot be decoded ({error.err or 'OpenCV gives up'})", hint="Cut it as a GeoTIFF with --tile."
        ) from error
    if found is None:
        raise ImageError(path, "is no picture that can be decoded", hint="Is the download complete?")
    if found.dtype != np.uint8:
        raise ImageError(path, "is no picture of 8 bits", tag="dtype", value=str(found.dtype), hint=_HINT)
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def read_pixels(path: str | Path, window: Extent | None, spec: PreprocessSpec | None = None) -> tuple[Array, Bools]:
    """A window (column, row, width, height) of a raster, and which of its pixels hold data.

    Returns:
        [H, W, C], uint8 or float32 as ``read_image``, and bool [H, W]. Pixels without data are the model's mean.

    Raises:
        ImageError: As ``read_window``; a band that is not there; no 8-bit RGB and no bands named.
    """
    info = _described(str(path), _stamp(path))
    bands = _numbers(info, spec.bands) if spec and spec.bands else None
    if bands is None and (info.dtype != "uint8" or info.count not in (1, 3)):
        shown = f"{info.count} bands of {info.dtype}" + (f" ({', '.join(info.bands)})" if info.bands else "")
        raise ImageError(path, f"is no 8-bit RGB: it has {shown}", hint=_HINT)
    found = read_window(path, window, bands=bands)
    pixels = found.pixels.transpose(1, 2, 0)
    unit = 1.0 if bands else 255.0
    if not found.valid.all():
        pixels[~found.valid] = np.float32(unit) * np.asarray(spec.mean if spec else (0.0,), np.float32)
    return np.ascontiguousarray(pixels if bands else pixels.astype(np.uint8)), found.valid


def _stamp(path: str | Path) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0  # not there, or an address: reading it says so


@lru_cache(maxsize=64)
def _described(path: str, stamp: float) -> RasterInfo:
    info = describe_raster(path)
    if Path(path).suffix.lower() not in RASTERS:
        try:
            with Image.open(path) as picture:
                turned = int(picture.getexif().get(ExifTags.Base.Orientation, 1))
        except (OSError, ValueError, TypeError, Image.DecompressionBombError):
            turned = 1  # no picture of Pillow's has a flag that it does not find
        if turned > 1:  # windows and bands are those of the stored pixels
            problem = "is turned by its EXIF flag, and tiles and bands are not"
            raise ImageError(path, problem, tag="Orientation", value=turned, hint="Save it upright, without the flag.")
    return info


def _numbers(info: RasterInfo, bands: tuple[str, ...]) -> list[int]:
    """Numbers of bands that are named in the file, or given by number."""
    numbers = []
    for name in bands:
        if name in info.bands:
            numbers.append(info.indexes[info.bands.index(name)])
        elif name.isdigit() and int(name) in info.indexes:
            numbers.append(int(name))
        else:
            has = list(info.bands) or f"{info.count} without names"
            raise ImageError(
                info.path, f"has no band {name!r}", tag="bands", value=has, hint="Give names or numbers from 1."
            )
    return numbers
