"""Between preprocessing and the loss: the Vision Transformer, written out.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), with the parts that later papers added:
distillation token (DeiT, arXiv:2012.12877), LayerScale (CaiT, arXiv:2103.17239; DeiT III, arXiv:2204.07118), stochastic
depth (arXiv:1603.09382), register tokens (arXiv:2309.16588) and the convolutional stem (arXiv:2106.14881).
Parameters carry the names that timm gives them, so that published checkpoints need no translation.

In the comments B is the batch, P the patch size, h x w the grid of patches, T the count of prefix tokens
(class, distillation, registers), N = T + h * w the tokens, D the width and H the attention heads.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdomains.core.errors import ConfigError

# Inside the Vision Transformer: fused attention, with a backward pass of its own where that is faster.
#
# On a CPU with bf16 matrix units, PyTorch's backward of the fused kernel works in small tiles and leaves the units idle. Here
# the attention matrix of a few images is formed again with batched matrix products (recomputation as in FlashAttention,
# Dao et al. 2022, section 3.1, with whole rows for tiles), used and dropped, so that nothing of size N x N outlives a chunk. The
# three gradients are written where the gradient of ``qkv`` expects them, with no stacking afterwards.

_MATRICES = 8  # attention matrices in a chunk: enough to feed the threads, few enough to stay near the cache


def attend(qkv: Tensor) -> Tensor:
    """Scaled dot-product attention of packed queries, keys and values: [B,N,3,H,D] -> [B,N,H,D].

    The result is that of ``scaled_dot_product_attention`` everywhere; only the way to the gradient differs.
    """
    if (
        qkv.requires_grad
        and qkv.dtype == torch.bfloat16
        and qkv.device.type == "cpu"
        and not torch.compiler.is_compiling()
    ):
        return _Attend.apply(qkv)  # type: ignore[no-any-return]
    return _fused(qkv)


def _fused(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B,H,N,D] each
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        ctx.save_for_backward(qkv)
        return _fused(qkv)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (qkv,) = ctx.saved_tensors
        heads, width = qkv.shape[-2:]
        scale = width**-0.5
        grad_qkv = torch.empty_like(qkv)
        step = max(1, _MATRICES // heads)
        for start in range(0, len(qkv), step):
            chunk = slice(start, start + step)
            q, k, v = qkv[chunk].permute(2, 0, 3, 1, 4)  # [b,H,N,D] each
            grad = grad_out[chunk].transpose(1, 2)  # [b,H,N,D]
            grad_q, grad_k, grad_v = grad_qkv[chunk].permute(2, 0, 3, 1, 4)
            q = q * scale
            attn = (q @ k.transpose(-2, -1)).softmax(-1)  # [b,H,N,N]
            grad_v.copy_(attn.transpose(-2, -1) @ grad)
            grad_attn = grad @ v.transpose(-2, -1)  # [b,H,N,N]
            grad_scores = torch._softmax_backward_data(grad_attn, attn, -1, attn.dtype)
            torch.mul(grad_scores @ k, scale, out=grad_q)
            grad_k.copy_(grad_scores.transpose(-2, -1) @ q)
        return grad_qkv


# Inside the Vision Transformer: positions at another input size, and positions to start from.


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


# From logits of every patch to those of the image: what lets a model say where a finding lies.


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


# Inside the Vision Transformer: convolutions in place of the patch projection.


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


SIZES = {  # name: width D, depth, heads H            (Dosovitskiy et al., table 1; Ti and S: Touvron et al. 2021)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
PATCHES = (8, 14, 16, 32)
POOLS = ("token", "avg", "token+avg", "lse")


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to the width (eq. 1): [B,C,h*P,w*P] -> [B,D,h,w]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        nn.init.trunc_normal_(self.proj.weight, std=1 / math.sqrt(channels * patch * patch))
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, eq. 5-8): [B,N,D] -> [B,N,D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, return_attn: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim)  # [B,N,3,H,D/H]
        out = self.proj(attend(qkv).reshape(B, N, D))  # [B,N,D]
        if not return_attn:
            return out  # type: ignore[no-any-return]
        # The maps are computed beside the fused kernel, which never writes them: the logits stay the same to the bit.
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # [B,H,N,D/H] each
        return out, (q * self.scale @ k.transpose(-2, -1)).softmax(-1)  # [B,N,D], [B,H,N,N]


class Mlp(nn.Module):
    """Two layers with GELU between them: [B,N,D] -> [B,N,D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT, eq. 4)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))


class Block(nn.Module):
    """Pre-norm transformer block (eq. 2 and 3) with LayerScale and stochastic depth: [B,N,D] -> [B,N,D]."""

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, layer_scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale is not None else None
        self.ls2 = LayerScale(width, layer_scale) if layer_scale is not None else None
        self.drop_path = drop_path

    def forward(self, x: Tensor, return_attn: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        branch, attn = self.attn(self.norm1(x), True) if return_attn else (self.attn(self.norm1(x)), None)
        x = self._residual(x, branch, self.ls1)
        x = self._residual(x, self.mlp(self.norm2(x)), self.ls2)
        return x if attn is None else (x, attn)

    def _residual(self, x: Tensor, branch: Tensor, layer_scale: LayerScale | None) -> Tensor:
        if self.training and self.drop_path > 0:  # whole branches of single images are left out
            keep = 1 - self.drop_path
            branch = branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)
        return x + branch if layer_scale is None else torch.addcmul(x, branch, layer_scale.gamma)


class VisionTransformer(nn.Module):
    """Image classifier: [B,C,height,width] -> logits [B,K]. Height and width: any multiples of the patch size.

    Args:
        width, depth, heads, patch: Width D, blocks, attention heads and patch size P (pixels).
        image_size: Input size for which the positions are learned; other sizes are resampled at each forward.
        in_channels, num_classes: C and K; K = 0 leaves the head out and gives the pooled features.
        pool: ``token`` (class token), ``avg`` (mean of the patch tokens) or ``token+avg`` (both, concatenated).
        fc_norm: Final norm after pooling instead of before; None: where pool is ``avg``, as timm does.
        class_token: Without it, pool must be ``avg``.
        distilled: Distillation token with a head of its own; the logits are the mean of both heads, or, while training
            with ``distilled_training = True``, the pair (class logits, distillation logits).
        register_tokens: Count of registers.
        prefix_positions: Whether the prefix tokens have learned positions (DeiT III and DINOv2 with registers: no).
        layer_scale: First value of LayerScale; None: no LayerScale.
        pre_logits: Width of a Linear-tanh layer before the head (the paper's pre-training head); 0: none.
        drop_rate, drop_path_rate: Dropout before the head; stochastic depth of the last block, rising linearly.
        stem: ``patch`` or ``conv``.
        position_init: ``random`` (std 0.02), or ``sincos``: start from fixed 2-d waves (Beyer et al. 2022,
            arXiv:2205.01580), which spares a short training from scratch the learning of the grid.

    Raises:
        ConfigError: Sizes that do not divide, an unknown pool, stem or position_init.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        mlp_ratio: float = 4.0,
        image_size: int = 224,
        in_channels: int = 3,
        num_classes: int = 1000,
        pool: str = "token",
        fc_norm: bool | None = None,
        class_token: bool = True,
        distilled: bool = False,
        register_tokens: int = 0,
        prefix_positions: bool = True,
        layer_scale: float | None = None,
        pre_logits: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: str = "patch",
        position_init: str = "random",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if image_size % patch or width % heads:
            raise ConfigError(f"image_size {image_size} must be a multiple of {patch}, width {width} of {heads} heads.")
        if pool not in POOLS or stem not in ("patch", "conv") or position_init not in ("random", "sincos"):
            raise ConfigError(
                f"Unknown option among pool={pool!r}, stem={stem!r}, position_init={position_init!r}.",
                hint=f"pool: {', '.join(POOLS)}; stem: patch, conv; position_init: random, sincos.",
            )
        if (not class_token and pool != "avg") or (distilled and (pool != "token" or not class_token)):
            raise ConfigError(f"pool={pool!r} does not fit class_token={class_token}, distilled={distilled}.")
        self.patch, self.width, self.pool, self.num_classes = patch, width, pool, num_classes
        self.grid = image_size // patch
        self.prefix = int(class_token) + int(distilled) + register_tokens  # T
        self.prefix_positions = prefix_positions
        self.distilled_training = False
        self.region_training = False
        self.grad_checkpointing = False
        self.implied_options: dict[str, Any] = {}  # what a checkpoint asked for, kept to build the same model again
        fc_norm = pool == "avg" if fc_norm is None else fc_norm

        self.patch_embed = (ConvStem if stem == "conv" else PatchEmbed)(in_channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, register_tokens, width)) if register_tokens else None
        positions = self.grid**2 + (self.prefix if prefix_positions else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.blocks: Any = nn.ModuleList(
            Block(width, heads, int(width * mlp_ratio), norm_eps, layer_scale, drop_path_rate * i / max(1, depth - 1))
            for i in range(depth)
        )
        self.norm = nn.Identity() if fc_norm else nn.LayerNorm(width, eps=norm_eps)
        features = 2 * width if pool == "token+avg" else width
        self.fc_norm = nn.LayerNorm(features, eps=norm_eps) if fc_norm else nn.Identity()
        self.pre_logits = nn.Linear(features, pre_logits) if pre_logits else None
        self.num_features = pre_logits or features
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head_dist: nn.Module | None = None
        if distilled:
            self.head_dist = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.combine = nn.Linear(2 * num_classes, num_classes) if pool == "lse" else None
        self._init_weights(position_init)

    @torch.no_grad()
    def _init_weights(self, position_init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if position_init == "sincos":
            grid = torch.from_numpy(sincos_positions(self.grid, self.width))
            self.pos_embed[0, -(self.grid**2) :] = grid.to(self.pos_embed)
        if self.combine is not None:
            start_pooling(self.combine, self.head)  # type: ignore[arg-type]
        for token, std in ((self.cls_token, 1e-6), (self.dist_token, 0.02), (self.reg_token, 1e-6)):
            if token is not None:
                nn.init.normal_(token, std=std)

    def positions(self, h: int, w: int) -> tuple[Tensor | None, Tensor]:
        """Positions of the prefix, [1,T,D] or None, and of a grid of h x w patches, [1,h*w,D]."""
        count = self.prefix if self.prefix_positions else 0
        prefix, grid = self.pos_embed[:, :count], self.pos_embed[:, count:]
        if (h, w) != (self.grid, self.grid):
            grid = resample_positions(grid, (self.grid, self.grid), (h, w))
        return (prefix if count else None), grid

    def embed(self, x: Tensor) -> Tensor:
        """Image [B,C,h*P,w*P] -> tokens [B,N,D] with their positions (eq. 1): what enters the first block."""
        if x.shape[-2] % self.patch or x.shape[-1] % self.patch:
            raise ConfigError(f"{tuple(x.shape[-2:])} pixels are not a multiple of the patch size {self.patch}.")
        x = self.patch_embed(x)  # [B,D,h,w]
        prefix_pos, grid_pos = self.positions(x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2) + grid_pos  # [B,h*w,D]
        prefix: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        if not prefix:
            return x
        tokens = torch.cat(prefix, dim=1)  # [1,T,D]
        tokens = tokens if prefix_pos is None else tokens + prefix_pos
        return torch.cat((tokens.expand(x.shape[0], -1, -1), x), dim=1)  # [B,N,D]

    def run_blocks(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` to ``stop`` (exclusive): tokens [B,N,D] -> tokens [B,N,D]."""
        for block in self.blocks[start:stop]:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Image [B,C,height,width] -> tokens [B,N,D] after the final norm (eq. 4)."""
        return self.norm(self.run_blocks(self.embed(x)))  # type: ignore[no-any-return]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens [B,N,D] -> logits [B,K]; with ``pre_logits`` the features before the head."""
        if self.head_dist is not None:
            cls, dist = self.head_drop(tokens[:, 0]), self.head_drop(tokens[:, 1])  # [B,D] each
            if pre_logits:
                return (cls + dist) / 2  # type: ignore[no-any-return]
            pair = self.head(cls), self.head_dist(dist)
            return pair if self.distilled_training and self.training else (pair[0] + pair[1]) / 2
        if self.combine is not None and not pre_logits:
            regions = self.head(self.head_drop(tokens[:, self.prefix :]))  # [B,h*w,K]
            logits = pool_regions(regions, self.combine)
            return (logits, as_map(regions)) if self.region_training and self.training else logits
        parts = [tokens[:, 0]] if "token" in self.pool else []
        parts += [tokens[:, self.prefix :].mean(dim=1)] if self.pool in ("avg", "token+avg", "lse") else []
        x = self.fc_norm(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0])  # [B,D] or [B,2D]
        if self.pre_logits is not None:
            x = torch.tanh(self.pre_logits(x))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, return_attn: bool = False
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, list[Tensor]]:
        """Image [B,C,height,width] -> logits [B,K]; with ``return_attn`` also every block's attention [B,H,N,N]."""
        if not return_attn:
            return self.forward_head(self.forward_features(x))
        tokens, maps = self.embed(x), []
        for block in self.blocks:
            tokens, attn = block(tokens, return_attn=True)
            maps.append(attn)
        return self.forward_head(self.norm(tokens)), maps  # type: ignore[return-value]


def vit(variant: str, num_classes: int = 1000, **options: Any) -> VisionTransformer:
    """The Vision Transformer by name: ``B/16`` is width, depth and heads of Base with patches of 16 pixels.

    Args:
        variant: ``SIZE/PATCH``, size one of Ti, S, B, L, H, patch one of 8, 14, 16, 32.
        num_classes: K.
        **options: Of ``VisionTransformer``; width, depth and heads may be overridden.

    Raises:
        ConfigError: An unknown variant or option.
    """
    size, _, patch = variant.partition("/")
    if size not in SIZES or patch not in map(str, PATCHES):
        raise ConfigError(
            f"Unknown Vision Transformer {variant!r}.",
            hint=f"Write SIZE/PATCH with a size of {', '.join(SIZES)} and a patch of {', '.join(map(str, PATCHES))}.",
        )
    shape = dict(zip(("width", "depth", "heads"), SIZES[size], strict=True))
    defaults = {"image_size": 7 * 32 if int(patch) != 14 else 16 * 14}
    arguments: dict[str, Any] = {**shape, "patch": int(patch), "num_classes": num_classes, **defaults, **options}
    try:
        return VisionTransformer(**arguments)
    except TypeError as error:
        raise ConfigError(f"vit:{variant}: {error}.", hint="See VisionTransformer for the options.") from error


vit_tiny_16, vit_tiny_32 = partial(vit, "Ti/16"), partial(vit, "Ti/32")
vit_small_8, vit_small_14, vit_small_16, vit_small_32 = (partial(vit, f"S/{patch}") for patch in PATCHES)
vit_base_8, vit_base_14, vit_base_16, vit_base_32 = (partial(vit, f"B/{patch}") for patch in PATCHES)
vit_large_14, vit_large_16, vit_large_32 = (partial(vit, f"L/{patch}") for patch in PATCHES[1:])
vit_huge_14, vit_huge_16, vit_huge_32 = (partial(vit, f"H/{patch}") for patch in PATCHES[1:])
