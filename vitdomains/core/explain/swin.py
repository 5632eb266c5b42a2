"""Beside capture: where a Swin layer's windows lie, so that a row of relevance can be carried through them.

Liu et al. 2021 (arXiv:2103.14030, section 3.2) and 2022 (SwinV2, arXiv:2111.09883): attention inside windows, every second
layer shifted cyclically, and between stages four neighbouring tokens merged into one. As a matrix over all tokens such a
layer is a permuted block diagonal, and merging a row-stochastic N/4 x N matrix with 1/4 at each child. Neither is formed:
a row vector is gathered into windows, multiplied there, and scattered back. Relative position bias, SwinV2's cosine
attention with its logit scale, and the shift's mask are in the weights already, as captured after the softmax.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vitdomains.core.explain.attention import Window


@lru_cache(maxsize=64)
def window_index(window: Window) -> Tensor:
    """Token of the grid (row-major) in each slot of each window, [windows, slots]; -1 for padding."""
    height, width = window.grid
    rows, cols = window.size
    index = torch.arange(height * width).view(1, height, width)
    pad = (0, -width % cols, 0, -height % rows)
    shift = (-window.shift[0], -window.shift[1])
    if window.pad_first:
        index = F.pad(index, pad, value=-1).roll(shift, dims=(1, 2))
    else:
        index = F.pad(index.roll(shift, dims=(1, 2)), pad, value=-1)
    index = index.view(index.shape[1] // rows, rows, index.shape[2] // cols, cols)
    return index.transpose(1, 2).reshape(-1, rows * cols)


def to_windows(row: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Row vectors over the grid [B,H*W] -> over window slots [B*windows,slots], and which slots are tokens (same shape)."""
    index = window_index(window).to(row.device)
    real = index >= 0
    gathered = row[:, index.clamp(min=0)] * real  # [B,windows,slots]
    return gathered.flatten(0, 1), real.repeat(len(row), 1)


def from_windows(slots: Tensor, window: Window, batch: int) -> Tensor:
    """Inverse of ``to_windows``; what lies on padding is dropped."""
    index = window_index(window).to(slots.device).flatten()
    real = index >= 0
    row = slots.new_zeros(batch, window.grid[0] * window.grid[1])
    row[:, index[real]] = slots.view(batch, -1)[:, real]
    return row


def unmerge(row: Tensor, merged: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Row vectors over the merged grid [B,h*w] -> over the grid before patch merging, in equal parts to the 2 x 2 children.

    An odd edge was padded by the model; the children that are padding take no part.
    """
    height, width = grid
    y = torch.arange(height, device=row.device) // 2
    x = torch.arange(width, device=row.device) // 2
    children = torch.bincount(y)[:, None] * torch.bincount(x)[None, :]  # [h,w]
    share = row.view(-1, *merged) / children
    return share[:, y][:, :, x].reshape(len(row), -1)
