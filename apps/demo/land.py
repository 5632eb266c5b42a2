"""Drawn land seen from above, for the demonstration of the satellite and zero-shot apps: five kinds, four bands, known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

KINDS = ("built-up area", "farm field", "meadow", "water", "woods")
"""Kind k of ``draw_land`` is ``KINDS[k - 1]``."""

BANDS = ("red", "green", "blue", "nir")
_PLACE = {"crs": "EPSG:32633", "transform": Affine(1, 0, 500_000, 0, -1, 5_200_000)}
_PARCEL = 96  # mean side of a parcel, pixels

Floats = NDArray[np.float32]


def draw_land(side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Parcels of five kinds and a river, at 1 m a pixel: (pixels [4, side, side], kinds [side, side] in 1..5)."""
    rng = np.random.default_rng(seed)
    parcel, kinds = _parcels(side, rng)
    number = int(parcel.max()) + 1
    angle = rng.uniform(0, np.pi, number)[parcel]
    y, x = np.mgrid[:side, :side]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    drawn = (_houses(u, v), _fields(u, parcel, rng), _meadow(side, rng), _water(side, rng), _woods(side, rng))
    pixels = np.zeros((4, side, side), np.float32)
    for k, picture in enumerate(drawn, start=1):
        pixels[:, kinds == k] = picture[:, kinds == k]
    light = 1 + 0.06 * _noise(side, side / 6, rng) + 0.05 * rng.standard_normal(number)[parcel]
    pixels = cv2.GaussianBlur(pixels.transpose(1, 2, 0), (0, 0), 0.7).transpose(2, 0, 1)
    pixels = pixels * light + rng.normal(0, 3, pixels.shape)
    return pixels.clip(1, 255).astype(np.uint8), kinds


def write_scene(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """A GeoTIFF in UTM with named bands."""
    return _write(path, pixels, {"descriptions": BANDS}, photometric="minisblack")


def write_truth(path: Path, kinds: NDArray[np.uint8]) -> Path:
    """The label raster that belongs to it."""
    return _write(path, kinds[None], {}, nodata=0)


def _write(path: Path, pixels: NDArray[np.uint8], attributes: dict[str, Any], **profile: Any) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8", compress="deflate",
        **_PLACE, **profile,
    ) as file:  # fmt: skip
        file.write(pixels)
        for name, value in attributes.items():
            setattr(file, name, value)
    return path


def _parcels(side: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Number of the parcel and kind at each pixel: the nearest of random centres, with wavy borders, and a river across."""
    number = max(3 * len(KINDS), (side // _PARCEL) ** 2)
    centres = rng.uniform(0, side, (number, 2)).astype(np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    x, y = x + 6 * _noise(side, 9, rng), y + 6 * _noise(side, 9, rng)
    nearest = np.full((side, side), np.inf, np.float32)
    parcel = np.zeros((side, side), np.int64)
    for i, (left, top) in enumerate(centres):
        distance = (x - left) ** 2 + (y - top) ** 2
        parcel[distance < nearest] = i
        nearest = np.minimum(nearest, distance)
    kinds = (rng.permutation(number) % len(KINDS) + 1).astype(np.uint8)[parcel]
    course = side * (0.5 + 0.2 * np.sin(y / side * 2 * np.pi + rng.uniform(0, 6)))
    kinds[np.abs(x - course) < 18] = KINDS.index("water") + 1
    return parcel, kinds


def _noise(side: int, sigma: float, rng: np.random.Generator) -> Floats:
    """Smooth noise of mean 0 and deviation 1, [side, side]."""
    smooth = cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0), sigma)
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def _tinted(colour: tuple[int, int, int, int], change: NDArray[Any], weights: tuple[float, ...]) -> Floats:
    """One colour (red, green, blue, near infrared) with a texture, [4, H, W]."""
    base, factor = (np.array(values, np.float32)[:, None, None] for values in (colour, weights))
    return np.asarray(base + factor * change[None], np.float32)


def _houses(u: NDArray[Any], v: NDArray[Any]) -> Floats:
    """Streets, roofs and gardens on a grid that is turned with the parcel."""
    across, along = u % 18, v % 22
    cell = (np.floor(u / 18) * 7919 + np.floor(v / 22) * 104729).astype(np.int64) % 4
    roofs = np.array([(165, 85, 65, 80), (140, 130, 125, 95), (190, 180, 170, 110), (110, 70, 60, 70)], np.float32)
    picture = _tinted((95, 120, 70, 140), np.zeros(u.shape), (0, 0, 0, 0))
    street, roof = (across < 4) | (along < 4), (across >= 6) & (across < 16) & (along >= 7) & (along < 19)
    picture[:, street] = np.array([[128], [126], [124], [85]], np.float32)
    picture[:, roof] = roofs[cell[roof]].T
    return picture


def _fields(u: NDArray[Any], parcel: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Furrows across the parcel; bare, ripe or green."""
    crops = np.array([(150, 120, 85, 105), (190, 170, 95, 135), (105, 140, 75, 165)], np.float32)
    rows = np.sin(2 * np.pi * u / 7) * rng.uniform(6, 18, parcel.max() + 1)[parcel]
    return np.asarray(crops[rng.integers(0, 3, parcel.max() + 1)][parcel].transpose(2, 0, 1) + rows, np.float32)


def _meadow(side: int, rng: np.random.Generator) -> Floats:
    return _tinted((105, 142, 78, 170), _noise(side, 10, rng), (8, 6, 5, 10))


def _water(side: int, rng: np.random.Generator) -> Floats:
    return _tinted((38, 66, 92, 16), _noise(side, 8, rng), (3, 4, 5, 2))


def _woods(side: int, rng: np.random.Generator) -> Floats:
    """Crowns: light and shade at the scale of trees."""
    return _tinted((52, 80, 46, 120), _noise(side, 2, rng), (14, 18, 11, 26))
