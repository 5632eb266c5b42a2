"""Tiles as pictures for the screen: read when they come into filters, kept in memory, never all of them.

They travel inside the page, as data addresses: Streamlit forgets a file of a run that the next key press ends, and who
reviews by key would see holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.shared.media import as_base64
from apps.shared.memo import Memo
from vitdomains.core.data.preprocess import PreprocessSpec, resize_filtered
from vitdomains.core.errors import ImageError
from vitdomains.zeroshot.embeddings.reader import read_image, read_pixels
from vitdomains.zeroshot.labels.outputs import shown

SIDE = 120
LARGE = 640
LOSSLESS = 256
"""Pixels a side up to which the picture of a tile is sent as it is."""
THUMBNAILS_KEPT, PICTURES_KEPT = 6000, 48  # a thumbnail is kilobytes, a picture up to a megabyte

Place = Mapping[str, Any]
"""Item, path, col, row, width, height of a tile."""


class Pictures:
    """Thumbnails and pictures of tiles as data addresses; each is made once while it is remembered."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self._thumbnails = Memo(THUMBNAILS_KEPT, 2, "thumbnail")
        self._pictures = Memo(PICTURES_KEPT, 1, "picture")

    def thumbnail(self, place: Place) -> Future[str]:
        """A square of ``SIDE`` pixels from the middle; a tile that cannot be read is an ``ImageError`` of the future."""
        return self._thumbnails.get(place["item"], lambda: self._thumbnail(place))

    def picture(self, place: Place) -> Future[str]:
        """The whole tile at its own resolution, but up to ``LARGE`` pixels a side."""
        return self._pictures.get(place["item"], lambda: self._picture(place))

    def _thumbnail(self, place: Place) -> str:
        pixels = resize_filtered(self._pixels(place), SIDE, SIDE, "bilinear", crop=True)
        return _encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 82)

    def _picture(self, place: Place) -> str:
        pixels = self._pixels(place)
        height, width = pixels.shape[:2]
        if max(height, width) > LARGE:
            share = LARGE / max(height, width)
            pixels = resize_filtered(pixels, max(1, round(height * share)), max(1, round(width * share)), "bilinear")
        if max(height, width) > LOSSLESS:
            return _encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 95)
        return _encode(".png", pixels, cv2.IMWRITE_PNG_COMPRESSION, 3)

    def _pixels(self, place: Place) -> NDArray[np.uint8]:
        if place["error"]:
            raise ImageError(place["path"], str(place["error"]))
        if place["width"] < 0:
            return shown(read_image(place["path"], self._spec), self._spec)
        window = tuple(int(place[key]) for key in ("col", "row", "width", "height"))
        return shown(read_pixels(place["path"], window, self._spec)[0], self._spec)  # type: ignore[arg-type]


def _encode(ending: str, pixels: NDArray[np.uint8], option: int, value: int) -> str:
    done, data = cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [option, value])
    if not done:
        raise ValueError(f"a picture of shape {pixels.shape} cannot be encoded")
    kind = "jpeg" if ending == ".jpg" else "png"
    return f"data:image/{kind};base64,{as_base64(data.tobytes())}"
