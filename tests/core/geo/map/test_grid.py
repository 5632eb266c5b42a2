"""Tiles cover a scene, their ids are stable, and their blend is a mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.map.blend import blend, neighbours, window
from vitdomains.core.geo.map.grid import make_grid, plan_table, tiles


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), tile=st.integers(1, 90),
    overlap=st.floats(0, 0.9), cell=st.integers(0, 9),
)  # fmt: skip
def test_tiles_cover_every_pixel_and_begin_on_cells(
    width: int, height: int, tile: int, overlap: float, cell: int
) -> None:
    if cell > tile:
        with pytest.raises(ConfigError):
            make_grid(width, height, tile, overlap, cell)
        return
    grid = make_grid(width, height, tile, overlap, cell)
    covered = np.zeros((height, width), dtype=bool)
    for row in grid.rows:
        for col in grid.cols:
            covered[row : row + tile, col : col + tile] = True
    assert covered.all()
    for starts, length in ((grid.cols, width), (grid.rows, height)):
        assert all(start % grid.cell == 0 for start in starts) and list(starts) == sorted(set(starts))
        assert starts[-1] + tile - length < max(grid.cell, tile - length + 1)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5])
def test_impossible_overlaps_are_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        make_grid(100, 100, 10, overlap)


def test_ids_say_where_a_tile_lies_and_stay_the_same() -> None:
    grid = make_grid(100, 60, 32, 0.25)
    ids = [ref.id for ref in tiles(grid, "north")]
    assert ids[:2] == ["north_000000_000000_32", "north_000024_000000_32"]
    assert len(set(ids)) == len(ids) == len(grid.cols) * len(grid.rows)
    assert list(plan_table(grid, "north", "/x/north.tif")["tile_id"]) == ids


def test_the_blend_is_the_mean_under_the_window() -> None:
    grid = make_grid(64, 48, 16, 0.5, 2)
    rng = np.random.default_rng(0)
    n_y, n_x = len(grid.rows), len(grid.cols)
    p = rng.dirichlet(np.ones(3), (n_y, n_x)).astype(np.float32)
    v = rng.uniform(0.3, 1, (n_y, n_x)).astype(np.float32)
    p[1, 2], v[1, 2] = np.nan, 0  # a skipped tile
    block = (3, 21, 4, 30)
    ys, xs = neighbours(grid.rows, 16, 2, *block[:2]), neighbours(grid.cols, 16, 2, *block[2:])
    found = blend(p[ys, xs], v[ys, xs], grid, (ys, xs), block)
    for r, c in [(3, 4), (10, 17), (20, 29), (8, 12)]:
        y, x = 2 * r + 1.0, 2 * c + 1.0  # centre of the cell
        total, support = np.zeros(3), 0.0
        for i, row in enumerate(grid.rows):
            for j, col in enumerate(grid.cols):
                if row < y < row + 16 and col < x < col + 16 and v[i, j] > 0:
                    w = np.sin(np.pi * (y - row) / 16) ** 2 * np.sin(np.pi * (x - col) / 16) ** 2 * v[i, j]
                    total, support = total + w * p[i, j], support + w
        np.testing.assert_allclose(found.probabilities[r - 3, :, c - 4], total / support, rtol=1e-4)
    np.testing.assert_allclose(found.probabilities.sum(dim=1)[found.covered], 1.0, rtol=1e-5)


def test_neighbours_are_those_with_weight() -> None:
    grid = make_grid(1000, 1000, 50, 0.3, 3)
    for first, stop in [(0, 5), (40, 41), (100, 180), (330, 334)]:
        near = neighbours(grid.cols, 50, 3, first, stop)
        weights = window(np.array(grid.cols, np.float32), 50, 3, first, stop)
        assert set(np.flatnonzero(weights.any(axis=0))) <= set(range(near.start, near.stop))
