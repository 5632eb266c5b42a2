"""Beside capture: looking into a model that belongs to someone else, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

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
