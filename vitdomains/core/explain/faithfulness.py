"""Third room of the explanations: is a heat map faithful to the model, and does it lie where the finding lies?

Such numbers hardly separate methods from noise on their own. So every one of them is to be read beside that of a random map and
of a blob in the centre, both of which are made here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.attention import attention_blocks, forward_logits, patch_grid, untouched

Mode = Literal["blur", "tokens"]
Kind = Literal["multilabel", "singlelabel"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Curve:
    """Probability of one class while the most relevant parts are taken away, or put back."""

    fraction: tuple[float, ...]
    """Share of the image that was taken away (deletion) or put back (insertion), 0..1."""
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def deletion_area(self) -> float:
        """Area under the deletion curve, 0..1; the lower the more faithful."""
        return float(np.trapezoid(self.deletion, self.fraction))

    @property
    def insertion_area(self) -> float:
        """Area under the insertion curve, 0..1; the higher the more faithful."""
        return float(np.trapezoid(self.insertion, self.fraction))


def curve(
    model: nn.Module,
    image: Tensor,
    heat: Tensor,
    k: int,
    *,
    mode: Mode = "blur",
    kind: Kind = "multilabel",
    steps: int = 10,
    batch_size: int = 8,
) -> Curve:
    """Deletion and insertion: Petsiuk, Das and Saenko 2018 (RISE, arXiv:1806.07421), section 4.3.

    Args:
        model: A classifier.
        image: [C,H,W], as the model takes it.
        heat: [H,W], any scale.
        k: Index of the class.
        mode: ``blur``: pixels are replaced by the blurred image (Gaussian, sigma one eighth of the shorter side).
            ``tokens``: patch tokens are left out before the first block; for ViTs whose blocks take any count of tokens.
        kind: multilabel: sigmoid; singlelabel: softmax.
        steps: Equal shares in which the image goes.
        batch_size: Images in one pass.

    Raises:
        ExplainError: Shapes do not fit; or ``tokens`` with a model that needs all its tokens.
    """
    if heat.shape != image.shape[1:] or steps < 1:
        raise ExplainError(f"A heat map {tuple(heat.shape)} for an image {tuple(image.shape)} in {steps} steps.")
    fraction = tuple(i / steps for i in range(steps + 1))
    with untouched(model), torch.no_grad():
        if mode == "tokens":
            found = _token_scores(model, image, heat, k, kind, fraction)
        else:
            found = _pixel_scores(model, image, heat, k, kind, fraction, batch_size)
    return Curve(fraction, *found)


def _probability(logits: Tensor, k: int, kind: Kind) -> list[float]:
    scores = logits.float().sigmoid() if kind == "multilabel" else logits.float().softmax(-1)
    return [float(s) for s in scores[:, k]]


def _ranks(heat: Tensor) -> Tensor:
    """Rank of each entry of a flattened map, 0 the most relevant."""
    order = heat.flatten().argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _pixel_scores(
    model: nn.Module, image: Tensor, heat: Tensor, k: int, kind: Kind, fraction: Sequence[float], batch_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    blurred = blur(image)
    ranks = _ranks(heat).view_as(heat)
    taken = torch.stack([ranks < round(f * heat.numel()) for f in fraction])[:, None]  # [S,1,H,W]
    series = torch.cat([torch.where(taken, blurred, image), torch.where(taken, image, blurred)])
    scores: list[float] = []
    for part in series.split(batch_size):
        scores += _probability(forward_logits(model, part), k, kind)
    return tuple(scores[: len(fraction)]), tuple(scores[len(fraction) :])


def blur(image: Tensor) -> Tensor:
    """[C,H,W] without detail: Gaussian, sigma one eighth of the shorter side."""
    sigma = min(image.shape[1:]) / 8
    planes = [cv2.GaussianBlur(plane, (0, 0), sigma) for plane in image.detach().float().cpu().numpy()]
    return torch.from_numpy(np.stack(planes)).to(image)


def _token_scores(
    model: nn.Module, image: Tensor, heat: Tensor, k: int, kind: Kind, fraction: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    blocks = attention_blocks(model)
    if not blocks or hasattr(blocks[0], "shift_size"):
        raise ExplainError(f"{type(model).__name__} cannot run without some of its tokens.", hint="Use mode blur.")
    keep: list[Tensor] = []  # of the patches; the hook reads it

    def drop(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = args[0]
        grid, prefix = patch_grid(model, (image.shape[1], image.shape[2]), tokens.shape[1])
        mask = keep[0].view(1, 1, *heat.shape).float()
        patches = F.interpolate(mask, grid, mode="nearest-exact").flatten() > 0
        both = torch.cat([patches.new_ones(prefix), patches])
        return (tokens[:, both], *args[1:])

    grid = _grid_of(model, image)
    pooled = F.adaptive_avg_pool2d(heat[None, None].float(), grid)
    ranks = F.interpolate(_ranks(pooled).view(1, 1, *grid).float(), heat.shape[-2:], mode="nearest-exact")[0, 0]
    handle = blocks[0].register_forward_pre_hook(drop)
    try:
        scores = []
        for removed in (True, False):
            for f in fraction:
                taken = ranks < round(f * grid[0] * grid[1])
                keep[:] = [~taken if removed else taken]
                scores += _probability(forward_logits(model, image[None]), k, kind)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ExplainError(
            f"{type(model).__name__} cannot run without some of its tokens ({str(error)[:80]}).", hint="Use mode blur."
        ) from error
    finally:
        handle.remove()
    return tuple(scores[: len(fraction)]), tuple(scores[len(fraction) :])


def _grid_of(model: nn.Module, image: Tensor) -> tuple[int, int]:
    counts: list[int] = []
    handle = attention_blocks(model)[0].register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[1]))
    try:
        forward_logits(model, image[None])
    finally:
        handle.remove()
    return patch_grid(model, (image.shape[1], image.shape[2]), counts[0])[0]


def random_map(shape: tuple[int, int], seed: int, grid: int = 14) -> Tensor:
    """Noise of a coarse grid, resampled to [H,W]: as smooth as a method's map, and about nothing."""
    noise = torch.rand(1, 1, grid, grid, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, shape, mode="bilinear", align_corners=False)[0, 0]


def centre_blob(shape: tuple[int, int]) -> Tensor:
    """A Gaussian in the middle, sigma a quarter of each side, [H,W]: the map that needs no model."""
    y, x = (torch.linspace(-2, 2, n) for n in shape)
    return torch.exp(-0.5 * (y[:, None] ** 2 + x[None, :] ** 2))


def deletion_score(
    model: nn.Module,
    image: Tensor,
    heat: Tensor,
    k: int,
    *,
    kind: Kind = "multilabel",
    steps: int = 8,
    randoms: int = 2,
) -> dict[str, float]:
    """What every heat map carries: area under its deletion curve (blur), and the mean area of random maps.

    ``deletion_gain`` is random minus own: above zero the map found what the model uses better than chance.
    """
    own = curve(model, image, heat, k, kind=kind, steps=steps).deletion_area
    shape = (int(heat.shape[0]), int(heat.shape[1]))
    noise = [
        curve(model, image, random_map(shape, seed).to(heat), k, kind=kind, steps=steps).deletion_area
        for seed in range(randoms)
    ]
    chance = float(np.mean(noise))
    return {"deletion": own, "deletion_random": chance, "deletion_gain": chance - own}


def pointing_hit(heat: Floats, mask: npt.NDArray[np.bool_], tolerance: float = 0.0) -> bool:
    """Pointing game (Zhang et al. 2016, arXiv:1608.00507, section 4.1): is the maximum within ``tolerance`` pixels of the mask?

    Of several equal maxima the one nearest to their mean counts, so that a flat map does not point at a corner.
    """
    _same_shape(heat, mask)
    peaks = np.argwhere(heat == heat.max())
    y, x = peaks[np.argmin(((peaks - peaks.mean(0)) ** 2).sum(1))]
    if not mask.any():
        return False
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(distance[y, x] <= tolerance)


def overlap(heat: Floats, mask: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of the mask and the map's highest pixels, as many as the mask has (no threshold to tune)."""
    _same_shape(heat, mask)
    count = int(mask.sum())
    if count == 0:
        return float("nan")
    chosen = np.zeros(heat.size, dtype=bool)
    chosen[np.argsort(-heat, axis=None, kind="stable")[:count]] = True
    both = int((chosen & mask.ravel()).sum())
    return both / (2 * count - both)


def _same_shape(heat: Floats, mask: npt.NDArray[np.bool_]) -> None:
    if heat.shape != mask.shape or mask.dtype != np.bool_:
        raise ExplainError(
            f"A heat map {heat.shape} and a mask {mask.shape} of {mask.dtype}.",
            hint="Give a boolean mask of the same shape.",
        )


def randomised(model: nn.Module, share: float = 1.0, seed: int = 0) -> nn.Module:
    """A copy whose parameters are drawn anew in the last ``share`` of its modules, 0..1.

    Cascading randomisation from the logits down: Adebayo et al. 2018 (arXiv:1810.03292), section 3.
    """
    other = copy.deepcopy(model)
    owners = [m for m in other.modules() if any(True for _ in m.parameters(recurse=False))]
    count = round(share * len(owners))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in owners[len(owners) - count :]:
            for parameter in module.parameters(
                recurse=False
            ):  # class token, positions, LayerScale: same spread, no content
                spread = float(parameter.float().std()) if parameter.numel() > 1 else 1.0
                parameter.copy_(torch.randn(parameter.shape) * (spread or 0.02))
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return other


def similarity(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004) of two stacks of maps [N,H,W] in 0..1."""
    from monai.metrics.regression import SSIMMetric  # seconds to import

    window = min(11, (min(a.shape[-2:]) - 1) // 2 * 2 + 1)
    metric = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=window)
    return float(metric(a[:, None].float().cpu(), b[:, None].float().cpu()).mean())


def class_sensitivity(maps: Tensor) -> float:
    """Mean of 1 - correlation between an image's maps of two classes, over pairs, [B,K,H,W]: 0 where the class plays no part.

    Raises:
        ExplainError: Fewer than two classes.
    """
    if maps.shape[1] < 2:
        raise ExplainError("Class sensitivity needs the maps of two classes at least.", hint="Ask for more classes.")
    flat = maps.flatten(2).double()
    flat = flat - flat.mean(-1, keepdim=True)
    flat = flat / flat.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    correlation = flat @ flat.transpose(1, 2)  # [B,K,K]
    upper = torch.triu_indices(maps.shape[1], maps.shape[1], offset=1)
    return float((1 - correlation[:, upper[0], upper[1]]).mean())
