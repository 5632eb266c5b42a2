"""ONNX export through torch.onnx's dynamo exporter, in float32 and float16, with or without the preprocessing.

OpenVINO and the INT8 files are made from what is written here.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.errors import ExportError
from vitdomains.core.export.formats import OPSET
from vitdomains.core.export.torch_formats import quiet
from vitdomains.core.tasks import Kind


class EndToEnd(nn.Module):
    """Images uint8 [B,H,W,C] -> probabilities [B,K]; H and W are free, C is 1 or the model's channels.

    ``prepare`` and ``normalise`` written as tensor operations that every format can hold, so that a consumer needs no Python and
    no image library but a decoder. A resize is a product with one matrix an axis, made from the image's size when it is known.

    Args:
        model: Maps [B,C,h,w] to logits [B,K].
        spec: The preprocessing, with 8-bit storage.
        kind: Sigmoid for ``multilabel``, softmax for ``singlelabel``.
        temperature: One value, or K.

    Raises:
        ExportError: The preprocessing is not of 8-bit images, or filters as it resizes.
    """

    def __init__(self, model: nn.Module, spec: PreprocessSpec, kind: Kind, temperature: tuple[float, ...]) -> None:
        super().__init__()
        if spec.storage != "uint8" or spec.resample != "area":
            why = f"it resizes by {spec.resample}" if spec.storage == "uint8" else "the model takes no 8-bit images"
            raise ExportError(
                f"The preprocessing of this bundle cannot be exported: {why}.",
                hint="Export without --with_preprocessing and give the file normalised arrays.",
            )
        self.model, self.spec, self.kind = model, spec, kind
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(normalise_stored(self.resize(images.permute(0, 3, 1, 2)), self.spec)) / torch.tensor(
            self.temperature
        )
        return logits.sigmoid() if self.kind == "multilabel" else logits.softmax(-1)  # type: ignore[no-any-return]

    def around(self, model: nn.Module) -> EndToEnd:
        """The same image in and probabilities out, with another model between."""
        return EndToEnd(model, self.spec, self.kind, self.temperature).eval()

    def resize(self, images: Tensor) -> Tensor:
        """uint8 [B,C,H,W] -> whole grey levels, float32 [B,C,h,w]: what ``prepare`` does."""
        spec = self.spec
        rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
        height, width = rows[-1] + 1, columns[-1] + 1  # tensors, so that they stay open in the exported graph
        full_h, full_w = torch.tensor(spec.height), torch.tensor(spec.width)
        source_h, source_w, target_h, target_w = height, width, full_h, full_w
        if spec.resize == "letterbox":
            # As scale = min(h / H, w / W): the tighter axis fills the input, the other follows.
            target_h = _at_least_one(torch.minimum(_divide(height * full_w, width), full_h))
            target_w = _at_least_one(torch.minimum(_divide(width * full_h, height), full_w))
        elif spec.resize == "crop":
            source_h = _at_least_one(torch.minimum(_divide(width * full_h, full_w), height))
            source_w = _at_least_one(torch.minimum(_divide(height * full_w, full_h), width))
        down, valid_h = _resampling(rows, height, source_h, target_h, spec.height)
        across, valid_w = _resampling(columns, width, source_w, target_w, spec.width)
        inside = valid_h[:, None] * valid_w
        fill = float(round(min(max(spec.fill, 0.0), 1.0) * 255))
        return (down @ (images.float() @ across.T)).round() * inside + fill * (1 - inside)


class Half(nn.Module):
    """A copy of a model in float16 that takes and gives float32; the layers at the paths of ``keep`` stay in float32."""

    def __init__(self, model: nn.Module, keep: Collection[str] = ()) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half().eval()
        for path in keep:
            layer = self.model.get_submodule(path).float()
            layer.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
            layer.register_forward_hook(lambda _, __, output: output.half())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.half()).float()  # type: ignore[no-any-return]


def normalise_stored(levels: Tensor, spec: PreprocessSpec) -> Tensor:
    """``normalise`` of grey levels 0..255 that are held as float32."""
    return normalise(levels / 255, spec)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b of positive integers, rounded; ties go to the even number, as in ``round``."""
    twice, quotient = 2 * a + b, (2 * a + b) // (2 * b)
    tie = (twice % (2 * b) == 0) & (quotient % 2 == 1)
    return quotient - tie.to(quotient.dtype)


def _at_least_one(length: Tensor) -> Tensor:
    return torch.clamp(length, min=1)


def _resampling(positions: Tensor, length: Tensor, source: Tensor, target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """One axis of the resize, as ``resize_array`` does it.

    Args:
        positions: 0..length-1.
        length: Pixels of the image along this axis.
        source: How many of them, centred, are used.
        target: How many pixels, centred, they become.
        size: Pixels of the model's input.

    Returns:
        Matrix [size, length] by which the axis is multiplied; whether each pixel is image (1) or padding (0), [size].
    """
    # All in whole numbers up to the last division: a runtime that computes in bfloat16 by default counts no pixels wrong.
    at = torch.arange(size) - torch.div(size - target, 2, rounding_mode="floor")  # pixel of the resized part
    i, j = at[:, None], positions - torch.div(length - source, 2, rounding_mode="floor")
    # Shrinking: new pixel i averages the old ones that it covers; both stretches are measured in 1 / target of an old pixel.
    covered = torch.minimum((i + 1) * source, (j + 1) * target) - torch.maximum(i * source, j * target)
    area = covered.clamp(min=0) / source
    # Growing: linear interpolation between pixel centres, constant beyond the outermost, in 1 / (2 target) of an old pixel.
    centre = torch.minimum(((2 * i + 1) * source - target).clamp(min=0), 2 * target * (source - 1))
    linear = (2 * target - (centre - 2 * target * j).abs()).clamp(min=0) / (2 * target)
    valid = ((at >= 0) & (at < target)).float()
    return torch.where(source > target, area, linear) * valid[:, None], valid


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
