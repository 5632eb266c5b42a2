"""Where files are made: every format from one model, what several of them start from made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from vitdomains.core.bundle import Bundle
from vitdomains.core.export import int8
from vitdomains.core.export.checks import ALLOWED_LOSS, Yardstick
from vitdomains.core.export.formats import is_transformer
from vitdomains.core.export.onnx import OPSET, layer_of, to_fp16, to_onnx
from vitdomains.core.export.openvino import to_openvino
from vitdomains.core.export.reference import Source
from vitdomains.core.export.torch_formats import to_pt2, to_torchscript
from vitdomains.core.inference.runtimes import Forward

HELD_IN_FP16 = (nn.Linear, nn.Conv2d, nn.LayerNorm)
"""Modules that fp16 can leave in float32; INT8 holds the linear layers and convolutions among them."""


@dataclass(frozen=True)
class Options:
    """What the user can say about an export.

    Attributes:
        formats: Names of ``FORMATS``, ``int8`` or ``all``.
        with_preprocessing: 8-bit images of any size in, calibrated probabilities out.
        keep: Kinds of layers that stay in float32 in ``fp16`` and INT8.
        calibration: How ranges of INT8 are found.
        calibration_images: Images for that.
        allowed: Loss of the metric that passes, absolute.
        opset: Of the ONNX files.
        threads: Compute threads; 0: one per physical core.
        batch_size: Images per forward pass on the validation split.
    """

    formats: tuple[str, ...]
    with_preprocessing: bool = False
    keep: tuple[str, ...] = ()
    calibration: int8.Calibration = "percentile"
    calibration_images: int = 256
    allowed: float = ALLOWED_LOSS
    opset: int = OPSET
    threads: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class Workbench:
    """A folder to work in and all that the makers of files need; what several of them start from is made once."""

    folder: Path
    model: nn.Module
    source: Source
    yard: Yardstick
    bundle: Bundle
    options: Options

    @cached_property
    def notes(self) -> dict[str, str]:
        """What a consumer of a file needs to know, as text."""
        bundle = self.bundle
        return {
            "bundle_id": bundle.id,
            "domain": bundle.domain,
            "task": bundle.task_kind,
            "classes": json.dumps(bundle.classes),
            "preprocess": json.dumps(bundle.preprocess.to_dict()),
            "temperature": json.dumps(bundle.temperature),
            "thresholds": json.dumps(bundle.thresholds),
            "input": self.source.names[0],
            "output": self.source.names[1],
        }

    @cached_property
    def float_onnx(self) -> Path:
        return self._onnx(to_onnx, self.folder / "float" / "model.onnx")

    @cached_property
    def float_openvino(self) -> Path:
        return to_openvino(self.float_onnx, self.folder / "float" / "model.xml", metadata=self.notes)

    @cached_property
    def ranges(self) -> Path:
        method, count = self.options.calibration, self.options.calibration_images
        return int8.calibrate(self.float_onnx, self.folder / "ranges.json", self.calibration_inputs(count), method)

    def calibration_inputs(self, count: int) -> Iterator[np.ndarray]:
        """``count`` inputs, or all of a smaller split, spread over it so that every class that it is sorted by is seen."""
        rows = set(np.linspace(0, len(self.yard.targets) - 1, min(count, len(self.yard.targets))).astype(int).tolist())
        singles = (one for batch in self.yard.batches() for one in np.split(batch, len(batch)))
        return (one for row, one in enumerate(singles) if row in rows)

    def _onnx(self, writer: Callable[..., Path], path: Path, **more: Any) -> Path:
        source, options = self.source, self.options
        return writer(source.module, source.example, path, opset=options.opset, names=source.names,
                      dynamic=source.dynamic, metadata=self.notes, **more)  # fmt: skip

    def layers(self, name: str) -> dict[str, str]:
        """Layers that a format holds in low precision: name -> path of the module in the model."""
        if name == "fp16":
            return {path: path for path, module in self.model.named_modules() if isinstance(module, HELD_IN_FP16)}
        proto = onnx.load(self.float_onnx)
        weights = {tensor.name for tensor in proto.graph.initializer}
        nodes = [n for n in proto.graph.node if n.op_type in int8.QUANTISED and n.input[1] in weights]
        return {node.name: layer_of(node.name).removeprefix("model.") for node in nodes}

    def make(self, name: str, path: Path, keep: Collection[str] = ()) -> Path:
        """Write one format to ``path``, with the layers ``keep`` in float32."""
        source, options = self.source, self.options
        if name == "fp16":
            return self._onnx(to_fp16, path, keep=sorted(keep))
        if name == "int8-dynamic":
            return int8.quantize_dynamic(self.float_onnx, path, skip=keep)
        if name == "int8-static":
            return int8.quantize_static(self.float_onnx, path, self.ranges, method=options.calibration, skip=keep)
        if name == "int8-openvino":
            return self._int8_openvino(path)
        if name in ("torchscript", "pt2"):
            writer = to_torchscript if name == "torchscript" else partial(to_pt2, dynamic=source.dynamic)
            return writer(source.module, source.example, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = self.float_onnx if name == "onnx" else self.float_openvino
        for suffix in (".xml", ".bin") if name == "openvino" else (made.suffix,):
            shutil.copyfile(made.with_suffix(suffix), path.with_suffix(suffix))
        return path

    def _int8_openvino(self, path: Path) -> Path:
        def score(forward: Forward) -> float:
            return self.yard.metric(np.concatenate([forward(batch) for batch in self.yard.batches()]))

        inputs = list(self.calibration_inputs(self.options.calibration_images))
        return int8.quantize_openvino(self.float_openvino, path, inputs, score, self.options.allowed,
                                      transformer=is_transformer(self.model))  # fmt: skip
