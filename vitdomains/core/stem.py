"""Inside the Vision Transformer: convolutions in place of the patch projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ConfigError


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2 in place of the patches (Xiao et al. 2021): [B,C,h*P,w*P] -> [B,D,h,w].

    Patch 32 begins with a 7x7 convolution of stride 4. The paper also takes one block away to keep the cost; say
    ``depth=11`` for that.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        steps = int(math.log2(patch))
        if 2**steps != patch:
            raise ConfigError(
                f"stem=conv needs a patch size that is a power of two, not {patch}.", hint="Use 8, 16 or 32."
            )
        layers: list[nn.Module] = []
        # At patch 32 a fifth layer of stride 2 would work at half the input's resolution, where most of the time would go.
        strides = [4, 2, 2, 2] if steps == 5 else [2] * steps
        for step, stride in enumerate(strides):
            wider = max(24, width >> (len(strides) - 1 - step)) // 8 * 8
            kernel = 2 * stride - 1
            layers += [
                nn.Conv2d(channels, wider, kernel, stride=stride, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(),
            ]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last is what CPU and GPU kernels want: on a CPU the step takes half as long again without it.
        return self.proj(self.layers(x.contiguous(memory_format=torch.channels_last)))  # type: ignore[no-any-return]
