"""Where findings lie: masks follow their image through resize and augmentation, and teach the model that points at them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core import toy
from vitdomains.core.config.parse import validate
from vitdomains.core.config.schema import Config, Model, Recipe
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset, cell_labels
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.manifest import subset
from vitdomains.core.data.preprocess import PreprocessSpec, prepare, prepare_bits
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import build_model
from vitdomains.core.tasks import build_task
from vitdomains.core.training.loop import fit
from vitdomains.core.training.optim import region_loss


def read_regions(path: str) -> dict[str, np.ndarray]:
    """The bright square of the toy images, by its brightness; the left and the right half are classes of their own."""
    bright = np.load(path) > 0.5
    halves = {"left": bright.copy(), "right": bright.copy()}
    halves["left"][:, 16:] = False
    halves["right"][:, :16] = False
    return {name: mask for name, mask in halves.items() if mask.any()}


@pytest.mark.parametrize("resize", ["letterbox", "crop", "squash"])
@pytest.mark.parametrize("shape", [(100, 60), (60, 100), (24, 24)])
def test_a_mask_lands_where_its_image_lands(resize: str, shape: tuple[int, int]) -> None:
    spec = PreprocessSpec(48, 48, resize, 1, (0.5,), (0.25,))  # type: ignore[arg-type]
    image = np.zeros(shape, np.float32)
    image[shape[0] // 3 : shape[0] // 2, shape[1] // 2 : 3 * shape[1] // 4] = 1.0
    bits = prepare_bits((image > 0).astype(np.uint8)[:, :, None] << 5, spec)[:, :, 0]
    assert set(np.unique(bits)) == {0, 32}
    differ = (bits > 0) != (prepare(image, spec) > 127)
    assert differ.sum() <= 0.15 * (bits > 0).sum() + 12  # the outline, at most


def test_a_mask_moves_with_its_augmented_image() -> None:
    augment = build_augment(Recipe(augment="cxr"))
    assert augment is not None
    image = np.full((96, 96), 20, np.uint8)
    image[30:60, 50:70] = 230
    moved = []
    for seed in range(20):
        bits = (image > 128).astype(np.uint8)[:, :, None]
        out = augment(image, np.random.default_rng(seed), bits)
        bright, mask = out > (int(out.max()) + int(out.min())) / 2, bits[:, :, 0] > 0
        assert (bright & mask).sum() / (bright | mask).sum() > 0.85
        moved.append((mask != (image > 128)).any())
    assert any(moved)


def test_cells_with_nine_classes_and_without_a_mask() -> None:
    bits = np.zeros((30, 30, 2), np.uint8)
    bits[0:5, 0:5, 0] |= 1 << 3
    bits[25:, 25:, 1] |= 1
    cells = cell_labels(bits, 9, 3).reshape(9, 3, 3)
    assert cells.sum() == 2 and cells[3, 0, 0] == 1 and cells[8, 2, 2] == 1
    assert np.isnan(cell_labels(None, 9, 3)).all()


def test_region_loss_by_hand_and_unknown_images_count_nowhere() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [0.0, 0.5]]], [[[9.0, 9.0], [9.0, 9.0]]]])
    targets = torch.tensor([[1.0, 0, 0, 0], [float("nan")] * 4])
    expected = (5 * np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)) + np.log(2) + np.log1p(np.exp(0.5))) / 4
    assert region_loss(logits, targets, 2).item() == pytest.approx(expected, rel=1e-5)
    # A finer map of patches is brought to the grid by its maximum.
    fine = logits.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert region_loss(fine, targets, 2).item() == pytest.approx(expected, rel=1e-5)


def test_training_on_regions_points_at_them(tmp_path: Path) -> None:
    """With the mask of every image the patches of a square end up with the highest logits; rows without a mask still teach."""
    torch.set_num_threads(1)
    root = toy.write_images(tmp_path / "images", n=80)
    config = toy.config(root, tmp_path / "run", epochs=20, region_weight=1.0, region_grid=4, lr=2e-3)
    config = replace(config, model=replace(config.model, options={"depth": 2, "pool": "lse"}))
    manifest = toy.build_manifest(config.data)
    masks = [path if i % 5 else "" for i, path in enumerate(manifest.table["path"])]
    manifest = replace(manifest, table=manifest.table.assign(mask=masks))
    spec = PreprocessSpec(toy.SIZE, toy.SIZE, "squash", 1, (0.4,), (0.25,))
    train = ImageDataset(
        subset(manifest, "train"),
        toy.read_image,
        spec,
        cache=ImageCache(spec),
        read_regions=read_regions,
        region_grid=4,
    )
    val = ImageDataset(subset(manifest, "val"), toy.read_image, spec)
    image, target, _ = train.sample(1, 0)
    assert target.shape == (2 + 2 * 16,) and image.shape == (32, 32)
    torch.manual_seed(0)
    model = build_model(config.model, 2, image_size=toy.SIZE)
    result = fit(model, build_task("multilabel", toy.CLASSES, config.recipe), train, val, spec, config)
    assert result.best > 0.8
    model.train()
    x = (torch.from_numpy(np.stack([val.image(i) for i in range(len(val))]))[:, None].float() / 255 - 0.4) / 0.25
    with torch.no_grad():
        logits, regions = model(x)
    assert logits.shape == (len(val), 2) and regions.shape == (len(val), 2, 4, 4)
    hits = []
    for i in range(len(val)):
        for k in np.flatnonzero(val.targets[i] == 1):
            y, column = divmod(int(regions[i, k].argmax()), 4)
            mask = read_regions(val.paths[i])[toy.CLASSES[k]]
            hits.append(mask[8 * y : 8 * y + 8, 8 * column : 8 * column + 8].any())
    assert np.mean(hits) > 0.6  # by chance about a quarter


def test_region_weight_needs_a_model_that_pools_patches() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.region_weight"):
        validate(Config(model=Model(name="vit:Ti/16"), recipe=Recipe(region_weight=1.0)))
