"""PyTorch's own formats: TorchScript (deprecated, for those who still load it) and ``torch.export``'s .pt2."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExportError
from vitdomains.core.export.quiet import quiet

logger = logging.getLogger(__name__)


def to_torchscript(model: nn.Module, example: Tensor, path: Path) -> Path:
    """Trace a module [B, ...] -> [B, K] to TorchScript.

    PyTorch has deprecated the format (2.9); it is here for C++ programs that load nothing else. Use .pt2 for new ones.
    """
    logger.warning("TorchScript is deprecated by PyTorch; new consumers should load the .pt2 file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(model.eval(), (example,), check_trace=False)
            torch.jit.save(traced, str(path))
        except RuntimeError as error:
            raise ExportError(f"TorchScript cannot take the model: {error}", hint="Use pt2 or onnx.") from error
    return path


def to_pt2(model: nn.Module, example: Tensor, path: Path, *, dynamic: Mapping[int, str] | None = None) -> Path:
    """Export a module [B, ...] -> [B, K] by ``torch.export``.

    Args:
        model: The module; it is exported in evaluation mode.
        example: An input with at least two rows.
        path: The file to write, .pt2.
        dynamic: Axis of the input -> name, for the axes whose length is left open; None: axis 0, the batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {axis: torch.export.Dim(name) for axis, name in (dynamic or {0: "batch"}).items()}
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(model.eval(), (example,), dynamic_shapes=(shapes,))
            torch.export.save(program, str(path))
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"torch.export cannot take the model: {error}", hint="Use onnx.") from error
    return path
