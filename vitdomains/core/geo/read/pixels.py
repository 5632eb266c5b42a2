"""Pixels of a tile or window as a model takes them: pictures by their content, rasters of 8 bits, or named bands.

The one reader behind the satellite and the zero-shot domain. Formats are told by their first bytes, whatever the ending says.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from rasterio.crs import CRS

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.http import is_remote
from vitdomains.core.geo.read.info import RasterInfo
from vitdomains.core.geo.read.raster import MAX_PIXELS, Extent, describe_raster, palette_of, read_window

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_PICTURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP", b"BM": "BMP"}
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_ORIENTATION = 0x0112  # EXIF
_UPRIGHT: dict[int, tuple[bool, int]] = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1),
}  # fmt: skip
"""By EXIF orientation: mirror left to right first, then so many quarter turns to the left."""


def is_picture(path: str | Path) -> bool:
    """Do the first bytes of this local file begin a PNG, JPEG, WebP or BMP, or should they by its ending and are no TIFF?

    Raises:
        ImageError: It cannot be opened.
    """
    if is_remote(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error
    named = Path(path).suffix.lower() in _ENDINGS and not head.startswith((b"II", b"MM"))
    return named or head.startswith(tuple(_PICTURES))


def read_picture(path: str | Path, *, hint: str = "") -> Array:
    """uint8 [H, W, 3] RGB of a picture file, upright as its EXIF orientation says.

    Raises:
        ImageError: As for ``decode_picture``, or it cannot be opened.
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error
    return decode_picture(raw, path, hint=hint)


def decode_picture(raw: Array, path: str | Path, *, hint: str = "") -> Array:
    """uint8 [H, W, 3] RGB from the bytes of a PNG, JPEG, WebP or BMP, upright as their EXIF orientation says.

    Args:
        raw: uint8 [n].
        path: For the error.
        hint: What to do about more than 8 bits.

    Raises:
        ImageError: They are no picture, one of more than 8 bits, or of more than ``MAX_PIXELS`` pixels.
    """
    head = bytes(raw[:16])
    kind = next((kind for magic, kind in _PICTURES.items() if head.startswith(magic)), None)
    complaint = ImageError(path, "is no picture that can be decoded", hint="Is the download complete?")
    if kind is None:
        raise complaint
    try:
        # Pillow reads the header alone; OpenCV decodes several times as fast.
        with Image.open(io.BytesIO(raw.tobytes()), formats=[kind]) as header:
            width, height = header.size
            orientation = header.getexif().get(_ORIENTATION, 1) if "exif" in header.info else 1
        if width * height > MAX_PIXELS:
            raise ImageError(
                path,
                f"has {width} x {height} pixels, and {MAX_PIXELS} are allowed",
                hint="Cut it as a GeoTIFF with --tile.",
            )
        found = cv2.imdecode(raw, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(
            path, f"cannot be decoded ({error.err or 'OpenCV gives up'})", hint="Cut it as a GeoTIFF with --tile."
        ) from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise complaint from error
    if found is None:
        raise complaint
    if found.dtype != np.uint8:
        raise ImageError(path, "is no picture of 8 bits", tag="dtype", value=str(found.dtype), hint=hint)
    rgb = cv2.cvtColor(found, cv2.COLOR_BGR2RGB)
    if orientation in _UPRIGHT:
        mirrored, turns = _UPRIGHT[orientation]
        rgb = np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirrored else rgb, turns))
    return rgb


def read_8_bit(
    path: str | Path,
    window: Extent | None,
    mean: Sequence[float],
    channels: int = 3,
    *,
    resolution: float | None = None,
    crs: CRS | str | None = None,
    hint: str = "",
) -> tuple[Array, Bools]:
    """A window of a raster of 8-bit pictures: uint8 [H, W, C], and which pixels hold data [H, W]; a palette comes as its colours.

    Args:
        path, window, resolution, crs: As for ``read_window``.
        mean: In 0..1, one or one a channel: what stands where there is no data.
        channels: That the model takes; grey is taken too.
        hint: What to do about a raster of another kind.

    Raises:
        ImageError: As for ``read_window``; not of 8 bits, or neither one band nor as many as the model takes.
    """
    refuse_turned(path)
    info = describe_raster(path)
    if info.dtype != "uint8":
        raise ImageError(path, "is no picture of 8 bits", tag="dtype", value=info.dtype, hint=hint)
    if info.count not in (1, channels):
        has = f"{info.count} bands ({', '.join(info.bands) or 'without names'})"
        raise ImageError(path, f"has {has}, the model takes {channels}", hint=hint)
    if not info.palette:
        found = read_window(path, window, resolution=resolution, crs=crs)
        pixels, valid = last_axis(found.pixels.astype(np.uint8)), found.valid
    else:
        colours = palette_of(path)
        found = read_window(path, window, resolution=resolution, crs=crs, resampling="nearest", collar=False)
        shown = colours[found.pixels[0].astype(np.uint8)]
        pixels, valid = np.ascontiguousarray(shown[..., :3]), found.valid & (shown[..., 3] > 0)
    return filled(pixels, valid, np.rint(np.asarray(mean) * 255)), valid


def band_numbers(info: RasterInfo, bands: Sequence[str]) -> list[int]:
    """GDAL's numbers of bands that are named as the file does, or given by number (``3``, ``red=3``), which counts alpha too.

    Raises:
        ImageError: A band that the file does not have; what it has is listed. A palette, whose numbers stand for colours.
    """
    refuse_palette(info)
    numbers = []
    for name in bands:
        plain, equals, number = name.partition("=")
        wanted = number.strip() if equals else plain
        if name in info.bands:
            numbers.append(info.indexes[info.bands.index(name)])
        elif wanted.isdigit() and int(wanted) in info.indexes:
            numbers.append(int(wanted))
        else:
            raise ImageError(
                info.path, f"has no band {name!r}", tag="bands",
                value=list(info.bands) or f"{info.count} without names ({', '.join(map(str, info.indexes))})",
                hint="Give names of the file's bands, or their numbers from 1; or say the sensor.",
            )  # fmt: skip
    return numbers


def refuse_turned(path: str | Path) -> None:
    """Refuse bands and windows of a picture that its EXIF orientation turns: they are those of the stored pixels."""
    if is_remote(path) or (turned := _orientation(str(path), _changed(path))) == 1:
        return
    problem = "is turned by its EXIF flag, and tiles and bands are not"
    raise ImageError(path, problem, tag="Orientation", value=turned, hint="Save it upright, without the flag.")


def _changed(path: str | Path) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError as error:
        raise ImageError(path, f"cannot be opened ({error.strerror or error})") from error


@lru_cache(maxsize=64)
def _orientation(path: str, changed: float) -> int:
    if not is_picture(path):
        return 1
    try:
        with Image.open(path, formats=[*_PICTURES.values()]) as header:
            return int(header.getexif().get(_ORIENTATION, 1)) if "exif" in header.info else 1
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return 1  # whoever reads it says what is wrong


def refuse_palette(info: RasterInfo) -> None:
    """Refuse a band of palette numbers where values are asked for."""
    if info.palette:
        raise ImageError(
            info.path,
            "holds the numbers of a palette, not values",
            hint="Write its colours out: `gdal_translate -expand rgb IN OUT.tif`.",
        )


def last_axis(pixels: Array) -> Array:
    """[C, H, W] to [H, W, C], a view: whoever needs another order in memory copies the part that he needs."""
    return pixels.transpose(1, 2, 0)


def filled(pixels: Array, valid: Bools, mean: npt.ArrayLike) -> Array:
    """``pixels`` [H, W, C] with the mean where there is no data, in place: the model sees it as neither dark nor bright."""
    if not valid.all():
        values = np.asarray(mean)
        values = values if len(values) in (1, pixels.shape[2]) else values.mean(keepdims=True)
        values = np.broadcast_to(values.astype(pixels.dtype), pixels.shape[2])
        for plane, value in zip(pixels.transpose(2, 0, 1), values, strict=True):  # a plane lies in one piece
            np.copyto(plane, value, where=~valid)
    return pixels
