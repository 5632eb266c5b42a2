"""Contact sheets: for each class the tiles of which the labels are surest, and those of which they are least sure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from vitdomains.core.data.preprocess import PreprocessSpec, resize_filtered
from vitdomains.core.errors import ImageError
from vitdomains.core.files import write_atomically
from vitdomains.zeroshot.embeddings.reader import read_image, read_pixels

SIDE = 112
CAPTION = 14
PER_ROW = 8
_COLUMNS = ["tile_id", "path", "col", "row", "width", "height", "probability"]


@dataclass
class Examples:
    """Collects, over any number of tables, the ``n`` most and ``n`` least certain tiles of each label."""

    n: int = PER_ROW
    best: dict[str, pd.DataFrame] = field(default_factory=dict)
    worst: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, table: pd.DataFrame) -> None:
        """Take the tiles of a tile table into account."""
        for label, rows in table[table["label"] != ""].groupby("label", sort=False):
            name, own = str(label), rows[_COLUMNS]
            for kept, most in ((self.best, True), (self.worst, False)):
                both = pd.concat([kept[name], own]) if name in kept else own
                pick = both.nlargest if most else both.nsmallest
                kept[name] = pick(self.n, "probability", keep="first")


def contact_sheets(examples: Examples, spec: PreprocessSpec, folder: Path) -> list[Path]:
    """One PNG a label: the surest tiles in the first row, the least sure in the second."""
    written = []
    for name in sorted(examples.best):
        rows = [examples.best[name], examples.worst[name].iloc[::-1]]
        sheet = Image.new("RGB", (PER_ROW * SIDE, 20 + len(rows) * (SIDE + CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((4, 4), f"{name}: surest above, least sure below", fill="black")
        for y, tiles in enumerate(rows):
            for x, tile in enumerate(tiles.itertuples()):
                corner = (x * SIDE, 20 + y * (SIDE + CAPTION))
                sheet.paste(_thumbnail(tile, spec), corner)
                draw.text((corner[0] + 2, corner[1] + SIDE), f"{tile.probability:.3f}", fill="black")
        path = folder / f"{file_name(name)}.png"
        write_atomically(path, partial(sheet.save, format="png", compress_level=1))
        written.append(path)
    return written


def file_name(name: str) -> str:
    """A label as a name of a file."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "_"


def _thumbnail(tile: Any, spec: PreprocessSpec) -> Image.Image:
    try:
        if tile.width < 0:
            image = read_image(tile.path, spec)
        else:
            image = read_pixels(tile.path, (tile.col, tile.row, tile.width, tile.height), spec)[0]
    except ImageError:  # it could be read before; the sheet goes on with a grey square
        return Image.new("RGB", (SIDE, SIDE), "grey")
    return Image.fromarray(resize_filtered(shown(image, spec), SIDE, SIDE, "bilinear", crop=True))


def shown(image: npt.NDArray[Any], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] for the eye; other units are shown from two standard deviations below the mean to two above."""
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8:
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        image = np.clip((image - mean) / (4 * std) + 0.5, 0, 1) * 255
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.uint8))
