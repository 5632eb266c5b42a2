"""Inside the Vision Transformer: convolutions in place of the patch projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ConfigError


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 in place of the patches (Xiao et al. 2021): [B,C,h*P,w*P] -> [B,D,h,w].

    The paper also takes one block away to keep the cost; say ``depth=11`` for that.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        steps = int(math.log2(patch))
        if 2**steps != patch:
            raise ConfigError(
                f"stem=conv needs a patch size that is a power of two, not {patch}.", hint="Use 8, 16 or 32."
            )
        layers: list[nn.Module] = []
        for step in range(steps):
            wider = max(24, width >> (steps - 1 - step)) // 8 * 8
            layers += [
                nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(),
            ]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, width, kernel_size=1)
        # Channels last is what CPU and GPU kernels want: on a CPU the step is half as long again without it.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.layers(x.contiguous(memory_format=torch.channels_last)))  # type: ignore[no-any-return]
