"""What a training step will need, before it is run: parameters, gradients, optimiser, activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdomains.core.config import Config
from vitdomains.core.preprocess import PreprocessSpec


def training_memory(model: nn.Module, spec: PreprocessSpec, config: Config) -> dict[str, int]:
    """Bytes that a training step keeps at once, by what they are for.

    Activations are those that autograd saves for the backward pass, counted by storage at batch sizes 2 and 3 and carried on
    linearly to ``recipe.batch_size``. What kernels need in between comes on top.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    two, three = (_saved_bytes(model, torch.zeros(n, spec.channels, spec.height, spec.width)) for n in (2, 3))
    return {
        "parameters": parameters,
        "moving average": parameters if config.recipe.ema_decay else 0,
        "gradients": trained,
        "optimiser": 2 * trained,
        "activations": max(0, two + (three - two) * (config.recipe.batch_size - 2)),
    }


def _saved_bytes(model: nn.Module, images: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    assert output is not None  # alive until here, so that no storage was counted twice
    return sum(saved.values())
