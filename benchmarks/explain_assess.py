"""Fourth room of the explanations: one table per model, all methods beside a random map and a centre blob."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import faithfulness as faith
from vitdomains.core.explain.api import CLASS_AGNOSTIC, explain

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
    kind: faith.Kind = "multilabel",
    mode: faith.Mode = "blur",
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
                rows[-1]["class_sensitivity"] = faith.class_sensitivity(stack) if stack.shape[1] > 1 else None
    return rows


def _map_of(model: nn.Module, case: Case, method: str, index: int, options: dict[str, Any]) -> Tensor:
    shape = (int(case.mask.shape[0]), int(case.mask.shape[1]))
    if method == "random":
        return faith.random_map(shape, seed=index)
    if method == "centre_blob":
        return faith.centre_blob(shape)
    return explain(model, case.image[None], method, [case.k], **options)[0, 0].cpu()


def _row(
    model: nn.Module,
    cases: Sequence[Case],
    method: str,
    maps: Sequence[Tensor],
    kind: faith.Kind,
    mode: faith.Mode,
    steps: int,
    tolerance: float,
    curves: int,
) -> dict[str, Any]:
    hits = [
        _hit_rate(method, index, heat, case, tolerance)
        for index, (heat, case) in enumerate(zip(maps, cases, strict=True))
    ]
    areas = [faith.overlap(heat.numpy(), case.mask) for heat, case in zip(maps, cases, strict=True)]
    drawn = [
        faith.curve(model, case.image, heat.to(case.image), case.k, mode=mode, kind=kind, steps=steps)
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
        return float(faith.pointing_hit(heat.numpy(), case.mask, tolerance))
    shape = (int(case.mask.shape[0]), int(case.mask.shape[1]))
    many = (faith.random_map(shape, _RANDOM_MAPS * index + i).numpy() for i in range(_RANDOM_MAPS))
    return float(np.mean([faith.pointing_hit(noise, case.mask, tolerance) for noise in many]))


def sanity_check(
    model: nn.Module, cases: Sequence[Case], method: str, *, share: float = 1.0, seed: int = 0, **options: Any
) -> float:
    """Structural similarity of the maps of the trained model and of a copy with random parameters (Adebayo et al. 2018).

    Well below one: the map depends on what was learned. ``share`` of the modules from the output on are drawn anew.
    """
    other = faith.randomised(model, share, seed)
    before, after = (
        torch.stack([explain(m, case.image[None], method, [case.k], **options)[0, 0] for case in cases])
        for m in (model, other)
    )
    return faith.similarity(before, after)
