"""The formats: what each is for, what runs it, how far its logits may be from the model's, and which models it cannot take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitdomains.core.errors import ExportError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Format:
    """One kind of artefact.

    ``tolerance`` is the largest difference of a logit that passes, as a share of the largest logit (but at least of 1);
    ``keeps`` says whether layers can be left in float32 where they lose too much; where they cannot, ``stand_in`` is a format
    that can, quantises the same layers in the same way, and so tells which of them lose most.
    """

    file: str
    runtime: str
    tolerance: float
    about: str
    keeps: bool = False
    stand_in: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the artefact; OpenVINO keeps its weights in one of their own."""
        return (self.file, self.file.replace(".xml", ".bin")) if self.file.endswith(".xml") else (self.file,)


OPSET = 20
"""The first with a GELU of its own; earlier ones spell it out in five operators."""

ALLOWED_LOSS = 0.005
"""Default of the accuracy gate: 0.005 AUROC, or half a percentage point of top-1 accuracy."""

Calibration = Literal["percentile", "entropy"]
"""How the ranges of int8-static are chosen."""

BF16_TOLERANCE = 0.05
"""For bfloat16 arithmetic, which OpenVINO chooses when it loads a file: eight bits of mantissa through all layers."""

FORMATS = {
    "onnx": Format("model.onnx", "onnx", 1e-3, "ONNX in float32"),
    "fp16": Format("model.fp16.onnx", "onnx", 0.01, "ONNX in float16, for GPUs", keeps=True),
    "int8-dynamic": Format("model.int8-dynamic.onnx", "onnx", 0.25, "ONNX in INT8, scaled at each run", keeps=True),
    "int8-static": Format("model.int8-static.onnx", "onnx", 0.15, "ONNX in INT8, calibrated", keeps=True),
    "openvino": Format("model.xml", "openvino", 1e-3, "OpenVINO IR in float32, run in bf16 where the processor has it"),
    "int8-openvino": Format(
        "model.int8.xml", "openvino", 0.15, "OpenVINO IR in INT8, with accuracy control", stand_in="int8-static"
    ),
    "torchscript": Format("model.torchscript", "torch", 1e-3, "TorchScript; deprecated by PyTorch"),
    "pt2": Format("model.pt2", "torch", 1e-3, "torch.export"),
}
"""In the order in which they are made. Measured on a fine-tuned ViT-Ti, as shares of the largest logit: INT8 dynamic 0.14 in a
batch of eight, whose largest values set the scale for all of it, static 0.08, OpenVINO 0.04, bf16 0.01 to 0.03."""


def is_transformer(model: nn.Module) -> bool:
    """Whether all convolutions are cuts into patches that do not overlap, so that linear layers do the work."""
    from torch import nn

    return all(tuple(m.kernel_size) == tuple(m.stride) for m in model.modules() if isinstance(m, nn.Conv2d))


def chosen_formats(asked: Iterable[str], model: nn.Module, *, with_preprocessing: bool = False) -> tuple[str, ...]:
    """Formats by name; ``int8`` stands for the INT8 that suits the model, in ONNX and, where it is asked for, OpenVINO.

    Args:
        asked: Names of ``FORMATS``, ``int8``, or ``all`` for all that can take the model.
        model: The model.
        with_preprocessing: Whether the artefacts take images.

    Raises:
        ExportError: An unknown name.
    """
    names = set(asked)
    unknown = sorted(names - FORMATS.keys() - {"int8", "all"})
    if unknown:
        raise ExportError(f"Unknown format {', '.join(unknown)}.", hint=f"Use {', '.join(FORMATS)}, int8 or all.")
    if "all" in names:
        return tuple(n for n in FORMATS if not reason_against(n, model, with_preprocessing=with_preprocessing))
    if "int8" in names:
        names |= {"int8-dynamic" if is_transformer(model) else "int8-static"}
        names |= {"int8-openvino"} if "openvino" in names and not with_preprocessing else set()
    return tuple(name for name in FORMATS if name in names)


def reason_against(name: str, model: nn.Module, *, with_preprocessing: bool = False) -> str:
    """Why a format cannot take a model, in words; empty where it can."""
    if name == "int8-dynamic" and not is_transformer(model):
        return (
            "its convolutions would stay in float32, and in dynamic INT8 they run 2 to 7 times slower; use int8-static"
        )
    from vitdomains.core.inference.runtimes import available

    if FORMATS[name].runtime == "openvino" and not available("openvino"):
        return "OpenVINO is not installed: pip install 'vitdomains[openvino]'"
    if name == "int8-openvino" and with_preprocessing:
        return "NNCF would quantise the resize as well; export int8-openvino without --with_preprocessing"
    return ""


def refuse_impossible(names: Sequence[str], model: nn.Module, *, with_preprocessing: bool) -> None:
    """Say before any work which of the formats cannot be made.

    Raises:
        ExportError: With all the reasons.
    """
    reasons = {name: reason_against(name, model, with_preprocessing=with_preprocessing) for name in names}
    against = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if against:
        rest = [name for name, reason in reasons.items() if not reason]
        raise ExportError(
            f"Not every format can take this model. {'; '.join(against)}.",
            hint=f"Ask for the others: --formats {','.join(rest)}" if rest else "Ask for onnx.",
        )
