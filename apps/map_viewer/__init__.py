"""The map: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network and no tile server.

A picture of the scene, a sharper one of the part in sight, and the tiles as arrays: places once, colours whenever they change.
What the reviewer does comes back as one trigger, ``act``: a dictionary with ``kind`` ``open``, ``area``, ``look`` or ``poll``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.shared.components import web_component
from apps.shared.media import media_url
from apps.tiles.scene_image import Shown
from apps.tiles.tile_list import TileList

BYTES = "application/octet-stream"

map_viewer = web_component("map_viewer", Path(__file__).parent, "map.html", "map.css", "map.js")


def picture(shown: Shown, png: bytes, slot: str, **more: Any) -> dict[str, Any]:
    """A picture of the scene as the viewer takes it."""
    return {"url": media_url(png, slot), "rect": list(shown.rect), **more}


def tile_bytes(tiles: TileList, *, hidden: bool = False) -> bytes:
    """Places, classes and probabilities of N tiles: int32 [N, 4], uint16 [N] (K: none) and uint8 [N] in percent, in a row.

    ``hidden``: without what the model said.
    """
    code = np.where((tiles.code < 0) | hidden, len(tiles.classes), tiles.code).astype("<u2")
    percent = np.rint(100 * np.nan_to_num(tiles.table["probability"].to_numpy(np.float32))).astype(np.uint8)
    percent[hidden] = 0
    return tiles.extents.astype("<i4").tobytes() + code.tobytes() + percent.tobytes()


def tiles_for_viewer(
    tiles: TileList, places: bytes, colours: NDArray[np.uint8], *, hidden: bool = False
) -> dict[str, Any]:
    """The tiles as the viewer takes them; ``colours`` is [N, 4] RGBA, clear for what is out of sight; ``hidden``: blinded."""
    return {
        "count": len(tiles),
        "step": list(tiles.step),
        "places": media_url(places, "places", BYTES),
        "paint": media_url(colours.tobytes(), "paint", BYTES),
        "absent": "blinded" if hidden else "no label",
        "names": [name.replace("_", " ") for name in tiles.classes],
    }
