"""``explain``: heat maps of a model and images on the input grid, by any method, each with its deletion score."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.attention import forward_logits, untouched
from vitdomains.core.explain.faithfulness import deletion_scores
from vitdomains.core.explain.gradcam import gradcam, occlusion
from vitdomains.core.explain.relevance import gradient_relevance, gradient_rollout, rollout
from vitdomains.core.tasks import Kind

METHODS: dict[str, Callable[..., Tensor]] = {
    "rollout": rollout,
    "gradient_rollout": gradient_rollout,
    "relevance": gradient_relevance,
    "gradcam": gradcam,
    "occlusion": occlusion,
}
"""Method by name: (model, images [B,C,H,W], [classes], **options) -> [B,K',h,w]. All but rollout make one map a class."""

CLASS_AGNOSTIC = frozenset({"rollout"})

_PIXELS_AT_ONCE = {"cpu": 384 * 384}  # in one pass; elsewhere sixteen times as many
_ELSEWHERE = 16 * 384 * 384


@dataclass(frozen=True)
class Heatmap:
    """One map of one image."""

    values: npt.NDArray[np.float32]
    """[H,W] on the input grid of the model, 0..1 (1: most relevant)."""
    method: str
    class_name: str
    """Empty where the method knows no class."""
    faithfulness: dict[str, float] | None = None
    """Deletion score of this map and of a random one, see ``faithfulness.deletion_scores``."""


def explain(
    model: nn.Module,
    images: Tensor,
    method: str = "rollout",
    classes: Sequence[int] | None = None,
    *,
    chunk: int = 0,
    normalise: bool = True,
    **options: Any,
) -> Tensor:
    """Heat maps on the input grid.

    Args:
        model: A classifier that returns logits; left as it was.
        images: [B,C,H,W], float, preprocessed as the model takes them.
        method: A key of ``METHODS``.
        classes: Class indices, one map each; all if None. Rollout makes one map whatever the classes.
        chunk: Images in one pass of the backbone; 0: by the image size. It bounds the memory, and changes no value.
        normalise: Bring each map to 0..1 by its own minimum and maximum (a constant map becomes zero).
        **options: Of the method.

    Returns:
        [B,K',H,W], float32; K' = 1 for rollout.

    Raises:
        ExplainError: Unknown method or option, images of another shape, or the method does not fit the model.
    """
    if method not in METHODS:
        raise ExplainError(f"Unknown method {method!r}.", hint=f"It is one of {', '.join(METHODS)}.")
    if images.dim() != 4 or not images.is_floating_point() or len(images) == 0:
        raise ExplainError(
            f"Images of shape {tuple(images.shape)} and type {images.dtype}.", hint="Give floats [B,C,H,W]."
        )
    allowed = [name for name, p in inspect.signature(METHODS[method]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ExplainError(
            f"Method {method} has no option {', '.join(unknown)}.", hint=f"It has {', '.join(allowed) or 'none'}."
        )
    height, width = images.shape[-2:]
    chunk = chunk or max(1, _PIXELS_AT_ONCE.get(images.device.type, _ELSEWHERE) // (height * width))
    maps = []
    for part in images.split(chunk):
        arguments = (model, part) if method in CLASS_AGNOSTIC else (model, part, classes)
        found = METHODS[method](*arguments, **options).float()
        maps.append(F.interpolate(found, (height, width), mode="bilinear", align_corners=False))
    heat = torch.cat(maps)
    return unit_range(heat) if normalise else heat


def unit_range(heat: Tensor) -> Tensor:
    """Each map [...,H,W] to 0..1 by its own minimum and maximum; a constant or non-finite map becomes zero."""
    low, high = heat.amin((-2, -1), keepdim=True), heat.amax((-2, -1), keepdim=True)
    span = high - low
    usable = torch.isfinite(span) & (span > 0)
    return torch.where(usable, (heat - low) / span.where(usable, torch.ones_like(span)), torch.zeros_like(heat))


def heatmaps(
    model: nn.Module,
    images: Tensor,
    class_names: Sequence[str],
    method: str = "rollout",
    classes: Sequence[int] | None = None,
    *,
    kind: Kind = "multilabel",
    steps: int = 8,
    **options: Any,
) -> list[list[Heatmap]]:
    """Heat maps of a batch, each with its deletion score beside that of random maps.

    Args:
        model: A classifier.
        images: [B,C,H,W], as the model takes them.
        class_names: All K names in the model's order.
        method: A key of ``METHODS``.
        classes: Class indices; all if None. A class-agnostic method gives one map, scored for each image's first class asked
            for, or for its most probable one if None.
        kind: Of the task.
        steps: Of the deletion curve; 0: no score.
        **options: Of ``explain``.

    Returns:
        A list of heat maps for each image.
    """
    maps = explain(model, images, method, classes, **options).cpu()
    chosen = list(range(len(class_names))) if classes is None else list(classes)
    out = []
    for image, stack in zip(images, maps, strict=True):
        ks = chosen
        if method in CLASS_AGNOSTIC:
            ks = [chosen[0]] if classes is not None else [_top_class(model, image)]
        scores = deletion_scores(model, image, stack.to(image), ks, kind=kind, steps=steps) if steps else None
        names = ["" if method in CLASS_AGNOSTIC else class_names[k] for k in ks]
        out.append([Heatmap(h.numpy(), method, name, scores[i] if scores else None)
                    for i, (h, name) in enumerate(zip(stack, names, strict=True))])  # fmt: skip
    return out


def _top_class(model: nn.Module, image: Tensor) -> int:
    with untouched(model), torch.no_grad():
        return int(forward_logits(model, image[None])[0].argmax())
