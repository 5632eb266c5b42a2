"""From a file to the pixels that a model takes: pictures as they are, rasters by band name and in the sensor's unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdomains.core.config.schema import Config
from vitdomains.core.data.preprocess import PreprocessSpec, resize_array
from vitdomains.core.domain import ReadImage
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.read.http import shown
from vitdomains.core.geo.read.metadata import HARMONIZED, NOTHING_KNOWN, PixelMetadata, from_options
from vitdomains.core.geo.read.pixels import (
    band_numbers,
    filled,
    is_picture,
    last_axis,
    read_8_bit,
    read_picture,
    refuse_turned,
)
from vitdomains.core.geo.read.raster import Extent, Window, describe_raster, read_window
from vitdomains.satellite.sensors import Sensor, band_named, published_statistics, read_bands, sensor_named

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

Known = Mapping[str, PixelMetadata]
"""By file, without what signs an address: what was said of its numbers."""

_BIGEARTHNET = re.compile(r"S2[AB]_MSIL2A_201[78]\d{4}T\d{6}_(N9999_|\d+_\d+_B)")
"""Its patches of version 2 were processed anew, those of version 1 before the offset of 2022; neither says its baseline."""

_HINT = "Say what took it, data.sensor; or name data.bands and give data.mean and data.std."


def complete_spec(config: Config, spec: PreprocessSpec) -> PreprocessSpec:
    """The preprocessing with the bands, unit and statistics that ``data`` asks for.

    Without ``data.sensor`` and ``data.bands`` images are 8-bit pictures, normalised as the weights expect it. With either
    they are kept as float32: in the sensor's unit, or without a sensor in the file's own numbers. ``data.mean`` and
    ``data.std`` go before the statistics that were published for the sensor.

    Raises:
        ConfigError: An unknown sensor or band, as many bands as the model has no channels, or no mean and standard
            deviation to be had.
    """
    data = config.data
    if not data.sensor and not data.bands:
        return spec
    sensor = sensor_named(data.sensor) if data.sensor else None
    bands = tuple(data.bands) or tuple(band.name for band in (sensor.bands if sensor else ()))
    if len(bands) != spec.channels:
        raise ConfigError(
            f"{len(bands)} bands ({', '.join(bands)}) for model.channels = {spec.channels}.",
            hint=f"Set model.channels to {len(bands)}, or name {spec.channels} in data.bands.",
        )
    if data.mean:
        mean, std = tuple(data.mean), tuple(data.std)
    elif sensor:
        mean, std, _ = published_statistics(sensor, bands)
    else:
        raise ConfigError(
            "data.bands without data.sensor: the scale of the values is not known.",
            hint="Set data.mean and data.std, e.g. from `python -m vitdomains.satellite statistics FILES`.",
        )
    given = from_options(baseline=data.baseline, units=data.units)
    return replace(
        spec, storage="float32", bands=bands, sensor=sensor.name if sensor else "", mean=mean, std=std, fill=0.0,
        baseline=given.baseline, units=given.units,
    )  # fmt: skip


def reader(spec: PreprocessSpec) -> ReadImage:
    """What reads files for a model with this preprocessing; it travels to worker processes."""
    return partial(read_image, spec=spec)


def window_reader(
    spec: PreprocessSpec, *, resolution: float | None = None, crs: str | None = None, known: Known | None = None
) -> Callable[[str, Extent], tuple[Array, Bools]]:
    """What reads windows of a scene for a model with this preprocessing; it travels to worker processes."""
    return partial(read_pixels, spec=spec, resolution=resolution, crs=crs, known=known or {})


def read_image(path: str | Path, spec: PreprocessSpec | None = None) -> Array:
    """The pixels of a tile, [H, W, C] as ``prepare`` takes them; see ``read_pixels``.

    Raises:
        ImageError: The file is not there, damaged, or does not have the bands; those that it has are listed.
    """
    if not (spec and (spec.sensor or spec.bands)) and is_picture(path):
        return read_picture(path, hint=_HINT)
    return read_pixels(path, None, spec)[0]


def read_pixels(
    path: str | Path,
    window: Extent | None,
    spec: PreprocessSpec | None = None,
    *,
    resolution: float | None = None,
    crs: str | None = None,
    known: Known | None = None,
) -> tuple[Array, Bools]:
    """A window of a raster as the model takes it.

    Args:
        path: A local file or an http(s) address.
        window: (column, row, width, height) in pixels, may reach over the edges; None: all of it.
        spec: The model's preprocessing. With a sensor or bands pixels are float32, else the file has to be of 8 bit.
        resolution, crs: Of the grid that is read, as for ``read_window``; None: the file's own.
        known: What was said of the numbers of files.

    Returns:
        Pixels [H, W, C] float32 or uint8, and which of them hold data [H, W]. A pixel without data is the mean of the data
        set, which the model sees as zero: neither a dark nor a bright place.

    Raises:
        ImageError: As for ``read_window``; a band that the file does not have; other than 8 bits without a sensor.
    """
    if spec is None or not (spec.sensor or spec.bands):
        mean, channels = (spec.mean, spec.channels) if spec else ((0.0,), 3)
        return read_8_bit(path, window, mean, channels, resolution=resolution, crs=crs, hint=_HINT)
    refuse_turned(path)
    if spec.sensor:
        sensor, otherwise = sensor_named(spec.sensor), PixelMetadata(baseline=spec.baseline, units=spec.units)
        if window is None and (siblings := _band_files(Path(path), sensor, spec.bands)):
            pixels, valid = _read_patch(siblings, sensor, Path(path), otherwise)
            return filled(pixels, valid, spec.mean), valid
        given = (known or {}).get(shown(str(path)), NOTHING_KNOWN)
        found = read_bands(
            path, sensor, spec.bands, window, known=given, otherwise=otherwise, resolution=resolution, crs=crs
        )
    else:
        numbers = band_numbers(describe_raster(path), spec.bands)
        found = read_window(path, window, bands=numbers, resolution=resolution, crs=crs)
    return filled(last_axis(found.pixels), found.valid, spec.mean), found.valid


def _band_files(path: Path, sensor: Sensor, bands: tuple[str, ...]) -> list[Path]:
    """The file of each band where a patch is a folder with one a band (BigEarthNet: ``PATCH_B02.tif``); else empty."""
    stem, _, band = path.stem.rpartition("_")
    names = {known.name for known in sensor.bands}
    if not stem or band not in names or describe_raster(path).count != 1:
        return []
    return [path.with_name(f"{stem}_{band_named(sensor, name).name}{path.suffix}") for name in bands]


def _read_patch(files: list[Path], sensor: Sensor, reference: Path, otherwise: PixelMetadata) -> tuple[Array, Bools]:
    """All bands on the grid of the reference; a coarser one is interpolated."""
    known = PixelMetadata(baseline=HARMONIZED) if _BIGEARTHNET.match(reference.name) else NOTHING_KNOWN
    found: list[Window] = []
    for file in files:
        band = file.stem.rpartition("_")[2]
        found.append(read_bands(file, sensor, [f"{band}=1"], known=known, otherwise=otherwise))
    height, width = describe_raster(reference).height, describe_raster(reference).width
    pixels = [resize_array(window.pixels[0], height, width) for window in found]
    valid = [resize_array(window.valid.astype(np.float32), height, width) > 0.5 for window in found]
    return np.stack(pixels, axis=-1), np.logical_and.reduce(valid)
