"""The film viewer: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network.

The film travels once, as a PNG of its grey levels, and everything that a reader does to it (window, zoom, invert, heat map
over it) happens in the browser. What the reader marks comes back as one trigger, ``act``: a dictionary with ``kind``
``regions`` or ``poll``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.shared.components import web_component
from apps.shared.media import as_base64, media_url

film_viewer = web_component("film_viewer", Path(__file__).parent, "viewer.html", "viewer.css", "film.js", "viewer.js")


@dataclass(frozen=True)
class Picture:
    """A PNG on its way to the browser, and what the viewer has to know of it."""

    png: bytes
    about: Mapping[str, Any]

    def for_viewer(self, slot: str, **more: Any) -> dict[str, Any]:
        """The dictionary that the viewer takes; the PNG is put where the browser fetches it (and keeps it)."""
        return {**self.about, "url": media_url(self.png, slot), **more}


def film_picture(display: Any) -> Picture:
    """A film (``vitdomains.cxr.film.display.Display``) as the viewer takes it.

    8-bit levels are the grey of the PNG. Of 16-bit levels the high bytes are the upper half of a grey PNG and the low bytes the
    lower half: browsers cut 16-bit PNGs to 8 bits.
    """
    levels = display.levels
    wide = levels.dtype == np.uint16
    plane = np.vstack([(levels >> 8).astype(np.uint8), (levels & 0xFF).astype(np.uint8)]) if wide else levels
    units = display.units.astype(np.float64)
    step = (units[-1] - units[0]) / max(len(units) - 1, 1)
    line = units[0] + step * np.arange(len(units))
    if np.abs(units - line).max() <= 1e-3 * abs(step):
        scale: dict[str, Any] = {"offset": float(units[0]), "step": float(step), "count": len(units)}
    else:
        scale = {"table": as_base64(display.units.astype("<f4").tobytes())}
    presets = [
        {"name": p.name, "centre": p.centre, "width": p.width, "fn": p.function}
        | ({"table": as_base64(p.table.tobytes())} if p.table is not None else {})
        for p in display.presets
    ]
    about = {
        "width": int(levels.shape[1]),
        "height": int(levels.shape[0]),
        "depth": 16 if wide else 8,
        "units": scale,
        "presets": presets,
        "inverted": display.inverted,
        "padding": list(display.padding) if display.padding else None,
    }
    return Picture(encode_png(plane), about)


def heat_picture(values: NDArray[np.float32], affine: NDArray[np.float64]) -> Picture:
    """A heat map [h, w] in 0..1 as the viewer takes it.

    Args:
        values: On the model's input grid.
        affine: [2, 3], grid pixel centre to film pixel centre (``preprocess.geometry``).
    """
    height, width = values.shape
    left, top = (affine @ (-0.5, -0.5, 1.0) + 0.5).tolist()  # + 0.5: the viewer counts from pixel corners
    right, bottom = (affine @ (width - 0.5, height - 0.5, 1.0) + 0.5).tolist()
    level = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return Picture(encode_png(level), {"rect": [left, top, right - left, bottom - top]})


def with_about(picture: Picture, **more: Any) -> Picture:
    """The same picture with more to know of it."""
    return replace(picture, about={**picture.about, **more})


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """Grey [H, W] as PNG, for speed rather than size."""
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    done, data = cv2.imencode(".png", grey, fast)
    if not done:
        raise ValueError(f"a picture of shape {grey.shape} cannot be encoded")
    return data.tobytes()
