"""Beside relevance: which token is which, and where the row of relevance starts.

A class token, a distillation token, registers and patches stand in one sequence, and heads read it in different ways (class
token, both tokens, mean of the patches, both). Nobody has to say which: the gradient of the logits by the last block's
output is not zero at just the tokens that the head reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.attention import Captured

Readout = Literal["auto", "token", "mean", "both"]
_MAX_PREFIX = 32


@dataclass(frozen=True)
class Layout:
    """The tokens: ``prefix`` before the patches, the patch grid, and the row at which the relevance starts."""

    prefix: int
    grid: tuple[int, int]
    start: Tensor  # [B,n of the last layer], sums to one
    own: tuple[int, ...]
    """Class tokens that the head reads: their own entry is never discarded."""

    @classmethod
    def of(cls, model: nn.Module, found: Captured, readout: Readout) -> Layout:
        """The layout of a captured pass.

        Raises:
            ExplainError: The patch grid cannot be told, or ``readout`` does not fit.
        """
        first, last = found.layers[0], found.layers[-1]
        if first.window is not None and last.window is not None:  # Swin: the mean of the last grid
            count = last.window.grid[0] * last.window.grid[1]
            return cls(0, first.window.grid, torch.full((len(found.logits), count), 1 / count, device=last.device), ())
        batch, _, count = last.shape
        grid, prefix = patch_grid(model, found.images, count)
        read = _readout(readout, found.read, prefix, count).to(last.device)
        before = torch.arange(count, device=last.device) < prefix
        groups = [group for group in (read & before, read & ~before) if bool(group.any())]
        start = torch.zeros(count, device=last.device)
        for group in groups:
            start[group] = 1 / (len(groups) * int(group.sum()))
        return cls(prefix, grid, start.repeat(batch, 1), tuple(int(t) for t in groups[0][:prefix].nonzero().flatten()))

    def to_grid(self, row: Tensor) -> Tensor:
        """[B,n] -> [B,h,w]: the prefix tokens' share is left out."""
        return row[:, self.prefix :].reshape(len(row), *self.grid)


def _readout(readout: Readout, read: Tensor | None, prefix: int, count: int) -> Tensor:
    """Mask of the tokens that the head reads, [n]."""
    if readout == "auto" and read is not None:
        return read
    mask = torch.zeros(count, dtype=torch.bool)
    if readout == "auto":
        readout = "token" if prefix else "mean"
    if readout not in ("token", "mean", "both") or (prefix == 0 and readout != "mean"):
        raise ExplainError(
            f"readout is {readout!r}.", hint="It is auto, mean, or with a class token also token or both."
        )
    if readout in ("token", "both"):
        mask[0] = True
    if readout in ("mean", "both"):
        mask[prefix:] = True
    return mask


def patch_grid(model: nn.Module, image: tuple[int, int], count: int) -> tuple[tuple[int, int], int]:
    """Grid of patches and count of prefix tokens, for an image (height, width) in pixels that became ``count`` tokens.

    Raises:
        ExplainError: No module says a patch size that fits.
    """
    for module in model.modules():
        for name in ("patch_size", "patch"):
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                value = (value, value)
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                continue
            grid = (image[0] // int(value[0]), image[1] // int(value[1]))
            if 0 <= count - grid[0] * grid[1] <= _MAX_PREFIX:
                return grid, count - grid[0] * grid[1]
    raise ExplainError(
        f"{count} tokens do not fit a grid of patches of an image of {image[0]} x {image[1]} pixels.",
        hint="The model, or its patch embedding, has to say its patch_size.",
    )
