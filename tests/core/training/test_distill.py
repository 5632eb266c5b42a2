"""Distillation: the teacher sees what the student sees, is asked once where it can be, and may be any bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.core import toy
from tests.core.training.test_loop import SPEC, apart
from vitdomains.core import pipeline
from vitdomains.core.bundle import load_model
from vitdomains.core.config.schema import Config, Model
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset, collate
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.manifest import subset, take
from vitdomains.core.data.preprocess import normalise
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import build_model
from vitdomains.core.tasks import build_task
from vitdomains.core.training.distill import Teacher, load_teacher
from vitdomains.core.training.feature_cache import cached_features
from vitdomains.core.training.loop import fit


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("squares"), n=60)


@pytest.fixture(scope="module")
def taught(root: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Outcome:
    """A bundle to learn from."""
    return pipeline.train(toy.DOMAIN, toy.config(root, tmp_path_factory.mktemp("teacher"), epochs=4))


def distilled(config: Config, teacher: Teacher, *, augment: object = None) -> dict[str, Tensor]:
    """Weights of a student after the run of ``config``."""
    torch.set_num_threads(1)
    manifest, cache = toy.build_manifest(config.data), ImageCache(SPEC)
    train = ImageDataset(subset(manifest, "train"), toy.read_image, SPEC, cache=cache, augment=augment)  # type: ignore[arg-type]
    val = ImageDataset(subset(manifest, "val"), toy.read_image, SPEC, cache=cache)
    torch.manual_seed(0)
    model = build_model(config.model, 2, image_size=toy.SIZE)
    fit(model, build_task("multilabel", toy.CLASSES, config.recipe), train, val, SPEC, config, teacher=teacher)
    return {name: value.clone() for name, value in model.state_dict().items()}


def watched(seen: list[Tensor]) -> Teacher:
    """Says how bright each half of an image is, and writes down what it was shown."""

    def logits(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return torch.stack([images[..., :16].mean(dim=(1, 2, 3)), images[..., 16:].mean(dim=(1, 2, 3))], dim=1)

    return Teacher(logits, "brightness")


def identity(image: np.ndarray, generator: np.random.Generator, bits: np.ndarray | None = None) -> np.ndarray:
    """An augmentation of which nobody knows that it changes nothing."""
    return image


def test_without_augmentation_each_image_is_asked_once(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path / "a", epochs=3, distillation="soft", distillation_alpha=0.7)
    config = replace(config, data=replace(config.data, cache_dir=str(tmp_path / "cache")))
    once, always, again = [], [], []  # type: ignore[var-annotated]
    kept = distilled(config, watched(once))
    asked = distilled(
        replace(config, run=replace(config.run, dir=str(tmp_path / "b"))), watched(always), augment=identity
    )
    assert sum(map(len, once)) == 36 and sum(map(len, always)) == 3 * 32  # 36 images; four whole batches an epoch
    assert apart(kept, asked) == 0.0
    distilled(replace(config, run=replace(config.run, dir=str(tmp_path / "c"))), watched(again))
    assert not again  # an earlier run left the answers
    other = replace(watched(again), content="another")
    distilled(replace(config, run=replace(config.run, dir=str(tmp_path / "d"))), other)
    assert sum(map(len, again)) == 36


def test_a_live_teacher_sees_the_normalised_augmented_images(root: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    config = toy.config(root, tmp_path, epochs=1, augment="cxr")
    distilled(config, watched(seen), augment=build_augment(config.recipe))
    shown = torch.cat(seen)
    assert len(shown) == 32 and shown.dtype == torch.float32
    assert shown.min() >= -0.4 / 0.25 - 1e-6 and shown.max() <= 0.6 / 0.25 + 1e-6
    assert abs(shown.mean()) < 1


def test_with_frozen_views_the_teacher_sees_the_views(root: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    config = toy.config(root, tmp_path, epochs=2, augment="cxr", frozen_cache_views=2)
    config = replace(config, model=replace(config.model, freeze="1"))
    augment = build_augment(config.recipe)
    distilled(config, watched(seen), augment=augment)
    train = ImageDataset(subset(toy.build_manifest(config.data), "train"), toy.read_image, SPEC, augment=augment)
    shown = torch.cat(seen)
    assert len(shown) == 2 * len(train)
    wanted = [train.without_augmentation().sample(5, 0), train.sample(5, 1)]
    for view, sample in enumerate(wanted):
        assert torch.equal(shown[view * len(train) + 5], normalise(collate([sample])[0], SPEC)[0])


def test_a_view_is_the_same_in_whatever_parts_it_is_made(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path, augment="cxr")
    manifest = subset(toy.build_manifest(config.data), "train")
    dataset = ImageDataset(manifest, toy.read_image, SPEC, augment=build_augment(config.recipe))

    def view(folder: str, images: ImageDataset) -> np.ndarray:
        cpu = torch.device("cpu")
        rows = cached_features("tokens", lambda x: x.mean(dim=3), "x", images, SPEC, config, tmp_path / folder, cpu, 1)
        return rows[np.arange(len(images))]

    whole = view("a", dataset)
    few = ImageDataset(take(manifest, np.arange(10)), toy.read_image, SPEC, augment=dataset.augment)
    view("b", few)
    assert np.array_equal(view("b", dataset), whole) and whole.dtype == np.float16


def test_a_bundle_teaches_a_student_of_another_school(taught: pipeline.Outcome) -> None:
    """The student's normalisation is undone and the teacher's applied, at the teacher's size."""
    bundle = taught.bundle
    student = replace(SPEC, mean=(0.1,), std=(0.7,))
    config = Config(recipe=replace(Config().recipe, teacher=str(bundle.path)))
    teacher = load_teacher(config, student, toy.CLASSES)
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        own = load_model(bundle).eval()(normalise(images, bundle.preprocess))
        assert torch.allclose(teacher.logits(normalise(images, student)), own, atol=1e-4)
        assert teacher.logits(torch.zeros(2, 1, 48, 48)).shape == (2, 2)
    assert teacher.content == load_teacher(config, student, toy.CLASSES).content
    with pytest.raises(ConfigError, match="knows left, right"):
        load_teacher(config, student, ("left",))


def test_a_teacher_by_name_needs_weights() -> None:
    config = Config(recipe=replace(Config().recipe, teacher="timm:resnet18"))
    with pytest.raises(ConfigError, match="has no weights"):
        load_teacher(config, SPEC, toy.CLASSES)


def test_a_distillation_token_learns_from_a_bundle(root: Path, tmp_path: Path, taught: pipeline.Outcome) -> None:
    config = toy.config(root, tmp_path, epochs=2, teacher=str(taught.bundle.path), distillation="hard")
    config = replace(config, model=Model(name="vit:Ti/8", channels=1, options={"depth": 2, "distilled": True}))
    outcome = pipeline.train(toy.DOMAIN, config)
    assert outcome.bundle.provenance["config"]["recipe"]["teacher"] == str(taught.bundle.path)
    torch.manual_seed(config.run.seed)
    start = build_model(config.model, 2, image_size=toy.SIZE).state_dict()
    learned = load_model(outcome.bundle).state_dict()
    for name in ("dist_token", "head_dist.weight"):
        assert (start[name] - learned[name]).abs().max() > 1e-4, name
