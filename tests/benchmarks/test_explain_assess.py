"""Measures of heat maps where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from benchmarks import explain_assess as table
from tests.core.explain.test_faithfulness import Spot, spot
from vitdomains.core.data.preprocess import PreprocessSpec, geometry
from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.api import unit_range
from vitdomains.core.explain.faithfulness import deletion_scores, random_map
from vitdomains.core.models.vit import vit


def test_deleting_the_evidence_first_ends_the_finding_first() -> None:
    image, heat, _ = spot()
    good, bad = (table.curve(Spot(), image, h, 0, steps=16) for h in (heat, 1 - heat))
    assert good.deletion[0] == bad.deletion[0] > 0.99 and good.deletion[-1] == pytest.approx(bad.deletion[-1], abs=1e-5)
    assert good.deletion_area < 0.2 < 0.8 < bad.deletion_area
    assert good.insertion_area > 0.8 > 0.2 > bad.insertion_area
    assert good.insertion[-1] == pytest.approx(good.deletion[0]) and good.insertion[0] == pytest.approx(
        good.deletion[-1]
    )
    (score,) = deletion_scores(Spot(), image, heat[None], [0], steps=16)
    assert score["deletion"] == pytest.approx(good.deletion_area, abs=1e-6)


def test_areas_are_those_of_the_trapezoid() -> None:
    curve = table.Curve((0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 1.0))
    assert curve.deletion_area == pytest.approx(0.5) and curve.insertion_area == pytest.approx(0.75)


def test_dropping_tokens_equals_a_shorter_sequence() -> None:
    torch.manual_seed(0)
    model = vit("Ti/16", num_classes=2, image_size=64, depth=2, register_tokens=1).eval()
    image = torch.randn(3, 64, 64)
    heat = torch.zeros(64, 64)
    heat[16:32, 48:64] = 1  # patch 7 of 16
    found = table.curve(model, image, heat, 1, mode="tokens", steps=16)
    with torch.no_grad():
        tokens = model.embed(image[None])  # class token, register, patches
        short = torch.cat([tokens[:, :9], tokens[:, 10:]], dim=1)
        expected = model.forward_head(model.norm(model.run_blocks(short)))
        none = model.forward_head(model.norm(model.run_blocks(tokens[:, :2])))
    assert found.deletion[1] == pytest.approx(float(expected[0, 1].sigmoid()), abs=1e-6)
    assert found.deletion[-1] == found.insertion[0] == pytest.approx(float(none[0, 1].sigmoid()), abs=1e-6)
    assert not model.blocks[0]._forward_pre_hooks


def test_models_that_need_all_tokens_say_so() -> None:
    image, heat, _ = spot()
    with pytest.raises(ExplainError, match="mode blur"):
        table.curve(Spot(), image, heat, 0, mode="tokens")
    beit = timm.create_model(
        "beit_base_patch16_224", num_classes=2, img_size=32, depth=1, embed_dim=32, num_heads=2
    ).eval()
    with pytest.raises(ExplainError, match="mode blur"):
        table.curve(beit, image, heat, 0, mode="tokens", steps=2)
    assert not beit.blocks[0]._forward_pre_hooks
    with pytest.raises(ExplainError):
        table.curve(Spot(), image, heat[1:], 0)


def test_pointing_and_overlap() -> None:
    _, heat, mask = spot()
    warm = heat.numpy()
    assert table.pointing_hit(warm, mask) and table.overlap(warm, mask) == 1.0
    off = np.roll(warm, 12, axis=1)
    assert not table.pointing_hit(off, mask) and table.overlap(off, mask) == 0.0
    half = np.roll(warm, 4, axis=1)
    assert table.overlap(half, mask) == pytest.approx(1 / 3)
    peak = np.zeros_like(warm)
    peak[8, 14] = 1
    assert not table.pointing_hit(peak, mask, 1.5) and table.pointing_hit(peak, mask, 2.0)
    flat = np.ones_like(warm)
    assert not table.pointing_hit(flat, mask)  # points at the middle, not at the first pixel
    with pytest.raises(ExplainError):
        table.pointing_hit(warm, mask.astype(float))  # type: ignore[arg-type]


def test_baselines_know_nothing_of_the_image() -> None:
    blob = table.centre_blob((31, 41))
    assert tuple(int(i) for i in np.unravel_index(int(blob.argmax()), blob.shape)) == (15, 20)
    assert torch.equal(random_map((20, 30), 3), random_map((20, 30), 3))
    assert not torch.equal(random_map((20, 30), 3), random_map((20, 30), 4))


def test_randomising_from_the_output_down() -> None:
    model = vit("Ti/16", num_classes=2, image_size=32, depth=3, layer_scale=0.5)
    some, everything = table.randomised(model, 0.3), table.randomised(model, 1.0)
    before, low, all_ = (m.state_dict() for m in (model, some, everything))
    assert torch.equal(before["blocks.0.attn.qkv.weight"], low["blocks.0.attn.qkv.weight"])
    assert not torch.equal(before["head.weight"], low["head.weight"])
    changed = [key for key in before if before[key].numel() > 1 and not torch.equal(before[key], all_[key])]
    missing = {key for key in before if key not in changed and "norm" not in key and not key.endswith("bias")}
    assert not missing
    again = table.randomised(model, 1.0).state_dict()
    assert all(torch.equal(all_[key], again[key]) for key in again)


def test_similarity_is_one_for_the_same_and_low_for_noise() -> None:
    maps = unit_range(torch.rand(3, 40, 40))
    assert table.similarity(maps, maps) == pytest.approx(1, abs=1e-5)
    assert table.similarity(maps, unit_range(torch.rand(3, 40, 40))) < 0.2


def test_class_sensitivity() -> None:
    a, b = torch.rand(2, 8, 8), torch.rand(2, 8, 8)
    assert table.class_sensitivity(torch.stack([a, a], 1)) == pytest.approx(0, abs=1e-6)
    assert table.class_sensitivity(torch.stack([a, 1 - a], 1)) == pytest.approx(2, abs=1e-6)
    assert 0.5 < table.class_sensitivity(torch.stack([a, b], 1)) < 1.5
    with pytest.raises(ExplainError):
        table.class_sensitivity(a[:, None])


def test_the_table_shows_methods_beside_baselines() -> None:
    image, _, mask = spot()
    cases = [table.Case(image, 0, mask)] * 2
    rows = {
        r["method"]: r
        for r in table.assess(Spot(), cases, ["occlusion"], options={"occlusion": {"mask_size": 8, "mode": 0.0}})
    }
    assert list(rows) == ["occlusion", "random", "centre_blob"]
    own = rows["occlusion"]
    assert own["pointing"] == 1.0 and own["pointing_by_class"] == {0: 1.0} and own["iou"] > 0.5
    assert own["deletion"] < rows["random"]["deletion"] and own["insertion"] > rows["random"]["insertion"]
    assert own["class_sensitivity"] is not None and own["sanity_ssim"] <= 1
    assert rows["centre_blob"]["pointing"] == 0.0 and rows["random"]["sanity_ssim"] is None
    with pytest.raises(ExplainError):
        table.assess(Spot(), [], ["occlusion"])


@pytest.mark.parametrize("resize", ["letterbox", "crop", "squash"])
def test_masks_and_boxes_come_onto_the_grid(resize: str) -> None:
    shape = (300, 200)
    spec = PreprocessSpec(64, 64, resize, 1, (0.0,), (1.0,))  # type: ignore[arg-type]
    mask = table.box_mask([(80, 120, 40, 60)], shape)
    assert int(mask.sum()) == 40 * 60
    affine = geometry(spec, shape)
    found = table.mask_on_grid(mask, affine, (64, 64))
    ys, xs = np.nonzero(found)
    back = affine @ np.stack([xs, ys, np.ones_like(xs)])
    assert mask[np.round(back[1]).astype(int), np.round(back[0]).astype(int)].all()
    area = abs(affine[0, 0] * affine[1, 1])
    assert found.sum() * area == pytest.approx(40 * 60, rel=0.25)
    tiny = table.mask_on_grid(table.box_mask([(100, 150, 1, 1)], shape), affine, (64, 64))
    assert tiny.sum() == 1
