"""Inside the Vision Transformer: fused attention, with a backward pass of its own where that is faster.

On a CPU with bf16 matrix units, PyTorch's backward of the fused kernel works in small tiles and leaves the units idle. Here
the attention matrix of a few images is formed again with batched matrix products (recomputation as in FlashAttention,
Dao et al. 2022, section 3.1, with whole rows for tiles), used and dropped, so that nothing of size N x N outlives a chunk. The
three gradients are written where the gradient of ``qkv`` expects them, with no stacking afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
