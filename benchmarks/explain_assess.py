"""Measures of heat maps that need more than the model: deletion and insertion curves, pointing game, overlap with masks, sanity
checks; and one table of all methods beside a random map and a centre blob."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.api import CLASS_AGNOSTIC, explain
from vitdomains.core.explain.attention import attention_blocks, forward_logits, patch_grid, untouched
from vitdomains.core.explain.faithfulness import blur, class_probabilities, random_map, ranks
from vitdomains.core.tasks import Kind

Mode = Literal["blur", "tokens"]
Floats = npt.NDArray[np.float32]

BASELINES = ("random", "centre_blob")
_RANDOM_MAPS = 20  # per case, in the pointing game


@dataclass(frozen=True)
class Case:
    """One known finding: image [C,H,W] as the model takes it, class, and where the finding lies, [H,W] on the input grid."""

    image: Tensor
    k: int
    mask: npt.NDArray[np.bool_]


def mask_on_grid(
    mask: npt.NDArray[Any], affine: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """A mask of the original image on the input grid: True where a grid pixel's centre falls on it.

    A finding smaller than a grid pixel is kept as the one pixel that holds its centre.

    Args:
        mask: [H0,W0] of the original, non-zero inside.
        affine: [2,3], grid pixel centre to original pixel, (x, y): ``preprocess.geometry``.
        shape: Height and width of the grid.
    """
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    source = (np.asarray(mask) != 0).astype(np.uint8)
    found = cv2.warpAffine(source, np.asarray(affine, dtype=np.float64), shape[::-1], flags=flags).astype(bool)
    if source.any() and not found.any():
        centre = np.argwhere(source).mean(0)[::-1]
        x, y = np.round(np.linalg.solve(affine[:, :2], centre - affine[:, 2])).astype(int)
        if 0 <= x < shape[1] and 0 <= y < shape[0]:
            found[y, x] = True
    return found


def box_mask(boxes: Sequence[Sequence[float]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Boxes (x, y, w, h) in pixels of an image as a mask [H,W]."""
    mask = np.zeros(shape, dtype=bool)
    for x, y, w, h in boxes:
        left, top = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
        mask[top : max(top + 1, int(np.ceil(y + h))), left : max(left + 1, int(np.ceil(x + w)))] = True
    return mask


def assess(
    model: nn.Module,
    cases: Sequence[Case],
    methods: Sequence[str],
    *,
    kind: Kind = "multilabel",
    mode: Mode = "blur",
    steps: int = 8,
    tolerance: float = 0.0,
    curves: int = 32,
    sanity: int = 8,
    options: dict[str, dict[str, Any]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """The report table: one row a method, the two baselines last.

    Args:
        model: A classifier.
        cases: Known findings.
        methods: Keys of ``METHODS``.
        kind, mode, steps: Of the deletion and insertion curves.
        tolerance: Of the pointing game, pixels of the input grid.
        curves: Cases (the first) for which curves are drawn; they cost 2 * (steps + 1) passes each.
        sanity: Cases (the first) for the parameter-randomisation check.
        options: Options of ``explain`` by method.
        progress: Called with method, cases done, cases in all.

    Returns:
        Rows with method, cases, pointing (share of hits), pointing_by_class, iou, deletion and insertion (areas), sanity_ssim
        (trained against randomised; None for baselines) and class_sensitivity (None where the method knows no class).
    """
    if not cases:
        raise ExplainError("No cases to assess.", hint="Give images with a mask or box of their finding.")
    rows = []
    for method in [*methods, *BASELINES]:
        maps = []
        for index, case in enumerate(cases):
            maps.append(_map_of(model, case, method, index, (options or {}).get(method, {})))
            if progress is not None:
                progress(method, index + 1, len(cases))
        rows.append(_row(model, cases, method, maps, kind, mode, steps, tolerance, curves))
        if method not in BASELINES and sanity:
            rows[-1]["sanity_ssim"] = sanity_check(model, cases[:sanity], method, **(options or {}).get(method, {}))
            if method not in CLASS_AGNOSTIC:
                images = torch.stack([case.image for case in cases[:sanity]])
                stack = explain(model, images, method, None, **(options or {}).get(method, {}))
                rows[-1]["class_sensitivity"] = class_sensitivity(stack) if stack.shape[1] > 1 else None
    return rows


def _map_of(model: nn.Module, case: Case, method: str, index: int, options: dict[str, Any]) -> Tensor:
    shape = (int(case.mask.shape[0]), int(case.mask.shape[1]))
    if method == "random":
        return random_map(shape, seed=index)
    if method == "centre_blob":
        return centre_blob(shape)
    return explain(model, case.image[None], method, [case.k], **options)[0, 0].cpu()


def _row(
    model: nn.Module,
    cases: Sequence[Case],
    method: str,
    maps: Sequence[Tensor],
    kind: Kind,
    mode: Mode,
    steps: int,
    tolerance: float,
    curves: int,
) -> dict[str, Any]:
    hits = [
        _hit_rate(method, index, heat, case, tolerance)
        for index, (heat, case) in enumerate(zip(maps, cases, strict=True))
    ]
    areas = [overlap(heat.numpy(), case.mask) for heat, case in zip(maps, cases, strict=True)]
    drawn = [
        curve(model, case.image, heat.to(case.image), case.k, mode=mode, kind=kind, steps=steps)
        for heat, case in list(zip(maps, cases, strict=True))[:curves]
    ]
    by_class = {
        k: [hit for hit, case in zip(hits, cases, strict=True) if case.k == k] for k in {case.k for case in cases}
    }
    return {
        "method": method,
        "cases": len(cases),
        "pointing": float(np.mean(hits)),
        "pointing_by_class": {k: float(np.mean(found)) for k, found in sorted(by_class.items())},
        "iou": float(np.nanmean(areas)),
        "deletion": float(np.mean([c.deletion_area for c in drawn])) if drawn else None,
        "insertion": float(np.mean([c.insertion_area for c in drawn])) if drawn else None,
        "sanity_ssim": None,
        "class_sensitivity": None,
    }


def _hit_rate(method: str, index: int, heat: Tensor, case: Case, tolerance: float) -> float:
    """1 or 0; of the random baseline the share over many maps, for a single one says little of a small lesion."""
    if method != "random":
        return float(pointing_hit(heat.numpy(), case.mask, tolerance))
    shape = (int(case.mask.shape[0]), int(case.mask.shape[1]))
    many = (random_map(shape, _RANDOM_MAPS * index + i).numpy() for i in range(_RANDOM_MAPS))
    return float(np.mean([pointing_hit(noise, case.mask, tolerance) for noise in many]))


def sanity_check(
    model: nn.Module, cases: Sequence[Case], method: str, *, share: float = 1.0, seed: int = 0, **options: Any
) -> float:
    """Structural similarity of the maps of the trained model and of a copy with random parameters (Adebayo et al. 2018).

    Well below one: the map depends on what was learned. ``share`` of the modules from the output on are drawn anew.
    """
    other = randomised(model, share, seed)
    before, after = (
        torch.stack([explain(m, case.image[None], method, [case.k], **options)[0, 0] for case in cases])
        for m in (model, other)
    )
    return similarity(before, after)


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
    return [float(s) for s in class_probabilities(logits, kind)[:, k]]


def _pixel_scores(
    model: nn.Module, image: Tensor, heat: Tensor, k: int, kind: Kind, fraction: Sequence[float], batch_size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    blurred = blur(image)
    order = ranks(heat).view_as(heat)
    taken = torch.stack([order < round(f * heat.numel()) for f in fraction])[:, None]  # [S,1,H,W]
    series = torch.cat([torch.where(taken, blurred, image), torch.where(taken, image, blurred)])
    scores: list[float] = []
    for part in series.split(batch_size):
        scores += _probability(forward_logits(model, part), k, kind)
    return tuple(scores[: len(fraction)]), tuple(scores[len(fraction) :])


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
    order = F.interpolate(ranks(pooled).view(1, 1, *grid).float(), heat.shape[-2:], mode="nearest-exact")[0, 0]
    handle = blocks[0].register_forward_pre_hook(drop)
    try:
        scores = []
        for removed in (True, False):
            for f in fraction:
                taken = order < round(f * grid[0] * grid[1])
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


def centre_blob(shape: tuple[int, int]) -> Tensor:
    """A Gaussian in the middle, sigma a quarter of each side, [H,W]: the map that needs no model."""
    y, x = (torch.linspace(-2, 2, n) for n in shape)
    return torch.exp(-0.5 * (y[:, None] ** 2 + x[None, :] ** 2))


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
