"""Inside the Vision Transformer: positions at another input size, and positions to start from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def resample_positions(grid: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions [1,old_h*old_w,D] -> [1,new_h*new_w,D], bicubic with antialiasing, in fp32.

    Bicubic resampling is linear and separable, so it is two small matrices that depend on the sizes alone. They are
    kept; the positions are not, and so stay trainable at every size.
    """
    with torch.autocast(grid.device.type, enabled=False):
        rows, cols = (
            torch.from_numpy(_bicubic_matrix(a, b)).to(device=grid.device, dtype=torch.float32)
            for a, b in zip(old, new, strict=True)
        )
        x = grid.float().view(old[0], old[1], -1)
        return torch.einsum("yh,hwd,xw->yxd", rows, x, cols).reshape(1, new[0] * new[1], -1).to(grid.dtype)


@lru_cache(maxsize=64)
def _bicubic_matrix(old: int, new: int) -> NDArray[np.float64]:
    """[new,old] weights of Keys' cubic (1981, a = -0.5), widened by the scale where the grid shrinks (antialiasing)."""
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale
    t = np.abs(np.arange(old)[None, :] + 0.5 - centre) / stretch
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float64)


def sincos_positions(grid: int, width: int) -> NDArray[np.float32]:
    """[grid*grid,width] waves of the row and the column of each patch (Vaswani et al. 2017, in two dimensions)."""
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    y, x = (np.outer(axis.ravel(), omega) for axis in np.mgrid[:grid, :grid])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
