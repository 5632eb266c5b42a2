"""Grad-CAM on any backbone, and occlusion as the reference that looks at no weights at all."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.attention import attention_blocks, forward_logits, gradients_of, patch_grid, untouched
from vitdomains.core.explain.relevance import chosen_classes


def gradcam(model: nn.Module, images: Tensor, classes: Sequence[int] | None = None, *, target: str = "") -> Tensor:
    """Grad-CAM: Selvaraju et al. 2017 (arXiv:1610.02391), equations 1 and 2. One forward pass, one backward pass a class.

    Args:
        model: Any classifier with a ViT, Swin or convolutional backbone.
        images: [B,C,H,W].
        classes: Indices; all if None.
        target: Name of the module whose output is weighed. Empty: of a ViT the first norm of the last block (what its
            attention reads; after it, patches no longer reach a class token), of a Swin the last block, of a convolutional
            net the last feature map before pooling.

    Returns:
        [B,K',h,w], not negative, on the grid of that output.

    Raises:
        ExplainError: No such module, or its output is not a map.
    """
    features: dict[str, Tensor] = {}
    with untouched(model) as handles, torch.inference_mode(False), torch.enable_grad():
        for module in _targets(model, target):
            handles.append(
                module.register_forward_hook(_keep_map(features, bool(target) or bool(attention_blocks(model))))
            )
        images = images.detach().clone().requires_grad_()
        logits = forward_logits(model, images, single=True)
    feature = features.get("map")
    if feature is None or not feature.requires_grad:
        raise ExplainError("No feature map was captured.", hint="Name the module with the option target.")
    chosen = chosen_classes(classes, logits.shape[1])
    maps = []
    for position, k in enumerate(chosen):
        (slope,) = gradients_of(logits, k, [feature], keep_graph=position < len(chosen) - 1)
        if slope is None:
            raise ExplainError(
                "The logit does not depend on the target module.", hint="Name another with the option target."
            )
        maps.append(_weigh(*_as_maps(model, feature.detach().float(), slope.float(), images)))
    return torch.stack(maps, dim=1)


def _targets(model: nn.Module, target: str) -> list[nn.Module]:
    if target:
        modules = dict(model.named_modules())
        if target not in modules:
            raise ExplainError(
                f"The model has no module {target!r}.", hint=f"Some are {', '.join(list(modules)[-3:])}."
            )
        return [modules[target]]
    blocks = attention_blocks(model)
    if not blocks:
        return [module for module in model.modules() if not list(module.children())]
    if hasattr(blocks[-1], "window_size") and hasattr(blocks[-1], "shift_size"):
        return [blocks[-1]]
    norms = [child for child in blocks[-1].children() if "norm" in type(child).__name__.lower()]
    return norms[:1] or [blocks[-1]]


def _keep_map(features: dict[str, Tensor], tokens: bool) -> Callable[..., None]:
    """A hook that keeps the latest output with more than one position; of [B,C,h,w] alone unless ``tokens``."""

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and (tokens or (out.dim() == 4 and out.shape[2] * out.shape[3] > 1)):
            features["map"] = out

    return hook


def _as_maps(model: nn.Module, feature: Tensor, slope: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Feature and gradient as [B,C,h,w], from [B,C,h,w], Swin's [B,h,w,C], or tokens [B,n,C] with or without a prefix."""
    size = (images.shape[-2], images.shape[-1])
    if feature.dim() == 4:
        last = bool(attention_blocks(model)) and feature.shape[1] * feature.shape[2] > 1  # timm's Swin: channels last
        return (feature.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)) if last else (feature, slope)
    if feature.dim() != 3:
        raise ExplainError(
            f"The target's output has shape {tuple(feature.shape)}.", hint="It has to be a map or tokens."
        )
    count = feature.shape[1]
    if any(
        hasattr(block, "shift_size") for block in attention_blocks(model)
    ):  # merged patches, in the image's proportion
        height = round(math.sqrt(count * size[0] / size[1]))
        grid, prefix = (height, count // height), 0
    else:
        grid, prefix = patch_grid(model, size, count)
    feature, slope = (t[:, prefix:].transpose(1, 2).unflatten(2, grid) for t in (feature, slope))
    return feature, slope


def _weigh(feature: Tensor, slope: Tensor) -> Tensor:
    """[B,C,h,w] twice -> [B,h,w]: channels weighed by their mean gradient, the positive part of the sum."""
    return (slope.mean((2, 3), keepdim=True) * feature).sum(1).clamp(min=0)


class _Logits(nn.Module):
    """What MONAI calls: it wants a module that returns a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        # MONAI hands over its own tensor type, on which hooks and graphs are slower.
        return forward_logits(self.model, torch.as_tensor(x).as_subclass(Tensor))


def occlusion(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int] | None = None,
    *,
    mask_size: int = 0,
    overlap: float = 0.5,
    mode: str | float = "mean_img",
    batch_size: int = 8,
) -> Tensor:
    """How far each logit falls when a square is covered: Zeiler and Fergus 2014 (arXiv:1311.2901), section 4.2, through MONAI.

    All classes come from the same passes. It costs about (1 + (1 / (1 - overlap)) * size / mask_size)^2 passes an image.

    Args:
        model: Any classifier.
        images: [B,C,H,W].
        classes: Indices; all if None.
        mask_size: Side of the square, pixels; 0: an eighth of the shorter side.
        overlap: Of neighbouring squares, 0..1.
        mode: ``mean_img``, ``mean_patch``, ``gaussian`` or the value that covers.
        batch_size: Covered images in one pass.

    Returns:
        [B,K',H,W]: logit of the whole image minus logit of the covered one, so that what supports the class is positive.
    """
    side = mask_size or max(1, min(images.shape[-2:]) // 8)
    if not 0 <= overlap < 1 or side > min(images.shape[-2:]):
        raise ExplainError(
            f"overlap {overlap} or mask_size {side} is not possible.", hint="0 <= overlap < 1; the mask fits the image."
        )
    from monai.visualize import OcclusionSensitivity  # seconds to import, and matplotlib with it

    maps = []
    with untouched(model), torch.no_grad():
        wrapped = _Logits(model)
        whole = forward_logits(model, images)
        chosen = chosen_classes(classes, whole.shape[1])
        sensitivity = OcclusionSensitivity(
            wrapped, mask_size=side, n_batch=batch_size, verbose=False, mode=mode, overlap=overlap, activate=False
        )
        for image, logits in zip(images, whole, strict=True):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # in MONAI's own indexing
                covered, _ = sensitivity(image[None])  # [1,K,H,W]
            covered = torch.as_tensor(covered).as_subclass(Tensor)[0]
            maps.append((logits[:, None, None] - covered)[chosen])
    return torch.stack(maps)
