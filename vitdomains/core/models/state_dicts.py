"""Foreign checkpoints to the names and shapes of the model at hand: pure functions on state dictionaries.

The names of timm's ViT are the common ones. transformers (before and after version 5), Meta's DeiT, DeiT III and DINOv2
releases and the JAX originals are renamed to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from vitdomains.core.models.vit import resample_positions

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model", "model_state", "module", "teacher")
_TRANSFORMERS = (  # pattern -> replacement, in this order; the left sides cover versions 4 and 5
    (r"^(vit|deit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?(?:q_proj|query)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:k_proj|key)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:v_proj|value)\.", ".attn.v."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.dense\.", "pre_logits."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_ORIGINALS = (  # Meta's DeiT III writes gamma_1; old timm and Google's conversions write pre_logits.fc
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^pre_logits\.fc\.", "pre_logits."),
    (r"^register_tokens$", "reg_token"),
)


def unwrap(loaded: Mapping[str, Any]) -> State:
    """The state dictionary inside what ``torch.load`` gave: optimiser and arguments left out, ``module.`` taken off."""
    for key in _WRAPPERS:
        if isinstance(loaded.get(key), Mapping):
            return unwrap(loaded[key])
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod.", "backbone."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors


def is_transformers(state: State) -> bool:
    """Whether the names are those of transformers' ViT, DeiT or DINOv2."""
    return any(re.search(r"(^|\.)embeddings\.(cls_token|position_embeddings)$", name) for name in state)


def is_vit(state: State) -> bool:
    """Whether the state, in the common names, is that of a plain Vision Transformer."""
    return "pos_embed" in state and "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state


def canonical(state: State) -> State:
    """Any Vision Transformer's state in the common names; what is no Vision Transformer comes back as it is.

    Query, key and value are put into one matrix. DINOv2 with registers keeps a position for the class token alone; it is
    added to the token, so that no prefix token has a position.
    """
    rules = _TRANSFORMERS if is_transformers(state) else _ORIGINALS
    renamed: State = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    state = _fuse_qkv(renamed)
    if not is_vit(state):
        return state
    state.pop("mask_token", None)
    tokens = state["pos_embed"].shape[1]
    if "reg_token" in state and _is_square(tokens - 1) and not _is_square(tokens):
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def _fuse_qkv(state: State) -> State:
    fused: State = {}
    for name, value in state.items():
        if ".attn.q." in name:
            parts = [value, *(state[name.replace(".attn.q.", f".attn.{part}.")] for part in "kv")]
            fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            fused[name] = value
    return fused


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def prefix_count(state: State) -> int:
    """How many prefix tokens have a position in ``pos_embed``: all of them, or none."""
    present = sum(state[name].shape[1] for name in ("cls_token", "dist_token", "reg_token") if name in state)
    return present if _is_square(state["pos_embed"].shape[1] - present) else 0


def implied_options(state: State) -> dict[str, Any]:
    """Options of ``vit`` that a state in the common names implies: tokens, LayerScale, positions, pooling and norms."""
    if not is_vit(state):
        return {}
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    options: dict[str, Any] = {"distilled": True} if "dist_token" in state else {}
    if "cls_token" not in state:
        options |= {"class_token": False, "pool": "avg"}
    if registers:
        options["register_tokens"] = registers
    if prefix_count(state) == 0 and "cls_token" in state:
        options["prefix_positions"] = False
    if "blocks.0.ls1.gamma" in state:
        options["layer_scale"] = 1e-5
    if "fc_norm.weight" in state:
        options |= {"pool": "avg", "fc_norm": True}
    width = state["pos_embed"].shape[-1]
    if "head.weight" in state and state["head.weight"].shape[1] == 2 * width:
        options["pool"] = "token+avg"
    if "pre_logits.weight" in state and "head.weight" in state:
        options["pre_logits"] = state["pre_logits.weight"].shape[0]
    return options


def resample_state(state: State, pos_shape: torch.Size, patch_shape: torch.Size) -> State:
    """``state`` in the common names, with patches and positions of the model's size.

    Args:
        state: In the common names.
        pos_shape: [1, tokens, D] of the model's positions; the grid is taken to be square.
        patch_shape: [D, C, P, P] of the model's patch embedding; another P is resized as in FlexiViT (arXiv:2212.08013).
    """
    kernel = state["patch_embed.proj.weight"]
    if kernel.shape[-2:] != patch_shape[-2:]:
        state = {**state, "patch_embed.proj.weight": resample_patch_embed(kernel.float(), list(patch_shape[-2:]))}
    return resample_positions_of(state, "pos_embed", pos_shape, prefix_count(state))


def resample_positions_of(state: State, name: str, shape: torch.Size, prefix: int) -> State:
    """Positions ``name`` resampled (bicubic, antialias) to ``shape`` [1,tokens,D]; ``prefix`` tokens stand before the grid."""
    positions = state[name]
    old, new = positions.shape[1] - prefix, shape[1] - prefix
    if old == new or not (_is_square(old) and _is_square(new)):
        return state
    sides = (math.isqrt(old),) * 2, (math.isqrt(new),) * 2
    grid = resample_positions(positions[:, prefix:].float(), *sides)
    return {**state, name: torch.cat((positions[:, :prefix].float(), grid), dim=1)}


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """First convolution [O,C,k,k] for another number of input channels.

    One channel: the sum over the C filters, so that a grey image gives what its copy in C equal channels gave. More: the
    filters in turn (R, G, B, R, ...), scaled by C / channels, so that the response keeps its magnitude.
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [i % given for i in range(channels)]] * (given / channels)


def from_flax(arrays: Mapping[str, NDArray[Any]]) -> State:
    """Google's JAX checkpoints (``.npz`` of ViT and AugReg, linear or two-layer head) in the common names.

    Flax stores kernels as [in, out], convolutions as [P,P,C,D], heads apart: query [D,H,D/H], out [H,D/H,D].
    """
    arrays = {name.removeprefix("opt/target/").removeprefix("params/"): value for name, value in arrays.items()}
    depth = len({name.split("/")[1] for name in arrays if name.startswith("Transformer/encoderblock_")})
    width = arrays["cls"].shape[-1]

    def tensor(name: str, *, transpose: tuple[int, ...] = (), shape: tuple[int, ...] = ()) -> Tensor:
        value = arrays[name].transpose(transpose) if transpose else arrays[name]
        return torch.from_numpy(np.ascontiguousarray(value.reshape(shape) if shape else value))

    state = {
        "cls_token": tensor("cls"),
        "pos_embed": tensor("Transformer/posembed_input/pos_embedding"),
        "patch_embed.proj.weight": tensor("embedding/kernel", transpose=(3, 2, 0, 1)),
        "patch_embed.proj.bias": tensor("embedding/bias"),
        "norm.weight": tensor("Transformer/encoder_norm/scale"),
        "norm.bias": tensor("Transformer/encoder_norm/bias"),
    }
    for name in ("pre_logits", "head"):
        if f"{name}/kernel" in arrays:
            state |= {f"{name}.weight": tensor(f"{name}/kernel").T.contiguous(), f"{name}.bias": tensor(f"{name}/bias")}
    for i in range(depth):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{block}MultiHeadDotProductAttention_1/"
        qkv = [tensor(f"{attention}{part}/kernel", shape=(width, width)).T for part in ("query", "key", "value")]
        bias = [tensor(f"{attention}{part}/bias", shape=(width,)) for part in ("query", "key", "value")]
        state |= {
            f"{ours}attn.qkv.weight": torch.cat(qkv),
            f"{ours}attn.qkv.bias": torch.cat(bias),
            f"{ours}attn.proj.weight": tensor(f"{attention}out/kernel", shape=(width, width)).T.contiguous(),
            f"{ours}attn.proj.bias": tensor(f"{attention}out/bias"),
        }
        for theirs, name in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            state |= {
                f"{ours}{name}.weight": tensor(f"{block}{theirs}/scale"),
                f"{ours}{name}.bias": tensor(f"{block}{theirs}/bias"),
            }
        for theirs, name in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            dense = f"{block}MlpBlock_3/{theirs}/"
            state |= {
                f"{ours}mlp.{name}.weight": tensor(f"{dense}kernel").T.contiguous(),
                f"{ours}mlp.{name}.bias": tensor(f"{dense}bias"),
            }
    return state
