"""Pixels as the model takes them: bands by name, in the sensor's unit, with the mean where there is no data."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp

from tests.satellite.tile_files import write_picture, write_raster
from vitdomains.core.config.schema import Config, Data, Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import make_manifest
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.domain import domain_reader
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read import pixels as pixels_module
from vitdomains.core.pipeline import preprocess_spec
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.data.reader import read_image, read_pixels, reader, window_reader
from vitdomains.satellite.sensors import sensor_named
from vitdomains.zeroshot.embeddings.reader import read_image as zeroshot_read_image
from vitdomains.zeroshot.embeddings.reader import read_pixels as zeroshot_read_pixels

EUROSAT = tuple(band.name for band in sensor_named("eurosat").bands)


def spec(channels: int, **data: object) -> PreprocessSpec:
    config = Config(data=Data(image_size=8, **data), model=Model(channels=channels))  # type: ignore[arg-type]
    return preprocess_spec(config, DOMAIN)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_picture_comes_as_rgb(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "tif":
        write_raster(path, np.full((3, 16, 16), 9, np.uint8) * np.array([20, 3, 6], np.uint8)[:, None, None], crs=None)
    else:
        write_picture(path, (180, 27, 54))
    image = reader(spec(3))(path)
    assert image.dtype == np.uint8 and image.shape == (16, 16, 3)
    assert image[8, 8].tolist() == pytest.approx([180, 27, 54], abs=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_photograph_is_read_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    """As Pillow turns it; a file is told by its content, whatever its ending says."""
    rng = np.random.default_rng(orientation)
    picture = Image.fromarray(rng.integers(0, 255, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1))
    exif = picture.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    picture.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    with Image.open(path) as file:
        upright = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    renamed = tmp_path / "b.tif"
    renamed.write_bytes(path.read_bytes())
    for read in (reader(spec(3)), zeroshot_read_image):
        for file in (path, renamed):
            found = read(file)
            assert found.shape == upright.shape
            assert np.abs(found.astype(int) - upright).max() <= (3 if ending == "jpg" else 0)


def test_a_palette_is_read_as_its_colours(tmp_path: Path) -> None:
    colours = {0: (9, 9, 9, 255), 1: (200, 30, 60, 255), 2: (10, 220, 40, 255)}
    index = np.tile(np.array([[1, 2], [2, 1]], np.uint8), (8, 8))
    index[:4] = 0
    path = tmp_path / "palette.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=16, width=16, dtype="uint8", photometric="palette", nodata=0, crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
    ) as file:  # fmt: skip
        file.write(index, 1)
        file.write_colormap(1, colours)
    pixels, valid = read_pixels(path, None, replace(spec(3), mean=(0.2, 0.4, 0.6)))
    assert (pixels[index == 1] == (200, 30, 60)).all() and (pixels[index == 2] == (10, 220, 40)).all()
    assert (valid == (index > 0)).all() and (pixels[index == 0] == (51, 102, 153)).all()
    assert (zeroshot_read_pixels(path, None)[0][index > 0] == pixels[index > 0]).all()
    for asked in (spec(1, bands=["1"], mean=[0.0], std=[1.0]), spec(1, sensor="rgb", bands=["red=1"])):
        with pytest.raises(ImageError, match="palette.*-expand rgb"):
            reader(asked)(path)


def test_pictures_that_are_too_large_or_hide_another_format_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_picture(path, size=40)
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 1599)
    with pytest.raises(ImageError, match="has 40 x 40 pixels"):
        reader(spec(3))(path)
    hidden = tmp_path / "b.png"
    hidden.write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 64)  # JPEG 2000: never OpenCV's decoder
    with pytest.raises(ImageError, match=r"b\.png"):
        reader(spec(3))(hidden)


def test_named_bands_beside_an_alpha_band(tmp_path: Path) -> None:
    kinds = (ColorInterp.red, ColorInterp.alpha, ColorInterp.green, ColorInterp.blue)
    pixels = np.full((4, 8, 8), 255, np.uint8)
    pixels[[0, 2, 3]] = np.array([10, 20, 30], np.uint8)[:, None, None]
    path = write_raster(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = kinds
    for bands in (["blue", "green", "red"], ["4", "3", "1"], ["b=4", "g=3", "r=1"]):
        asked = spec(3, bands=bands, mean=[0.0] * 3, std=[1.0] * 3)
        assert (
            reader(asked)(path)[0, 0].tolist()
            == zeroshot_read_pixels(path, None, asked)[0][0, 0].tolist()
            == [30, 20, 10]
        )


def test_eurosat_bands_are_found_in_their_own_order(tmp_path: Path) -> None:
    """Its files carry no names and hold B8A last."""
    pixels = (np.arange(13, dtype=np.uint16)[:, None, None] + 1) * np.full((13, 8, 8), 100, np.uint16)
    path = write_raster(tmp_path / "Forest_1.tif", pixels)
    wanted = spec(4, sensor="eurosat", bands=["B8A", "B04", "B03", "B02"])
    image = reader(wanted)(path)
    assert image.dtype == np.float32
    assert image[0, 0].tolist() == pytest.approx([0.13, 0.04, 0.03, 0.02])
    assert wanted.storage == "float32" and wanted.bands == ("B8A", "B04", "B03", "B02")
    everything = spec(13, sensor="eurosat")
    assert everything.bands == EUROSAT
    assert reader(everything)(path)[0, 0].tolist() == pytest.approx([(i + 1) / 100 for i in range(13)])


def test_bands_by_name_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    pixels = np.stack([np.full((8, 8), v, np.uint16) for v in (300, 200, 100)])
    path = write_raster(tmp_path / "bgr.tif", pixels, bands=("blue", "green", "red"))
    image = reader(spec(2, sensor="sentinel2_l2a", baseline="02.14", bands=["B04", "B02"]))(path)
    assert image[0, 0].tolist() == pytest.approx([0.01, 0.03])


def test_bands_without_a_sensor_are_numbers_as_stored(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.stack([np.full((8, 8), v, np.float32) for v in (7, 8, 9)]))
    plain = spec(2, bands=["3", "1"], mean=[5.0, 5.0], std=[2.0, 2.0])
    image = reader(plain)(path)
    assert image[0, 0].tolist() == [9, 7]
    batch = normalise(__import__("torch").from_numpy(prepare(image, plain).transpose(2, 0, 1)[None].copy()), plain)
    assert batch[0, :, 0, 0].tolist() == [2.0, 1.0]
    with pytest.raises(ImageError, match=r"has no band '4' .*3 without names"):
        reader(spec(1, bands=["4"], mean=[0.0], std=[1.0]))(path)
    named = write_raster(tmp_path / "b.tif", np.ones((2, 8, 8), np.float32), bands=("vv", "vh"))
    with pytest.raises(ImageError, match=r"has no band 'hh' .*\['vv', 'vh'\]"):
        reader(spec(1, bands=["hh"], mean=[0.0], std=[1.0]))(named)


def test_bands_that_cannot_be_matched_are_listed(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "four.tif", np.ones((4, 8, 8), np.uint16))
    with pytest.raises(ImageError, match=r"has no band B04 of Sentinel-2 L2A .*4 without names"):
        reader(spec(1, sensor="sentinel2_l2a", bands=["B04"]))(path)


def test_a_raster_without_a_sensor_is_refused(tmp_path: Path) -> None:
    deep = write_raster(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint16))
    with pytest.raises(ImageError, match=r"is no picture of 8 bits \(dtype = 'uint16'\)"):
        reader(spec(3))(deep)
    four = write_raster(tmp_path / "b.tif", np.ones((4, 8, 8), np.uint8))
    with pytest.raises(ImageError, match="has 4 bands .*the model takes 3"):
        reader(spec(3))(four)


def test_missing_data_is_the_mean_which_the_model_sees_as_zero(tmp_path: Path) -> None:
    pixels = np.full((2, 8, 8), 4000, np.uint16)
    pixels[:, :4] = 65535
    path = write_raster(tmp_path / "a.tif", pixels, nodata=65535, bands=("B04", "B08"))
    s = spec(2, sensor="sentinel2_l2a", baseline="02.14", bands=["B04", "B08"])
    image, valid = read_pixels(path, None, s)
    assert valid.mean() == 0.5
    x = normalise(__import__("torch").from_numpy(prepare(image, s).transpose(2, 0, 1)[None].copy()), s)[0].numpy()
    assert np.abs(x[:, :3]).max() < 1e-5
    assert x[0, 7, 7] == pytest.approx((0.4 - s.mean[0]) / s.std[0], rel=1e-4)


def test_a_window_may_reach_over_the_edge(tmp_path: Path) -> None:
    pixels = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)
    path = write_raster(tmp_path / "a.tif", pixels)
    read = window_reader(replace(spec(3), mean=(0.2, 0.4, 0.6)))
    image, valid = read(str(path), (4, 4, 8, 8))
    assert valid.sum() == 16 and (image[:4, :4] == pixels[:, 4:, 4:].transpose(1, 2, 0)).all()
    assert image[7, 7].tolist() == [51, 102, 153]


def test_a_patch_with_a_file_a_band(tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    for band, side, value in (("B02", 12, 200), ("B04", 12, 400), ("B05", 6, 500), ("B01", 2, 100)):
        write_raster(tmp_path / f"{name}_{band}.tif", np.full((1, side, side), value, np.uint16), resolution=120 / side)
    s = spec(3, sensor="sentinel2_l2a", bands=["B04", "B05", "B01"])
    image = reader(s)(tmp_path / f"{name}_B02.tif")
    assert image.shape == (12, 12, 3)
    assert image[6, 6].tolist() == pytest.approx([0.04, 0.05, 0.01])
    assert reader(spec(1, sensor="sentinel2_l2a", bands=["B04"]))(tmp_path / f"{name}_B02.tif").mean() == pytest.approx(
        0.04
    )
    with pytest.raises(ImageError, match="B08.tif"):
        reader(spec(2, sensor="sentinel2_l2a", bands=["B04", "B08"]))(tmp_path / f"{name}_B02.tif")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut short"])
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_a_broken_file_is_one_typed_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name):
        read_image(tmp_path / name)
    with pytest.raises(ImageError, match="gone"):
        read_image(tmp_path / f"gone{name}")


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        ({"sensor": "sentinel3"}, 3, "'sentinel3' is not known"),
        ({"sensor": "sentinel2_l2a", "bands": ["B04", "B99"]}, 2, "has no band 'B99'"),
        ({"sensor": "sentinel2_l2a"}, 3, "12 bands .* for model.channels = 3"),
        ({"bands": ["1", "2"]}, 2, "the scale of the values is not known"),
        ({"sensor": "landsat7_l1", "bands": ["B1"]}, 1, "No mean and standard deviation were published"),
    ],
)
def test_what_cannot_be_normalised_is_refused(data: dict[str, object], channels: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(channels, **data)


def test_given_statistics_go_before_published_ones() -> None:
    s = spec(1, sensor="sentinel2_l2a", bands=["B04"], mean=[0.1], std=[0.05])
    assert (s.mean, s.std) == ((0.1,), (0.05,))


def test_the_reader_travels_and_the_cache_knows_the_bands(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint16), bands=("B04", "B08"))
    s = spec(2, sensor="sentinel2_l2a", baseline="02.14", bands=["B04", "B08"])
    again = pickle.loads(pickle.dumps(domain_reader(DOMAIN, s)))
    assert (again(path) == reader(s)(path)).all()
    assert PreprocessSpec.from_dict(s.to_dict()) == s
    m = make_manifest(["a"], [str(path)], ["a"], ("x",), [[1.0]])
    other = replace(s, bands=("B08", "B04"))
    newer = replace(s, baseline="05.09")
    prints = {ImageDataset(m, reader(one), one).fingerprint for one in (s, other, newer)}
    assert len(prints) == 3
