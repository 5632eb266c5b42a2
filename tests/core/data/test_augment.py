"""Augmentation policies keep shape, type and determinism; symmetries are the eight; mixing agrees with hand computation."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from vitdomains.core.config.schema import Recipe
from vitdomains.core.data.augment import POLICIES, Augmenter, BandJitter, build_augment, cut_box, mix
from vitdomains.core.errors import ConfigError

RECIPES = [
    Recipe(augment="imagenet"), Recipe(augment="cxr"), Recipe(augment="overhead"), Recipe(augment="multispectral"),
    Recipe(randaugment_magnitude=9), Recipe(augment="cxr", randaugment_magnitude=5, erasing=0.5), Recipe(erasing=1.0),
    Recipe(augment="imagenet", randaugment_magnitude=10, erasing=0.25),
]  # fmt: skip


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(*shape: int) -> np.ndarray:
    return cv2.GaussianBlur(rng(0).integers(0, 256, shape, dtype=np.uint8), (0, 0), 2).reshape(shape)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.augment}-{r.randaugment_magnitude}-{r.erasing}")
@pytest.mark.parametrize("shape", [(40, 40), (40, 40, 3), (32, 48)])
def test_a_policy_keeps_shape_and_type_and_is_a_function_of_its_generator(recipe, shape):
    augment = build_augment(recipe)
    image = picture(*shape)
    before = image.copy()
    image.setflags(write=False)
    results = [augment(image, rng(seed)) for seed in range(12)]
    assert all(r.shape == shape and r.dtype == np.uint8 and r.flags.writeable for r in results)
    assert np.array_equal(image, before)
    assert sum(not np.array_equal(r, image) for r in results) >= 6
    # In another order, from another copy of the augmenter, in several threads at once: the same.
    copy = pickle.loads(pickle.dumps(augment))
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(lambda seed: copy(image, rng(seed)), reversed(range(12))))
    assert all(np.array_equal(a, b) for a, b in zip(results, reversed(again), strict=True))


@pytest.mark.parametrize("name", ["imagenet", "cxr", "overhead"])
def test_float_images_in_0_1_stay_there(name):
    image = (picture(40, 40) / 255).astype(np.float32)
    for seed in range(10):
        out = build_augment(Recipe(augment=name), "float32")(image, rng(seed))
        assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1


def symmetries(mask: np.ndarray) -> list[bytes]:
    turned = [np.rot90(m, k) for m in (mask, mask.T) for k in range(4)]
    return [np.ascontiguousarray(m).tobytes() for m in turned]


@pytest.mark.parametrize("name", ["overhead", "multispectral"])
def test_seen_from_above_there_are_exactly_the_eight_symmetries(name):
    letter = np.zeros((16, 16), bool)  # an F has no symmetry of its own
    letter[2:14, 3:6] = letter[2:5, 3:13] = letter[7:10, 3:10] = True
    image = np.where(letter, 200, 60).astype(np.uint8)
    eight = symmetries(letter)
    assert len(set(eight)) == 8
    augment = build_augment(Recipe(augment=name))
    seen = []
    for seed in range(120):
        out = augment(image, rng(seed)).astype(float)
        seen.append((out > (out.min() + out.max()) / 2).tobytes())
    assert set(seen) == set(eight)
    assert min(seen.count(e) for e in eight) >= 4


def test_an_oblong_is_only_turned_so_that_it_fits():
    image = np.arange(6 * 10, dtype=np.float32).reshape(6, 10) * 100
    augment = Augmenter("multispectral", 0, 0.0)
    flips = [image[::-1], image[:, ::-1], image[::-1, ::-1], image]
    seen = set()
    for seed in range(40):
        out = augment(image, rng(seed)).ravel()
        likeness = [np.corrcoef(out, flip.ravel())[0, 1] for flip in flips]
        assert max(likeness) > 0.99
        seen.add(int(np.argmax(likeness)))
    assert seen == {0, 1, 2, 3}


def test_chest_films_are_never_mirrored():
    image = np.full((64, 64), 40, np.uint8)
    image[20:44, 40:54] = 220  # the heart, on the right of the picture
    augment = build_augment(Recipe(augment="cxr"))
    for seed in range(60):
        out = augment(image, rng(seed)).astype(float)
        bright = out > (out.min() + out.max()) / 2
        assert np.nonzero(bright)[1].mean() > 36


def test_cxr_rotates_by_at_most_ten_degrees_and_keeps_the_film_in_sight():
    image = np.zeros((96, 96), np.uint8)
    image[30:66, 30:66] = 255
    augment = build_augment(Recipe(augment="cxr"))
    angles = []
    for seed in range(60):
        out = augment(image, rng(seed))
        contours, _ = cv2.findContours((out > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        (x, y), (w, h), angle = cv2.minAreaRect(max(contours, key=cv2.contourArea))
        angles.append(min(angle % 90, 90 - angle % 90))
        assert abs(x - 47.5) < 8 and abs(y - 47.5) < 8
        assert 36 * 0.85 < w < 36 * 1.18 and 36 * 0.85 < h < 36 * 1.18
    assert 4 < max(angles) < 12


def test_multispectral_keeps_the_scale_of_the_sensor_and_jitters_each_band_by_itself():
    image = rng(1).normal(3000, 400, (24, 24, 13)).astype(np.float32)
    augment = build_augment(Recipe(augment="multispectral"), "float32")
    ratios = []
    for seed in range(40):
        out = augment(image, rng(seed))
        assert out.shape == image.shape and out.dtype == np.float32
        ratios.append(out.mean((0, 1)) / image.mean((0, 1)))
    ratios = np.array(ratios)
    assert ratios.min() > 0.89 and ratios.max() < 1.11
    jittered = ratios[np.abs(ratios - 1).max(1) > 1e-4]
    assert 20 < len(jittered) < 40
    assert abs(np.corrcoef(jittered[:, 0], jittered[:, 1])[0, 1]) < 0.6
    alone = BandJitter(gain=0.0, noise=0.0, p=1.0)
    assert np.allclose(alone(image=image)["image"], image)


def test_randaugment_grows_with_its_magnitude():
    image = picture(64, 64, 3)
    changes = []
    for magnitude in (1, 10):
        augment = build_augment(Recipe(randaugment_magnitude=magnitude))
        differences = [np.abs(augment(image, rng(s)).astype(int) - image).mean() for s in range(60)]
        changes.append(np.median(differences))
    assert changes[1] > 1.5 * changes[0]


def test_erasing_changes_one_rectangle_as_often_as_asked():
    image = np.full((64, 64), 100, np.uint8)
    augment = build_augment(Recipe(erasing=0.5))
    hits = 0
    for seed in range(200):
        changed = augment(image, rng(seed)) != 100
        if changed.any():
            hits += 1
            y, x = np.nonzero(changed)
            box = changed[y.min() : y.max() + 1, x.min() : x.max() + 1]
            assert box.mean() > 0.9 and 0.015 < box.size / changed.size < 0.36
    assert 75 < hits < 125


def test_nothing_asked_for_is_nothing():
    assert build_augment(Recipe()) is None
    assert "none" in POLICIES and set(POLICIES) == {"none", "imagenet", "cxr", "overhead", "multispectral"}


@pytest.mark.parametrize(
    ("recipe", "storage"),
    [
        (Recipe(augment="cxr_strong"), "uint8"), (Recipe(randaugment_magnitude=11), "uint8"),
        (Recipe(erasing=1.5), "uint8"), (Recipe(randaugment_magnitude=5), "float32"),
        (Recipe(augment="multispectral", randaugment_magnitude=5), "uint8"),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused(recipe, storage):
    with pytest.raises(ConfigError, match="recipe"):
        build_augment(recipe, storage)


def test_policies_that_would_spoil_the_image_are_refused():
    with pytest.raises(ConfigError, match="0..1"):
        build_augment(Recipe(augment="cxr"), "float32")(np.full((8, 8), 3000, np.float32), rng(0))
    with pytest.raises(ConfigError, match="4 channels"):
        build_augment(Recipe(augment="overhead"))(picture(8, 8, 4), rng(0))


def batch(b: int = 6, height: int = 20, width: int = 30):
    images = torch.arange(b, dtype=torch.float32).view(b, 1, 1, 1).expand(b, 2, height, width).clone() * 10
    targets = torch.eye(b)[:, :4].clone()
    return images, targets


def test_mixup_is_the_convex_combination():
    images, targets = batch()
    mixed, mixed_targets = mix(images, targets, mixup=0.8, cutmix=0.0, generator=rng(3))
    reference = rng(3)
    partner = reference.permutation(6)
    share = reference.beta(0.8, 0.8)
    for i, j in enumerate(partner):
        assert torch.allclose(mixed[i], torch.full((2, 20, 30), 10 * (share * i + (1 - share) * j)), atol=1e-4)
        assert torch.allclose(mixed_targets[i], share * targets[i] + (1 - share) * targets[j], atol=1e-6)
    assert torch.equal(images, batch()[0]) and torch.equal(targets, batch()[1])


@pytest.mark.parametrize("seed", range(25))
def test_cutmix_weighs_targets_by_the_pixels_that_are_really_there(seed):
    images, targets = batch()
    mixed, mixed_targets = mix(images, targets, mixup=0.0, cutmix=1.0, generator=rng(seed))
    partner = rng(seed).permutation(6)
    for i, j in enumerate(partner):
        own = (mixed[i, 0] == 10.0 * i).double().mean().item() if i != j else 1.0
        assert set(mixed[i].unique().tolist()) <= {10.0 * i, 10.0 * j}
        assert torch.allclose(mixed_targets[i], own * targets[i] + (1 - own) * targets[j], atol=1e-6)


def test_cut_box_has_the_area_of_the_share_unless_it_is_clipped():
    areas = []
    for seed in range(300):
        top, bottom, left, right = cut_box(40, 60, 0.75, rng(seed))
        assert 0 <= top <= bottom <= 40 and 0 <= left <= right <= 60
        areas.append((bottom - top) * (right - left) / 2400)
    assert max(areas) == pytest.approx(0.25, abs=0.01) and np.median(areas) < 0.2501
    assert cut_box(40, 60, 1.0, rng(0))[0] == cut_box(40, 60, 1.0, rng(0))[1]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_unknown_stays_unknown(kind):
    images, targets = batch()
    targets[2, 1] = float("nan")
    options = {"mixup": 0.0, "cutmix": 0.0} | {kind: 1.0}
    _, mixed = mix(images, targets, **options, generator=rng(1))
    partner = rng(1).permutation(6)
    expected = torch.zeros(6, 4, dtype=torch.bool)
    expected[2, 1] = True
    expected[int(np.nonzero(partner == 2)[0][0]), 1] = True
    assert torch.equal(mixed.isnan(), expected)


def test_mixing_8_bit_rounds_and_keeps_the_type():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact, _ = mix(images.double(), torch.zeros(4, 2), mixup=1.0, cutmix=0.0, generator=rng(5))
    mixed, _ = mix(images, torch.zeros(4, 2), mixup=1.0, cutmix=0.0, generator=rng(5))
    assert mixed.dtype == torch.uint8 and (mixed.double() - exact).abs().max() <= 0.5 + 1e-4


def test_both_take_turns_off_is_off_and_the_seed_decides():
    images, targets = batch()
    kinds = set()
    for seed in range(20):
        mixed, _ = mix(images, targets, mixup=1.0, cutmix=1.0, generator=rng(seed))
        again, _ = mix(images, targets, mixup=1.0, cutmix=1.0, generator=rng(seed))
        assert torch.equal(mixed, again)
        kinds.add(set((mixed % 10).unique().tolist()) == {0.0})
    assert kinds == {True, False}
    assert mix(images, targets, mixup=0.0, cutmix=0.0, generator=rng(0)) == (images, targets)
