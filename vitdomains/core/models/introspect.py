"""Beside the backbones: what the recipe, the explanations and dense heads need to know of a model's inside.

Depth of every parameter, freezing up to a depth, the frozen part cut from the rest, and feature maps at four scales.
"""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.errors import ConfigError
from vitdomains.core.models.vit import VisionTransformer

STRIDES = (4, 8, 16, 32)
_TOKENS = re.compile(
    r"(^|\.)(cls_token|dist_token|reg_token|pos_embed|absolute_pos_embed|mask_token|distillation_token|register_tokens"
    r"|position_embeddings|relative_position_bias_table)$"
)
_HF_BLOCK = re.compile(r"(?:^|\.)(?:layers?|stages)\.(\d+)(?:\.(?:blocks|layers)\.(\d+))?\.")
_Module = TypeVar("_Module", bound=nn.Module)


def layer_ids(model: nn.Module, *, stages: bool = False) -> dict[str, int]:
    """Depth of every parameter, for layer-wise learning-rate decay (Bao et al. 2022, BEiT, appendix) and for freezing.

    Args:
        model: From ``build_model``, or any timm model.
        stages: Count the stages of a hierarchical model (Swin, ConvNeXt) in place of its blocks.

    Returns:
        Parameter name -> 0 for the patch embedding, positions and tokens, 1..L for the blocks (stages), L+1 for the head.
        The norm after the last block belongs to that block.

    Raises:
        ConfigError: The model gives no account of its depth.
    """
    if isinstance(model, VisionTransformer):
        last = len(model.blocks)
        return {name: _vit_depth(name, last) for name, _ in model.named_parameters()}
    foreign: Any = model
    if hasattr(foreign, "group_matcher"):
        from timm.models import group_parameters

        found = group_parameters(foreign, foreign.group_matcher(coarse=stages), reverse=True)
        return {name: int(found[name]) for name, _ in model.named_parameters()}
    if hasattr(foreign, "head_prefixes"):
        return _transformers_depths(model, tuple(foreign.head_prefixes()), stages)
    raise ConfigError(
        f"{type(model).__name__} does not tell the depth of its parameters.", hint="Use a model of build_model."
    )


def _vit_depth(name: str, last: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.startswith("norm."):
        return last
    return last + 1 if name.startswith(("head", "fc_norm", "pre_logits")) else 0


def _transformers_depths(model: nn.Module, head: tuple[str, ...], stages: bool) -> dict[str, int]:
    names = [name for name, _ in model.named_parameters()]
    found = {name: match.groups() for name in names if (match := _HF_BLOCK.search(name))}
    keys = sorted({(int(a), int(b or 0)) for a, b in found.values()})
    last_of_stage = dict(keys)  # sorted: the last one stays
    rank = {key: i + 1 for i, key in enumerate(sorted({(a, 0) for a, _ in keys}) if stages else keys)}
    top = len(rank)
    ids: dict[str, int] = {}
    for name in names:
        if name.startswith(head):
            ids[name] = top + 1
        elif name in found:
            stage, block = int(found[name][0]), found[name][1]
            # What stands in a stage but in none of its blocks is the patch merging after them.
            ids[name] = rank[(stage, 0 if stages else last_of_stage[stage] if block is None else int(block))]
        else:
            ids[name] = 0 if "embed" in name else top
    return ids


def heads(model: nn.Module) -> list[nn.Module]:
    """The modules that turn pooled features into logits: one, two with a distillation token, none of an unknown model."""
    foreign: Any = model
    if isinstance(model, VisionTransformer):
        found = [model.head, model.head_dist]
    elif hasattr(foreign, "get_classifier"):
        classifier = foreign.get_classifier()
        found = list(classifier) if isinstance(classifier, tuple) else [classifier]
    else:
        prefixes = foreign.head_prefixes() if hasattr(foreign, "head_prefixes") else []
        found = [model.get_submodule(prefix.rstrip(".")) for prefix in prefixes]
    return [head for head in found if head is not None]


def no_decay_names(model: nn.Module) -> set[str]:
    """Parameters without weight decay: biases, norms and LayerScale (one dimension), tokens, positions, position bias tables."""
    ask: Any = getattr(model, "no_weight_decay", None)
    listed: set[str] = set(ask()) if ask else set()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name in listed or _TOKENS.search(name) is not None
    }


def freeze(model: _Module, what: str) -> _Module:
    """Stop the training of the lower part of a model, in place; what is frozen behaves as in inference.

    A module whose parameters are all frozen stays in evaluation mode: no dropout, no stochastic depth, running statistics
    of batch norm untouched. Freezing anew starts from a model without frozen parts.

    Args:
        model: From ``build_model``, or any timm model.
        what: ``none``; ``backbone``: all but the head; ``6``: embedding and the first six blocks; ``0.5``: embedding and that
            share of the blocks, rounded; ``stage:2``: stem and the first two stages of a hierarchical model.

    Raises:
        ConfigError: ``what`` cannot be read, asks for more blocks than there are, or for stages where there are none.
    """
    for module in model.modules():
        module.__dict__.pop("train", None)
    ids = layer_ids(model, stages=what.startswith("stage:"))
    depth = _frozen_depth(model, what, ids)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(ids[name] > depth)
    _hold_frozen(model)
    return model


def _frozen_depth(model: nn.Module, what: str, ids: dict[str, int]) -> int:
    blocks = max(ids.values()) - 1
    wrong = ConfigError(
        f"model.freeze={what!r} does not fit a {type(model).__name__} of {blocks} blocks.",
        hint="Use none, backbone, a count of blocks (6), a share of them (0.5), or stage:N for hierarchical models.",
    )
    if what == "none":
        return -1
    if what == "backbone":
        return blocks
    stage = what.startswith("stage:")
    if stage and ids == layer_ids(model):
        raise wrong
    try:
        number = float(what.removeprefix("stage:"))
    except ValueError:
        raise wrong from None
    if "." in what and not stage:
        depth = round(number * blocks) if 0 <= number <= 1 else blocks + 1
    else:
        depth = int(number)
    if not 0 <= depth <= blocks or (stage and number != depth):
        raise wrong
    return depth


def _hold_frozen(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        module.__dict__["train"] = types.MethodType(_stay_in_eval, module)
        return
    for child in module.children():
        _hold_frozen(child)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def is_timm_vit(model: nn.Module) -> bool:
    """Whether a model is of timm's ViT class (ViT, DeiT, DeiT III, DINOv2); timm is not loaded to find out."""
    if "timm" not in sys.modules:
        return False
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    return isinstance(model, TimmViT)


def split_frozen(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Any]] | None:
    """The frozen lower part and the rest, such that ``upper(lower(x))`` is ``model(x)``.

    Returns:
        ``lower``: [B,C,height,width] -> tokens [B,N,D], and ``upper``: tokens -> logits; None where nothing is frozen or the
        model is neither the ViT written here nor of timm's ViT class (ViT, DeiT, DeiT III, DINOv2).
    """
    if not isinstance(model, VisionTransformer) and not is_timm_vit(model):
        return None
    ids = layer_ids(model)
    trained = {ids[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    count = min(min(trained, default=depth + 1) - 1, depth)
    if count < 0:
        return None
    if isinstance(model, VisionTransformer):
        vit = model
        return (
            lambda x: vit.run_blocks(vit.embed(x), 0, count),
            lambda tokens: vit.forward_head(vit.norm(vit.run_blocks(tokens, count))),
        )
    timm_vit: Any = model

    def lower(x: Tensor) -> Tensor:
        tokens = timm_vit.norm_pre(timm_vit.patch_drop(timm_vit._pos_embed(timm_vit.patch_embed(x))))
        return timm_vit.blocks[:count](tokens)  # type: ignore[no-any-return]

    def upper(tokens: Tensor) -> Any:
        return timm_vit.forward_head(timm_vit.norm(timm_vit.blocks[count:](tokens)))

    return lower, upper


def features(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps at strides 4, 8, 16 and 32, for dense heads: [B,C,height,width] -> four maps [B,D_i,height/s_i,width/s_i].

    A hierarchical model gives the output of its stages, for each stride the nearest. A plain ViT has one scale: the
    outputs of four evenly spaced blocks (a quarter, half, three quarters of the depth, the last; before the final norm) are
    resampled bilinearly to the four strides: the pyramids of SETR (Zheng et al. 2021) and ViTDet (Li et al. 2022) without
    their parameters.

    Raises:
        ConfigError: The model does not give its intermediate maps.
    """
    foreign: Any = model
    if isinstance(model, VisionTransformer):
        maps = _vit_maps(model, x)
    elif hasattr(foreign, "feature_maps"):
        maps = foreign.feature_maps(x)
    elif hasattr(foreign, "forward_intermediates"):
        chosen = _chosen_maps([int(info["reduction"]) for info in foreign.feature_info])
        once = sorted(set(chosen))
        found = foreign.forward_intermediates(x, indices=once, intermediates_only=True, output_fmt="NCHW")
        maps = [found[once.index(index)] for index in chosen]
    else:
        raise ConfigError(
            f"{type(model).__name__} does not give feature maps.", hint="Use a ViT, Swin or convolutional backbone."
        )
    sizes = [tuple(max(1, round(side / stride)) for side in x.shape[-2:]) for stride in STRIDES]
    return [
        map_ if tuple(map_.shape[-2:]) == size else F.interpolate(map_, size=size, mode="bilinear", antialias=True)
        for map_, size in zip(maps, sizes, strict=True)
    ]


def _chosen_maps(reductions: list[int]) -> list[int]:
    """Which outputs stand for the four strides: evenly spaced ones of a plain model, else the last of the nearest."""
    if len(set(reductions)) == 1:
        return quarters(len(reductions))
    distance = [[abs(math.log2(reduction / stride)) for reduction in reductions] for stride in STRIDES]
    return [max(i for i, d in enumerate(row) if d == min(row)) for row in distance]


def quarters(depth: int) -> list[int]:
    """Indices of the blocks at a quarter, half, three quarters and the end of the depth."""
    return [max(0, round(depth * part / 4) - 1) for part in (1, 2, 3, 4)]


def _vit_maps(model: VisionTransformer, x: Tensor) -> list[Tensor]:
    h, w = x.shape[-2] // model.patch, x.shape[-1] // model.patch
    wanted, maps, done = quarters(len(model.blocks)), [], 0
    tokens = model.embed(x)
    for index in wanted:
        tokens = model.run_blocks(tokens, done, index + 1)
        done = max(done, index + 1)
        grid = tokens[:, model.prefix :].transpose(1, 2)  # [B,D,h*w]
        maps.append(grid.reshape(len(x), -1, h, w))
    return maps


def trainable(model: nn.Module) -> tuple[int, int]:
    """Trainable and total count of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)


def mlp_head(features_in: int, hidden: int, classes: int, drop_rate: float) -> nn.Sequential:
    """LayerNorm-Dropout-Linear-GELU-Dropout-Linear: [B,features_in] -> [B,classes]."""
    first, last = nn.Linear(features_in, hidden), nn.Linear(hidden, classes)
    for layer in (first, last):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(
        nn.LayerNorm(features_in), nn.Dropout(drop_rate), first, nn.GELU(), nn.Dropout(drop_rate), last
    )
