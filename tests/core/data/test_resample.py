"""Filtered resizing: torchvision's numbers, at any shape, and no strip that fills the memory."""

from __future__ import annotations

import resource

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from vitdomains.core.data.preprocess import PreprocessSpec, prepare
from vitdomains.core.errors import ConfigError


def spec(resize: str = "crop", resample: str = "bicubic", storage: str = "uint8") -> PreprocessSpec:
    return PreprocessSpec(48, 48, resize, 3, (0.5,), (0.25,), storage, resample=resample)  # type: ignore[arg-type]


def picture(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("shape", [(48, 48), (96, 96), (64, 100), (101, 57), (20, 31), (48, 49)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_crop_is_resize_then_centre_crop(shape: tuple[int, int], resample: str) -> None:
    image = picture(*shape)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    whole = tv.resize(tensor, [48], interpolation=InterpolationMode(resample), antialias=True)
    expected = tv.center_crop(whole, [48, 48]).permute(1, 2, 0).numpy()
    found = prepare(image, spec(resample=resample))
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and not np.shares_memory(found, image)


def test_squash_keeps_no_aspect_ratio_and_floats_are_resized_as_floats() -> None:
    image = picture(70, 33)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = tv.resize(tensor, [48, 48], interpolation=InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_array_equal(prepare(image, spec("squash")), expected.permute(1, 2, 0).numpy())
    scaled = prepare(image.astype(np.float32) * 10, spec("squash", storage="float32"))
    expected = tv.resize(tensor.float() * 10, [48, 48], interpolation=InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_allclose(scaled, expected.permute(1, 2, 0).numpy(), atol=1e-2)


def test_grey_letterboxed_and_holed_images_are_resized_too() -> None:
    grey = picture(96, 96)[:, :, 0]
    assert prepare(grey, spec()).shape == (48, 48)
    boxed = prepare(picture(96, 48), spec("letterbox"))
    assert boxed.shape == (48, 48, 3) and not boxed[:, 0].any() and boxed[:, 24].any()
    holed = grey.astype(np.float32) / 255
    holed[5, 5] = np.nan
    assert np.isfinite(prepare(holed, spec(storage="float32"))).all()


def test_a_long_strip_does_not_become_a_huge_intermediate() -> None:
    strip = np.zeros((4, 400_000, 3), np.uint8)  # 48 x 4,800,000 pixels, were it resized as a whole
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert prepare(strip, spec()).shape == (48, 48, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_another_filter_is_refused_and_old_descriptions_mean_area() -> None:
    with pytest.raises(ConfigError, match="resample"):
        spec(resample="lanczos")
    raw = spec(resample="area").to_dict()
    del raw["resample"]
    assert PreprocessSpec.from_dict(raw) == spec(resample="area")
