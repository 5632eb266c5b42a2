"""From a module to an ONNX file: exported, checked, labelled, small enough to be read by anyone.

The first stop of every artefact but those of PyTorch itself: OpenVINO and the INT8 files are made from what is written here.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExportError
from vitdomains.core.export.quiet import quiet
from vitdomains.core.export.wrap import EndToEnd, Half

OPSET = 20
"""The first with a GELU of its own; earlier ones spell it out in five operators."""


def to_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    opset: int = OPSET,
    names: tuple[str, str] = ("image", "logits"),
    dynamic: Mapping[int, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Export a module with one input and one output by torch.onnx's dynamo exporter, and have the file checked.

    Args:
        model: The module; it is exported in evaluation mode and in its own precision.
        example: An input [B,C,H,W] with B of at least 2, since an axis of length 1 would be taken for a constant.
        path: The file to write; weights are inside it.
        opset: ONNX operator set, 18 or newer.
        names: Names of input and output.
        dynamic: Axis of the input -> name, for the axes whose length is left open; None: axis 0, the batch.
        metadata: Key to text, stored in the file.

    Raises:
        ExportError: The exporter or the checker cannot take the model; the message is theirs.
    """
    if opset < 18:
        raise ExportError(f"opset {opset} is older than the exporter writes.", hint="Use 18 or newer.")
    axes = {0: "batch"} if dynamic is None else dynamic
    shapes = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    training = model.training
    with quiet(), _explicit_attention(model):
        try:
            program = torch.onnx.export(
                model.eval(), (example,), dynamo=True, opset_version=opset, dynamic_shapes=(shapes,),
                input_names=[names[0]], output_names=[names[1]], verbose=False, optimize=True,
            )  # fmt: skip
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ExportError(
                f"ONNX cannot take the model: {_root_cause(error)}",
                hint="Use torchscript or pt2, or another model of the family.",
            ) from error
        finally:
            model.train(training)
    assert program is not None  # it is only None where a path is given
    proto = program.model_proto
    _name_by_layer(proto.graph.node)
    del proto.graph.value_info[:]  # shapes of intermediate values; wrong ones keep the quantiser from working
    onnx.helper.set_model_props(proto, dict(metadata or {}))
    return save(proto, path)


@contextmanager
def _explicit_attention(model: nn.Module) -> Iterator[None]:
    """Have the models of timm and transformers write attention as matrix products and a softmax.

    That is what ONNX gets in any case; the exporter's own expansion of the fused kernel fails on the memory layout that
    relative positions bring (BEiT, Swin of transformers: "cannot view a tensor"), and scales twice where once would do.
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    chosen: list[Any] = [module for module in model.modules() if hasattr(module, "set_attn_implementation")]
    before = [module.config._attn_implementation for module in chosen]
    for module in fused:
        module.fused_attn = False
    for module in chosen:
        module.set_attn_implementation("eager")
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
        for module, name in zip(chosen, before, strict=True):
            module.set_attn_implementation(name)


def _name_by_layer(nodes: Iterable[onnx.NodeProto]) -> None:
    """Put the path of the module that it came from in front of each node's name, as ``blocks.0.attn.qkv:node_MatMul_12``.

    The exporter keeps it in notes on every node, which in a small model take more room than the weights; these go.
    """
    for node in nodes:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        node.name = f"{scopes[-2] if len(scopes) > 1 else ''}:{node.name}"
        del node.metadata_props[:]


def layer_of(node_name: str) -> str:
    """Path of the module that a node of ``to_onnx`` belongs to; empty for the model's own forward."""
    return node_name.partition(":")[0]


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model to one file and have the checker look at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        path.unlink()
        raise ExportError(f"The ONNX checker refuses the file: {error}", hint="Try another opset.") from error
    return path


def to_fp16(model: nn.Module, example: Tensor, path: Path, *, keep: Collection[str] = (), **options: Any) -> Path:
    """As ``to_onnx``, with weights and arithmetic in float16 between float32 input and output: for GPUs.

    Args:
        model: As in ``to_onnx``; of an ``EndToEnd`` only the model inside becomes float16.
        example, path, options: As in ``to_onnx``.
        keep: Paths of layers that stay in float32, as ``named_modules`` gives them.
    """
    half = model.around(Half(model.model, keep)) if isinstance(model, EndToEnd) else Half(model, keep)
    return to_onnx(half, example, path, **options)


def read_metadata(path: Path) -> dict[str, str]:
    """What ``to_onnx`` stored beside the graph."""
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def _root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom: the exporter wraps it in several pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
