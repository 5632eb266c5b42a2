"""From logits of every patch to those of the image: what lets a model say where a finding lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def start_pooling(combine: nn.Linear, head: nn.Linear) -> None:
    """Half of each pooling at the start, and few patches with a finding (the prior of Lin et al. 2017, section 3.3)."""
    combine.weight.copy_(0.5 * torch.eye(combine.out_features).repeat(1, 2))
    nn.init.constant_(head.bias, -2.0)


def pool_regions(regions: Tensor, combine: nn.Linear) -> Tensor:
    """Logits of patches [B,N,K] -> logits [B,K]: their log-sum-exp (Wang et al. 2017, eq. 1) and their mean, combined."""
    smooth_max = (torch.logsumexp(2 * regions.float(), dim=1) - math.log(regions.shape[1])) / 2
    both = torch.cat((smooth_max, regions.float().mean(dim=1)), dim=1)
    pooled: Tensor = combine(both.to(combine.weight.dtype))
    return pooled


def as_map(regions: Tensor) -> Tensor:
    """Logits of the patches of a square image as a map: [B,N,K] -> [B,K,h,w]."""
    side = math.isqrt(regions.shape[1])
    mapped: Tensor = regions.transpose(1, 2).unflatten(2, (side, side))
    return mapped
