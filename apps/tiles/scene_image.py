"""The scene as it is shown: any three bands, stretched for the eye, at the size of the screen. Never what a model sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window as Part

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.info import place
from vitdomains.core.geo.read.raster import RasterInfo, describe_raster, open_raster, read_window
from vitdomains.core.geo.read.scene_paths import files_of
from vitdomains.satellite.sensors import band_named, match_bands, sensor_named

NDVI = "ndvi"
OVERVIEW_SIDE = 1536  # pixels: more than any screen's map, little enough to travel at once
STRETCHES = {
    "2": "2 to 98 %",
    "0.5": "0.5 to 99.5 %",
    "5": "5 to 95 %",
    "0": "lowest to highest",
    "stored": "8 bit as stored",
}
_ROLES = ("red", "green", "blue", "nir", "swir1")
Rect = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the scene."""


@dataclass(frozen=True)
class Look:
    """Which bands are shown (three numbers from 1, or none for NDVI), and the percentiles that become black and white."""

    bands: tuple[int, ...]
    stretch: str = "2"


@dataclass(frozen=True)
class Shown:
    """A picture [h, w, 4] RGBA, clear where there is no data, and where it lies."""

    rgba: NDArray[np.uint8]
    rect: Rect

    @property
    def png(self) -> bytes:
        """As PNG, for speed rather than size."""
        done, data = cv2.imencode(".png", self.rgba[..., [2, 1, 0, 3]], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not done:
            raise ValueError(f"a picture of shape {self.rgba.shape} cannot be encoded")
        return data.tobytes()


class SceneImage:
    """A raster for the eye.

    Args:
        path: A file or address; or several (``scene_paths.py``), one for each of ``bands``.
        resolution, crs: Of the grid on which its tiles lie, as for ``read_window``; None: the file's own.
        sensor: What took it, or empty.
        bands: ``name=number`` of bands that the file does not name.

    Raises:
        ImageError: It cannot be read.
        ConfigError: The sensor is not known.
    """

    def __init__(
        self,
        path: str,
        resolution: float | None = None,
        crs: str | None = None,
        sensor: str = "",
        bands: tuple[str, ...] = (),
    ) -> None:
        self.path, self.resolution, self.crs = path, resolution, crs
        files = files_of(path)
        self.info: RasterInfo = describe_raster(files[0], resolution=resolution, crs=crs)
        self._native = resolution is None and crs is None and self.info.georeference != "gcps"
        self._files: list[SceneImage] = []
        if len(files) > 1:
            if len(files) != len(bands):
                raise ConfigError(
                    f"{len(files)} files are not the {len(bands)} bands that the bundle takes.",
                    hint="Give one file for each band, in the order of the bundle, or the STAC item.",
                )
            self._files = [SceneImage(file, resolution, crs) for file in files]
            bands = tuple(name.partition("=")[0] for name in bands)
            count = len(bands)
            self.info = replace(self.info, path=path, count=count, indexes=(*range(1, count + 1),), bands=bands)
        self.roles = band_roles(self.info, sensor, bands)
        self._limits: dict[tuple[int, str], tuple[float, float]] = {}

    @property
    def band_names(self) -> dict[int, str]:
        """Number of each band, and what the reader calls it."""
        named = self.info.bands or tuple(f"band {i}" for i in self.info.indexes)
        role = {number: name for name, number in self.roles.items()}
        return {i: f"{name} ({role[i]})" if role.get(i, name) != name else name
                for i, name in zip(self.info.indexes, named, strict=True)}  # fmt: skip

    def presets(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Key to (title, bands) of the usual combinations that this scene has bands for."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for key, title, names in (
            ("true", "true colour", ("red", "green", "blue")),
            ("false", "false colour (near infrared, red, green)", ("nir", "red", "green")),
            ("swir", "short-wave infrared, near infrared, red", ("swir1", "nir", "red")),
        ):
            if all(name in self.roles for name in names):
                found[key] = (title, tuple(self.roles[name] for name in names))
        if {"nir", "red"} <= self.roles.keys():
            found[NDVI] = ("NDVI, vegetation index", ())
        if "true" not in found:
            indexes = self.info.indexes
            first = tuple(indexes[:3]) if len(indexes) >= 3 else (indexes[0],) * 3
            found = {"first": ("first three bands" if len(indexes) >= 3 else "first band", first), **found}
        return found

    def overview(self, look: Look, side: int = OVERVIEW_SIDE) -> Shown:
        """All of the scene, its longer side at most ``side`` pixels."""
        return self.part(look, (0, 0, self.info.width, self.info.height), side)

    def part(self, look: Look, window: Rect, side: int) -> Shown:
        """A window of the scene (column, row, width, height), which may reach over its edges; native where that is smaller.

        Raises:
            ImageError: It cannot be read.
        """
        numbers = [self.roles["nir"], self.roles["red"]] if not look.bands else list(look.bands)
        pixels, valid, rect = self._read(numbers, window, side)
        if look.bands:
            limits = [self.limits(number, look.stretch) for number in numbers]
            low, high = (np.array(side_, np.float32)[:, None, None] for side_ in zip(*limits, strict=True))
            rgb = np.rint(255 * np.clip((pixels - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8)
            rgb = rgb.transpose(1, 2, 0)
        else:
            rgb = _vegetation(pixels)
        return Shown(np.dstack([rgb, np.where(valid, 255, 0).astype(np.uint8)]), rect)

    def limits(self, band: int, stretch: str) -> tuple[float, float]:
        """The values of a band that become black and white: percentiles over the whole scene, so that all tiles compare."""
        if stretch == "stored":
            return 0.0, 255.0
        key = (band, stretch)
        if key not in self._limits:
            pixels, valid, _ = self._read([band], (0, 0, self.info.width, self.info.height), 768)
            values = pixels[0][valid]
            share = float(stretch)
            low, high = np.percentile(values, (share, 100 - share)) if len(values) else (0.0, 1.0)
            self._limits[key] = float(low), float(high)
        return self._limits[key]

    def _read(self, bands: list[int], window: Rect, side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], Rect]:
        """Pixels [C, h, w], which of them hold data, and where they lie; no side longer than ``side``."""
        if self._files:
            return self._beside(bands, window, side)
        left, top = max(window[0], 0), max(window[1], 0)
        right, bottom = min(window[0] + window[2], self.info.width), min(window[1] + window[3], self.info.height)
        if left >= right or top >= bottom:
            return np.zeros((len(bands), 1, 1), np.float32), np.zeros((1, 1), np.bool_), (left, top, 1, 1)
        shrink = max(1.0, max(right - left, bottom - top) / side)
        if self._native:
            return self._decimated(bands, (left, top, right - left, bottom - top), shrink)
        return self._warped(bands, (left, top, right - left, bottom - top), shrink)

    def _beside(self, bands: list[int], window: Rect, side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], Rect]:
        """Bands from a file each, which may have larger or smaller pixels than the first, over the same ground."""
        planes: list[NDArray[np.float32]] = []
        masks: list[NDArray[np.uint8]] = []
        rect: Rect = (0, 0, 1, 1)
        for number in bands:
            scene = self._files[number - 1]
            x, y = scene.info.width / self.info.width, scene.info.height / self.info.height
            part = window[0] * x, window[1] * y, window[2] * x, window[3] * y
            pixels, valid, found = scene._read([1], part, side)
            if not planes:
                rect = found[0] / x, found[1] / y, found[2] / x, found[3] / y
            size = (planes or pixels)[0].shape[::-1]
            planes.append(cv2.resize(pixels[0], size, interpolation=cv2.INTER_NEAREST))
            masks.append(cv2.resize(valid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST))
        return np.stack(planes), np.logical_and.reduce(masks), rect

    def _decimated(
        self, bands: list[int], window: Rect, shrink: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], Rect]:
        left, top, width, height = window
        shape = max(1, round(height / shrink)), max(1, round(width / shrink))
        part = Part(left, top, width, height)
        means: dict[str, Any] = {"window": part, "resampling": Resampling.average if shrink > 1 else Resampling.nearest}
        with open_raster(self.path) as dataset:
            raw = dataset.read(bands, out_shape=(len(bands), *shape), masked=True, **means)
        pixels = np.ma.filled(raw.astype(np.float32), np.nan)
        valid = np.isfinite(pixels).all(axis=0)
        if self.info.undeclared_collar is not None:
            valid &= ~(pixels == self.info.undeclared_collar).all(axis=0)
            if shrink > 1:  # along the border a pixel is a mean of the scene and of what lies around it
                valid = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(np.bool_)
        return np.nan_to_num(pixels), valid, (left, top, width, height)

    def _warped(
        self, bands: list[int], window: Rect, shrink: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], Rect]:
        resolution = self.resolution
        if shrink > 1:
            resolution = max(self.info.resolution) * shrink
        grid = describe_raster(self.path, resolution=resolution, crs=self.crs)
        there, back = ~grid.transform @ self.info.transform, ~self.info.transform @ grid.transform
        (left, top), (right, bottom) = _corners(there, window)
        wanted = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
        size = max(1, wanted[2] - wanted[0]), max(1, wanted[3] - wanted[1])
        found = read_window(self.path, (*wanted[:2], *size), bands=bands, resolution=resolution, crs=self.crs)
        (x, y), (far_x, far_y) = _corners(back, (*wanted[:2], *size))
        return found.pixels, found.valid, (x, y, far_x - x, far_y - y)


def _corners(
    transform: Affine, rect: tuple[float, float, float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    return place(transform, rect[0], rect[1]), place(transform, rect[0] + rect[2], rect[1] + rect[3])


def _vegetation(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised difference of (near infrared, red) [2, h, w], from -0.2 (dark) to 0.9 (bright); Tucker 1979.

    Computed from the numbers of the file: an offset of the sensor shifts it a little, which the eye forgives.
    """
    from vitdomains.core.explain.overlay import colours

    nir, red = pixels
    index = (nir - red) / np.where(np.abs(nir + red) > 1e-12, nir + red, 1)
    return colours(((index + 0.2) / 1.1).astype(np.float32), "viridis")


def band_roles(info: RasterInfo, sensor: str = "", words: tuple[str, ...] = ()) -> dict[str, int]:
    """Which band of a file is red, green, blue, near or short-wave infrared, as far as anything says it.

    Args:
        info: The file.
        sensor: Name of a sensor, or empty.
        words: Bands in the order of the model, ``name=number`` for those that the file does not name.
    """
    known = sensor_named(sensor) if sensor else None
    said: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        if number.isdigit() and int(number) in info.indexes:
            said[name.strip().lower()] = int(number)
    found: dict[str, int] = {}
    for role in _ROLES:
        names = {role}
        if known is not None:
            try:
                band = band_named(known, role)
            except ConfigError:
                continue
            names |= {band.name.lower(), *(alias.lower() for alias in band.aliases)}
        hits = [said[name] for name in names if name in said]
        hits = hits or [i for i, name in zip(info.indexes, info.bands, strict=False) if name.lower() in names]
        if not hits and known is not None:
            try:
                hits = [*match_bands(info.bands or info.count, known, [role], path=info.path, indexes=info.indexes)]
            except ImageError:
                continue
        if hits:
            found[role] = hits[0]
    return found


def look_of(scene: SceneImage, address: Mapping[str, str]) -> tuple[str, Look]:
    """What the page's address says: the key of a preset or ``own``, and the look; nonsense is taken for the first preset."""
    presets = scene.presets()
    stretch = address.get("stretch", "2")
    stretch = stretch if stretch in STRETCHES else "2"
    given = address.get("bands", "")
    numbers = tuple(int(word) for word in given.split(",") if word.isdigit())
    if len(numbers) == 3 and set(numbers) <= set(scene.info.indexes):
        return "own", Look(numbers, stretch)
    key = given if given in presets else next(iter(presets))
    return key, Look(presets[key][1], stretch)
