"""Other resolutions and CRSs: known squares come back where they are, masks survive, overviews serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.warp import transform

from tests.core.geo.rasters import NORTH_UP, UTM, ramp, write
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.dataset_pool import borrow
from vitdomains.core.geo.read.raster import Window, close_all, describe_raster, read_window


def scene_with_square(height: int = 80, width: int = 100) -> np.ndarray:
    """100 everywhere, 900 in rows 20..39 and columns 30..59."""
    pixels = np.full((1, height, width), 100, np.uint16)
    pixels[0, 20:40, 30:60] = 900
    return pixels


def centre_of_square(window: Window) -> tuple[float, float]:
    """Longitude and latitude of the bright pixels' centre."""
    rows, columns = np.nonzero(window.valid & (window.pixels[0] > 500))
    x, y = window.transform @ (columns.mean() + 0.5, rows.mean() + 0.5)
    longitude, latitude = transform(window.crs, "EPSG:4326", [x], [y])
    return longitude[0], latitude[0]


def metres_apart(first: tuple[float, float], second: tuple[float, float]) -> float:
    east = (first[0] - second[0] + 180) % 360 - 180
    return float(np.hypot(111_320 * np.cos(np.radians(first[1])) * east, 111_000 * (first[1] - second[1])))


ROTATED = Affine.translation(500_000, 5_200_000) @ Affine.rotation(25) @ Affine.scale(10, -10)
SOUTH_UP = Affine(10, 0, 500_000, 0, 10, 5_199_000)
MERCATOR = Affine(14, 0, 1_669_800, 0, -14, 5_900_000)
DEGREES = Affine(1e-4, 0, 15, 0, -1e-4, 47)


@pytest.mark.parametrize(
    ("crs", "grid"), [(UTM, NORTH_UP), (UTM, ROTATED), (UTM, SOUTH_UP), ("EPSG:4326", DEGREES), ("EPSG:3857", MERCATOR)]
)
@pytest.mark.parametrize(
    "target",
    [{"resolution": 5.0}, {"resolution": 20.0}, {"crs": "EPSG:4326"}, {"crs": "EPSG:3857", "resolution": 8.0},
     {"crs": "EPSG:3035"}],
)  # fmt: skip
def test_square_comes_back_where_it_is(tmp_path: Path, crs: str, grid: Affine, target: dict[str, object]) -> None:
    path = write(tmp_path / "a.tif", scene_with_square(), crs=crs, transform=grid)
    longitude, latitude = transform(crs, "EPSG:4326", *[[value] for value in grid @ (45, 30)])
    window = read_window(path, **target)
    resolution = max(float(target.get("resolution", 10)), 10)  # type: ignore[arg-type]
    assert metres_apart(centre_of_square(window), (longitude[0], latitude[0])) < resolution / 2
    info = describe_raster(path, **target)
    assert window.pixels.shape == (1, info.height, info.width)
    assert window.transform.e < 0 < window.transform.a and window.transform.b == window.transform.d == 0
    if "resolution" in target:
        assert info.resolution == pytest.approx((target["resolution"],) * 2, rel=2e-3)
    part = read_window(path, (3, 4, 20, 10), **target)
    assert (part.pixels == window.pixels[:, 4:14, 3:23]).all()
    assert part.transform == window.transform @ Affine.translation(3, 4)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_square_of_a_swath_with_control_points(tmp_path: Path) -> None:
    # As Sentinel-1 GRD: a grid of points in degrees, a swath that is turned against north, no transform.
    turned = Affine.translation(500_000, 5_200_000) @ Affine.rotation(12) @ Affine.scale(10, -10)
    places = [(row, column) for row in range(0, 81, 20) for column in range(0, 101, 25)]
    xs, ys = zip(*(turned @ (column, row) for row, column in places), strict=True)
    longitudes, latitudes = transform(UTM, "EPSG:4326", list(xs), list(ys))
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=100, height=80, count=1, dtype="uint16") as dataset:
        dataset.write(scene_with_square())
        dataset.gcps = (
            [GroundControlPoint(*at, x, y) for at, x, y in zip(places, longitudes, latitudes, strict=True)],
            CRS.from_epsg(4326),
        )
    where = [value[0] for value in transform(UTM, "EPSG:4326", *[[value] for value in turned @ (45, 30)])]
    for target in ({}, {"resolution": 10.0}, {"resolution": 20.0, "crs": UTM}):
        window = read_window(path, **target)
        info = describe_raster(path, **target)
        assert window.pixels.shape == (1, info.height, info.width) and info.georeference == "gcps"
        assert metres_apart(centre_of_square(window), (where[0], where[1])) < 8
        assert 0.5 < window.valid.mean() < 0.95 and set(np.unique(window.pixels[0, ~window.valid])) == {0}


def test_own_grid_needs_no_warp(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 30, 40))
    for target in ({"resolution": 10.0}, {"crs": UTM}, {"crs": UTM, "resolution": 10.001}):
        window = read_window(path, **target)
        assert (window.pixels == ramp(1, 30, 40)).all() and window.transform == NORTH_UP


def test_ground_metres_where_the_unit_is_none(tmp_path: Path) -> None:
    # Web Mercator at 60 degrees: a unit is half a metre on the ground.
    path = write(tmp_path / "a.tif", ramp(1, 64, 64), crs="EPSG:3857", transform=Affine(20, 0, 0, 0, -20, 8_400_000))
    assert describe_raster(path).resolution == pytest.approx((10, 10), rel=0.01)
    info = describe_raster(path, resolution=20)
    assert info.resolution == pytest.approx((20, 20), rel=1e-3) and 32 <= info.width <= 33


def test_feet_are_converted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 64, 64), crs="EPSG:2264", transform=Affine(10, 0, 2e6, 0, -10, 7e5))
    assert describe_raster(path).resolution == pytest.approx((3.048, 3.048), rel=1e-3)
    assert describe_raster(path, resolution=6.096).width == 32


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "average"])
def test_declared_nodata_does_not_bleed(tmp_path: Path, resampling: str) -> None:
    pixels = np.full((2, 40, 40), 500, np.int16)
    pixels[:, :, :17] = -9999
    pixels[1, 30, 30] = -9999
    path = write(tmp_path / "a.tif", pixels, nodata=-9999)
    for target in ({"resolution": 20.0}, {"resolution": 5.0}, {"crs": "EPSG:3035"}):
        window = read_window(path, resampling=resampling, **target)  # type: ignore[arg-type]
        assert set(np.unique(window.pixels[:, window.valid])) == {500}
        assert (window.pixels[:, ~window.valid] == 0).all() and 0.4 < window.valid.mean() < 0.62
    assert not read_window(path, resolution=5.0, resampling="nearest").valid[60:62, 60:62].any()


def test_collar_counts_only_where_all_bands_have_it(tmp_path: Path) -> None:
    pixels = np.full((3, 80, 80), 500, np.uint16)
    pixels[:, :, :33] = 0
    pixels[0, 60:70, 60:70] = 0
    path = write(tmp_path / "a.tif", pixels)
    window = read_window(path, resolution=20, resampling="bilinear")
    assert not window.valid[:, :16].any() and window.valid[:, 18:].all()
    assert set(np.unique(window.pixels[1:, window.valid])) == {500} and (window.pixels[0, 31:34, 31:34] == 0).all()
    assert read_window(path, resolution=20, collar=False).valid.all()


def test_nan_alpha_and_internal_mask_survive(tmp_path: Path) -> None:
    left = np.arange(40) < 20
    nan = np.full((1, 40, 40), 7, np.float32)
    nan[:, :, left] = np.nan
    alpha = np.full((4, 40, 40), 7, np.uint8)
    alpha[3] = np.where(left, 0, 255)
    mask = np.tile(np.where(left, 0, 255).astype(np.uint8), (40, 1))
    kinds = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    paths = [
        write(tmp_path / "nan.tif", nan),
        write(tmp_path / "declared.tif", nan, nodata=np.nan),
        write(tmp_path / "alpha.tif", alpha, colorinterp=kinds),
        write(tmp_path / "mask.tif", np.full((3, 40, 40), 7, np.uint8), mask=mask),
    ]
    for path in paths:
        for target in ({"resolution": 5.0}, {"resolution": 20.0}):
            window = read_window(path, **target)
            half = window.valid.shape[1] // 2
            assert not window.valid[:, : half - 1].any() and window.valid[:, half + 1 :].all(), path.name
            assert (window.pixels[:, window.valid] == 7).all() and (window.pixels[:, ~window.valid] == 0).all()
            assert window.pixels.shape[0] == describe_raster(path).count


@pytest.mark.parametrize("target", [{"resolution": 20.0}, {"resolution": 5.0}, {"crs": "EPSG:32634"}])
def test_nan_nodata_of_several_bands_is_one_value(tmp_path: Path, target: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).random((2, 96, 96)).astype(np.float32)
    pixels[:, :24] = np.nan
    window = read_window(write(tmp_path / "a.tif", pixels, nodata=np.nan), **target)
    assert window.valid.mean() == pytest.approx(0.75, abs=0.03 if "resolution" in target else 0.2)
    assert np.isfinite(window.pixels).all() and window.pixels[:, window.valid].min() >= 0


def test_a_mask_beside_a_declared_nodata_counts_as_well(tmp_path: Path) -> None:
    pixels = ramp(2, 40, 40)
    pixels[:, :10] = 0
    mask = np.full((40, 40), 255, np.uint8)
    mask[:, :10] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0, mask=mask)
    assert describe_raster(path).mask == "internal"
    expected = np.zeros((40, 40), np.bool_)
    expected[10:, 10:] = True
    assert (read_window(path).valid == expected).all()
    for target in ({"resolution": 20.0}, {"resolution": 5.0}):
        window = read_window(path, **target)
        step = 40 / window.valid.shape[0]
        edge = round(10 / step)
        assert not window.valid[: edge - 1].any() and not window.valid[:, : edge - 1].any()
        assert window.valid[edge + 1 :, edge + 1 :].all() and (window.pixels[:, window.valid] > 0).all()


def test_nan_as_nodata_of_the_caller_makes_one_view(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 40, 40, "float32"))
    for _ in range(3):
        read_window(path, resolution=20.0, nodata=float("nan"))
    with borrow(path) as handle:
        assert len(handle.views) == 1


def test_nodata_that_differs_between_bands_is_masked_but_not_resampled(tmp_path: Path) -> None:
    pixels = ramp(2, 20, 20)
    path = write(tmp_path / "a.tif", pixels)
    bands = "".join(
        f'<PAMRasterBand band="{i}"><NoDataValue>{v}</NoDataValue></PAMRasterBand>' for i, v in ((1, 3), (2, 1002))
    )
    path.with_name("a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    assert np.argwhere(~read_window(path).valid).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ImageError, match="another nodata value for each band"):
        read_window(path, resolution=20)


def test_overviews_are_read_when_the_target_is_coarser(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.full((1, 256, 256), 100, np.uint16), tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    # What stands in the overview tells that it was read.
    with rasterio.open(path, "r+", overview_level=1) as overview:
        overview.write(np.full((1, 64, 64), 444, np.uint16))
    close_all()
    assert (read_window(path).pixels == 100).all()
    assert (read_window(path, resolution=20).pixels == 100).all()
    assert (read_window(path, resolution=40).pixels == 444).all()
    assert (read_window(path, resolution=60).pixels == 444).all()
    assert (read_window(path, resolution=80).pixels == 100).all()


def test_nodata_of_an_overview_that_is_the_target_itself(tmp_path: Path) -> None:
    pixels = np.full((2, 64, 64), 500, np.int16)
    pixels[:, :, :32] = -9999
    path = write(tmp_path / "a.tif", pixels, nodata=-9999, overviews=(2,))
    window = read_window(path, resolution=20)
    assert not window.valid[:, :16].any() and window.valid[:, 16:].all() and (window.pixels[:, :, 16:] == 500).all()


def test_antimeridian(tmp_path: Path) -> None:
    # Fiji: UTM zone 60 south reaches over 180 degrees.
    grid = Affine(100, 0, 814_000, 0, -100, 8_090_000)
    path = write(tmp_path / "utm.tif", scene_with_square(), crs="EPSG:32760", transform=grid)
    corners = transform("EPSG:32760", "EPSG:4326", [814_000, 824_000], [8_090_000, 8_082_000])[0]
    assert corners[0] > 179.8 and corners[1] < -179.9  # it does cross
    where = [value[0] for value in transform("EPSG:32760", "EPSG:4326", *[[v] for v in grid @ (45, 30)])]
    degrees = read_window(path, crs="EPSG:4326")
    info = describe_raster(path, crs="EPSG:4326")
    assert 179.8 < info.bounds.left < 180 < info.bounds.right < 180.1  # goes on beyond 180
    assert degrees.pixels.shape[2] < 150 and degrees.valid.mean() > 0.9
    assert metres_apart(centre_of_square(degrees), (where[0], where[1])) < 50
    # And back, from a grid in degrees that goes on beyond 180.
    back = write(tmp_path / "degrees.tif", degrees.pixels, crs="EPSG:4326", transform=degrees.transform, nodata=0)
    assert (
        metres_apart(centre_of_square(read_window(back, crs="EPSG:32760", resolution=100)), (where[0], where[1])) < 80
    )
    assert metres_apart(centre_of_square(read_window(back, resolution=200)), (where[0], where[1])) < 100


def test_pole_has_no_grid_in_degrees(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", ramp(1, 20, 20), crs="EPSG:3413", transform=Affine(1000, 0, -10_000, 0, -1000, 10_000)
    )
    with pytest.raises(ImageError, match="covers a pole"):
        read_window(path, crs="EPSG:4326")
    assert read_window(path, resolution=2000).valid.mean() > 0.8


@pytest.mark.parametrize(
    ("target", "problem"),
    [({"crs": "EPSG:999999"}, "no coordinate reference system"), ({"crs": "mars"}, "no coordinate reference system"),
     ({"resolution": 0.0}, "above 0"), ({"resolution": -3.0}, "above 0"), ({"resolution": float("nan")}, "above 0")],
)  # fmt: skip
def test_impossible_targets_are_configuration_errors(tmp_path: Path, target: dict[str, object], problem: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    with pytest.raises(ConfigError, match=problem):
        read_window(path, **target)  # type: ignore[arg-type]


def test_target_far_from_the_scene_or_too_fine_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    with pytest.raises(ImageError, match="does not lie within"):
        read_window(path, crs="+proj=gnom +lat_0=-47 +lon_0=-165")  # shows the other side of the earth
    with pytest.raises(ImageError, match="pixels"):
        read_window(path, resolution=1e-9)


def test_label_raster_of_another_crs_keeps_its_classes(shared: Path) -> None:
    path = shared / "data" / "rasters" / "landsat7_landcover.tif"
    stored = read_window(path, collar=False)
    classes = set(np.unique(stored.pixels[0, stored.valid]))
    moved = read_window(path, crs="EPSG:32617", resolution=60, resampling="mode", collar=False)
    assert set(np.unique(moved.pixels[0, moved.valid])) <= classes and len(classes) == 7
    assert moved.crs == CRS.from_epsg(32617)


def test_landsat8_on_other_grids(shared: Path) -> None:
    path = shared / "data" / "rasters" / "landsat8_224078_bgr.tif"
    full = read_window(path)
    mean = full.pixels[:, full.valid].astype(np.float64).mean(axis=1)
    for target in ({"resolution": 120.0}, {"crs": "EPSG:4326", "resolution": 120.0}):
        window = read_window(path, **target)
        np.testing.assert_allclose(window.pixels[:, window.valid].astype(np.float64).mean(axis=1), mean, rtol=0.002)
        area = abs(window.transform.a * window.transform.e) * window.valid.sum()
        if window.crs == full.crs:
            assert area == pytest.approx(900 * full.valid.sum(), rel=0.005)
