"""From a file to the pixels that a model takes: pictures as they are, rasters by band name and in the sensor's unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitdomains.core.config.schema import Config
from vitdomains.core.data.preprocess import PreprocessSpec, resize_array
from vitdomains.core.domain import ReadImage
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.raster import Extent, RasterInfo, Window, describe_raster, read_window
from vitdomains.satellite.sensors import Sensor, band_named, published_statistics, read_bands, sensor_named

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


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
    return replace(
        spec, storage="float32", bands=bands, sensor=sensor.name if sensor else "", mean=mean, std=std, fill=0.0
    )


def reader(spec: PreprocessSpec) -> ReadImage:
    """What reads files for a model with this preprocessing; it travels to worker processes."""
    return partial(read_image, spec=spec)


def window_reader(
    spec: PreprocessSpec, *, resolution: float | None = None, crs: str | None = None, baseline: str = ""
) -> Callable[[str, Extent], tuple[Array, Bools]]:
    """What reads windows of a scene for a model with this preprocessing; it travels to worker processes."""
    return partial(read_pixels, spec=spec, resolution=resolution, crs=crs, baseline=baseline)


def read_image(path: str | Path, spec: PreprocessSpec | None = None) -> Array:
    """The pixels of a tile, [H, W, C] as ``prepare`` takes them; see ``read_pixels``.

    Raises:
        ImageError: The file is not there, damaged, or does not have the bands; those that it has are listed.
    """
    if Path(path).suffix.lower() in PICTURES and not (spec and (spec.sensor or spec.bands)):
        return _read_picture(path)
    return read_pixels(path, None, spec)[0]


def read_pixels(
    path: str | Path,
    window: Extent | None,
    spec: PreprocessSpec | None = None,
    *,
    resolution: float | None = None,
    crs: str | None = None,
    baseline: str = "",
) -> tuple[Array, Bools]:
    """A window of a raster as the model takes it.

    Args:
        path: A local file or an http(s) address.
        window: (column, row, width, height) in pixels, may reach over the edges; None: all of it.
        spec: The model's preprocessing. With a sensor or bands pixels are float32, else the file has to be of 8 bit.
        resolution, crs: Of the grid that is read, as for ``read_window``; None: the file's own.
        baseline: Of Sentinel-2, as for ``read_bands``.

    Returns:
        Pixels [H, W, C] float32 or uint8, and which of them hold data [H, W]. A pixel without data is the mean of the data
        set, which the model sees as zero: neither a dark nor a bright place.

    Raises:
        ImageError: As for ``read_window``; a band that the file does not have; other than 8 bits without a sensor.
    """
    if spec is None or not (spec.sensor or spec.bands):
        return _read_8_bit(path, window, spec, resolution, crs)
    if spec.sensor:
        sensor = sensor_named(spec.sensor)
        if window is None and (siblings := _band_files(Path(path), sensor, spec.bands)):
            pixels, valid = _read_patch(siblings, sensor, Path(path))
            return _filled(pixels, valid, spec.mean), valid
        found = read_bands(path, sensor, spec.bands, window, baseline=baseline, resolution=resolution, crs=crs)
    else:
        numbers = _by_name(describe_raster(path), spec.bands)
        found = read_window(path, window, bands=numbers, resolution=resolution, crs=crs)
    return _filled(_last(found.pixels), found.valid, spec.mean), found.valid


def _read_picture(path: str | Path) -> Array:
    """uint8 [H, W, 3] RGB; the orientation flag is ignored, for tiles have no up."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error
    found = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if len(raw) else None
    if found is None:
        raise ImageError(path, "is no picture that can be decoded", hint="Is the download complete?")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _read_8_bit(
    path: str | Path,
    window: Extent | None,
    spec: PreprocessSpec | None,
    resolution: float | None = None,
    crs: str | None = None,
) -> tuple[Array, Bools]:
    info = describe_raster(path)
    if info.dtype != "uint8":
        raise ImageError(
            path, "is no picture of 8 bits", tag="dtype", value=info.dtype,
            hint="Say what took it, data.sensor; or name data.bands and give data.mean and data.std.",
        )  # fmt: skip
    channels = spec.channels if spec else 3
    if info.count not in (1, channels):
        has = f"{info.count} bands ({', '.join(info.bands) or 'without names'})"
        raise ImageError(path, f"has {has}, the model takes {channels}", hint="Choose with data.sensor and data.bands.")
    found = read_window(path, window, resolution=resolution, crs=crs)
    mean = np.asarray(spec.mean if spec else (0.0,)) * 255
    return _filled(_last(found.pixels.astype(np.uint8)), found.valid, np.rint(mean)), found.valid


def _last(pixels: Array) -> Array:
    """[C, H, W] to [H, W, C], a view: whoever needs another order in memory copies the part that he needs."""
    return pixels.transpose(1, 2, 0)


def _filled(pixels: Array, valid: Bools, mean: npt.ArrayLike) -> Array:
    """``pixels`` [H, W, C] with the mean where there is no data, in place."""
    if not valid.all():
        values = np.asarray(mean)
        values = values if len(values) in (1, pixels.shape[2]) else values.mean(keepdims=True)
        values = np.broadcast_to(values.astype(pixels.dtype), pixels.shape[2])
        for plane, value in zip(pixels.transpose(2, 0, 1), values, strict=True):  # a plane lies in one piece
            np.copyto(plane, value, where=~valid)
    return pixels


def _by_name(info: RasterInfo, bands: tuple[str, ...]) -> list[int]:
    """Numbers of bands that are named in the file, or given by number."""
    numbers = []
    for name in bands:
        if name in info.bands:
            numbers.append(info.bands.index(name) + 1)
        elif name.isdigit() and 1 <= int(name) <= info.count:
            numbers.append(int(name))
        else:
            raise ImageError(
                info.path, f"has no band {name!r}", tag="bands", value=list(info.bands) or f"{info.count} without names",
                hint="Give names of the file's bands, or their numbers from 1; or say the sensor.",
            )  # fmt: skip
    return numbers


def _band_files(path: Path, sensor: Sensor, bands: tuple[str, ...]) -> list[Path]:
    """The file of each band where a patch is a folder with one a band (BigEarthNet: ``PATCH_B02.tif``); else empty."""
    stem, _, band = path.stem.rpartition("_")
    names = {known.name for known in sensor.bands}
    if not stem or band not in names or describe_raster(path).count != 1:
        return []
    return [path.with_name(f"{stem}_{band_named(sensor, name).name}{path.suffix}") for name in bands]


def _read_patch(files: list[Path], sensor: Sensor, reference: Path) -> tuple[Array, Bools]:
    """All bands on the grid of the reference; a coarser one is interpolated."""
    # Scenes that were processed anew by their users (BigEarthNet v2) have no baseline of the archive and no offset.
    baseline = "harmonized" if "_N0" not in reference.name else ""
    found: list[Window] = []
    for file in files:
        band = file.stem.rpartition("_")[2]
        found.append(read_bands(file, sensor, [f"{band}=1"], baseline=baseline))
    height, width = describe_raster(reference).height, describe_raster(reference).width
    pixels = [resize_array(window.pixels[0], height, width) for window in found]
    valid = [resize_array(window.valid.astype(np.float32), height, width) > 0.5 for window in found]
    return np.stack(pixels, axis=-1), np.logical_and.reduce(valid)
