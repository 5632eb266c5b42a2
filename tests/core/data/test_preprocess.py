"""Sizes, geometry, rounding and normalisation of core/data/preprocess.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.data.preprocess import PreprocessSpec, geometry, normalise, prepare, resized_spec, thumbnail
from vitdomains.core.errors import ConfigError


def spec(resize="letterbox", height=64, width=64, channels=1, mean=(0.5,), std=(0.25,), **rest):
    return PreprocessSpec(height, width, resize, channels, mean, std, **rest)


def centroid(image):
    y, x = np.indices(image.shape)
    return (x * image).sum() / image.sum(), (y * image).sum() / image.sum()


@pytest.mark.parametrize("resize", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (97, 101), (30, 41), (30, 200)])
def test_geometry_takes_a_square_back_to_where_it_came_from(resize, shape):
    image = np.zeros(shape, np.float32)
    y, x = shape[0] // 2 - 2, shape[1] // 2 + 1
    image[y - 4 : y + 5, x - 4 : x + 5] = 1.0
    s = spec(resize, 120, 100, storage="float32")
    found = centroid(prepare(image, s))
    back = geometry(s, shape) @ np.array([*found, 1.0])
    assert back == pytest.approx([x, y], abs=0.1)  # a mass moves to the centre of its pixel


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from(["letterbox", "crop", "squash"]),
)
def test_a_linear_ramp_tells_the_geometry_at_every_pixel(height, width, h, w, resize):
    """A ramp shows the map pixel by pixel, to the 1/8 pixel that a staircase departs from a slope."""
    s = spec(resize, h, w, storage="float32", fill=-1.0)
    ramp_x = np.tile(np.arange(width, dtype=np.float32), (height, 1))
    ramp_y = np.tile(np.arange(height, dtype=np.float32)[:, None], (1, width))
    a = geometry(s, (height, width))
    y, x = np.indices((h, w))
    for ramp, row in ((ramp_x, a[0]), (ramp_y, a[1])):
        got = prepare(ramp, s)
        inside = got >= 0
        assert inside.any()
        # Growing repeats the border of the part that was taken.
        expected = np.clip(row[0] * x + row[1] * y + row[2], got[inside].min(), got[inside].max())
        assert np.abs(got - expected)[inside].max() < 0.13 + 1e-4 * ramp.max()


def test_letterbox_pads_evenly_with_fill_and_keeps_the_whole_image():
    s = spec(height=64, width=64, fill=0.2)
    out = prepare(np.ones((100, 200), np.float32), s)
    assert out.shape == (64, 64) and out.dtype == np.uint8
    assert (out[16:48] == 255).all()
    assert (out[:16] == 51).all() and (out[48:] == 51).all()


def test_crop_takes_the_centre():
    image = np.zeros((100, 300), np.float32)
    image[:, 100:200] = 1.0
    assert (prepare(image, spec("crop")) == 255).all()


def test_extreme_strip_stays_small():
    strip = np.ones((2, 200_000), np.float32)
    for resize in ("letterbox", "crop", "squash"):
        assert prepare(strip, spec(resize)).shape == (64, 64)


def test_uint8_storage_rounds_and_clips():
    values = np.array([[-0.1, 0.0, 0.4999 / 255, 0.5001 / 255], [254.4 / 255, 254.6 / 255, 1.0, 1.7]], np.float32)
    out = prepare(values, spec("squash", 2, 4))
    assert out.tolist() == [[0, 0, 0, 1], [254, 255, 255, 255]]


def test_shrinking_averages_areas():
    rng = np.random.default_rng(0)
    image = rng.random((64, 96), dtype=np.float32)
    out = prepare(image, spec("squash", 16, 32, storage="float32"))
    assert np.allclose(out, image.reshape(16, 4, 32, 3).mean((1, 3)), atol=1e-5)


def test_growing_does_not_leave_the_range():
    image = np.zeros((8, 8), np.float32)
    image[4:] = 1.0
    out = prepare(image, spec(storage="float32"))
    assert out.min() == 0.0 and out.max() == 1.0


def test_non_finite_pixels_become_fill_and_do_not_spread():
    image = np.full((128, 128), 0.5, np.float32)
    image[:64, :64] = np.nan
    image[0, 127] = np.inf
    image[127, 0] = -np.inf
    out = prepare(image, spec(storage="float32", fill=0.0))
    assert np.isfinite(out).all()
    assert (out[:32, :32] == 0).all()
    assert (out[33:, 33:] == 0.5).all()
    assert out[0, 63] == pytest.approx(0.375)


def test_uint8_input_equals_its_float_to_one_level():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    s = spec(channels=3)
    other = prepare(image.astype(np.float32) / 255, s)
    assert np.abs(prepare(image, s).astype(int) - other.astype(int)).max() <= 1


def test_many_bands_in_sensor_units():
    rng = np.random.default_rng(2)
    image = rng.normal(3000, 900, (50, 70, 13)).astype(np.float32)
    s = spec(height=32, width=48, channels=13, storage="float32", mean=(3000.0,) * 13, std=(900.0,) * 13, fill=3000.0)
    out = prepare(image, s)
    assert out.shape == (32, 48, 13) and out.dtype == np.float32
    one = prepare(image[:, :, 7], spec(height=32, width=48, storage="float32", fill=3000.0))
    assert np.allclose(out[:, :, 7], one, rtol=1e-5)
    z = normalise(torch.from_numpy(out).permute(2, 0, 1)[None], s)
    assert z.shape == (1, 13, 32, 48) and abs(float(z.mean())) < 0.05


def test_grey_stays_one_channel_until_normalise_expands_it():
    s = spec(channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    image = np.random.default_rng(3).random((64, 64, 1)).astype(np.float32)
    stored = prepare(image, s)
    assert stored.shape == (64, 64)
    z = normalise(torch.from_numpy(stored)[None, None], s)
    grey = torch.from_numpy(stored).double() / 255
    for c in range(3):
        assert torch.allclose(z[0, c].double(), (grey - s.mean[c]) / s.std[c], atol=1e-6)
    same = normalise(torch.from_numpy(stored)[None, None], spec(channels=3))
    assert same.shape == (1, 3, 64, 64) and same.dtype == torch.float32


def test_result_does_not_share_memory():
    image = np.zeros((64, 64), np.uint8)
    out = prepare(image, spec())
    out[0, 0] = 9
    assert image[0, 0] == 0


def test_round_trip_and_resized():
    s = spec("crop", 32, 48, channels=3, mean=(0.1, 0.2, 0.3), fill=0.5)
    assert PreprocessSpec.from_dict(json.loads(json.dumps(s.to_dict()))) == s
    assert resized_spec(s, 224).height == resized_spec(s, 224).width == 224
    assert resized_spec(s, (10, 20)).width == 20


@pytest.mark.parametrize(
    "change",
    [
        {"heigth": 3}, {"resize": "stretch"}, {"std": [0.0]}, {"mean": [0.1, 0.2]}, {"channels": 0},
        {"storage": "int8"}, {"mean": 3}, {"fill": float("nan")}, {"height": "64"},
    ],
)  # fmt: skip
def test_impossible_values_are_config_errors(change):
    with pytest.raises(ConfigError):
        PreprocessSpec.from_dict(spec(channels=3).to_dict() | change)
    with pytest.raises(ConfigError, match="missing"):
        PreprocessSpec.from_dict({"height": 3})


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="4 channels"):
        prepare(np.zeros((8, 8, 4), np.float32), spec(channels=3))
    with pytest.raises(ConfigError, match="0 x 8"):
        prepare(np.zeros((0, 8), np.float32), spec())
    with pytest.raises(ConfigError, match="neither"):
        prepare(np.zeros(8, np.float32), spec())
    with pytest.raises(TypeError, match="uint16"):
        prepare(np.zeros((8, 8), np.uint16), spec())
    with pytest.raises(ConfigError, match="does not fit"):
        normalise(torch.zeros(2, 4, 8, 8), spec(channels=3))


def test_thumbnail_is_an_area_mean() -> None:
    image = np.zeros((64, 128), np.float32)
    image[:, :64] = 1.0
    small = thumbnail(image, 4)
    np.testing.assert_allclose(small, [[1, 1, 0, 0]] * 4)
    assert thumbnail(np.zeros((50, 40, 3))).shape == (32, 32, 3)
