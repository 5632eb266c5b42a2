"""Scores of heat maps where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.api import heatmaps
from vitdomains.core.explain.faithfulness import deletion_scores
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


def test_deletion_passes_are_shared_by_all_maps_of_an_image() -> None:
    """One map: 2 + 3 * 7 = 23 passes instead of 3 * 2 * 9; every further class 7."""
    image, heat, _ = spot()
    model, seen = Spot(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    (one,) = deletion_scores(model, image, heat[None], [0])
    assert sum(seen) == 23
    both = deletion_scores(model, image, torch.stack([heat, 1 - heat]), [0, 0])
    assert sum(seen) == 23 + 30
    assert both[0] == pytest.approx(one) and both[1]["deletion"] > 0.8 > 0.2 > one["deletion"]
    assert (
        one["deletion_gain"] == pytest.approx(one["deletion_random"] - one["deletion"]) and one["deletion_gain"] > 0.2
    )
    single = deletion_scores(Spot(), image, heat[None], [0], steps=1)[0]
    assert single["deletion_gain"] == 0, "the ends of the curve are those of any map"
    with pytest.raises(ExplainError, match="Heat maps"):
        deletion_scores(Spot(), image, heat[None, 1:], [0])
