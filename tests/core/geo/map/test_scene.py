"""Scenes through a model: squares come back where they are, nodata stays out, a bad block costs its tiles only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from affine import Affine

from tests.core.geo.bright import CLASSES, bundle, read_pixels, worker
from tests.core.geo.rasters import write
from vitdomains.core.data.preprocess import PreprocessSpec, prepare
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.map.grid import make_grid
from vitdomains.core.geo.map.outputs import Labels, Place
from vitdomains.core.geo.map.run import ComputeOptions, Tiling, draw, label_scenes, open_scene
from vitdomains.core.geo.map.scene import (
    LabelTiles,
    Strip,
    _read_strip,
    cells_with_data,
    pack,
    probabilities,
    strips,
    unpack,
)
from vitdomains.core.inference.predictor import Predictor

TILE, STEP = 16, 8
PLACES = {
    "utm": ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_200_000)),
    "geographic": ("EPSG:4326", Affine(1e-4, 0, 11.0, 0, -1e-4, 47.0)),
    "south-up": ("EPSG:32733", Affine(10, 0, 300_000, 0, 10, 8_000_000)),
    "rotated": ("EPSG:32633", Affine.translation(500_000, 5_200_000) @ Affine.rotation(30) @ Affine.scale(10, -10)),
}
SQUARES = ((40, 48, 64), (136, 24, 48), (88, 120, 56))
"""Left and upper edge and side of the bright squares, pixels."""


def squares(height: int = 200, width: int = 216) -> np.ndarray:
    pixels = np.full((1, height, width), 0.1, np.float32)
    for left, top, side in SQUARES:
        pixels[:, top : top + side, left : left + side] = 0.9
    return pixels


@pytest.mark.parametrize("where", PLACES)
def test_squares_come_back_within_half_a_step(tmp_path: Path, where: str) -> None:
    crs, transform = PLACES[where]
    path = write(tmp_path / "scene.tif", squares(), crs=crs, transform=transform)
    tiling = Tiling(TILE, 0.5, 1)
    scene = open_scene(str(path), tiling, set())
    labels = Labels(CLASSES)
    shards = label_scenes([scene], worker(1), tmp_path / "job", {}, ComputeOptions(shard_size=100), lambda *_: None)
    drawn = draw([scene], shards, tmp_path / "job", labels, tmp_path / "map.tif", tiles=tmp_path / "tiles.parquet")
    assert (drawn.tiles, drawn.skipped, drawn.errors) == (
        len(scene.place.grid.cols) * len(scene.place.grid.rows),
        0,
        (),
    )
    with rasterio.open(tmp_path / "map.tif") as result, rasterio.open(path) as source:
        assert result.crs == source.crs
        found = result.read(1)
        for left, top, side in SQUARES:
            for dx, dy in [(0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5)]:  # across the middle of each edge
                out = np.array([np.sign(dx - 0.5), np.sign(dy - 0.5)])
                edge = np.array([left + side * dx, top + side * dy])
                for sign, value in ((-1, 2), (1, 1)):
                    x, y = source.transform @ tuple(edge + sign * out * STEP / 2)
                    row, col = result.index(x, y)
                    assert found[row, col] == value, (
                        f"{where}: {sign * STEP / 2} pixels from the edge of the square at {left}"
                    )


def test_a_coarse_map_lies_on_the_scene(tmp_path: Path) -> None:
    crs, transform = PLACES["utm"]
    path = write(tmp_path / "scene.tif", squares(), crs=crs, transform=transform)
    scene = open_scene(str(path), Tiling(TILE, 0.5, 8), set())
    shards = label_scenes([scene], worker(8), tmp_path / "job", {}, ComputeOptions(shard_size=64), lambda *_: None)
    draw([scene], shards, tmp_path / "job", Labels(CLASSES), tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as result:
        assert result.shape == (25, 27) and result.res == (80, 80)
        expected = squares()[0].reshape(25, 8, 27, 8).mean(axis=(1, 3)) > 0.5
        np.testing.assert_array_equal(result.read(1) == 2, expected)


def test_nodata_is_skipped_counted_and_not_labelled(tmp_path: Path) -> None:
    pixels = squares(96, 96)
    pixels[:, :, 50:] = -9999
    path = write(tmp_path / "scene.tif", pixels, nodata=-9999)
    scene = open_scene(str(path), Tiling(TILE, 0.5, 1), set())
    shards = label_scenes([scene], worker(1, min_valid=0.5), tmp_path / "job", {}, ComputeOptions(), lambda *_: None)
    drawn = draw(
        [scene], shards, tmp_path / "job", Labels(CLASSES), tmp_path / "map.tif", probabilities=tmp_path / "p.tif"
    )
    of_columns = [col for col in scene.place.grid.cols if 50 - col < 8]
    assert drawn.skipped == len(of_columns) * len(scene.place.grid.rows) > 0
    with rasterio.open(tmp_path / "map.tif") as result, rasterio.open(tmp_path / "p.tif") as soft:
        np.testing.assert_array_equal(result.read(1) != result.nodata, np.broadcast_to(np.arange(96) < 50, (96, 96)))
        assert soft.descriptions == CLASSES and np.isnan(soft.read(1)[:, 50:]).all()
        np.testing.assert_allclose(soft.read().sum(axis=0)[:, :50], 1.0, atol=1e-5)
    assert drawn.cells["scene"]["nodata"] == 96 * 46


def test_a_tile_that_cannot_be_read_is_a_row_with_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", squares(64, 96))

    def read(name: str, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        if window[0] <= 40 < window[0] + window[2] and window[1] <= 20 < window[1] + window[3]:
            raise ImageError(name, "block 3 cannot be decoded")
        return read_pixels(name, window)

    scene = open_scene(str(path), Tiling(TILE, 0.0, 1), set())
    work = worker(1)
    broken = type(work)(work.make_predictor, read, 1)
    shards = label_scenes([scene], broken, tmp_path / "job", {}, ComputeOptions(), lambda *_: None)
    drawn = draw([scene], shards, tmp_path / "job", Labels(CLASSES), tmp_path / "map.tif", tiles=tmp_path / "t.parquet")
    assert len(drawn.errors) == 1 and "scene_000032_000016_16" in drawn.errors[0] and "block 3" in drawn.errors[0]
    with rasterio.open(tmp_path / "map.tif") as result:
        found = result.read(1)
    expected = np.zeros((64, 96), dtype=bool)
    expected[16:32, 32:48] = True
    np.testing.assert_array_equal(found == 0, expected)


def test_every_tile_is_labelled_alike_in_strips_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.random((1, 80, 120), np.float32)
    path = write(tmp_path / "scene.tif", pixels)
    scene = open_scene(str(path), Tiling(TILE, 0.25, 1), set())
    tables = []
    for length in (1, 3, 8):
        monkeypatch.setattr("vitdomains.core.geo.map.scene.STRIP_TILES", length)
        folder = tmp_path / f"job{length}"
        shards = label_scenes(
            [scene], worker(1, batch_size=5), folder, {}, ComputeOptions(shard_size=7), lambda *_: None
        )
        tables.append(pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("shards/*.parquet"))]))
        assert len(shards) > 2
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])
    one = tables[0].iloc[3]
    mean = pixels[0, one["row"] : one["row"] + 16, one["col"] : one["col"] + 16].mean()
    assert one["prob:bright"] == pytest.approx(1 / (1 + np.exp(-40 * (mean - 0.5))), rel=1e-4)


def test_strips_join_neighbours_only() -> None:
    rows = pd.DataFrame({"path": ["a", "a", "a", "a", "b"], "col": [0, 12, 40, 0, 12], "row": [0, 0, 0, 16, 16]})
    found = strips(rows.assign(width=16, height=16))
    assert [(strip.path, strip.at, strip.cols, strip.row) for strip in found] == [
        ("a", 0, (0, 12), 0), ("a", 2, (40,), 0), ("a", 3, (0,), 16), ("b", 4, (12,), 16),
    ]  # fmt: skip


def test_symmetries_average_the_eight_views() -> None:
    class Corner(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images[:, 0, 0, 0], images[:, 0, 0, 1]], dim=1).float()

    predictor = Predictor(bundle(size=3), read_pixels, model=Corner(), precision="fp32")
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    views = [torch.rot90(v, k, (2, 3)) for k in range(4) for v in (image, image.flip(3))]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    expected = np.mean([predictor.scores(predictor.logits(view.contiguous())) for view in views], axis=0)
    np.testing.assert_allclose(probabilities(predictor, image, symmetries=True), expected)


@pytest.mark.parametrize(("side", "cell"), [(16, 1), (16, 4), (17, 5)])
def test_cells_survive_packing(side: int, cell: int) -> None:
    valid = np.random.default_rng(2).random((side, side)) < 0.6
    cells = cells_with_data(valid, cell)
    n = -(-side // cell)
    assert cells.shape == (n, n)
    assert cells[-1, -1] == (valid[(n - 1) * cell :, (n - 1) * cell :].mean() >= 0.5)
    np.testing.assert_array_equal(unpack(pack(cells), n), cells)
    assert unpack(b"", n).all()


def test_the_place_of_cells_is_that_of_their_upper_left_pixel() -> None:
    crs, transform = PLACES["rotated"]
    grid = make_grid(100, 100, 32, 0.25)
    assert Place(grid, transform, crs).cells @ (3, 2) == pytest.approx(transform @ (3 * grid.cell, 2 * grid.cell))


@pytest.mark.parametrize(("storage", "channels"), [("uint8", 3), ("float32", 3), ("uint8", 1)])
def test_tiles_of_a_strip_are_prepared_as_alone(storage: str, channels: int) -> None:
    rng = np.random.default_rng(4)
    pixels = rng.uniform(-0.2, 1.2, (16, 40, channels)).astype(np.float32)
    pixels[3, 5] = np.nan
    spec = PreprocessSpec(16, 16, "letterbox", 3, (0.4,), (0.2,), storage, fill=0.3)  # type: ignore[arg-type]
    job = LabelTiles(lambda: None, lambda path, window: (pixels, np.ones((16, 40), dtype=bool)), 4)
    found = _read_strip(Strip("a", 0, (0, 12, 24), 0, 16, 16), spec, job)
    for tile, col in zip(found, (0, 12, 24), strict=True):
        alone = prepare(pixels[:, col : col + 16], spec)
        np.testing.assert_array_equal(tile.image, alone[None] if alone.ndim == 2 else alone.transpose(2, 0, 1))
