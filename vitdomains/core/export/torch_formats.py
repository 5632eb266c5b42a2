"""Export to OpenVINO's IR, TorchScript (deprecated, for those who still load it) and ``torch.export``'s .pt2."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExportError
from vitdomains.core.inference.runtimes import openvino_module

logger = logging.getLogger(__name__)

_LOGGERS = (None, "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime", "nncf")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warnings, no log lines below error and no standard output of others: exporters talk about their own insides."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_openvino(
    source: Path,
    path: Path,
    *,
    fp16_weights: bool = False,
    metadata: Mapping[str, str] | None = None,
    default_precision: str = "",
) -> Path:
    """Convert an ONNX file to IR: ``path`` (.xml) and the weights beside it (.bin). Needs the extra ``vitdomains[openvino]``.

    The precision of the arithmetic is chosen when the file is loaded: bf16 where the processor has it, unless the program says
    otherwise.

    Args:
        source: The ONNX file.
        path: Name that ends in .xml.
        fp16_weights: Store weights in float16: half the size, and logits that differ by what that rounds off.
        metadata: Key to text, stored under ``rt_info/vitdomains``.
        default_precision: ``f32`` asks OpenVINO to compute in it by default; not every plugin heeds that.

    Raises:
        ExportError: OpenVINO is not installed.
    """
    ov = openvino_module()
    model = ov.convert_model(str(source))
    for key, value in (metadata or {}).items():
        model.set_rt_info(value, ["vitdomains", key])
    if default_precision:
        model.set_rt_info(default_precision, ["runtime_options", "INFERENCE_PRECISION_HINT"])
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, str(path), compress_to_fp16=fp16_weights)
    return path


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
