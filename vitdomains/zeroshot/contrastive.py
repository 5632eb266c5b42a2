"""Contrastive losses of image and text embeddings, and gradients of big batches in the memory of small ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["infonce", "sigmoid"]
Encode = Callable[[Tensor], Tensor]
"""Row numbers [n] -> unit vectors [n, D], with gradients where enabled."""


def info_nce(images: Tensor, texts: Tensor, groups: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Softmax over the texts of each image and over the images of each text (Radford et al. 2021, figure 3).

    Pairs of one group are positives of each other, with equal shares (UniCL, Yang et al. 2022): a class name is the caption of
    many images, and would else be its own negative. Where all groups differ this is CLIP's loss.

    Args:
        images: Unit vectors [N, D].
        texts: Unit vectors [N, D]; row i belongs to image i.
        groups: [N], equal where captions mean the same.
        log_scale: Logarithm of the logit scale.
        bias: Not used here; softmax does not feel it.
    """
    logits = log_scale.exp() * images @ texts.T
    same = (groups[:, None] == groups[None, :]).to(logits.dtype)
    shares = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, groups: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Each pair by itself is right or wrong (Zhai et al. 2023, algorithm 1). Arguments as ``info_nce``."""
    logits = log_scale.exp() * images @ texts.T + bias
    signs = torch.where(groups[:, None] == groups[None, :], 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() / len(images)


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "infonce": info_nce,
    "sigmoid": sigmoid_loss,
}


def backward(
    encoders: tuple[Encode, Encode], rows: tuple[Tensor, Tensor], loss: Callable[[Tensor, Tensor], Tensor], chunk: int
) -> float:
    """Add the gradients of a batch to the parameters, ``chunk`` rows in memory at a time (GradCache, Gao et al. 2021).

    The embeddings of the whole batch are computed without a graph; the loss gives their gradients; each chunk is then
    computed again with the same random numbers (dropout) and takes its share back to the parameters.

    Args:
        encoders: Of images and of texts.
        rows: Row numbers [N] for each.
        loss: Of image and text embeddings [N, D]; its own parameters get their gradients too.
        chunk: Rows; the result does not depend on it.

    Returns:
        The loss.
    """
    parts = [(encode, part) for encode, own in zip(encoders, rows, strict=True) for part in own.split(chunk)]
    states, embedded = [], []
    with torch.no_grad():
        for encode, part in parts:
            states.append(_random_state())
            embedded.append(encode(part))
    leaves = [e.detach().requires_grad_() for e in embedded]
    n_images = len(rows[0].split(chunk))
    value = loss(torch.cat(leaves[:n_images]), torch.cat(leaves[n_images:]))
    value.backward()
    after = _random_state()
    for (encode, part), state, leaf in zip(parts, states, leaves, strict=True):
        _set_random_state(state)
        again = encode(part)
        if again.requires_grad:
            again.backward(leaf.grad)
    _set_random_state(after)
    return float(value.detach())


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
