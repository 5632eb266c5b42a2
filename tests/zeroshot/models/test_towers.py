"""Towers against transformers' own zero-shot pipeline, and what goes wrong said plainly."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel, pipeline

from tests.zeroshot import tiny
from vitdomains.core.data.preprocess import normalise, prepare
from vitdomains.core.errors import WeightsError
from vitdomains.core.models.build import build_model
from vitdomains.core.models.image_tower import text_head
from vitdomains.zeroshot.models.towers import clip_zero_shot_classification, load_parts, load_towers

CLASSES = ["forest", "river or lake", "residential buildings", "parking lot"]
TEMPLATE = "a satellite photo of {}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of each kind."""
    root = tmp_path_factory.mktemp("models")
    for name, make in tiny.MAKERS.items():
        make().save(root / name)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of the model's size, larger, smaller, and not square."""
    root = tmp_path_factory.mktemp("pictures")
    files = sorted(tiny.write_tiles(root, 6, 32).iterdir())
    rng = np.random.default_rng(5)
    for name, (height, width) in {"large": (90, 90), "small": (20, 20), "wide": (45, 91), "tall": (77, 40)}.items():
        noise = cv2.resize(
            rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(root / f"{name}.png"), noise)
        files.append(root / f"{name}.png")
    return files


def by_pipeline(folder: Path, pictures: list[Path]) -> np.ndarray:
    theirs = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    rows = []
    for picture in pictures:
        found = theirs(Image.open(picture), candidate_labels=CLASSES, hypothesis_template=TEMPLATE)
        scores = {entry["label"]: entry["score"] for entry in found}
        rows.append([scores[name] for name in CLASSES])
    return np.array(rows)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dual"])
def test_probabilities_equal_those_of_the_pipeline(folder: Path, pictures: list[Path], kind: str) -> None:
    # NaFlex keeps the aspect ratio of pictures that are not square, where we make a square of them.
    shown = [p for p in pictures if kind != "siglip2" or p.stem not in ("wide", "tall")]
    expected = by_pipeline(folder / kind, shown)
    prompts = [TEMPLATE.format(name) for name in CLASSES]
    found = clip_zero_shot_classification(shown, prompts, folder / kind, batch_size=4)
    assert found.shape == (len(shown), len(CLASSES)) and np.ptp(expected, axis=1).min() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dual"])
def test_the_tower_is_rebuilt_from_its_description_alone(folder: Path, pictures: list[Path], kind: str) -> None:
    towers = load_towers(folder / kind)
    texts = towers.text.encode(CLASSES)
    model = text_head(towers.image, towers.logit_scale * texts, towers.logit_bias)
    spec = towers.image.spec()
    again = build_model(spec, len(CLASSES), image_size=towers.preprocess.height)
    again.load_state_dict(model.state_dict())
    batch = torch.from_numpy(np.stack([prepare(cv2.imread(str(p)), towers.preprocess) for p in pictures]))
    batch = normalise(batch.permute(0, 3, 1, 2), towers.preprocess)
    with torch.no_grad():
        logits = towers.logits(towers.image(batch), texts)
        torch.testing.assert_close(again.eval()(batch), logits, atol=1e-4, rtol=1e-4)


def test_logits_are_float32_also_where_the_weights_are_not(folder: Path) -> None:
    towers = load_towers(folder / "clip")
    texts = towers.text.encode(CLASSES)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        exact = text_head(towers.image, 100 * texts)(images)
        half = copy.deepcopy(text_head(towers.image, 100 * texts)).bfloat16()
        found = half(images.bfloat16())
        assert found.dtype == torch.float32
        of_tower = 100 * half.tower(images.bfloat16()) @ texts.T
    torch.testing.assert_close(found, of_tower, atol=0.1, rtol=0)  # a product in bfloat16 is off by up to 0.25
    torch.testing.assert_close(found, exact, atol=3.0, rtol=0)


def test_embeddings_have_unit_length_and_text_order_is_kept(folder: Path) -> None:
    towers = load_towers(folder / "clip")
    texts = ["a photo of a parking lot full of cars and trees", "sea", "a river"]
    embedded = towers.text.encode(texts)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        torch.testing.assert_close(embedded, torch.cat([towers.text([t]) for t in texts]), atol=1e-5, rtol=1e-5)


def test_a_text_that_is_too_long_is_cut_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    towers = load_towers(folder / "dual")
    assert towers.text.encode(["forest " * 60]).shape == (1, 16)
    assert "are cut" in caplog.text


def test_the_id_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    parts = load_parts(folder / "clip")
    parts.save(tmp_path / "same")
    parts.model.config.vision_config.hidden_act = "gelu"
    parts.save(tmp_path / "other")
    parts.model.visual_projection.weight.data[0, 0] += 1
    parts.save(tmp_path / "changed")
    ids = [load_towers(f).id for f in (folder / "clip", tmp_path / "same", tmp_path / "other", tmp_path / "changed")]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_name_that_cannot_be_had_names_three_ways_out() -> None:
    with pytest.raises(WeightsError) as error:
        load_towers("somebody/clip-that-is-not-here")
    assert "somebody/clip-that-is-not-here" in error.value.message
    assert all(way in error.value.hint for way in ("--model", "hf download somebody", "align"))


def test_half_a_checkpoint_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    parts = tiny.clip()
    parts.save(tmp_path)
    state = {k: v for k, v in parts.model.state_dict().items() if not k.startswith("text_model")}
    parts.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(WeightsError, match="lacks"):
        load_towers(tmp_path)
    CLIPVisionModel(parts.model.config.vision_config).save_pretrained(tmp_path / "vision")
    with pytest.raises(WeightsError, match="clip_vision_model"):
        load_towers(tmp_path / "vision")
