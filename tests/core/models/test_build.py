"""Every family builds, trains, freezes and gives its maps; depth and decay of parameters are what the recipe needs."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import (
    build_model,
    default_mean_std,
    describe,
    features,
    freeze,
    layer_ids,
    no_decay_names,
    portable_spec,
    split_frozen,
)

VIT = {"depth": 3, "embed_dim": 48, "num_heads": 2}
SWIN = {"depths": (2, 2, 2, 2), "embed_dim": 24, "num_heads": (1, 2, 2, 4), "window_size": 2}
HF = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16}
HF_SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
FAMILIES: list[tuple[str, dict[str, Any], int]] = [
    ("vit:Ti/16", {"depth": 3}, 64),
    ("vit:Ti/16", {"depth": 3, "stem": "conv", "pool": "avg", "register_tokens": 2}, 64),
    ("timm:vit_tiny_patch16_224", VIT, 64),
    ("timm:deit_tiny_distilled_patch16_224", VIT, 64),
    ("timm:deit3_small_patch16_224", VIT, 64),
    ("timm:vit_small_patch14_dinov2", VIT, 70),
    ("timm:vit_small_patch14_reg4_dinov2", VIT, 70),
    ("timm:beit_base_patch16_224", VIT, 64),
    ("timm:eva02_tiny_patch14_224", VIT, 70),
    ("timm:swin_tiny_patch4_window7_224", SWIN, 64),
    ("timm:swinv2_tiny_window8_256", SWIN, 64),
    ("timm:mobilevit_xxs", {}, 64),
    ("timm:efficientvit_b0", {}, 64),
    ("timm:efficientvit_m0", {}, 64),
    ("timm:fastvit_t8", {}, 64),
    ("timm:convnext_atto", {}, 64),
    ("timm:resnet50", {}, 64),
    ("timm:efficientnet_b4", {}, 64),
    ("timm:regnety_002", {}, 64),
    ("hf:vit", {**HF, "intermediate_size": 64}, 64),
    ("hf:deit", {**HF, "intermediate_size": 64}, 64),
    ("hf:deit", {**HF, "intermediate_size": 64, "architectures": ["DeiTForImageClassificationWithTeacher"]}, 64),
    ("hf:dinov2", {**HF, "mlp_ratio": 2}, 64),
    ("hf:swin", HF_SWIN, 128),
]


def ids(case: tuple[str, dict[str, Any], int]) -> str:
    return case[0] + ("+conv" if "stem" in case[1] else "+teacher" if "architectures" in case[1] else "")


@pytest.fixture(params=FAMILIES, ids=ids)
def family(request: pytest.FixtureRequest) -> tuple[Model, int]:
    name, options, size = request.param
    return Model(name=name, options=options), size


def test_every_family_builds_with_either_head(family: tuple[Model, int]) -> None:
    spec, size = family
    torch.manual_seed(0)
    for changed in (spec, replace(spec, head="mlp", head_hidden=20, drop_rate=0.3, channels=1, freeze="backbone")):
        model = build_model(changed, 5, image_size=size)
        x = torch.randn(2, changed.channels, size, size)
        logits = model(x)
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        top = max(layer_ids(model).values())
        got = {name for name, p in model.named_parameters() if p.grad is not None}
        head = {name for name, depth in layer_ids(model).items() if depth == top}
        assert (got <= head and got) if changed.freeze == "backbone" else got >= head
        model.eval()
        with torch.no_grad():
            assert torch.allclose(model.forward_head(model.forward_features(x)), model(x), atol=1e-5)
        info = describe(model)
        assert 0 < info.trainable <= info.total == sum(p.numel() for p in model.parameters())
        assert (info.trainable < info.total) == (changed.freeze == "backbone")


def test_maps_at_four_scales(family: tuple[Model, int]) -> None:
    spec, size = family
    model = build_model(spec, 2, image_size=size).eval()
    with torch.no_grad():
        maps = features(model, torch.randn(1, 3, size, size))
    assert [tuple(m.shape[-2:]) for m in maps] == [(round(size / s),) * 2 for s in (4, 8, 16, 32)]
    assert all(m.std() > 0 for m in maps)


def test_depths_and_decay(family: tuple[Model, int]) -> None:
    spec, size = family
    model = build_model(spec, 5, image_size=size)
    depth = layer_ids(model)
    assert depth.keys() == dict(model.named_parameters()).keys()
    assert set(depth.values()) == set(range(max(depth.values()) + 1))
    spared = no_decay_names(model)
    for name, parameter in model.named_parameters():
        assert name in spared or parameter.ndim > 1
        assert (
            not (name.endswith(("cls_token", "pos_embed", "position_embeddings", "relative_position_bias_table")))
            or name in spared
        )
    assert any(name not in spared for name in depth)


def test_a_saved_model_is_built_again(family: tuple[Model, int], tmp_path: Any) -> None:
    spec, size = family
    model = build_model(spec, 3, image_size=size).eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    again = build_model(portable_spec(spec, model), 3, image_size=size).eval()
    again.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def test_depths_of_the_vit_equal_timms() -> None:
    ours = layer_ids(build_model(Model(name="vit:Ti/16", options={"depth": 4}), 5))
    assert ours == layer_ids(timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=5))
    assert (ours["pos_embed"], ours["blocks.2.mlp.fc1.weight"], ours["norm.weight"], ours["head.bias"]) == (0, 3, 4, 5)


def test_depths_of_swin_stages_and_of_transformers() -> None:
    swin = build_model(Model(name="timm:swin_tiny_patch4_window7_224", options=SWIN), 5, image_size=64)
    assert layer_ids(swin)["layers.1.blocks.0.attn.qkv.weight"] == 3
    assert layer_ids(swin, stages=True)["layers.1.blocks.1.attn.qkv.weight"] == 2
    theirs = build_model(Model(name="hf:swin", options=HF_SWIN), 5, image_size=128)
    depth = layer_ids(theirs)
    base = "backbone.swin.encoder.layers"
    assert depth[f"{base}.1.blocks.1.attention.q_proj.weight"] == depth[f"{base}.1.downsample.norm.weight"] == 3
    assert (depth[f"{base}.3.blocks.0.attention.q_proj.weight"], depth["backbone.classifier.weight"]) == (5, 6)


@pytest.mark.parametrize(
    ("name", "options", "what", "depth"),
    [
        ("vit:Ti/16", {"depth": 4}, "none", -1),
        ("vit:Ti/16", {"depth": 4}, "0", 0),
        ("vit:Ti/16", {"depth": 4}, "3", 3),
        ("vit:Ti/16", {"depth": 4}, "0.5", 2),
        ("vit:Ti/16", {"depth": 4}, "1.0", 4),
        ("vit:Ti/16", {"depth": 4}, "backbone", 4),
        ("timm:swin_tiny_patch4_window7_224", SWIN, "3", 3),
        ("timm:swin_tiny_patch4_window7_224", SWIN, "stage:2", 4),
        ("hf:swin", {**HF_SWIN, "image_size": 128}, "stage:1", 1),
    ],
)
def test_what_is_frozen(name: str, options: dict[str, Any], what: str, depth: int) -> None:
    model = build_model(Model(name=name, options=options, freeze=what), 5, image_size=128)
    expected = {name: layer > depth for name, layer in layer_ids(model).items()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == expected
    freeze(model, "none")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("what", ["13", "1.5", "-1", "half", "stage:2", "stage:x", ""])
def test_freezing_that_makes_no_sense(what: str) -> None:
    with pytest.raises(ConfigError, match="freeze"):
        build_model(Model(name="vit:Ti/16", options={"depth": 4}, freeze=what), 5)


def test_what_is_frozen_behaves_as_in_inference() -> None:
    model = build_model(Model(name="timm:resnet50", freeze="stage:2"), 5).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 32, 32))
    changed = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert any(name.startswith("layer3") for name in changed)
    assert not any(name.startswith(("bn1", "layer1", "layer2")) for name in changed)
    assert freeze(model, "none").train().layer1.training


@pytest.mark.parametrize("name", ["vit:Ti/16", "timm:vit_tiny_patch16_224", "timm:deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("what", ["0", "2", "0.5", "backbone"])
@pytest.mark.parametrize("rates", [{}, {"drop_path_rate": 0.5}])
def test_the_frozen_part_splits_off(name: str, what: str, rates: dict[str, float]) -> None:
    spec = Model(name=name, options={"depth": 4}, freeze=what, **rates)
    model = build_model(spec, 5, image_size=64).train()
    split = split_frozen(model)
    assert split is not None
    lower, upper = split
    x = torch.randn(2, 3, 64, 64)
    tokens = lower(x)
    assert not tokens.requires_grad
    assert torch.equal(tokens, lower(x))  # no stochastic depth in what is frozen
    torch.manual_seed(1)
    whole = model(x)
    torch.manual_seed(1)
    assert torch.equal(upper(tokens), whole)


def test_nothing_to_split_off() -> None:
    assert split_frozen(build_model(Model(name="vit:Ti/16", options={"depth": 2}), 5)) is None
    assert split_frozen(build_model(Model(name="timm:resnet50", freeze="backbone"), 5)) is None


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit:Ti/16", {"depth": 3}, 64),
        ("timm:vit_tiny_patch16_224", VIT, 64),
        ("timm:swin_tiny_patch4_window7_224", SWIN, 64),
        ("timm:convnext_atto", {}, 64),
        ("hf:vit", {**HF, "intermediate_size": 64}, 64),
    ],
)
def test_gradient_checkpointing(name: str, options: dict[str, Any], size: int) -> None:
    x, gradients = torch.randn(2, 3, size, size), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model(Model(name=name, options=options, grad_checkpointing=checkpointing), 5, image_size=size)
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(g, gradients[1][name], rtol=1e-4, atol=1e-6) for name, g in gradients[0].items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit:Ti/16", {"depth": 2}),
        ("timm:vit_tiny_patch16_224", VIT),
        ("timm:swin_tiny_patch4_window7_224", SWIN),
        ("timm:deit3_small_patch16_224", VIT),
        ("hf:vit", {**HF, "intermediate_size": 64}),
        ("hf:dinov2", {**HF, "mlp_ratio": 2}),
        ("timm:convnext_atto", {}),
    ],
)
def test_one_model_takes_growing_sizes(name: str, options: dict[str, Any]) -> None:
    model = build_model(Model(name=name, options=options), 5, image_size=96).eval()
    for size in (64, 96, 128):
        assert model(torch.randn(1, 3, size, size)).shape == (1, 5)


def test_deit3_base_with_mlp_head_and_half_frozen() -> None:
    spec = Model(name="timm:deit3_base_patch16_384", head="mlp", drop_rate=0.3, freeze="0.5", image_size=384)
    with torch.device("meta"):
        model: Any = build_model(spec, 14)
    assert [type(layer).__name__ for layer in model.head] == [
        "LayerNorm",
        "Dropout",
        "Linear",
        "GELU",
        "Dropout",
        "Linear",
    ]
    assert model.head[1].p == model.head[4].p == 0.3
    assert [block.norm1.weight.requires_grad for block in model.blocks] == [False] * 6 + [True] * 6


def test_deprecated_names_resolve_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        model: Any = build_model(Model(name="timm:swinv2_large_window12to16_192to256_22kft1k"), 5)
    assert "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k" in caplog.text
    assert isinstance(model.head.fc, nn.Linear)


def test_rates_reach_the_backbone() -> None:
    model: Any = build_model(Model(name="timm:vit_tiny_patch16_224", drop_path_rate=0.1, drop_rate=0.2), 5)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert model.head_drop.p == 0.2
    ours: Any = build_model(Model(name="vit:Ti/16", drop_path_rate=0.1, drop_rate=0.2), 5)
    assert (ours.blocks[-1].drop_path, ours.head_drop.p) == (pytest.approx(0.1), 0.2)
    theirs: Any = build_model(Model(name="hf:dinov2", drop_path_rate=0.1, drop_rate=0.2, options=HF), 5, image_size=64)
    assert theirs.backbone.config.drop_path_rate == 0.1
    assert theirs.backbone.classifier[0].p == 0.2


@pytest.mark.parametrize(
    "spec",
    [
        Model(name="vit_tiny_patch16_224"),
        Model(name="keras:vit"),
        Model(name="vit:Ti/17"),
        Model(name="timm:no_such_model"),
        Model(name="timm:resnet50", options={"no_such_option": 1}),
        Model(name="hf:no_such_type"),
        Model(name="hf:vit", options={"no_such_option": 1}),
        Model(name="hf:vit", drop_path_rate=0.1),
    ],
)
def test_errors_say_what_to_write_instead(spec: Model) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(spec, 5)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        (Model(name="vit:Ti/16"), (0.485, 0.456, 0.406)),
        (Model(name="vit:Ti/16", weights="pretrained"), (0.5, 0.5, 0.5)),
        (Model(name="vit:Ti/16", weights="a/vit_tiny_patch16_224.x.fp16.safetensors"), (0.5, 0.5, 0.5)),
        (Model(name="vit:S/14", weights="a/vit_small_patch14_dinov2.fp16.safetensors"), (0.485, 0.456, 0.406)),
        (Model(name="timm:deit3_base_patch16_384", channels=1), (pytest.approx(0.449, abs=1e-3),)),
        (Model(name="timm:vit_tiny_patch16_224", channels=4), (0.5,) * 4),
        (Model(name="hf:google/vit-base-patch16-224"), (0.5, 0.5, 0.5)),
        (Model(name="hf:facebook/dinov2-base"), (0.485, 0.456, 0.406)),
    ],
)
def test_mean_and_deviation_of_the_weights(spec: Model, mean: tuple[float, ...]) -> None:
    assert default_mean_std(spec)[0] == mean
    assert len(default_mean_std(spec)[1]) == spec.channels


def test_a_copy_keeps_its_own_frozen_part() -> None:
    model: Any = build_model(Model(name="vit:Ti/16", options={"depth": 2}, freeze="1"), 5)
    copied = copy.deepcopy(model).train()
    assert [copied.blocks[0].training, copied.blocks[1].training, copied.training] == [False, True, True]
    freeze(copied, "none")
    copied.train()
    assert copied.blocks[0].training
    assert not model.train().blocks[0].training
