"""Pictures: the map lies where it belongs, and the files are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from affine import Affine

from vitdomains.core.data.preprocess import PreprocessSpec, geometry, prepare
from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import overlay, render


def square(shape: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    film = np.zeros(shape, dtype=np.float32)
    film[top : top + side, left : left + side] = 1
    return film


@pytest.mark.parametrize("resize", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("shape", [(700, 500), (400, 640), (90, 70)])
def test_a_known_square_goes_through_the_whole_chain_and_back(resize: str, shape: tuple[int, int]) -> None:
    """The prepared image itself serves as the heat map: put back, it must cover the square that it came from."""
    side = min(shape) // 5
    top, left = shape[0] // 2 - side, shape[1] // 2 + side // 3
    film = square(shape, top, left, side)
    spec = PreprocessSpec(96, 96, resize, 1, (0.0,), (1.0,), storage="float32")  # type: ignore[arg-type]
    grid = prepare(film, spec).reshape(96, 96)
    back = overlay.to_original(grid, geometry(spec, shape), shape)
    assert back.shape == shape
    weight = back / back.sum()
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre = (float((weight * y).sum()), float((weight * x).sum()))
    assert centre == pytest.approx((top + (side - 1) / 2, left + (side - 1) / 2), abs=0.6)
    hard = back > 0.5
    both = (hard & (film > 0)).sum() / (hard | (film > 0)).sum()
    assert both > 0.8


def test_what_the_model_did_not_see_stays_empty() -> None:
    spec = PreprocessSpec(32, 32, "crop", 1, (0.0,), (1.0,))
    back = overlay.to_original(np.ones((32, 32), dtype=np.float32), geometry(spec, (100, 300)), (100, 300))
    assert (back[:, 100:200] == 1).all() and (back[:, :99] == 0).all() and (back[:, 201:] == 0).all()


def test_colours_are_those_of_the_published_map() -> None:
    from matplotlib import colormaps

    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    for name in overlay.COLOUR_MAPS:
        ours = overlay.colours(ramp, name)[0].astype(int)
        theirs = np.rint(colormaps[name](np.arange(256))[:, :3] * 255).astype(int)
        assert np.abs(ours - theirs).max() <= 3, name


def test_opacity_follows_the_map_and_the_contour_its_percentile() -> None:
    film = np.full((80, 80), 0.5, dtype=np.float32)
    heat = square((80, 80), 20, 30, 20)
    plain = overlay.blend(film, heat, overlay.Style(contour=None, opacity=1.0))
    assert (plain[0, 0] == 128).all() and (plain[30, 40] == overlay.colours(np.ones((1, 1), np.float32))[0, 0]).all()
    lined = overlay.blend(film, heat, overlay.Style(contour=95, opacity=0.0))
    cyan = (lined[:, :, 0] < 100) & (lined[:, :, 2] > 160)  # the line is smoothed
    ys, xs = np.nonzero(cyan)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (20, 39, 30, 49)
    assert not cyan[25:35, 35:45].any()
    flat = overlay.blend(film, np.zeros_like(film))
    assert (flat == 128).all()


def test_overlay_has_original_map_scale_and_title(tmp_path: Path) -> None:
    film = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (300, 1))
    heat = square((300, 200), 100, 50, 60)
    picture = overlay.overlay(
        film, heat, finding="Nodule", probability=0.873, method="relevance", style=overlay.Style(height=150)
    )
    assert picture.dtype == np.uint8 and picture.shape[0] > 150
    body = picture[-150:]
    np.testing.assert_allclose(body[:, :100, 0].astype(int), body[:, :100, 1], atol=0)  # the original beside it is grey
    other = overlay.overlay(
        film, heat, finding="Nodule", probability=0.1, method="relevance", style=overlay.Style(height=150)
    )
    assert not np.array_equal(picture[:-150], other[:-150]) and np.array_equal(body, other[-150:])
    path = render.write_png(picture, tmp_path / "deep" / "o.png")
    back = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(back, picture) and [p.name for p in path.parent.iterdir()] == ["o.png"]


def test_panel_holds_all_findings_in_any_script() -> None:
    film, heat = np.zeros((60, 50), dtype=np.uint8), square((60, 50), 10, 10, 9)
    style = overlay.Style(height=90)
    one = overlay.panel(film, [heat], ["Knoten \N{LATIN SMALL LETTER U WITH DIAERESIS}"], [0.5], style=style)
    five = overlay.panel(film, [heat] * 5, list("abcde"), style=style, columns=3, method="rollout")
    assert one.shape[1] < five.shape[1] and five.shape[0] > 2 * 90
    with pytest.raises(ExplainError):
        overlay.panel(film, [heat], ["a", "b"])


def test_pictures_need_no_matplotlib() -> None:
    code = "import sys; from vitdomains.core.explain import overlay, render; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_publication_figure(tmp_path: Path, suffix: str) -> None:
    film = np.random.default_rng(0).random((60, 50)).astype(np.float32)
    style = overlay.Style("cividis", contour=90)
    path = render.publication_figure(
        film, [square((60, 50), 5, 5, 9)] * 4, list("abcd"), tmp_path / f"f.{suffix}", style=style, dpi=60
    )
    assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF", b"<?xm")


def test_geotiff_lies_on_the_grid_of_its_tile(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_600_000)}
    tile = tmp_path / "tile.tif"
    with rasterio.open(tile, "w", "GTiff", 30, 20, 1, dtype="uint8", **place) as raster:
        raster.write(np.ones((1, 20, 30), np.uint8))
    heats = list(np.random.default_rng(0).random((2, 20, 30)).astype(np.float32))
    heats[0][0, 0] = np.nan
    path = render.to_geotiff(heats, ["water", "forest"], tile, tmp_path / "heat.tif")
    with rasterio.open(path) as raster:
        assert raster.transform == place["transform"] and raster.crs.to_epsg() == 32633
        np.testing.assert_array_equal(raster.read(), np.stack(heats))
        assert np.isnan(raster.nodata) and raster.descriptions == ("water", "forest")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heat.tif", "tile.tif"]
    with pytest.raises(ExplainError, match="no grid of"):
        render.to_geotiff([heats[0][:5]], ["water"], tile, tmp_path / "other.tif")
    plain = render.write_png(np.zeros((20, 30, 3), np.uint8), tmp_path / "plain.png")
    with pytest.raises(ExplainError, match="place on the ground"):
        render.to_geotiff(heats[:1], ["water"], plain, tmp_path / "other.tif")
    assert not (tmp_path / "other.tif").exists()


def test_impossible_wishes() -> None:
    film = np.zeros((8, 8), np.float32)
    for wish in ({"colour_map": "jet"}, {"opacity": 2.0}, {"contour": 101.0}, {"height": 3}):
        with pytest.raises(ExplainError):
            overlay.Style(**wish)  # type: ignore[arg-type]
    with pytest.raises(ExplainError, match="to_original"):
        overlay.blend(film, np.zeros((4, 4), np.float32))
    with pytest.raises(ExplainError):
        overlay.as_rgb(np.zeros((4, 4, 2), np.float32))
