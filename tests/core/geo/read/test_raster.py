"""Windows on the file's own grid: values, names, edges, and which pixels are data."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from tests.core.geo.rasters import NORTH_UP, UTM, ramp, write
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.raster import describe_raster, read_window


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_pixels_keep_their_numbers(tmp_path: Path, dtype: str) -> None:
    pixels = ramp(3, 40, 50, dtype)
    if dtype == "int16":
        pixels[:, 3, 4] = -7
    path = write(tmp_path / "a.tif", pixels, names=("blue", "green", "red"))
    window = read_window(path, (5, 7, 20, 10))
    assert window.pixels.dtype == np.float32 and window.valid.all()
    assert (window.pixels == pixels[:, 7:17, 5:25]).all()
    assert window.bands == ("blue", "green", "red")
    assert window.transform == NORTH_UP @ Affine.translation(5, 7)
    assert window.crs == rasterio.crs.CRS.from_user_input(UTM)
    assert (read_window(path).pixels == pixels).all()


def test_description_of_a_plain_raster(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(2, 40, 50), names=("red", "nir"), overviews=(2,))
    info = describe_raster(path)
    assert (info.width, info.height, info.count, info.dtype) == (50, 40, 2, "uint16")
    assert info.bands == ("red", "nir") and info.mask == "none" and info.nodata is None
    assert tuple(info.bounds) == (500_000, 5_199_600, 500_500, 5_200_000)
    assert info.resolution == pytest.approx((10, 10), rel=1e-3)
    assert info.georeference == "transform" and info.overviews == (2,) and info.undeclared_collar is None


def test_bands_by_name_and_by_number(tmp_path: Path) -> None:
    pixels = ramp(3, 20, 20)
    path = write(tmp_path / "a.tif", pixels, names=("blue", "green", "red"))
    by_name = read_window(path, bands=["red", "blue"])
    assert (by_name.pixels == pixels[[2, 0]]).all() and by_name.bands == ("red", "blue")
    assert (read_window(path, bands=[3, 1]).pixels == pixels[[2, 0]]).all()
    with pytest.raises(ImageError, match="no band 'nir'.*1: blue.*2: green.*3: red"):
        read_window(path, bands=["nir"])
    with pytest.raises(ImageError, match="no band 4"):
        read_window(path, bands=[4])


def test_window_over_the_edges_is_padded_and_invalid(tmp_path: Path) -> None:
    pixels = ramp(2, 30, 40)
    path = write(tmp_path / "a.tif", pixels)
    window = read_window(path, (-10, -5, 60, 50))
    expected = np.zeros((2, 50, 60))
    expected[:, 5:35, 10:50] = pixels
    assert (window.pixels == expected).all()
    assert (window.valid == (expected[0] > 0)).all()
    assert window.transform == NORTH_UP @ Affine.translation(-10, -5)
    outside = read_window(path, (100, 0, 8, 6))
    assert outside.pixels.shape == (2, 6, 8) and not outside.valid.any()
    with pytest.raises(ImageError, match="reaches over its edge"):
        read_window(path, (30, 0, 20, 20), boundless=False)


def test_empty_and_huge_windows_are_refused_before_a_read(tmp_path: Path) -> None:
    # Sparse: 40 GB of zeros that stand nowhere on the disk.
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=100_000, height=100_000, count=4, dtype="uint8", tiled=True,
        sparse_ok=True, crs=UTM, transform=NORTH_UP, nodata=0, photometric="minisblack",
    ):  # fmt: skip
        pass
    with pytest.raises(ImageError, match="100000 x 100000 x 4 values"):
        read_window(path)
    with pytest.raises(ImageError, match="allowed"):
        read_window(path, (0, 0, 60, 60), max_pixels=14_399)
    assert read_window(path, (0, 0, 60, 60), max_pixels=14_400).pixels.shape == (4, 60, 60)
    with pytest.raises(ImageError, match="without pixels"):
        read_window(path, (0, 0, 0, 10))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_blocks_that_cannot_be_decoded_in_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=40_000, height=40_000, count=1, dtype="uint8", tiled=True, blockxsize=40_000,
        blockysize=40_000, compress="deflate", sparse_ok=True,
    ):  # fmt: skip
        pass
    with pytest.raises(ImageError, match=r"blocks of 1\.5 GiB"):
        read_window(path, (0, 0, 8, 8))


def test_declared_nodata_of_any_band_is_masked(tmp_path: Path) -> None:
    pixels = ramp(2, 20, 20, "int16")
    pixels[:, 0:5] = -9999
    pixels[1, 10, 10] = -9999
    path = write(tmp_path / "a.tif", pixels, nodata=-9999)
    window = read_window(path)
    assert not window.valid[:5].any() and not window.valid[10, 10] and window.valid.sum() == 20 * 15 - 1
    assert (window.pixels[:, ~window.valid] == 0).all()
    assert describe_raster(path).mask == "nodata" and describe_raster(path).nodata == -9999


def test_nodata_of_the_caller_replaces_the_declared_one(tmp_path: Path) -> None:
    pixels = ramp(1, 20, 20)
    pixels[0, 0, :3] = 5000
    pixels[0, 1, :3] = 6000
    path = write(tmp_path / "a.tif", pixels, nodata=5000)
    assert np.argwhere(~read_window(path).valid).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert np.argwhere(~read_window(path, nodata=6000).valid).tolist() == [[1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("float64", -1.7976931348623157e308),
        ("float32", -3.4e38),
        ("int32", -(2**31)),
        ("uint32", 2**32 - 1),
        ("int8", -128),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nodata_at_the_end_of_a_type(tmp_path: Path, dtype: str, nodata: float) -> None:
    pixels = np.full((2, 40, 40), 7, dtype)
    pixels[:, :, :20] = np.array(nodata).astype(dtype)
    path = write(tmp_path / "a.tif", pixels, nodata=nodata)
    for resolution, valid in ((None, 0.5), (20.0, 0.55), (5.0, 0.5125)):
        window = read_window(path, resolution=resolution)
        assert window.valid.mean() == valid and set(np.unique(window.pixels)) == {0, 7}


def test_nodata_that_the_type_cannot_hold_masks_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    path.with_name("a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>-99999</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    assert read_window(path).valid.all()


@pytest.mark.parametrize("nodata", [float("nan"), None, -99999.0, float(np.finfo(np.float32).min)])
def test_nan_and_infinity_are_never_data(tmp_path: Path, nodata: float | None) -> None:
    pixels = ramp(2, 20, 20, "float32")
    pixels[0, 3, 4] = np.nan
    pixels[1, 5, 6] = np.inf
    if nodata is not None:
        pixels[:, 7, 8] = nodata
    window = read_window(write(tmp_path / "a.tif", pixels, nodata=nodata))
    masked = [[3, 4], [5, 6]] + ([[7, 8]] if nodata is not None else [])
    assert np.argwhere(~window.valid).tolist() == masked
    assert np.isfinite(window.pixels).all() and (window.pixels[:, ~window.valid] == 0).all()


def test_alpha_is_a_mask_and_no_band(tmp_path: Path) -> None:
    pixels = ramp(4, 20, 20, "uint8")
    pixels[3] = 255
    pixels[3, :4] = 0
    path = write(
        tmp_path / "a.tif", pixels,
        colorinterp=(ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha),
    )  # fmt: skip
    window = read_window(path)
    assert window.pixels.shape[0] == 3 and window.bands == ("red", "green", "blue")
    assert not window.valid[:4].any() and window.valid[4:].all()
    assert (window.pixels[:, 4:] == pixels[:3, 4:]).all()
    assert describe_raster(path).mask == "alpha" and describe_raster(path).count == 3
    with pytest.raises(ImageError, match="no band 4.*declared as alpha but holds infrared"):
        read_window(path, bands=[1, 2, 3, 4])


def test_internal_mask(tmp_path: Path) -> None:
    pixels = ramp(3, 20, 20, "uint8")
    mask = np.full((20, 20), 255, np.uint8)
    mask[:, 15:] = 0
    path = write(tmp_path / "a.tif", pixels, mask=mask)
    window = read_window(path, (10, 0, 10, 20))
    assert describe_raster(path).mask == "internal"
    assert window.valid[:, :5].all() and not window.valid[:, 5:].any()
    assert (window.pixels[:, :, 5:] == 0).all()


def test_undeclared_collar_is_masked_and_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = ramp(3, 100, 120)
    row, column = np.indices((100, 120))
    pixels[:, row + column < 60] = 0
    pixels[0, 90, 90] = 0  # dark in one band is data
    path = write(tmp_path / "a.tif", pixels)
    with caplog.at_level(logging.WARNING):
        assert describe_raster(path).undeclared_collar == 0
        window = read_window(path)
        read_window(path, (0, 0, 10, 10))
    assert (window.valid == (row + column >= 60)).all()
    assert [record.message.count("declares no nodata") for record in caplog.records] == [1]
    assert read_window(path, collar=False).valid.all()


def test_dark_corner_that_varies_is_no_collar(tmp_path: Path) -> None:
    pixels = ramp(3, 100, 120)
    pixels[:, :30, :30] = 0
    pixels[2, 3, 3] = 1
    assert describe_raster(write(tmp_path / "a.tif", pixels)).undeclared_collar is None
    pixels[:, :30, :30] = 77  # constant, but no value that stands for nothing
    assert describe_raster(write(tmp_path / "b.tif", pixels)).undeclared_collar is None


def test_rotated_and_south_up_grids_are_read_as_stored(tmp_path: Path) -> None:
    pixels = ramp(1, 20, 30)
    rotated = Affine.translation(500_000, 5_200_000) @ Affine.rotation(30) @ Affine.scale(10, -10)
    for transform in (rotated, Affine(10, 0, 500_000, 0, 10, 5_000_000)):
        path = write(tmp_path / "a.tif", pixels, transform=transform)
        window = read_window(path, (4, 5, 6, 7))
        assert (window.pixels == pixels[:, 5:12, 4:10]).all()
        assert window.transform.almost_equals(transform @ Affine.translation(4, 5))
        info = describe_raster(path)
        assert info.resolution == pytest.approx((10, 10), rel=1e-3)
        corners = [transform @ corner for corner in ((0, 0), (30, 0), (0, 20), (30, 20))]
        assert info.bounds.top == pytest.approx(max(y for _, y in corners))
        assert info.bounds.left == pytest.approx(min(x for x, _ in corners))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_image_without_crs_is_read_but_not_resampled(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 30), crs=None, transform=None)
    window = read_window(path)
    assert window.crs is None and (window.pixels == ramp(1, 20, 30)).all()
    info = describe_raster(path)
    assert info.georeference == "none" and np.isnan(info.resolution).all()
    for target in ({"resolution": 20.0}, {"crs": UTM}):
        with pytest.raises(ImageError, match="no coordinate reference system"):
            read_window(path, **target)


@pytest.mark.parametrize(
    ("crs", "transform", "problem"),
    [
        ("EPSG:4326", NORTH_UP, "are no degrees"),
        (UTM, Affine(1e-4, 0, 15, 0, -1e-4, 47), "Are its coordinates degrees"),
        (UTM, Affine(10, 0, 9e9, 0, -10, 5_200_000), "outside its CRS"),
        (UTM, Affine(10, 0, 500_000, 0, 0, 5_200_000), "degenerate|to a line"),
    ],
)
def test_crs_that_cannot_be_is_an_error(tmp_path: Path, crs: str, transform: Affine, problem: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 30), crs=crs, transform=transform)
    for use in (describe_raster, read_window):
        with pytest.raises(ImageError, match=problem):
            use(path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_image_with_control_points_only_is_put_on_their_grid(tmp_path: Path) -> None:
    pixels = ramp(1, 40, 60)
    corners = [(0, 0), (0, 60), (40, 0), (40, 60), (20, 30)]
    points = [GroundControlPoint(row, column, *(NORTH_UP @ (column, row))) for row, column in corners]
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=60, height=40, count=1, dtype="uint16") as dataset:
        dataset.write(pixels)
        dataset.gcps = (points, rasterio.crs.CRS.from_user_input(UTM))
    info = describe_raster(path)
    assert info.georeference == "gcps" and info.crs == rasterio.crs.CRS.from_user_input(UTM)
    assert (info.width, info.height) == (60, 40)
    assert info.transform.almost_equals(NORTH_UP, 1e-3)
    window = read_window(path, resampling="nearest")
    assert window.valid.all() and (window.pixels == pixels).mean() > 0.99
    assert read_window(path, resolution=20).pixels.shape == (1, 20, 30)


def test_real_scenes(shared: Path) -> None:
    scenes = shared / "data" / "rasters"
    landsat8 = read_window(scenes / "landsat8_224078_bgr.tif")
    assert landsat8.pixels.shape == (3, 1860, 2041)
    assert 0.165 < 1 - landsat8.valid.mean() < 0.166  # its collar is 0 and not declared
    assert (landsat8.pixels[:, landsat8.valid].min(axis=1) > 5000).all()
    landsat7 = read_window(scenes / "landsat7_multiband.tif")
    assert landsat7.pixels.min() >= 0 and 0 < landsat7.valid.mean() < 1
    naip = describe_raster(scenes / "rgbn_5m.tif")
    assert (naip.count, naip.dtype, naip.mask, naip.undeclared_collar) == (4, "uint8", "none", None)
    assert naip.resolution == pytest.approx((5, 5), rel=2e-3)
