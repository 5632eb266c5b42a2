"""The map as rasters that open elsewhere: a COG of labels with its colours and names, a COG of probabilities, a QGIS style.

Single-label maps have one band: 0 is no data, 1..K are the classes in the order of the bundle, K + 1 is ``unknown``.
Multi-label maps have a band a class: 1 yes, 0 no, 255 no data. Names stand in the band tags and, for programs that look
there, as categories and attribute table in the ``.aux.xml`` beside the file.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import rasterio.shutil
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetWriter
from rasterio.windows import Window as Part

from vitdomains.core.files import write_text
from vitdomains.core.geo.map.blend import Blended, blend, neighbours
from vitdomains.core.geo.map.grid import Grid
from vitdomains.core.geo.map.scene import unpack
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.tasks import Kind


@dataclass(frozen=True)
class Labels:
    """What the probabilities of a cell become."""

    classes: tuple[str, ...]
    kind: Kind = "singlelabel"
    thresholds: tuple[float, ...] = ()
    min_probability: float = 0.0

    @property
    def names(self) -> dict[int, str]:
        """Name of each value of a single-label map, 0 left out."""
        names = dict(enumerate(self.classes, start=1))
        return names | ({len(self.classes) + 1: UNKNOWN} if self.min_probability > 0 else {})

    @property
    def nodata(self) -> int:
        """Value of a cell without data."""
        return 0 if self.kind == "singlelabel" else 255

    @property
    def dtype(self) -> str:
        """Smallest type that holds the values."""
        return "uint8" if self.kind == "multilabel" or len(self.classes) < 255 else "uint16"


def class_colours(labels: Labels) -> dict[int, tuple[int, int, int]]:
    """Red, green and blue 0..255 of each value: hues by the golden angle, so that neighbours differ; ``unknown`` is grey."""
    colours = {}
    for value, name in labels.names.items():
        lightness, saturation = ((0.45, 0.65), (0.62, 0.55), (0.32, 0.60))[value % 3]
        colour = colorsys.hls_to_rgb(value * 0.618034 % 1.0, lightness, saturation)
        red, green, blue = (round(255 * part) for part in colour)
        colours[value] = (128, 128, 128) if name == UNKNOWN and value > len(labels.classes) else (red, green, blue)
    return colours


def qml(labels: Labels) -> str:
    """A QGIS layer style of the classes (QGIS loads it by itself, since it has the name of the raster)."""
    entries = "".join(
        f'<paletteEntry value="{value}" color="#{r:02x}{g:02x}{b:02x}" alpha="255" label={quoteattr(labels.names[value])}/>'
        for value, (r, g, b) in class_colours(labels).items()
    )
    return (
        '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM">\n<qgis version="3.34" styleCategories="Symbology"><pipe>'
        '<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">'
        f"<colorPalette>{entries}</colorPalette></rasterrenderer></pipe><blendMode>0</blendMode></qgis>\n"
    )


def aux_xml(labels: Labels) -> str:
    """GDAL's side file: categories (value by position) and an attribute table of value, name and colour."""
    names = ["no data", *labels.names.values()]
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    fields = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    heads = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(fields)
    )
    rows = "".join(
        f'<Row index="{i}">'
        + "".join(f"<F>{escape(str(cell))}</F>" for cell in (value, labels.names[value], *colour))
        + "</Row>"
        for i, (value, colour) in enumerate(class_colours(labels).items())
    )
    table = f'<GDALRasterAttributeTable tableType="thematic">{heads}{rows}</GDALRasterAttributeTable>'
    band = f'<PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames>{table}</PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"


BLOCK = 512
"""Side of the blocks in which labels are stored, cells."""

PART_BYTES = 2**23
"""Probabilities that are computed and stored together: the more classes, the smaller the part, a block of its file."""

DRAFT = {
    "driver": "GTiff", "tiled": True, "interleave": "band", "compress": "DEFLATE",
    "zlevel": 1, "bigtiff": "IF_SAFER", "sparse_ok": True,
}  # fmt: skip
COG_BLOCK = 128  # GDAL makes no smaller ones in a COG
COG = {"driver": "COG", "compress": "DEFLATE", "bigtiff": "IF_SAFER"}


@dataclass(frozen=True)
class Place:
    """Where a map lies: the tile grid, and transform and CRS of the scene's pixels."""

    grid: Grid
    transform: Affine
    crs: CRS | None

    @property
    def cells(self) -> Affine:
        """Transform of the map's cells."""
        return self.transform @ Affine.scale(self.grid.cell)


def write_map(
    tables: Iterable[pd.DataFrame],
    place: Place,
    labels: Labels,
    out: Path,
    probabilities: Path | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Draw the map of one scene from the tables of its tiles.

    Memory depends on the width of the scene by its tiles only: a row of blocks is drawn from the rows of tiles over it.

    Args:
        tables: The tiles of the scene in the order of the plan, as ``label_tiles`` made them, in any pieces.
        place: Where they lie.
        labels: What becomes of the probabilities.
        out: COG of labels; beside it come ``.aux.xml`` and ``.qml``.
        probabilities: COG of the blended probabilities, float32, a band a class, NaN for no data; None: not written.
        tags: Metadata of both, key to text.

    Returns:
        Cells by name, ``nodata`` among them; for multi-label maps each class counts where it is.
    """
    rows = _TileRows(tables, place.grid, len(labels.classes))
    height, width = place.grid.shape
    bands = 1 if labels.kind == "singlelabel" else len(labels.classes)
    side = _part_side(len(labels.classes))
    counts = np.zeros(len(labels.classes) + 2, np.int64)
    common = {"width": width, "height": height, "crs": place.crs, "transform": place.cells}
    with ExitStack() as stack:
        drawn = stack.enter_context(
            _cog(out, common | {"count": bands, "dtype": labels.dtype, "nodata": labels.nodata}, BLOCK, "mode")
        )
        soft = None
        if probabilities is not None:
            kind = {"count": len(labels.classes), "dtype": "float32", "nodata": float("nan")}
            soft = stack.enter_context(_cog(probabilities, common | kind, side, "average"))
            for band, name in enumerate(labels.classes, start=1):
                soft.set_band_description(band, name)
            soft.update_tags(**(tags or {}))
        drawn.update_tags(**(tags or {}))
        _name_bands(drawn, labels)
        for block in _parts(height, width, side):
            blended, valid = rows.blended(block)
            part = Part.from_slices((block[0], block[1]), (block[2], block[3]))
            values = _values(blended, valid, labels)
            drawn.write(values, window=part)
            _count(values, labels, counts)
            if soft is not None:
                soft.write(_masked(blended, valid), window=part)
    if labels.kind == "singlelabel":
        write_text(out.with_name(f"{out.name}.aux.xml"), aux_xml(labels))
        write_text(out.with_suffix(".qml"), qml(labels))
    named = {"nodata": int(counts[0]), **dict(zip(labels.classes, counts[1:-1].tolist(), strict=True))}
    return named | ({UNKNOWN: int(counts[-1])} if labels.min_probability > 0 else {})


def _values(blended: Blended, valid: npt.NDArray[np.bool_], labels: Labels) -> npt.NDArray[Any]:
    """Values [bands, R, C] of a block."""
    if labels.kind == "multilabel":
        limits = torch.tensor(labels.thresholds or [0.5] * len(labels.classes))[None, :, None]
        yes = (blended.probabilities >= limits).to(torch.uint8).permute(1, 0, 2).numpy()
        return np.where(valid, yes, np.uint8(labels.nodata))
    top, best = blended.probabilities.max(dim=1)
    value = best.to(torch.int32) + 1
    if labels.min_probability > 0:
        value = torch.where(top < labels.min_probability, len(labels.classes) + 1, value)
    return np.asarray(np.where(valid, value.numpy(), labels.nodata).astype(labels.dtype)[None])


def _masked(blended: Blended, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    soft = blended.probabilities.permute(1, 0, 2).numpy()
    return np.where(valid, soft, np.float32(np.nan))


def _count(values: npt.NDArray[Any], labels: Labels, counts: npt.NDArray[np.int64]) -> None:
    if labels.kind == "singlelabel":
        counts += np.bincount(values.reshape(-1), minlength=len(counts))
        return
    counts[0] += int((values[0] == labels.nodata).sum())
    counts[1:-1] += (values == 1).sum(axis=(1, 2))


def _part_side(classes: int) -> int:
    """Side of the parts, cells: the largest power of two that keeps to ``PART_BYTES``, 16 to ``BLOCK``."""
    side = BLOCK
    while side > 16 and 4 * classes * side**2 > PART_BYTES:
        side //= 2
    return side


def _parts(height: int, width: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Parts of the map (first row, row behind, first column, column behind), those of a block together: none stays half full."""
    for y in range(0, height, BLOCK):
        for x in range(0, width, BLOCK):
            for top in range(y, min(y + BLOCK, height), side):
                for left in range(x, min(x + BLOCK, width), side):
                    yield top, min(top + side, height), left, min(left + side, width)


class _TileRows:
    """The rows of tiles over the block that is drawn; older ones are let go."""

    def __init__(self, tables: Iterable[pd.DataFrame], grid: Grid, classes: int) -> None:
        self._grid, self._classes = grid, classes
        self._row_of = {row: y for y, row in enumerate(grid.rows)}
        self._column_of = {col: x for x, col in enumerate(grid.cols)}
        self._scores: dict[int, npt.NDArray[np.float32]] = {}
        self._weights: dict[int, npt.NDArray[np.float32]] = {}
        self._cells: dict[tuple[int, int], bytes] = {}
        self._tables = iter(tables)
        self._upto = 0
        self._ended = False

    def blended(self, block: tuple[int, int, int, int]) -> tuple[Blended, npt.NDArray[np.bool_]]:
        """The block, and which of its cells hold data and lie under a tile."""
        grid = self._grid
        ys, xs = (
            neighbours(grid.rows, grid.tile, grid.cell, *block[:2]),
            neighbours(grid.cols, grid.tile, grid.cell, *block[2:]),
        )
        first = block[0] // BLOCK * BLOCK
        self._read_to(neighbours(grid.rows, grid.tile, grid.cell, first, first + BLOCK))
        scores = np.stack([self._scores[y][xs] for y in range(ys.start, ys.stop)])
        weights = np.stack([self._weights[y][xs] for y in range(ys.start, ys.stop)])
        found = blend(scores, weights, grid, (ys, xs), block)
        valid = np.zeros((block[1] - block[0], block[3] - block[2]), dtype=bool)
        side = -(-grid.tile // grid.cell)
        for y in range(ys.start, ys.stop):
            for x in range(xs.start, xs.stop):
                top, left = grid.rows[y] // grid.cell - block[0], grid.cols[x] // grid.cell - block[2]
                cells = self._cells.get((y, x))
                if cells is None:
                    continue
                whole = unpack(cells, side)[max(0, -top) :, max(0, -left) :]
                part = valid[max(0, top) : top + side, max(0, left) : left + side]
                part |= whole[: part.shape[0], : part.shape[1]]
        return found, valid & found.covered.numpy()

    def _read_to(self, ys: slice) -> None:
        while self._upto < ys.stop and not self._ended:
            table = next(self._tables, None)
            if table is None:
                self._ended = True
                break
            self._take(table)
        for y in [y for y in self._scores if y < ys.start]:
            del self._scores[y], self._weights[y]
        for place in [place for place in self._cells if place[0] < ys.start]:
            del self._cells[place]
        for y in range(ys.start, ys.stop):
            self._open(y)

    def _open(self, y: int) -> None:
        if y not in self._scores:
            self._scores[y] = np.full((len(self._grid.cols), self._classes), np.nan, np.float32)
            self._weights[y] = np.zeros(len(self._grid.cols), np.float32)

    def _take(self, table: pd.DataFrame) -> None:
        scores = table[[name for name in table if str(name).startswith("prob:")]].to_numpy(np.float32)
        labelled = ~np.isnan(scores).any(axis=1)
        weights = np.where(labelled, table["valid_fraction"].to_numpy(np.float32), 0)
        places = zip(table["row"], table["col"], table["cells"], table["valid_fraction"] > 0, strict=True)
        for at, (row, col, cells, holds_data) in enumerate(places):
            y, x = self._row_of[row], self._column_of[col]
            self._open(y)
            self._scores[y][x], self._weights[y][x] = scores[at], weights[at]
            if holds_data:
                self._cells[y, x] = cells
            self._upto = max(self._upto, y)


@contextmanager
def _cog(path: Path, profile: dict[str, Any], block: int, overviews: str) -> Iterator[DatasetWriter]:
    """A raster to fill block by block, turned into a COG in the place of ``path`` once it is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, part = (path.with_name(f".{path.name}.{what}{os.getpid()}.tif") for what in ("draft", "part"))
    try:
        with rasterio.open(draft, "w", **DRAFT, blockxsize=block, blockysize=block, **profile) as dataset:
            yield dataset
        rasterio.shutil.copy(draft, part, **COG, blocksize=max(block, COG_BLOCK), overview_resampling=overviews)
        os.replace(part, path)
    finally:
        draft.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def _name_bands(dataset: DatasetWriter, labels: Labels) -> None:
    if labels.kind == "multilabel":
        for band, name in enumerate(labels.classes, start=1):
            dataset.set_band_description(band, name)
        return
    dataset.set_band_description(1, "label")
    dataset.update_tags(1, **{f"CLASS_{value}": name for value, name in labels.names.items()})
    if len(labels.names) < 256:
        colours: dict[int, tuple[int, int, int, int]] = {0: (0, 0, 0, 0)}
        dataset.write_colormap(1, colours | {value: (*colour, 255) for value, colour in class_colours(labels).items()})
