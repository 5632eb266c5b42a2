"""Faithfulness of a heat map to its model: the area under its deletion curve, beside that of random maps.

Such numbers hardly separate methods from noise on their own, so every one is to be read beside that of a random map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.attention import forward_logits, untouched
from vitdomains.core.inference.predictor import batched
from vitdomains.core.tasks import Kind


def deletion_scores(
    model: nn.Module,
    image: Tensor,
    heats: Tensor,
    classes: Sequence[int],
    *,
    kind: Kind = "multilabel",
    steps: int = 8,
    randoms: int = 2,
    batch_size: int = 8,
) -> list[dict[str, float]]:
    """Deletion: Petsiuk, Das and Saenko 2018 (RISE, arXiv:1806.07421), section 4.3, of several maps of one image.

    The most relevant pixels are replaced by the blurred image, in equal shares. The whole image, the blurred one and the random
    maps are the same for every class, so M maps cost 2 + (M + randoms) * (steps - 1) forward passes.

    Args:
        model: A classifier.
        image: [C,H,W], as the model takes it.
        heats: [M,H,W], any scale.
        classes: Index of the class of each map.
        kind: multilabel: sigmoid; singlelabel: softmax.
        steps: Equal shares in which the image goes.
        randoms: Random maps.
        batch_size: Images in one pass.

    Returns:
        For each map ``deletion``, the area under its curve, 0..1, the lower the more faithful; ``deletion_random``, the mean area
        of random maps; and ``deletion_gain``, their difference: above zero the map found what the model uses better than chance.

    Raises:
        ExplainError: Shapes do not fit.
    """
    if heats.shape[1:] != image.shape[1:] or len(heats) != len(classes) or steps < 1:
        raise ExplainError(f"Heat maps {tuple(heats.shape)} for an image {tuple(image.shape)} in {steps} steps.")
    shape = (int(heats.shape[1]), int(heats.shape[2]))
    noise = [random_map(shape, seed).to(heats) for seed in range(randoms)]
    blurred = blur(image)

    def series() -> Iterator[Tensor]:
        yield image
        yield blurred
        for heat in [*heats, *noise]:
            order = ranks(heat).view_as(heat)
            for step in range(1, steps):
                yield torch.where(order < round(step / steps * heat.numel()), blurred, image)

    scores: list[Tensor] = []
    with untouched(model), torch.no_grad():
        for batch in batched(series(), batch_size):
            scores += class_probabilities(forward_logits(model, torch.stack(batch)), kind)
    whole, nothing, *between = scores
    curves = [between[i * (steps - 1) : (i + 1) * (steps - 1)] for i in range(len(heats) + randoms)]
    areas = [_area([whole, *curve, nothing]) for curve in curves]
    found = []
    for own, k in zip(areas, classes, strict=False):
        chance = float(np.mean([area[k] for area in areas[len(heats) :]]))
        found.append({"deletion": float(own[k]), "deletion_random": chance, "deletion_gain": chance - float(own[k])})
    return found


def _area(curve: Sequence[Tensor]) -> Tensor:
    """Area under the curve of every class, [K], by the trapezoid rule over 0..1."""
    return torch.trapezoid(torch.stack(tuple(curve)).double(), dim=0) / (len(curve) - 1)


def class_probabilities(logits: Tensor, kind: Kind) -> Tensor:
    """[B,K] in 0..1, on the CPU."""
    return (logits.float().sigmoid() if kind == "multilabel" else logits.float().softmax(-1)).cpu()


def ranks(heat: Tensor) -> Tensor:
    """Rank of each entry of a flattened map, 0 the most relevant."""
    order = heat.flatten().argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def blur(image: Tensor) -> Tensor:
    """[C,H,W] without detail: Gaussian, sigma one eighth of the shorter side."""
    sigma = min(image.shape[1:]) / 8
    planes = [cv2.GaussianBlur(plane, (0, 0), sigma) for plane in image.detach().float().cpu().numpy()]
    return torch.from_numpy(np.stack(planes)).to(image)


def random_map(shape: tuple[int, int], seed: int, grid: int = 14) -> Tensor:
    """Noise of a coarse grid, resampled to [H,W]: as smooth as a method's map, and about nothing."""
    noise = torch.rand(1, 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, shape, mode="bilinear", align_corners=False)[0, 0]
