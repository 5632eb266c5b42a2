"""From an ONNX file to OpenVINO's IR. Needs the extra ``vitdomains[openvino]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitdomains.core.inference.runtimes import openvino_module


def to_openvino(
    source: Path, path: Path, *, fp16_weights: bool = False, metadata: Mapping[str, str] | None = None
) -> Path:
    """Convert an ONNX file to IR: ``path`` (.xml) and the weights beside it (.bin).

    The precision of the arithmetic is chosen when the file is loaded (bf16 where the processor has it), not here.

    Args:
        source: The ONNX file.
        path: Name that ends in .xml.
        fp16_weights: Store weights in float16: half the size, and logits that differ by what that rounds off.
        metadata: Key to text, stored under ``rt_info/vitdomains``.

    Raises:
        ExportError: OpenVINO is not installed.
    """
    ov = openvino_module()
    model = ov.convert_model(str(source))
    for key, value in (metadata or {}).items():
        model.set_rt_info(value, ["vitdomains", key])
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, str(path), compress_to_fp16=fp16_weights)
    return path
