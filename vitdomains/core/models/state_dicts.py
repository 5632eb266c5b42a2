"""State dictionaries of other projects in the names and shapes of the model at hand: pure functions.

The names of timm's ViT are the common ones. transformers (before and after version 5), Meta's DeiT, DeiT III and DINOv2
releases and the JAX originals are renamed to them. What training adds around a model (nests, prefixes, heads of
pre-training) is taken off.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdomains.core.models.vit import SIZES

State = dict[str, Tensor]
_log = logging.getLogger(__name__)

_NESTS = (  # keys of a checkpoint under which weights lie; averaged weights before plain ones, as timm does
    "state_dict_ema", "model_ema", "ema_state_dict", "teacher", "target_encoder", "state_dict", "model_state_dict", "model",
    "model_state", "module", "net", "network", "encoder", "backbone", "student", "params", "weights",
)  # fmt: skip
_AVERAGED = re.compile(r"(^|\.)(teacher|ema|model_ema|target|target_encoder)(\.|$)")
_VIT_NAMES = re.compile(
    r"(?:cls_token|pos_embed|patch_embed\.proj\.\w+|blocks\.\d+\.(?:\d+\.)?(?:norm1|attn|mlp)\..+"
    r"|embeddings\.(?:cls_token|position_embeddings|patch_embeddings\.projection\.\w+)|encoder\.layer\.\d+\..+)"
)
_LONGEST_PREFIX = 4  # parts: ``module.base_encoder.model.backbone.``
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
_ORIGINALS = (  # Meta's DeiT III writes gamma_1, DINOv2 puts blocks into chunks; old timm and Google write pre_logits.fc
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^pre_logits\.fc\.", "pre_logits."),
    (r"^register_tokens$", "reg_token"),
)


def unwrap(loaded: object) -> State:
    """The state dictionary inside what ``torch.load`` gave, without optimiser, epochs and arguments; empty where none is.

    The prefixes of DDP and torch.compile (``module.``, ``_orig_mod.``) are taken off.
    """
    if not isinstance(loaded, Mapping):
        return {}
    for key in _NESTS:
        if found := unwrap(loaded.get(key)):
            return found
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors


def backbone(state: State, known: Collection[str] = ()) -> State:
    """The part of a state under the prefix where most parameters have names of a Vision Transformer, or of ``known``.

    So a Lightning module (``model.``), a DINO teacher
    (``backbone.`` beside ``head.``) and a MoCo checkpoint (``module.base_encoder.``) give their backbone, without the prefix.
    Of two equal ones the averaged one is taken: a teacher, not its student.
    """
    sizes: dict[str, int] = {}
    for name, value in state.items():
        parts = name.split(".")
        for count in range(min(_LONGEST_PREFIX, len(parts) - 1) + 1):
            rest = ".".join(parts[count:])
            if rest in known or _VIT_NAMES.fullmatch(rest):
                prefix = name[: len(name) - len(rest)]
                sizes[prefix] = sizes.get(prefix, 0) + value.numel()
    best = max(sizes, key=lambda p: (sizes[p], bool(_AVERAGED.search(p)), -len(p)), default="")
    best = re.sub(
        r"(^|\.)(vit|deit|dinov2|dinov2_with_registers)\.$", r"\1", best
    )  # of transformers; the head stands beside
    outside = [name for name in state if not name.startswith(best)]
    if best:
        _log.info("weights under %s; left out: %s", best, listed(outside))
    return {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


def is_transformers(state: State) -> bool:
    """Whether the names are those of transformers' ViT, DeiT or DINOv2."""
    return any(re.search(r"(^|\.)embeddings\.(cls_token|position_embeddings)$", name) for name in state)


def is_vit(state: State) -> bool:
    """Whether the state, in the common names, is that of a plain Vision Transformer."""
    return "pos_embed" in state and "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state


def canonical(state: State, known: Collection[str] = ()) -> State:
    """Any Vision Transformer's ``backbone`` in the common names; what is no Vision Transformer keeps its names.

    Query, key and value are put into one matrix. DINOv2 with registers keeps a position for the class token alone; it is
    added to the token, so that no prefix token has a position.
    """
    state = backbone(state, known)
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
    """How many prefix tokens have a position in ``pos_embed``: none where all positions make a square, else all of them."""
    present = sum(state[name].shape[1] for name in ("cls_token", "dist_token", "reg_token") if name in state)
    count = state["pos_embed"].shape[1]
    return 0 if _is_square(count) and not _is_square(count - present) else present


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


def resample_state(state: State, own: State) -> State:
    """``state`` in the common names, with patches and positions of the sizes of ``own``, the model's.

    Another patch size is resized as in FlexiViT (Beyer et al. 2023, arXiv:2212.08013).
    """
    kernel, size = state["patch_embed.proj.weight"], list(own["patch_embed.proj.weight"].shape[-2:])
    if list(kernel.shape[-2:]) != size:
        from timm.layers.patch_embed import resample_patch_embed

        state = {**state, "patch_embed.proj.weight": resample_patch_embed(kernel.float(), size)}
    return resample_positions(state, "pos_embed", own["pos_embed"].shape, prefix_count(state), prefix_count(own))


def resample_positions(state: State, name: str, shape: torch.Size, prefix: int, new_prefix: int) -> State:
    """Positions ``name`` resampled (bicubic, antialias) to ``shape`` [1,tokens,D].

    ``prefix`` of the tokens given, and ``new_prefix`` of those wanted, stand before a square grid; a prefix token that the
    state does not know has position 0. A grid that is not square is left as it is, for its sides are not known.
    """
    positions = state[name]
    old, new = positions.shape[1] - prefix, shape[1] - new_prefix
    if positions.shape == shape or positions.shape[2] != shape[2] or not (_is_square(old) and _is_square(new)):
        return state
    from timm.layers import resample_abs_pos_embed

    grid = resample_abs_pos_embed(positions[:, prefix:].float(), [math.isqrt(new)] * 2, num_prefix_tokens=0)
    before = positions.new_zeros((1, new_prefix, shape[2]), dtype=torch.float32)
    shared = min(prefix, new_prefix)
    before[:, :shared] = positions[:, :shared].float()
    return {**state, name: torch.cat((before, grid), dim=1)}


def looks_like(state: State) -> str:
    """What a state in the common names is, for an error: sizes that ``model.name`` has to have; '' for no ViT."""
    if not is_vit(state):
        return ""
    width, _, *patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    name = next((f"vit:{size}/{patch[0]}, " for size, known in SIZES.items() if known[:2] == (width, depth)), "")
    grid = state["pos_embed"].shape[1] - prefix_count(state)
    square = f"{math.isqrt(grid)} x {math.isqrt(grid)}" if _is_square(grid) else f"{grid}, which is no square,"
    return f"The file holds {name}width {width}, {depth} blocks, patches of {patch[0]} px, {square} positions. "


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
