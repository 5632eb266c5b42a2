"""Bands matched by name, the 2022 offset, units, published numbers, and statistics of one's own data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from tests.core.geo.rasters import ramp, write
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.metadata import PixelMetadata, from_options, known_of
from vitdomains.core.geo.read.raster import close_all, describe_raster
from vitdomains.satellite import DOMAIN, sensors
from vitdomains.satellite.data import statistics
from vitdomains.satellite.data.statistics import band_statistics, statistics_command
from vitdomains.satellite.sensors import (
    SENSORS,
    add_offset,
    band_named,
    match_bands,
    published_statistics,
    read_bands,
    sensor_named,
)


def test_every_sensor_is_consistent() -> None:
    assert {"sentinel2_l1c", "sentinel2_l2a", "sentinel1_grd", "naip", "rgb"} <= set(SENSORS)
    assert {f"landsat{number}_l{level}" for number in (5, 7, 8, 9) for level in (1, 2)} <= set(SENSORS)
    for name, sensor in SENSORS.items():
        keys = [key for band in sensor.bands for key in sensors._keys(band)]
        assert len(keys) == len(set(keys)), f"{name}: an alias names two bands"
        assert sensor.scale > 0 and sensor.source
        if sensor.statistics:
            assert set(sensor.statistics.mean) == set(sensor.statistics.std) == {band.name for band in sensor.bands}
            assert min(sensor.statistics.std.values()) > 0 and sensor.statistics.source


def test_unknown_sensor_and_band_are_listed() -> None:
    assert sensor_named("Sentinel2-L2A").name == "sentinel2_l2a"
    with pytest.raises(ConfigError, match=r"'sentinel9' is not known.*sentinel2_l1c.*naip"):
        sensor_named("sentinel9")
    with pytest.raises(ConfigError, match=r"no band 'B10'.*B01 B1, B02 B2"):
        band_named(sensor_named("sentinel2_l2a"), "B10")


@pytest.mark.parametrize(
    ("found", "wanted", "numbers"),
    [
        (["B02", "B03", "B04", "B08"], ["red", "green", "blue"], (3, 2, 1)),
        (["blue", "green", "red", "nir"], ["B08", "B04"], (4, 3)),
        (["B2, central wavelength 490 nm", "B8A, central wavelength 865 nm"], ["B8A"], (2,)),
        (["T33UUP_20220801_B04_10m", "T33UUP_20220801_B8A_20m"], ["B8A", "B04"], (2, 1)),
        (13, ["B8A", "B09", "B10"], (9, 10, 11)),
        (3, ["B04=1", "B03=2", "B02=3"], (1, 2, 3)),
        (13, [], tuple(range(1, 14))),
    ],
)
def test_bands_are_matched_by_name_or_by_the_sensors_order(
    found: list[str] | int, wanted: list[str], numbers: tuple[int, ...]
) -> None:
    assert match_bands(found, sensor_named("sentinel2_l1c"), wanted) == numbers


def test_eurosat_keeps_its_own_order() -> None:
    assert match_bands(13, sensor_named("eurosat"), ["B8A", "B09"]) == (13, 9)


@pytest.mark.parametrize("found", [["B02", "B03"], 3, ["B04", "red"]])
def test_bands_that_cannot_be_matched_are_an_error_that_lists_the_files(found: list[str] | int) -> None:
    shown = r"3 without names" if found == 3 else ".*".join(found)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=rf"scene.tif: has (no band|2 bands) red of Sentinel-2 L1C.*{shown}.*B04=1"):
        match_bands(found, sensor_named("sentinel2_l1c"), ["red"], path="scene.tif")


def test_number_beyond_the_files_bands_is_an_error() -> None:
    with pytest.raises(ImageError, match="no band B04=4"):
        match_bands(3, sensor_named("sentinel2_l1c"), ["B04=4"])


def test_an_alpha_band_between_others_is_counted_as_gdal_does(tmp_path: Path) -> None:
    """(red, alpha, green, blue): a position among the others would read green as blue."""
    kinds = (ColorInterp.red, ColorInterp.alpha, ColorInterp.green, ColorInterp.blue)
    pixels = np.full((4, 8, 8), 255, np.uint8)
    pixels[[0, 2, 3]] = np.array([51, 102, 204], np.uint8)[:, None, None]
    path = write(tmp_path / "a.tif", pixels, colorinterp=kinds)
    found = read_bands(path, sensor_named("rgb"), ["blue", "red", "green"])
    np.testing.assert_allclose(found.pixels[:, 0, 0], [0.8, 0.2, 0.4], atol=1e-6)
    assert read_bands(path, sensor_named("rgb"), ["blue=4", "green=3"]).pixels[:, 0, 0] == pytest.approx([0.8, 0.4])
    with pytest.raises(ImageError, match="no band red=2"):
        read_bands(path, sensor_named("rgb"), ["red=2"])


@pytest.mark.parametrize(
    ("said", "tags", "name", "offset"),
    [
        ({"baseline": "03.01"}, {}, "a.tif", 0.0),
        ({"baseline": "N0510"}, {}, "a.tif", -1000.0),
        ({"baseline": "harmonized"}, {}, "S2A_MSIL2A_20220725T1_N0400_R108.tif", 0.0),
        ({"baseline": "harmonized"}, {"BOA_ADD_OFFSET": "-1000"}, "a.tif", 0.0),
        ({}, {"PROCESSING_BASELINE": "04.00"}, "a.tif", -1000.0),
        ({}, {"PROCESSING_BASELINE": "02.14"}, "S2A_MSIL2A_20220725T1_N0400_R108.tif", 0.0),
        ({}, {"BOA_ADD_OFFSET_B2": "-1000", "BOA_ADD_OFFSET_B3": "-1000"}, "a.tif", -1000.0),
        ({}, {"RADIO_ADD_OFFSET": "-1000"}, "a.tif", -1000.0),
        ({}, {"earthsearch:boa_offset_applied": "True", "PROCESSING_BASELINE": "04.00"}, "a.tif", 0.0),
        ({}, {"PRODUCT_URI": "S2B_MSIL1C_20230101T101329_N0509_R022_T33UUP_20230101T120000.SAFE"}, "a.tif", -1000.0),
        ({}, {}, "S2A_MSIL2A_20210725T101031_N0301_R022.tif", 0.0),
        ({}, {}, "S2B_MSIL2A_20230821T221941_N0509_R029_T33TWN_20230822T021825.SAFE/G/B04.jp2", -1000.0),
        ({}, {}, "S2A_MSIL2A_20210725T101031_N0301_R022/x_N0509_y/B04.tif", -1000.0),
        ({}, {"AREA_OR_POINT": "Area"}, "scene.tif", None),
        ({}, {}, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57.tif", None),
    ],
)
def test_the_offset_of_2022_by_option_tag_and_name(
    tmp_path: Path, said: dict[str, str], tags: dict[str, str], name: str, offset: float | None
) -> None:
    info = replace(describe_raster(write(tmp_path / "a.tif", ramp(1, 8, 8))), tags=tags, path=f"/data/{name}")
    assert add_offset(known_of(info, from_options(**said))) == offset


def test_offsets_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'winter' is no processing baseline"):
        from_options(baseline="winter")
    info = describe_raster(write(tmp_path / "a.tif", ramp(1, 8, 8)))
    with pytest.raises(ConfigError, match="different offsets"):
        known_of(replace(info, tags={"BOA_ADD_OFFSET_1": "-1000", "BOA_ADD_OFFSET_2": "0"}))


def test_the_same_ground_has_the_same_reflectance_before_and_after_the_offset(tmp_path: Path) -> None:
    before = ramp(12, 24, 24)
    old = write(tmp_path / "S2A_MSIL2A_20210101_N0214_T33.tif", before)
    new = write(tmp_path / "S2A_MSIL2A_20230101_N0509_T33.tif", before + 1000)
    sensor = sensor_named("sentinel2_l2a")
    first, second = read_bands(old, sensor, ["red"]), read_bands(new, sensor, ["red"])
    np.testing.assert_allclose(first.pixels, before[3:4] * 1e-4, atol=1e-6)
    np.testing.assert_allclose(first.pixels, second.pixels, atol=1e-6)
    assert first.bands == ("B04",)


def test_an_unknown_baseline_is_refused_with_the_key_that_settles_it(tmp_path: Path) -> None:
    path, sensor = write(tmp_path / "a.tif", ramp(12, 24, 24)), sensor_named("sentinel2_l2a")
    with pytest.raises(ImageError, match=r"a\.tif: does not say its processing baseline.*--baseline or data\.baseline"):
        read_bands(path, sensor, ["red"])
    old, new = (read_bands(path, sensor, ["red"], known=PixelMetadata(baseline=b)).pixels for b in ("02.14", "05.09"))
    np.testing.assert_allclose(old - new, 0.1, atol=1e-6)
    assert (read_bands(path, sensor, ["red"], otherwise=PixelMetadata(baseline="05.09")).pixels == new).all()
    named = write(tmp_path / "S2A_MSIL2A_20210101T101031_N0214_T33.tif", ramp(12, 24, 24))
    assert (read_bands(named, sensor, ["red"], otherwise=PixelMetadata(baseline="05.09")).pixels == old).all()


@pytest.mark.parametrize(
    ("sensor", "dtype", "value", "profile", "found"),
    [
        # integers: the sensor's scale and offset
        ("landsat8_l2", "uint16", 10_000, {}, 0.075),
        ("landsat8_l1", "uint16", 10_000, {}, 0.1),
        ("sentinel2_l2a", "uint16", 3000, {"tags": {"PROCESSING_BASELINE": "05.09"}}, 0.2),
        ("rgb", "uint8", 204, {}, 0.8),
        # floating point: physical or stored by its range
        ("sentinel2_l2a", "float32", 0.25, {}, 0.25),
        ("landsat8_l2", "float32", 0.25, {}, 0.25),
        ("landsat8_l2", "float32", 10_000, {}, 0.075),
        ("sentinel2_l2a", "float64", 3000, {"tags": {"PROCESSING_BASELINE": "02.09"}}, 0.3),
        ("rgb", "float32", 0.5, {}, 0.5),
        ("rgb", "float32", 51, {}, 0.2),
        ("sentinel1_grd", "float32", -12.5, {}, -12.5),
        # what the file declares
        ("sentinel2_l2a", "uint16", 3000, {"scale": 1e-4, "offset": -0.1}, 0.2),
        ("sentinel2_l2a", "uint16", 3000, {"scale": 1e-4, "tags": {"PROCESSING_BASELINE": "05.09"}}, 0.2),
        ("landsat8_l1", "uint16", 10_000, {"scale": 2.75e-5, "offset": -0.2}, 0.075),
        ("sentinel1_grd", "int16", -1250, {"scale": 0.01}, -12.5),
        ("sentinel2_l2a", "float32", 10.0, {"tags": {"PIXEL_UNITS": "physical"}}, 10.0),
        # in doubt
        ("sentinel2_l2a", "float32", 14.0, {}, None),
        ("landsat7_l2", "float32", 250.0, {}, None),
        ("sentinel2_l2a", "uint8", 90, {}, None),
        ("sentinel1_grd", "uint16", 300, {}, None),
        ("sentinel1_grd", "float32", 0.04, {}, None),
    ],
)  # fmt: skip
def test_units_by_type_tags_and_range(
    tmp_path: Path, sensor: str, dtype: str, value: float, profile: dict[str, Any], found: float | None
) -> None:
    chosen = sensor_named(sensor)
    path = write(tmp_path / "a.tif", np.full((1, 20, 20), value, dtype))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (profile.get("scale", 1.0),), (profile.get("offset", 0.0),)
        file.update_tags(**profile.get("tags", {}))
    close_all()
    wanted = [f"{chosen.bands[0].name}=1"]
    if found is None:
        with pytest.raises(ImageError, match=r"a\.tif: holds .* or stored numbers of it.*data\.units"):
            read_bands(path, chosen, wanted)
        settled = {units: read_bands(path, chosen, wanted, known=PixelMetadata(units=units, baseline="02.00"))
                   for units in ("stored", "physical")}  # fmt: skip
        assert settled["physical"].pixels[0, 0, 0] == np.float32(value)
        assert settled["stored"].pixels[0, 0, 0] == pytest.approx(value * chosen.scale + chosen.offset)
    else:
        assert read_bands(path, chosen, wanted).pixels[0, 9, 9] == pytest.approx(found, abs=1e-6)


def test_published_statistics_are_in_the_sensors_unit_and_order() -> None:
    mean, std, source = published_statistics(sensor_named("sentinel2_l1c"), ["red", "B02"])
    assert mean == pytest.approx((0.136352445545, 0.139078157673))
    assert std == pytest.approx((0.113884957046, 0.085034818441))
    assert "SSL4EO" in source
    assert published_statistics(sensor_named("rgb"))[0] == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match=r"Landsat 8 OLI level 2.*statistics FILES --sensor landsat8_l2"):
        published_statistics(sensor_named("landsat8_l2"))


def test_statistics_agree_with_numpy_over_valid_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", 32)
    rng = np.random.default_rng(3)
    tiles = [rng.integers(1, 60_000, (2, 70, 90)).astype(np.uint16), rng.integers(1, 90, (2, 33, 20)).astype(np.uint16)]
    tiles[0][:, :10] = 0
    paths = [write(tmp_path / f"{i}.tif", tile, nodata=0, names=("VV", "VH")) for i, tile in enumerate(tiles)]
    seen = []
    found = band_statistics(paths, on_progress=lambda *words: seen.append(words[1:3]))
    values = np.concatenate([tiles[0][:, 10:].reshape(2, -1), tiles[1].reshape(2, -1)], axis=1).astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=1), rtol=1e-12)
    assert (found.bands, found.files, found.pixels, found.invalid) == (("VV", "VH"), 2, values.shape[1], 900)
    assert seen == [(1, 2), (2, 2)]


def test_statistics_of_a_constant_band_or_of_nothing_are_refused(tmp_path: Path) -> None:
    pixels = ramp(2, 20, 20)
    pixels[1] = 7
    with pytest.raises(ConfigError, match="without any variation: dark"):
        band_statistics([write(tmp_path / "a.tif", pixels, names=("light", "dark"))])
    with pytest.raises(ConfigError, match="no valid pixel in 1 files"):
        band_statistics([write(tmp_path / "b.tif", np.zeros((1, 9, 9), np.uint8), nodata=0)])
    with pytest.raises(ImageError, match="1 bands, and the files before it 2"):
        band_statistics([tmp_path / "a.tif", write(tmp_path / "c.tif", ramp(1, 20, 20))])


def test_command_measures_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = ramp(3, 20, 20, "uint8")
    (tmp_path / "tiles").mkdir()
    write(tmp_path / "tiles" / "a.tif", pixels, names=("red", "green", "blue"))
    out = tmp_path / "found.json"
    status = statistics_command(
        DOMAIN, [str(tmp_path / "tiles"), "--sensor", "rgb", "--bands", "blue,red", "--out", str(out)]
    )
    found = json.loads(out.read_text())
    assert status == 0 and found["bands"] == ["blue", "red"]
    np.testing.assert_allclose(found["mean"], (pixels[[2, 0]] / 255).mean(axis=(1, 2)), rtol=1e-6)
    assert "--data.mean" in capsys.readouterr().out


def test_reflectance_of_a_real_scene(shared: Path) -> None:
    path = shared / "data" / "rasters" / "landsat8_224078_bgr.tif"
    sensor = sensor_named("landsat8_l1")
    with pytest.raises(ImageError, match="3 without names"):
        read_bands(path, sensor, ["red", "green", "blue"])
    window = read_bands(path, sensor, ["red=3", "green=2", "blue=1"], (900, 900, 300, 300))
    assert window.bands == ("B4", "B3", "B2") and window.valid.all()
    assert ((window.pixels > 0) & (window.pixels < 1)).all()  # reflectance, of clear land a few per cent
    assert 0.01 < window.pixels[0].mean() < window.pixels[2].mean() < 0.2  # haze brightens the blue
    found = band_statistics([path], sensor, ["red=3", "green=2", "blue=1"])
    assert found.invalid / (found.invalid + found.pixels) == pytest.approx(0.16517, abs=1e-4)
