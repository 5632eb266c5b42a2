"""Bands matched by name, the 2022 offset, units, published numbers, and statistics of one's own data."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.core.geo.rasters import ramp, write
from vitdomains.core.errors import ConfigError, ImageError
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
    to_units,
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


@pytest.mark.parametrize(
    ("given", "offset"),
    [
        ({"baseline": "03.01"}, 0.0),
        ({"baseline": "04.00"}, -1000.0),
        ({"baseline": "N0510"}, -1000.0),
        ({"baseline": "harmonized", "name": "S2A_MSIL2A_20220725_N0400_R108.tif"}, 0.0),
        ({"tags": {"PROCESSING_BASELINE": "04.00"}}, -1000.0),
        ({"tags": {"PROCESSING_BASELINE": "02.14"}}, 0.0),
        ({"tags": {"BOA_ADD_OFFSET_B2": "-1000", "BOA_ADD_OFFSET_B3": "-1000"}}, -1000.0),
        ({"tags": {"RADIO_ADD_OFFSET": "-1000"}}, -1000.0),
        ({"tags": {"earthsearch:boa_offset_applied": "True", "PROCESSING_BASELINE": "04.00"}}, 0.0),
        ({"tags": {"PRODUCT_URI": "S2B_MSIL1C_20230101T101329_N0509_R022_T33UUP_20230101T120000.SAFE"}}, -1000.0),
        ({"name": "S2A_MSIL2A_20210725T101031_N0301_R022.tif"}, 0.0),
        ({"name": "scene.tif", "tags": {"AREA_OR_POINT": "Area"}}, None),
    ],
)
def test_offset_of_2022_by_baseline_tag_or_name(given: dict[str, object], offset: float | None) -> None:
    assert add_offset(**given) == offset  # type: ignore[arg-type]


def test_offsets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="'winter' is no processing baseline"):
        add_offset("winter")
    with pytest.raises(ConfigError, match="different offsets"):
        add_offset(tags={"BOA_ADD_OFFSET_1": "-1000", "BOA_ADD_OFFSET_2": "0"})


def test_the_same_ground_has_the_same_reflectance_before_and_after_the_offset(tmp_path: Path) -> None:
    before = ramp(12, 24, 24)
    old = write(tmp_path / "S2A_MSIL2A_20210101_N0214_T33.tif", before)
    new = write(tmp_path / "S2A_MSIL2A_20230101_N0509_T33.tif", before + 1000)
    sensor = sensor_named("sentinel2_l2a")
    first, second = read_bands(old, sensor, ["red"]), read_bands(new, sensor, ["red"])
    np.testing.assert_allclose(first.pixels, before[3:4] * 1e-4, atol=1e-6)
    np.testing.assert_allclose(first.pixels, second.pixels, atol=1e-6)
    assert first.bands == ("B04",)


def test_unknown_baseline_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_warned", set())
    path = write(tmp_path / "a.tif", ramp(12, 24, 24))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_bands(path, sensor_named("sentinel2_l2a"), ["red"])
    assert [record.message.count("processing baseline") for record in caplog.records] == [1]


def test_units() -> None:
    stored = np.array([[[0.0, 10_000, 43_636]]], np.float32)
    np.testing.assert_allclose(to_units(stored, sensor_named("landsat8_l2")), [[[-0.2, 0.075, 0.99999]]], atol=1e-5)
    np.testing.assert_allclose(to_units(stored, sensor_named("landsat8_l1")), [[[-0.1, 0.1, 0.77272]]], atol=1e-5)
    np.testing.assert_allclose(
        to_units(stored, sensor_named("sentinel2_l2a"), -1000.0), [[[-0.1, 0.9, 4.2636]]], atol=1e-5
    )
    assert to_units(np.full((3, 1, 1), 255, np.float32), sensor_named("rgb")).max() == pytest.approx(1.0)


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
