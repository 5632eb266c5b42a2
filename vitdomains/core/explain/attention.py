"""After prediction, first room of the explanations: one forward pass that also tells what every attention layer did.

Nothing in the model is replaced. While the pass runs, a ``TorchFunctionMode`` sees each call of
``scaled_dot_product_attention`` (the fused kernels: queries, keys and bias go in, the weights never exist) and each
four-dimensional ``softmax`` (models that form their weights themselves), and hooks on the blocks say which block is running.
So it serves any block-structured transformer, whoever wrote it, and whatever bias, rotation or scale its layers apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.inspection import attention_blocks, forward_logits, gradients_of, untouched

Fuse = Callable[[Tensor], Tensor]  # [b,h,R,n] -> [b,R,n]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_ROW_BYTES = 16 << 20  # weights of all heads that exist at one moment; small enough to stay in the processor's cache


@dataclass(frozen=True)
class Window:
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
    window: Window | None = None

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


def _window(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Window | None:
    if not hasattr(block, "window_size") or not hasattr(block, "shift_size"):
        return None
    hidden = args[0] if args else kwargs["hidden_states"]
    if hidden.dim() == 4:  # timm: [B,H,W,C]
        grid, pad_first = hidden.shape[1:3], False
    else:  # transformers: [B,H*W,C] and the grid beside it
        grid, pad_first = args[1] if len(args) > 1 else kwargs["input_dimensions"], True
    return Window(_pair(grid), _pair(block.window_size), _pair(block.shift_size), pad_first)


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
    windows: list[Window | None] = [None] * len(blocks)
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
