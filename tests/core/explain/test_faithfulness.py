"""Scores of heat maps where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import explain_assess as table
from vitdomains.core.data.preprocess import PreprocessSpec, geometry
from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import faithfulness as faith
from vitdomains.core.explain.api import heatmaps, unit_range
from vitdomains.core.models.vit import vit

SIDE = 32


class Spot(nn.Module):
    """The logit of class 0 is high while a bright square lies at (8:16, 16:24); class 1 looks at the lower left."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([20.0, 20.0]))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, :, 8:16, 16:24].mean((1, 2, 3)), x[:, :, 24:, :8].mean((1, 2, 3))]
        return torch.stack(parts, dim=1) * self.gain - 10


def spot() -> tuple[Tensor, Tensor, np.ndarray]:
    image, mask = torch.zeros(3, SIDE, SIDE), np.zeros((SIDE, SIDE), dtype=bool)
    mask[8:16, 16:24] = True
    image[:, 8:16, 16:24] = 1
    return image, torch.from_numpy(mask).float(), mask


def test_deleting_the_evidence_first_ends_the_finding_first() -> None:
    image, heat, _ = spot()
    good, bad = (faith.curve(Spot(), image, h, 0, steps=16) for h in (heat, 1 - heat))
    assert good.deletion[0] == bad.deletion[0] > 0.99 and good.deletion[-1] == pytest.approx(bad.deletion[-1], abs=1e-5)
    assert good.deletion_area < 0.2 < 0.8 < bad.deletion_area
    assert good.insertion_area > 0.8 > 0.2 > bad.insertion_area
    assert good.insertion[-1] == pytest.approx(good.deletion[0]) and good.insertion[0] == pytest.approx(
        good.deletion[-1]
    )
    score = faith.deletion_score(Spot(), image, heat, 0)
    assert (
        score["deletion_gain"] == pytest.approx(score["deletion_random"] - score["deletion"])
        and score["deletion_gain"] > 0.2
    )


def test_areas_are_those_of_the_trapezoid() -> None:
    curve = faith.Curve((0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 1.0))
    assert curve.deletion_area == pytest.approx(0.5) and curve.insertion_area == pytest.approx(0.75)


def test_dropping_tokens_equals_a_shorter_sequence() -> None:
    torch.manual_seed(0)
    model = vit("Ti/16", num_classes=2, image_size=64, depth=2, register_tokens=1).eval()
    image = torch.randn(3, 64, 64)
    heat = torch.zeros(64, 64)
    heat[16:32, 48:64] = 1  # patch 7 of 16
    found = faith.curve(model, image, heat, 1, mode="tokens", steps=16)
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
        faith.curve(Spot(), image, heat, 0, mode="tokens")
    beit = timm.create_model(
        "beit_base_patch16_224", num_classes=2, img_size=32, depth=1, embed_dim=32, num_heads=2
    ).eval()
    with pytest.raises(ExplainError, match="mode blur"):
        faith.curve(beit, image, heat, 0, mode="tokens", steps=2)
    assert not beit.blocks[0]._forward_pre_hooks
    with pytest.raises(ExplainError):
        faith.curve(Spot(), image, heat[1:], 0)


def test_pointing_and_overlap() -> None:
    _, heat, mask = spot()
    warm = heat.numpy()
    assert faith.pointing_hit(warm, mask) and faith.overlap(warm, mask) == 1.0
    off = np.roll(warm, 12, axis=1)
    assert not faith.pointing_hit(off, mask) and faith.overlap(off, mask) == 0.0
    half = np.roll(warm, 4, axis=1)
    assert faith.overlap(half, mask) == pytest.approx(1 / 3)
    peak = np.zeros_like(warm)
    peak[8, 14] = 1
    assert not faith.pointing_hit(peak, mask, 1.5) and faith.pointing_hit(peak, mask, 2.0)
    flat = np.ones_like(warm)
    assert not faith.pointing_hit(flat, mask)  # points at the middle, not at the first pixel
    with pytest.raises(ExplainError):
        faith.pointing_hit(warm, mask.astype(float))  # type: ignore[arg-type]


def test_baselines_know_nothing_of_the_image() -> None:
    blob = faith.centre_blob((31, 41))
    assert tuple(int(i) for i in np.unravel_index(int(blob.argmax()), blob.shape)) == (15, 20)
    assert torch.equal(faith.random_map((20, 30), 3), faith.random_map((20, 30), 3))
    assert not torch.equal(faith.random_map((20, 30), 3), faith.random_map((20, 30), 4))


def test_randomising_from_the_output_down() -> None:
    model = vit("Ti/16", num_classes=2, image_size=32, depth=3, layer_scale=0.5)
    some, everything = faith.randomised(model, 0.3), faith.randomised(model, 1.0)
    before, low, all_ = (m.state_dict() for m in (model, some, everything))
    assert torch.equal(before["blocks.0.attn.qkv.weight"], low["blocks.0.attn.qkv.weight"])
    assert not torch.equal(before["head.weight"], low["head.weight"])
    changed = [key for key in before if before[key].numel() > 1 and not torch.equal(before[key], all_[key])]
    missing = {key for key in before if key not in changed and "norm" not in key and not key.endswith("bias")}
    assert not missing
    again = faith.randomised(model, 1.0).state_dict()
    assert all(torch.equal(all_[key], again[key]) for key in again)


def test_similarity_is_one_for_the_same_and_low_for_noise() -> None:
    maps = unit_range(torch.rand(3, 40, 40))
    assert faith.similarity(maps, maps) == pytest.approx(1, abs=1e-5)
    assert faith.similarity(maps, unit_range(torch.rand(3, 40, 40))) < 0.2


def test_class_sensitivity() -> None:
    a, b = torch.rand(2, 8, 8), torch.rand(2, 8, 8)
    assert faith.class_sensitivity(torch.stack([a, a], 1)) == pytest.approx(0, abs=1e-6)
    assert faith.class_sensitivity(torch.stack([a, 1 - a], 1)) == pytest.approx(2, abs=1e-6)
    assert 0.5 < faith.class_sensitivity(torch.stack([a, b], 1)) < 1.5
    with pytest.raises(ExplainError):
        faith.class_sensitivity(a[:, None])


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


def test_every_heat_map_carries_its_deletion_score() -> None:
    image, _, _ = spot()
    options = {"mask_size": 8, "mode": 0.0}
    maps = heatmaps(Spot(), torch.stack([image, image]), ["Nodule", "Mass"], "occlusion", **options)
    assert [[h.class_name for h in row] for row in maps] == [["Nodule", "Mass"]] * 2
    best = maps[0][0]
    assert best.values.shape == (SIDE, SIDE) and best.values.max() == 1 and best.method == "occlusion"
    assert best.faithfulness is not None and best.faithfulness["deletion"] < best.faithfulness["deletion_random"]
    model = vit("Ti/16", num_classes=3, image_size=32, depth=1)
    rollout = heatmaps(model, torch.randn(1, 3, 32, 32), ["a", "b", "c"], steps=2)
    assert rollout[0][0].class_name == "" and len(rollout[0]) == 1 and rollout[0][0].faithfulness is not None
    assert heatmaps(model, torch.randn(1, 3, 32, 32), ["a", "b", "c"], steps=0)[0][0].faithfulness is None


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
