"""Rollout and gradient relevance: the relevance of every input token, carried as one row vector from the last layer down.

Rollout multiplies one matrix over all tokens per layer, but only the row of the token that the head reads is wanted, and a
row vector can pass through the product from its left end: r <- r A_L, r <- r A_(L-1), ... So no product of matrices is ever
formed, and a layer's weights exist in short runs of rows only, all heads of which are fused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import attention
from vitdomains.core.explain.attention import (
    Attention,
    Readout,
    SwinWindow,
    TokenLayout,
    capture,
    gradients_of,
    mean_heads,
)

Fusion = Literal["mean", "max", "min"]


def _max_heads(weights: Tensor) -> Tensor:
    return weights.amax(1)


def _min_heads(weights: Tensor) -> Tensor:
    return weights.amin(1)


def _positive_mean(weights: Tensor) -> Tensor:
    return weights.clamp(min=0).mean(1)


def _mean_positive(weights: Tensor) -> Tensor:
    return weights.mean(1).clamp(min=0)


_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": mean_heads, "max": _max_heads, "min": _min_heads}


@dataclass(frozen=True)
class _Rule:
    """What is done with a layer's weights before the row passes: fuse heads, drop the smallest, add identity, normalise."""

    fuse: Callable[[Tensor], Tensor]  # [b,h,R,n] -> [b,R,n]
    identity: float
    """Share of the identity in the sum; the weights get the rest, unless ``normalise`` is off."""
    discard_ratio: float = 0.0
    normalise: bool = True


def rollout(
    model: nn.Module,
    images: Tensor,
    *,
    head_fusion: Fusion = "mean",
    residual: float = 0.5,
    discard_ratio: float = 0.0,
    readout: Readout = "auto",
) -> Tensor:
    """Attention rollout: Abnar and Zuidema 2020 (arXiv:2005.00928), section 3, on the patch grid.

    Each layer is A = (1 - residual) fused + residual I, rows normalised to one; the map is the row of the token that
    the head reads in the product of all layers. For Swin the product runs through windows, shifts and patch merging.

    Args:
        model: A transformer classifier.
        images: [B,C,H,W].
        head_fusion: Heads are fused by their mean (the paper), maximum or minimum.
        residual: Weight of the residual connection, 0..1 (the paper: 0.5).
        discard_ratio: Share of the smallest fused weights set to zero in each image's matrix, 0..1 (for Swin, of the real
            entries within windows). The class token's own entry is never dropped. Costs one layer's fused matrix of memory.
        readout: Where the row starts: at the class token(s), at the mean of the patches, at both; ``auto`` asks the head.

    Returns:
        [B,1,h,w], not negative, the prefix tokens' share left out.

    Raises:
        ExplainError: See ``capture``; or an option is out of range.
    """
    if head_fusion not in _FUSIONS:
        raise ExplainError(f"head_fusion is {head_fusion!r}.", hint=f"It is one of {', '.join(_FUSIONS)}.")
    _check_share("residual", residual)
    _check_share("discard_ratio", discard_ratio)
    fuse = _FUSIONS[head_fusion]
    found = capture(model, images, fuse=fuse)
    rule = _Rule(fuse, residual, discard_ratio)
    layout = TokenLayout.of(model, found, readout)
    return layout.to_grid(_walk(found.layers, layout, rule, None))[:, None]


def gradient_rollout(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | None = None,
    *,
    discard_ratio: float = 0.0,
    residual: float = 0.5,
    readout: Readout = "auto",
) -> Tensor:
    """Rollout of weights times their gradient, heads averaged, then the positive part (Gildenblat 2020, "Exploring Explainability
    for Vision Transformers"); residual and normalisation as in ``rollout``. One forward pass, one backward pass a class.

    Returns:
        [B,K',h,w] for the given classes, all if None.
    """
    _check_share("residual", residual)
    _check_share("discard_ratio", discard_ratio)
    return _by_class(model, images, classes, _Rule(_mean_positive, residual, discard_ratio), readout)


def gradient_relevance(
    model: nn.Module, images: Tensor, classes: Sequence[int] | None = None, *, readout: Readout = "auto"
) -> Tensor:
    """Gradient-weighted relevance: Chefer, Gur and Wolf 2021 (ICCV, arXiv:2103.15679), equations 5 and 6 for self-attention.

    A' = mean over heads of the positive part of (gradient x A), R <- R + A' R. One forward pass, one backward pass a class.

    Returns:
        [B,K',h,w] for the given classes, all if None.
    """
    return _by_class(model, images, classes, _Rule(_positive_mean, 1.0, normalise=False), readout)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ExplainError(f"{name} is {value}.", hint="It is a share: at least 0, below 1.")


def chosen_classes(classes: Sequence[int] | None, count: int) -> list[int]:
    """The class indices, all of ``count`` if None.

    Raises:
        ExplainError: An index is outside 0..count-1.
    """
    chosen = list(range(count)) if classes is None else [int(c) for c in classes]
    wrong = [c for c in chosen if not 0 <= c < count]
    if wrong or not chosen:
        raise ExplainError(
            f"Classes {wrong or chosen} asked of a model with {count}.", hint=f"Give indices from 0 to {count - 1}."
        )
    return chosen


def _by_class(model: nn.Module, images: Tensor, classes: Sequence[int] | None, rule: _Rule, readout: Readout) -> Tensor:
    found = capture(model, images, gradients=True)
    layout = TokenLayout.of(model, found, readout)
    targets = [layer.differentiable() for layer in found.layers]
    chosen = chosen_classes(classes, found.logits.shape[1])
    maps = []
    for position, k in enumerate(chosen):
        found_slopes = gradients_of(found.logits, k, targets, keep_graph=position < len(chosen) - 1)
        slopes = [slope for slope in found_slopes if slope is not None]
        if len(slopes) < len(targets):
            raise ExplainError(
                "The logit does not depend on some attention layer.", hint="Is part of the model under no_grad?"
            )
        maps.append(layout.to_grid(_walk(found.layers, layout, rule, slopes)))
    return torch.stack(maps, dim=1)


def _walk(layers: list[Attention], layout: TokenLayout, rule: _Rule, slopes: Sequence[Tensor] | None) -> Tensor:
    """The start row through all layers, last to first: [B,n of the first layer]. ``slopes`` pair with ``layers``."""
    row = layout.start
    for index in reversed(range(len(layers))):
        layer, slope = layers[index], None if slopes is None else slopes[index]
        with torch.autocast(row.device.type, enabled=False):  # the forward pass may run in half precision, this may not
            if layer.window is None:
                row = _step(row, layer, rule, slope, layout.own)
                continue
            slots, real = attention.to_windows(row, layer.window)
            row = attention.from_windows(_step(slots, layer, rule, slope, (), real), layer.window, len(row))
        below = layers[index - 1].window if index else None
        if below is not None and below.grid != layer.window.grid:
            row = attention.unmerge(row, layer.window.grid, below.grid)
    return row


def _step(
    row: Tensor, layer: Attention, rule: _Rule, slope: Tensor | None, own: tuple[int, ...], real: Tensor | None = None
) -> Tensor:
    """r <- r A of one layer: [b,n] -> [b,n]. ``real`` [b,n] marks the slots that are not padding."""
    fused = layer.fused
    if fused is None and rule.discard_ratio > 0:
        everyone = torch.arange(layer.shape[2], device=layer.device)
        fused = torch.cat([_fused_rows(layer, i, rule, slope) for i in layer.row_blocks(everyone)], dim=1)
    if rule.discard_ratio > 0 and fused is not None:
        # A Swin layer's windows of one image are one matrix: they share a threshold.
        images = len(row) if real is None else len(row) // len(attention.window_index(_known(layer)))
        fused = _discard(fused, rule.discard_ratio, own, images, real)
    out = torch.zeros_like(row)
    active = row.abs().sum(0).nonzero().flatten()  # the first row vector is almost empty
    for index in layer.row_blocks(active):
        weights = _fused_rows(layer, index, rule, slope) if fused is None else fused[:, index]  # [b,R,n]
        if real is not None:
            weights = weights * real[:, None]
        weights = weights * (1 - rule.identity) if rule.normalise else weights
        weights[:, torch.arange(len(index), device=row.device), index] += rule.identity
        if rule.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        out += (row[:, None, index] @ weights)[:, 0]
    return out


def _known(layer: Attention) -> SwinWindow:
    assert layer.window is not None
    return layer.window


def _fused_rows(layer: Attention, index: Tensor, rule: _Rule, slope: Tensor | None) -> Tensor:
    """Rows ``index`` fused over the heads, [b,R,n]; with ``slope``, of weights times gradient."""
    weights = layer.rows(index)
    if slope is None:
        return rule.fuse(weights)
    part = slope[:, :, index].float()
    if layer.weights is None:  # O = A V, so dL/dA = dL/dO V^T
        assert layer.value is not None
        part = part @ layer.value.detach().float().transpose(-2, -1)
    return rule.fuse(weights.mul_(part))


def _discard(fused: Tensor, ratio: float, own: tuple[int, ...], images: int, real: Tensor | None) -> Tensor:
    """The smallest entries of each image's matrix set to zero, [b,n,n]; ``own`` tokens' diagonal entries kept."""
    flat = fused.reshape(images, -1)
    if real is not None:  # padding is no entry: it is neither counted nor dropped
        entries = (real[:, :, None] & real[:, None, :]).view(images, -1)
        flat = flat.masked_fill(~entries, torch.inf)
        dropped = int(int(entries[0].sum()) * ratio)
    else:
        dropped = int(flat.shape[1] * ratio)
    if dropped == 0:
        return fused
    lowest = flat.topk(dropped, dim=1, largest=False, sorted=False).indices
    kept = fused.reshape(images, -1).scatter(1, lowest, 0.0).view_as(fused)
    for token in own:
        kept[:, token, token] = fused[:, token, token]
    return kept
