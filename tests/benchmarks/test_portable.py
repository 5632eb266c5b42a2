"""What a small device might not run is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.portable import check_portable
from vitdomains.core.errors import ExportError


def model(kind: type = np.float32, opset: int = 20, domain: str = "", ir: int = 10) -> onnx.ModelProto:
    """x * w, in one node."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    shape = [helper.make_tensor_value_info(name, element, [1, 4]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((1, 4), kind), "w")
    node = helper.make_node("Mul", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", shape[:1], shape[1:], [weight])
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    )
    made.ir_version = ir
    return made


def inside_a_branch(made: onnx.ModelProto) -> onnx.ModelProto:
    """The same, with its node moved into both branches of an If."""
    branch = helper.make_graph(list(made.graph.node), "branch", [], list(made.graph.output))
    outer = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    del made.graph.node[:]
    made.graph.node.append(outer)
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return made


def test_plain_files_pass(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    check_portable(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model(opset=23), "opset 23"),
        (lambda: model(ir=12), "IR"),
        (lambda: model(kind=np.float16), "types FLOAT16"),
        (lambda: model(domain="com.microsoft"), "com.microsoft.Mul"),
        (lambda: inside_a_branch(model(domain="com.microsoft")), "com.microsoft.Mul"),
    ],
)
def test_what_only_some_processors_run_is_refused(
    make: Callable[[], onnx.ModelProto], message: str, tmp_path: Path
) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=message) as caught:
        check_portable(tmp_path / "m.onnx")
    assert caught.value.hint


def test_weights_in_a_second_file_are_refused(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ExportError, match="another file"):
        check_portable(tmp_path / "m.onnx")
