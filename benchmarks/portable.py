"""Whether an ONNX file runs wherever ONNX Runtime does, 64-bit ARM included: one file, known operators, plain types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from vitdomains.core.errors import ExportError

NEWEST_OPSET, NEWEST_IR = 21, 10
"""Standard operators and file format of ONNX 1.16: ONNX Runtime 1.18 and later read them. Devices are seldom updated."""
DOMAINS = ("", "ai.onnx")
_PLAIN = {
    TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL,
}  # fmt: skip


def check_portable(path: Path) -> None:
    """Refuse a file that a plain ONNX Runtime on another processor might not run.

    Kernels for float16 and bfloat16, and those of other operator domains, are there on some processors only; weights in a
    second file get lost on the way.

    Raises:
        ExportError: With all that is in the way.
    """
    proto = onnx.load(path, load_external_data=False)
    problems = []
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets.get("", 0) > NEWEST_OPSET:
        problems.append(f"opset {opsets['']} is newer than {NEWEST_OPSET}")
    if proto.ir_version > NEWEST_IR:
        problems.append(f"file format (IR) {proto.ir_version} is newer than {NEWEST_IR}")
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(proto.graph) if node.domain not in DOMAINS})
    if foreign:
        problems.append(f"operators outside the standard: {', '.join(foreign)}")
    tensors = list(proto.graph.initializer)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors):
        problems.append("weights lie in another file")
    kinds = {tensor.data_type for tensor in tensors} | {
        value.type.tensor_type.elem_type for value in [*proto.graph.input, *proto.graph.output]
    }
    if kinds - _PLAIN:
        problems.append(f"types {', '.join(sorted(TensorProto.DataType.Name(kind) for kind in kinds - _PLAIN))}")
    if problems:
        raise ExportError(
            f"{path.name} may not run on another processor: {'; '.join(problems)}.",
            hint="Export onnx or int8 with the default opset for small devices.",
        )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of the branches of If and Loop too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
