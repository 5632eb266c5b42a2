"""The model with what stands before and behind it: an 8-bit image of any size in, calibrated probabilities out.

``prepare`` and ``normalise`` written as tensor operations that every format can hold, so that a consumer needs no Python and no
image library but a decoder. A resize is a product with one matrix an axis; the matrices are made from the image's size when it
is known.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.errors import ExportError
from vitdomains.core.tasks import Kind


class EndToEnd(nn.Module):
    """Images uint8 [B,H,W,C] -> probabilities [B,K]; H and W are free, C is 1 or the model's channels.

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
    at = torch.arange(size) - torch.div(size - target, 2, rounding_mode="floor")  # pixel of the resized part
    j = (positions - torch.div(length - source, 2, rounding_mode="floor")).float()
    i, count = at.float()[:, None], source.float()
    step = count / target.float()
    # Shrinking: each new pixel averages the stretch of old ones that it covers.
    area = (torch.minimum((i + 1) * step, j + 1) - torch.maximum(i * step, j)).clamp(min=0) / step
    # Growing: linear interpolation between pixel centres, constant beyond the outermost.
    centre = torch.minimum(((i + 0.5) * step - 0.5).clamp(min=0), count - 1)
    linear = (1 - (centre - j).abs()).clamp(min=0)
    valid = ((at >= 0) & (at < target)).float()
    return torch.where(step > 1, area, linear) * valid[:, None], valid
