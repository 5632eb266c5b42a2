"""Names that options of the commands take, apart from the code behind them, which is slow to import."""

from __future__ import annotations

RUNTIMES = ("torch", "onnx", "openvino")
"""What runs a model."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
"""What a model computes in; auto: bf16 where the processor has it, else fp32."""

HEAT_MAPS = ("gradcam", "gradient_rollout", "occlusion", "relevance", "rollout")
"""Methods of heat maps."""

FIGURES = (".png", ".pdf", ".svg", ".tif")
"""Endings that heat maps are written to."""
