"""From overlapping tiles to a map: the probabilities of neighbouring tiles pass into each other under a cosine window.

Each cell takes the mean of the tiles over it, weighted by sin^2 of where the cell lies in the tile along both axes and by the
tile's valid fraction. The window is separable and the tiles form a grid, so a block of the map is two small matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitdomains.core.geo.map.grid import Grid

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Blended:
    """A block of the map: ``probabilities`` [R, K, C], NaN where no tile is, and ``covered`` [R, C], whether one is."""

    probabilities: Tensor
    covered: Tensor


def window(starts: Floats, tile: int, cell: int, first: int, stop: int) -> Floats:
    """Weights [stop - first, N] of N tiles in cells, along one axis: sin^2 at the centre of a cell, 0 outside a tile.

    Args:
        starts: [N] first pixel of each tile.
        tile: Side of a tile, pixels.
        cell: Side of a cell, pixels.
        first: First cell.
        stop: Cell behind the last.
    """
    centre = (np.arange(first, stop, dtype=np.float32)[:, None] + np.float32(0.5)) * np.float32(cell)
    within = (centre - starts[None]) / np.float32(tile)
    weight: Floats = np.where((within > 0) & (within < 1), np.sin(np.pi * within) ** 2, 0).astype(np.float32)
    return weight


def neighbours(starts: tuple[int, ...], tile: int, cell: int, first: int, stop: int) -> slice:
    """Which tiles along an axis touch the cells ``first`` to ``stop``."""
    edges = np.asarray(starts)
    return slice(
        int(np.searchsorted(edges, first * cell - tile, side="right")),
        int(np.searchsorted(edges, stop * cell, side="left")),
    )


def blend(
    probabilities: Floats, weights: Floats, grid: Grid, tiles: tuple[slice, slice], block: tuple[int, int, int, int]
) -> Blended:
    """Blend the tiles over a block of cells.

    Args:
        probabilities: [Y, X, K] of the tiles ``tiles``; NaN where there is none.
        weights: [Y, X] 0 where a tile counts nowhere, else its valid fraction.
        grid: The grid of tiles.
        tiles: Which rows and columns of the grid these are.
        block: First row, row behind the last, first column, column behind the last, cells.
    """
    y = torch.from_numpy(window(np.array(grid.rows[tiles[0]], np.float32), grid.tile, grid.cell, *block[:2]))  # [R, Y]
    x = torch.from_numpy(window(np.array(grid.cols[tiles[1]], np.float32), grid.tile, grid.cell, *block[2:]))  # [C, X]
    share = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
    weighted = torch.from_numpy(np.nan_to_num(probabilities)) * share[..., None]  # [Y, X, K]
    n_y, n_x, classes = weighted.shape
    rows = (y @ weighted.reshape(n_y, n_x * classes)).reshape(len(y), n_x, classes)  # [R, X, K]
    total = rows.transpose(1, 2) @ x.T  # [R, K, C]
    support = y @ share @ x.T  # [R, C]
    return Blended(total.div_(support[:, None]), support > 0)
