"""Checkpoints of other projects into the ViT written here: names, positions, channels; checked by the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitdomains.core.config.schema import Model
from vitdomains.core.models.build import build_model
from vitdomains.core.models.state_dicts import adapt_channels, canonical, from_flax, implied_options, unwrap
from vitdomains.core.models.vit import VisionTransformer, vit

TINY = {"width": 32, "heads": 2, "depth": 3, "image_size": 64}
TRANSFORMERS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 5,
}


def perturb(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def before_version_5(name: str) -> str:
    """The name that transformers 4, and with it every file on the hub, gives to a parameter of ViT and DeiT."""
    name = name.replace(".layers.", ".encoder.layer.").replace("mlp.fc1", "intermediate.dense")
    name = name.replace("mlp.fc2", "output.dense").replace("attention.o_proj", "attention.output.dense")
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        name = name.replace(f"attention.{new}", f"attention.attention.{old}")
    return name


def loaded(state: dict[str, Tensor], **options: Any) -> VisionTransformer:
    state = canonical(state)
    model = vit("Ti/16", 5, **{**TINY, **implied_options(state), **options})
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_transformers_vit_and_deit(kind: str, old: bool) -> None:
    import transformers as t

    if kind == "vit":
        theirs = t.ViTForImageClassification(t.ViTConfig(**TRANSFORMERS, intermediate_size=128))
    else:
        theirs = t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**TRANSFORMERS, intermediate_size=128))
    perturb(theirs)
    state = {before_version_5(name) if old else name: value for name, value in theirs.state_dict().items()}
    model, x = loaded(state, norm_eps=1e-12), torch.randn(2, 3, 64, 64)
    assert (model.head_dist is not None) == (kind == "deit")
    with torch.no_grad():
        assert (theirs(x).logits - model(x)).abs().max() < 1e-5


def test_parameter_counts_equal_transformers() -> None:
    import transformers as t

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        base, small = {"num_labels": 1000}, {"hidden_size": 384, "num_attention_heads": 6}
        assert count(t.ViTForImageClassification(t.ViTConfig(**base))) == count(vit("B/16"))
        tiny = t.ViTConfig(**base, hidden_size=192, num_attention_heads=3, intermediate_size=768)
        assert count(t.ViTForImageClassification(tiny)) == count(vit("Ti/16"))
        large = t.ViTConfig(
            **base, hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, intermediate_size=4096
        )
        assert count(t.ViTForImageClassification(large)) == count(vit("L/16"))
        teacher = t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**base))
        assert count(teacher) == count(vit("B/16", distilled=True))
        dinov2 = t.Dinov2Config(**base, **small, patch_size=14, image_size=518)
        ours = vit("S/14", image_size=518, layer_scale=1.0, pool="token+avg")
        mask = 384  # a token that masked pretraining needs and classification does not
        assert count(t.Dinov2ForImageClassification(dinov2)) == count(ours) + mask


def test_transformers_vit_model_with_its_pooler() -> None:
    import transformers as t

    theirs = perturb(t.ViTModel(t.ViTConfig(**TRANSFORMERS, intermediate_size=128)))
    state = canonical(theirs.state_dict())
    model = vit("Ti/16", 0, **TINY, pre_logits=32, norm_eps=1e-12).eval()
    model.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (theirs(x).pooler_output - model(x)).abs().max() < 1e-5
        assert (theirs(x).last_hidden_state - model.forward_features(x)).abs().max() < 1e-5


@pytest.mark.parametrize("registers", [0, 4])
def test_transformers_dinov2(registers: int) -> None:
    import transformers as t

    options = {**TRANSFORMERS, "mlp_ratio": 4}
    if registers:
        config = t.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        theirs: Any = t.Dinov2WithRegistersForImageClassification(config)
    else:
        theirs = t.Dinov2ForImageClassification(t.Dinov2Config(**options))
    perturb(theirs)
    model, x = loaded(theirs.state_dict()), torch.randn(2, 3, 64, 64)
    assert (model.pool, model.prefix) == ("token+avg", 1 + registers)
    with torch.no_grad():
        hidden = theirs.base_model(x).last_hidden_state
        assert (hidden - model.forward_features(x)).abs().max() < 1e-5
        if not registers:
            assert (theirs(x).logits - model(x)).abs().max() < 1e-5


def test_meta_names_of_deit3_and_dinov2() -> None:
    ours = perturb(vit("Ti/16", 5, **TINY, layer_scale=0.1, register_tokens=4))
    state = dict(ours.state_dict())
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in state.items()}
    assert canonical(renamed).keys() == state.keys()
    # DINOv2 with registers as Meta ships it: a mask token, and a position for the class token but for no register.
    meta = {name: value for name, value in state.items() if name not in ("reg_token", "pos_embed")}
    meta |= {
        "register_tokens": state["reg_token"],
        "pos_embed": state["pos_embed"][:, :17],
        "mask_token": torch.zeros(1, 32),
    }
    model, x = loaded(meta), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours.pos_embed[:, 5:] = state["pos_embed"][:, 1:17].clone()
        ours.pos_embed[:, 1:5] = 0
        assert (ours(x) - model(x)).abs().max() < 1e-5


def test_jax_checkpoint_against_timm(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=7)
    perturb(theirs)
    arrays = as_jax(theirs)
    np.savez(tmp_path / "vit.npz", **arrays)
    other = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=7).eval()
    other.load_pretrained(str(tmp_path / "vit.npz"))  # timm's own reading of the same file
    state = from_flax(arrays)
    model = vit("Ti/16", 7, depth=2, image_size=64).eval()
    model.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (other(x) - model(x)).abs().max() < 1e-5
        built = build_model(
            Model(name="vit:Ti/16", weights=str(tmp_path / "vit.npz"), options={"depth": 2}), 7, image_size=64
        )
        assert (theirs(x) - built.eval()(x)).abs().max() < 1e-5


def as_jax(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The layout of Google's files, written from the paper's code: kernels [in,out], heads apart."""
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads

    def array(x: Tensor) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(x.detach().numpy())

    arrays = {
        "cls": array(model.cls_token),
        "Transformer/posembed_input/pos_embedding": array(model.pos_embed),
        "embedding/kernel": array(model.patch_embed.proj.weight.permute(2, 3, 1, 0)),
        "embedding/bias": array(model.patch_embed.proj.bias),
        "Transformer/encoder_norm/scale": array(model.norm.weight),
        "Transformer/encoder_norm/bias": array(model.norm.bias),
        "head/kernel": array(model.head.weight.T),
        "head/bias": array(model.head.bias),
    }
    for i, block in enumerate(model.blocks):
        root = f"Transformer/encoderblock_{i}"
        attention = f"{root}/MultiHeadDotProductAttention_1"
        for part, (weight, bias) in zip(
            ("query", "key", "value"),
            zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True),
            strict=True,
        ):
            arrays[f"{attention}/{part}/kernel"] = array(weight.T.reshape(width, heads, -1))
            arrays[f"{attention}/{part}/bias"] = array(bias.reshape(heads, -1))
        arrays[f"{attention}/out/kernel"] = array(block.attn.proj.weight.T.reshape(heads, -1, width))
        arrays[f"{attention}/out/bias"] = array(block.attn.proj.bias)
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            arrays |= {f"{root}/{name}/scale": array(norm.weight), f"{root}/{name}/bias": array(norm.bias)}
        for name, dense in (("Dense_0", block.mlp.fc1), ("Dense_1", block.mlp.fc2)):
            arrays |= {
                f"{root}/MlpBlock_3/{name}/kernel": array(dense.weight.T),
                f"{root}/MlpBlock_3/{name}/bias": array(dense.bias),
            }
    return arrays


@pytest.mark.parametrize("patch", [16, 32])
def test_other_sizes_are_resampled_as_timm_does(tmp_path: Path, patch: int) -> None:
    source = perturb(timm.create_model("vit_tiny_patch16_224", img_size=96, depth=2, num_classes=5))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    target = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=patch, depth=2, num_classes=5)
    from timm.models.vision_transformer import checkpoint_filter_fn

    target.load_state_dict(checkpoint_filter_fn(load_file(tmp_path / "w.safetensors"), target))
    spec = Model(name=f"vit:Ti/{patch}", weights=str(tmp_path / "w.safetensors"), options={"depth": 2})
    model = build_model(spec, 5, image_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (target.eval()(x) - model(x)).abs().max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_channels_keep_the_response_to_a_grey_image(channels: int) -> None:
    weight, grey = torch.randn(8, 3, 4, 4), torch.randn(1, 1, 4, 4)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (8, channels, 4, 4)
    before = nn.functional.conv2d(grey.expand(1, 3, 4, 4), weight).flatten()
    after = nn.functional.conv2d(grey.expand(1, channels, 4, 4), adapted).flatten()
    if channels in (1,):
        assert torch.allclose(before, after, atol=1e-5)
    else:  # filters in turn, scaled
        assert torch.equal(adapted[:, channels - 1], weight[:, (channels - 1) % 3] * (3 / channels))
    assert adapt_channels(weight, 3) is weight


def test_unwrapping() -> None:
    inner = {"module.a": torch.ones(1), "module.b": torch.zeros(1)}
    assert unwrap({"epoch": 3, "model": {"state_dict": inner}, "optimizer": {}}).keys() == {"a", "b"}
    assert unwrap({"a": torch.ones(1), "epoch": 3}).keys() == {"a"}


@pytest.mark.parametrize(
    ("file", "name", "variant", "size"),
    [
        ("vit_tiny_patch16_224.tinyimagenet200.fp16.safetensors", "vit_tiny_patch16_224", "Ti/16", 224),
        ("vit_tiny_patch16_224.tinyimagenet200.fp16.safetensors", "vit_tiny_patch16_224", "Ti/16", 160),
        ("vit_small_patch14_dinov2.fp16.safetensors", "vit_small_patch14_dinov2", "S/14", 154),
    ],
)
def test_real_weights_give_timms_features(shared: Path, file: str, name: str, variant: str, size: int) -> None:
    path = shared / "weights" / file
    classes = 200 if "tiny" in name else 0
    state = {key: value.float() for key, value in load_file(path).items()}
    theirs = timm.create_model(name, num_classes=classes, img_size=size)
    from timm.models.vision_transformer import checkpoint_filter_fn

    theirs.load_state_dict(checkpoint_filter_fn(state, theirs))
    ours = build_model(Model(name=f"vit:{variant}", weights=str(path)), classes, image_size=size).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert (theirs.eval().forward_features(x) - ours.forward_features(x)).abs().max() < 1e-4
        assert (theirs(x) - ours(x)).abs().max() < 1e-4
