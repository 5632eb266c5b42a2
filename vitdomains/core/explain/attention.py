"""Capture of every attention layer in one forward pass, and the layout of its tokens and windows.

Nothing in the model is replaced. While the pass runs, a ``TorchFunctionMode`` sees each call of
``scaled_dot_product_attention`` (the fused kernels: queries, keys and bias go in, the weights never exist) and each
four-dimensional ``softmax`` (models that form their weights themselves), and hooks on the blocks say which block is running.
So it serves any block-structured transformer, whoever wrote it, and whatever bias, rotation or scale its layers apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitdomains.core.errors import ExplainError


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks in order of execution: modules that own an attention and something besides."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        attention = next((a for n in ("attn", "attention", "self_attn") if (a := getattr(module, n, None))), None)
        if module in inside or not isinstance(attention, nn.Module) or len(list(module.children())) < 2:
            continue
        found.append(module)
        inside.update(module.modules())
    return found


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[Any]]:
    """Evaluation mode without checkpointing inside, everything as it was outside; hook handles put in the list are removed."""
    handles: list[Any] = []
    training = [(module, module.training) for module in model.modules()]
    checkpointed = [m for m in model.modules() if getattr(m, "grad_checkpointing", False) is True]
    try:
        model.eval()
        for module in checkpointed:
            module.grad_checkpointing = False  # type: ignore[assignment]
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module in checkpointed:
            module.grad_checkpointing = True  # type: ignore[assignment]
        for module, mode in training:
            module.training = mode


def forward_logits(model: nn.Module, images: Tensor, *, single: bool = False) -> Tensor:
    """Logits [B,K] of a model that returns them, or returns an object that carries them (transformers).

    With ``single`` a model of half precision computes in float32, autocast or not: products of small gradients and weights
    do not survive bfloat16, and layers may have backward passes of their own for it, in which nothing can be captured.
    """
    if not single:
        out = model(images)
    else:
        state = {name: tensor.float() for name, tensor in _half(model)}
        with torch.autocast(images.device.type, enabled=False):
            out = torch.func.functional_call(model, state, (images.float(),)) if state else model(images.float())
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise ExplainError(f"The model returned {type(out).__name__}, not logits [B,K].", hint="Explain a classifier.")
    return out


def _half(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            yield name, tensor


def gradients_of(logits: Tensor, k: int | None, tensors: list[Tensor], keep_graph: bool) -> tuple[Tensor | None, ...]:
    """Gradients of logit ``k`` (None: of all logits' sum) of every image; None for a tensor that it does not depend on.

    Images stay apart although they are differentiated together: no layer in evaluation mode mixes them. Parameters'
    ``grad`` is not touched, and the caller may be under ``no_grad``.
    """
    ahead = torch.ones_like(logits) if k is None else torch.zeros_like(logits)
    if k is not None:
        ahead[:, k] = 1
    with torch.inference_mode(False), torch.autocast(logits.device.type, enabled=False):
        return torch.autograd.grad(logits, tensors, ahead, retain_graph=keep_graph, allow_unused=True)


Fuse = Callable[[Tensor], Tensor]  # [b,h,R,n] -> [b,R,n]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_ROW_BYTES = 16 << 20  # weights of all heads that exist at one moment; small enough to stay in the processor's cache


@dataclass(frozen=True)
class SwinWindow:
    """How one Swin layer cuts its grid: grid, window and cyclic shift in tokens (rows, columns)."""

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int]
    pad_first: bool
    """Whether padding comes before the shift (transformers) or after it (timm)."""


@dataclass
class Attention:
    """One layer of one forward pass; b is the batch, or batch x windows, h the heads, n the tokens (of a window).

    Without gradients it holds either queries and keys, or weights that are already fused over the heads. With gradients it
    holds what the autograd graph holds anyway, and the tensor whose gradient leads to that of the weights.
    """

    query: Tensor | None = None  # [b,h,n,d]
    key: Tensor | None = None  # [b,h,n,d]
    value: Tensor | None = None  # [b,h,n,d], only with gradients
    bias: Tensor | None = None  # broadcasts to [b,h,n,n]
    scale: float = 1.0
    weights: Tensor | None = None  # [b,h,n,n], only with gradients, where the model formed them
    fused: Tensor | None = None  # [b,n,n]
    output: Tensor | None = None  # [b,h,n,d], only with gradients, of the fused kernel
    window: SwinWindow | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch (x windows), heads, tokens."""
        for tensor in (self.weights, self.query):
            if tensor is not None:
                return tensor.shape[0], tensor.shape[1], tensor.shape[2]
        assert self.fused is not None
        return self.fused.shape[0], 1, self.fused.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the captured tensors lie."""
        return next(t.device for t in (self.weights, self.query, self.fused) if t is not None)

    def differentiable(self) -> Tensor:
        """The tensor to differentiate the logit by: the weights, or the output of the fused kernel."""
        tensor = self.output if self.weights is None else self.weights
        if tensor is None or not tensor.requires_grad:
            raise ExplainError("A layer was captured without its gradient.", hint="Run outside torch.inference_mode().")
        return tensor

    def rows(self, index: Tensor) -> Tensor:
        """Attention weights of the given query tokens, [b,h,R,n], float32, detached."""
        if self.weights is not None:
            return self.weights.detach()[:, :, index].float()
        assert self.query is not None and self.key is not None
        query = self.query.detach()[:, :, index].float() * self.scale
        with torch.autocast(query.device.type, enabled=False):
            logits = query @ self.key.detach().float().transpose(-2, -1)  # [b,h,R,n]
        if self.bias is not None:
            bias = self.bias.detach()
            bias = bias[..., index, :] if bias.shape[-2] > 1 else bias
            logits = logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias.float()
        return logits.softmax(-1)

    def row_blocks(self, tokens: Tensor) -> Iterator[Tensor]:
        """``tokens`` in runs so short that all heads' weights of one run fit the memory bound."""
        batch, heads, count = self.shape
        yield from tokens.split(max(1, _ROW_BYTES // (4 * batch * heads * count)))

    def fuse(self, fuse: Fuse) -> Tensor:
        """All rows, fused over the heads: [b,n,n], float32."""
        count = self.shape[2]
        blocks = self.row_blocks(torch.arange(count, device=self.device))
        return torch.cat([fuse(self.rows(index)) for index in blocks], dim=1)


@dataclass
class Captured:
    """What one forward pass left: logits [B,K], layers in order, and which tokens the head reads, [n] of bool."""

    logits: Tensor
    layers: list[Attention]
    tokens: Tensor | None
    """Output of the last block, [B,n,D]; its gradient says which tokens the head reads."""
    images: tuple[int, int]
    """Height and width of the input, pixels."""
    read: Tensor | None = field(default=None)


def mean_heads(weights: Tensor) -> Tensor:
    """[b,h,R,n] -> [b,R,n]."""
    return weights.mean(1)


class _Recorder(TorchFunctionMode):
    """Sees the attention of the block that is running; ``record`` is None between blocks."""

    def __init__(self, gradients: bool, fuse: Fuse) -> None:
        super().__init__()
        self.gradients, self.fuse = gradients, fuse
        self.record: list[Attention] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.record is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            out = func(*args, **kwargs)
            self.record.append(self._kernel(out, *args, **kwargs))
            return out
        out = func(*args, **kwargs)
        if func in _SOFTMAX and out.dim() == 4 and out.shape[-1] == out.shape[-2]:
            kept = Attention(weights=out) if self.gradients else Attention(fused=self.fuse(out.detach().float()))
            self.record.append(kept)
        return out

    def _kernel(
        self,
        out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Attention:
        if is_causal:
            raise ExplainError("The model's attention is causal.", hint="Explain an image encoder.")
        if key.shape[1] != query.shape[1]:  # grouped queries share keys
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        full = Attention(query=query, key=key, value=value, bias=attn_mask, scale=scale)
        if self.gradients:
            full.output = out
            return full
        if attn_mask is not None:  # a bias is as large as all heads' weights: keeping the fused weights is h times less
            return Attention(fused=full.fuse(self.fuse))
        return Attention(query=_compact(query), key=_compact(key), scale=scale)


def _compact(tensor: Tensor) -> Tensor:
    """A copy where the tensor is a view into something larger (queries, keys and values in one), which then can go."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _window(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SwinWindow | None:
    if not hasattr(block, "window_size") or not hasattr(block, "shift_size"):
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    if hidden.dim() == 4:  # timm: [B,H,W,C]
        grid, pad_first = hidden.shape[1:3], False
    else:  # transformers: [B,H*W,C] and the grid beside it
        grid, pad_first = args[1] if len(args) > 1 else kwargs["input_dimensions"], True
    return SwinWindow(_pair(grid), _pair(block.window_size), _pair(block.shift_size), pad_first)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if hasattr(value, "__len__") else (int(value), int(value))


def capture(model: nn.Module, images: Tensor, *, gradients: bool = False, fuse: Fuse = mean_heads) -> Captured:
    """Run the model once on [B,C,H,W] and keep what its attention layers did.

    Args:
        model: A classifier; see the module's text for which.
        images: As the model takes them.
        gradients: Keep the graph, so that logits can be differentiated by each layer's attention.
        fuse: How heads are fused, for the layers whose weights are fused at once. Ignored with ``gradients``.

    Raises:
        ExplainError: The model has no attention blocks, or a block ran without its attention being seen exactly once.
    """
    blocks = attention_blocks(model)
    if not blocks:
        raise ExplainError(
            f"{type(model).__name__} has no attention blocks.", hint="Use method gradcam or occlusion for such a model."
        )
    recorder = _Recorder(gradients, fuse)
    records: list[list[Attention]] = [[] for _ in blocks]
    windows: list[SwinWindow | None] = [None] * len(blocks)
    last: list[Tensor] = []

    def enter(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.record = records[index]

        return hook

    def leave(index: int) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Tensor | None:
            recorder.record = None
            windows[index] = _window(module, args, kwargs)  # transformers sets a small grid's window only now
            if index < len(blocks) - 1 or windows[index] is not None or not isinstance(out, Tensor):
                return None
            if gradients:
                last.append(out)
                return None
            # The head alone is differentiated, to see which tokens it reads: the graph begins here.
            last.append(out.detach().requires_grad_())
            torch.set_grad_enabled(True)
            return last[0]

        return hook

    with untouched(model) as handles, torch.inference_mode(False), torch.set_grad_enabled(gradients):
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(enter(index), with_kwargs=True))
            handles.append(block.register_forward_hook(leave(index), with_kwargs=True))
        # A frozen model has no graph unless the images ask for one.
        images = images.detach().clone().requires_grad_(gradients) if gradients or images.is_inference() else images
        with recorder:
            logits = forward_logits(model, images, single=gradients)
    _check(model, records)
    layers = [record[0] for record in records]
    for layer, window in zip(layers, windows, strict=True):
        layer.window = window
    found = Captured(logits, layers, last[0] if last else None, (images.shape[-2], images.shape[-1]))
    found.read = _read(found, keep_graph=gradients)
    if not gradients:
        found.logits, found.tokens = logits.detach(), None
    return found


def _check(model: nn.Module, records: list[list[Attention]]) -> None:
    seen = [len(record) for record in records]
    if any(count != 1 for count in seen):
        raise ExplainError(
            f"{type(model).__name__}: of {len(seen)} attention blocks {seen.count(1)} were captured (counts {seen}).",
            hint="The attention must run through scaled_dot_product_attention or softmax in eager mode: explain the model "
            "before torch.compile, TorchScript or custom kernels.",
        )


def _read(found: Captured, keep_graph: bool) -> Tensor | None:
    """Which tokens of the last block the logits depend on, [n]; None where that cannot be said (a head of zeros, windows)."""
    if found.tokens is None or found.tokens.dim() != 3 or not found.logits.requires_grad:
        return None
    (slope,) = gradients_of(found.logits, None, [found.tokens], keep_graph)
    if slope is None or not bool(slope.any()):
        return None
    return slope.abs().amax(dim=(0, 2)) > 0


# A class token, a distillation token, registers and patches stand in one sequence, and heads read it in different ways (class
# token, both tokens, mean of the patches, both). Nobody has to say which: the gradient of the logits by the last block's
# output is not zero at just the tokens that the head reads.

Readout = Literal["auto", "token", "mean", "both"]
_MAX_PREFIX = 32


@dataclass(frozen=True)
class TokenLayout:
    """The tokens: ``prefix`` before the patches, the patch grid, and the row at which the relevance starts."""

    prefix: int
    grid: tuple[int, int]
    start: Tensor  # [B,n of the last layer], sums to one
    own: tuple[int, ...]
    """Class tokens that the head reads: their own entry is never discarded."""

    @classmethod
    def of(cls, model: nn.Module, found: Captured, readout: Readout) -> TokenLayout:
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


# Liu et al. 2021 (arXiv:2103.14030, section 3.2) and 2022 (SwinV2, arXiv:2111.09883): attention inside windows, every second
# layer shifted cyclically, and between stages four neighbouring tokens merged into one. As a matrix over all tokens such a
# layer is a permuted block diagonal, and merging a row-stochastic N/4 x N matrix with 1/4 at each child. Neither is formed:
# a row vector is gathered into windows, multiplied there, and scattered back. Relative position bias, SwinV2's cosine
# attention with its logit scale, and the shift's mask are in the weights already, as captured after the softmax.


@lru_cache(maxsize=64)
def window_index(window: SwinWindow) -> Tensor:
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


def to_windows(row: Tensor, window: SwinWindow) -> tuple[Tensor, Tensor]:
    """Row vectors over the grid [B,H*W] -> over window slots [B*windows,slots], and which slots are tokens (same shape)."""
    index = window_index(window).to(row.device)
    real = index >= 0
    gathered = row[:, index.clamp(min=0)] * real  # [B,windows,slots]
    return gathered.flatten(0, 1), real.repeat(len(row), 1)


def from_windows(slots: Tensor, window: SwinWindow, batch: int) -> Tensor:
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
