"""From a bundle to files that other programs run, each checked against the model that it came from."""

from vitdomains.core.export.onnx import to_fp16, to_onnx
from vitdomains.core.export.torch_formats import to_openvino, to_pt2, to_torchscript

__all__ = ["to_fp16", "to_onnx", "to_openvino", "to_pt2", "to_torchscript"]
