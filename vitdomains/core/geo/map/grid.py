"""Where tiles lie on a scene: overlapping squares that cover it, in rows, with ids that stay the same.

Everything is in pixels of the scene as it is read. The map is drawn in cells, squares of a few pixels on which every tile
begins; a tile's label says nothing about single pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitdomains.core.errors import ConfigError

CELLS_A_TILE = 16
"""Cells along the side of a tile, unless asked otherwise: as fine as the patches of a ViT at 224 pixels."""


@dataclass(frozen=True)
class TileRef:
    """One tile: its id, and its window of the scene in pixels."""

    id: str
    col: int
    row: int
    width: int
    height: int


@dataclass(frozen=True)
class Grid:
    """The tiles of one scene. ``cols`` and ``rows`` are their left and upper edges, ascending multiples of ``cell``."""

    width: int
    height: int
    tile: int
    cell: int
    cols: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the map, cells; the last row and column may reach beyond the scene."""
        return -(-self.height // self.cell), -(-self.width // self.cell)


def make_grid(width: int, height: int, tile: int, overlap: float = 0.25, cell: int = 0) -> Grid:
    """Cover a scene with tiles.

    The last tile of a row or column is moved back to end at the scene's edge, so that it is full of pixels; it reaches
    beyond by less than a cell, or more where the scene is smaller than a tile.

    Args:
        width: Of the scene, pixels.
        height: Of the scene, pixels.
        tile: Side of a tile, pixels.
        overlap: Share of a tile's side that it has in common with its neighbour, 0 to below 1.
        cell: Side of a cell, pixels; 0: a sixteenth of the tile.

    Raises:
        ConfigError: A size or the overlap is not possible.
    """
    cell = cell or max(1, tile // CELLS_A_TILE)
    if width < 1 or height < 1 or not 1 <= cell <= tile or not 0 <= overlap < 1:
        raise ConfigError(
            f"Tiles of {tile} pixels with overlap {overlap:g} and cells of {cell} pixels do not fit {width} x {height}.",
            hint="The overlap is 0 or more and below 1; a cell has 1 pixel or more, and no more than a tile.",
        )
    step = max(1, math.floor(tile * (1 - overlap) / cell + 1e-6)) * cell  # rounded down, so that no gap opens
    return Grid(width, height, tile, cell, _starts(width, tile, step, cell), _starts(height, tile, step, cell))


def _starts(length: int, tile: int, step: int, cell: int) -> tuple[int, ...]:
    last = max(0, -(-(length - tile) // cell) * cell)
    return (*range(0, last, step), last)


def tiles(grid: Grid, scene: str) -> list[TileRef]:
    """All tiles of a grid, row by row."""
    return [
        TileRef(f"{scene}_{col:06d}_{row:06d}_{grid.tile}", col, row, grid.tile, grid.tile)
        for row in grid.rows
        for col in grid.cols
    ]


def plan_table(grid: Grid, scene: str, path: str) -> pd.DataFrame:
    """The plan of one scene: ``tile_id, scene, path, col, row, width, height``, one row a tile.

    Args:
        grid: Its tiles.
        scene: A name that no other scene of the job has; ids begin with it.
        path: Where the scene is read from.
    """
    refs = tiles(grid, scene)
    n = len(refs)
    edges = np.array([(ref.col, ref.row, ref.width, ref.height) for ref in refs], dtype=np.int32)
    return pd.DataFrame(
        {
            "tile_id": [ref.id for ref in refs],
            "scene": [scene] * n,
            "path": [path] * n,
            **dict(zip(("col", "row", "width", "height"), edges.T, strict=True)),
        }
    )
