"""The ViT against timm's: the same weights give the same logits, and the same count of parameters."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import nn

from vitdomains.core.errors import ConfigError
from vitdomains.core.models import vit as module
from vitdomains.core.models.vit import SIZES, VisionTransformer, attend, resample_positions, vit


def perturb(model: nn.Module) -> nn.Module:
    """Biases, norms and LayerScale away from 0 and 1, so that none of them can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.05, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def largest_difference(theirs: nn.Module, ours: nn.Module, size: int) -> float:
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, given = theirs(x), ours.eval()(x)
    assert expected.std() > 0.05
    return (expected - given).abs().max().item()


@pytest.mark.parametrize(
    ("variant", "name", "size", "depth"),
    [
        ("Ti/16", "vit_tiny_patch16_224", 224, 12),
        ("Ti/16", "vit_tiny_patch16_224", 384, 12),
        ("S/16", "vit_small_patch16_224", 224, 12),
        ("S/16", "vit_small_patch16_224", 384, 12),
        ("B/16", "vit_base_patch16_224", 224, 12),
        ("B/16", "vit_base_patch16_224", 384, 12),
        ("S/32", "vit_small_patch32_224", 224, 12),
        ("B/8", "vit_base_patch8_224", 96, 2),
        ("L/16", "vit_large_patch16_224", 224, 2),
        ("H/14", "vit_huge_patch14_224", 224, 1),
    ],
)
def test_logits_equal_timm(variant: str, name: str, size: int, depth: int) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, img_size=size, num_classes=14, depth=depth)
        ours = vit(variant, 14, image_size=size, depth=depth)
    assert largest_difference(perturb(theirs), ours, size) < 1e-5


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("deit_tiny_distilled_patch16_224", {}, {"distilled": True}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {"pool": "avg"}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, {"pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, {"pool": "avg", "class_token": False}),
        ("deit3_small_patch16_224", {}, {"prefix_positions": False, "layer_scale": 1e-6}),
        ("vit_small_patch14_dinov2", {"img_size": 154}, {"layer_scale": 1e-5, "image_size": 154}),
        (
            "vit_small_patch14_reg4_dinov2",
            {"img_size": 154},
            {"layer_scale": 1e-5, "image_size": 154, "register_tokens": 4, "prefix_positions": False},
        ),
    ],
)
def test_variants_equal_timm(name: str, theirs: dict[str, object], ours: dict[str, object]) -> None:
    variant = ("S" if "small" in name else "Ti") + ("/14" if "patch14" in name else "/16")
    with torch.device("meta"):
        reference, model = timm.create_model(name, num_classes=7, depth=4, **theirs), vit(variant, 7, depth=4, **ours)
    assert largest_difference(perturb(reference), model, model.grid * model.patch) < 1e-5


@pytest.mark.parametrize(
    ("variant", "name", "options"),
    [
        ("Ti/16", "vit_tiny_patch16_224", {}),
        ("S/16", "vit_small_patch16_224", {}),
        ("S/32", "vit_small_patch32_224", {}),
        ("B/8", "vit_base_patch8_224", {}),
        ("B/16", "vit_base_patch16_384", {"image_size": 384}),
        ("B/32", "vit_base_patch32_224", {}),
        ("L/14", "vit_large_patch14_224", {}),
        ("L/16", "vit_large_patch16_224", {}),
        ("L/32", "vit_large_patch32_224", {}),
        ("H/14", "vit_huge_patch14_224", {}),
        ("B/16", "deit_base_distilled_patch16_384", {"image_size": 384, "distilled": True}),
        ("B/16", "deit3_base_patch16_384", {"image_size": 384, "prefix_positions": False, "layer_scale": 1e-6}),
    ],
)
def test_parameter_counts_equal_timm(variant: str, name: str, options: dict[str, object]) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, num_classes=1000), vit(variant, **options)
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}


def small(**options: object) -> VisionTransformer:
    return vit("Ti/16", 5, **{"depth": 3, "image_size": 64, **options}).eval()


def test_attention_maps_leave_the_logits_untouched() -> None:
    model, x = small(), torch.randn(2, 3, 64, 64)
    logits, maps = model(x, return_attn=True)
    assert torch.equal(logits, model(x))
    assert [tuple(a.shape) for a in maps] == [(2, 3, 17, 17)] * 3
    assert torch.allclose(torch.stack(maps).sum(-1), torch.ones(3, 2, 3, 17), atol=1e-5)
    # The first map is the softmax of its own queries and keys.
    tokens = model.blocks[0].norm1(model.embed(x))
    q, k, _ = model.blocks[0].attn.qkv(tokens).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    assert torch.allclose(maps[0], (q @ k.transpose(-2, -1) / 8).softmax(-1), atol=1e-6)


@pytest.mark.parametrize("new", [(24, 24), (7, 9), (10, 14), (28, 28)])
def test_positions_are_resampled_as_timm_does(new: tuple[int, int]) -> None:
    grid = torch.randn(1, 14 * 14, 32)
    expected = resample_abs_pos_embed(grid, list(new), [14, 14], num_prefix_tokens=0)
    assert torch.allclose(resample_positions(grid, (14, 14), new), expected, atol=1e-5)


def test_other_input_sizes_and_trainable_positions() -> None:
    model = perturb(small())
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5, dynamic_img_size=True)
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 80)
    with torch.no_grad():
        assert (theirs.eval()(x) - model(x)).abs().max() < 1e-5
    model(x).sum().backward()
    assert model.pos_embed.grad is not None
    assert (model.pos_embed.grad.abs().sum(-1) > 0).all()
    with pytest.raises(ConfigError, match="multiple of the patch size"):
        model(torch.randn(1, 3, 70, 64))


def test_distillation_heads() -> None:
    model, x = small(distilled=True), torch.randn(2, 3, 64, 64)
    model.distilled_training = True
    cls, dist = model.train()(x)
    assert torch.allclose(model.eval()(x), (cls + dist) / 2, atol=1e-6)
    model.distilled_training = False
    assert model.train()(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "features"),
    [({"pool": "token+avg"}, 384), ({"pre_logits": 48}, 48), ({"pool": "token+avg", "fc_norm": True}, 384)],
)
def test_pooling_and_pre_logits(options: dict[str, object], features: int) -> None:
    model, x = small(**options), torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(x)
    pooled = model.forward_head(tokens, pre_logits=True)
    assert pooled.shape == (2, features) == (2, model.num_features)
    assert torch.equal(model.head(pooled), model(x))
    if options == {"pool": "token+avg"}:
        assert torch.allclose(pooled, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    if "pre_logits" in options:
        assert pooled.abs().max() <= 1


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean() -> None:
    block = module.Block(32, 2, 64, 1e-6, None, drop_path=0.4).train()
    x, branch = torch.zeros(4000, 1, 1), torch.ones(4000, 1, 1)
    out = block._residual(x, branch, None)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert out.mean().item() == pytest.approx(1, abs=0.06)
    assert torch.equal(block.eval()._residual(x, branch, None), branch)
    assert [b.drop_path for b in small(drop_path_rate=0.2).blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1, "drop_path_rate": 0.3}, {"distilled": True}])
def test_gradient_checkpointing_changes_no_gradient(options: dict[str, object]) -> None:
    model, x = small(**options).train(), torch.randn(2, 3, 64, 64)
    gradients = []
    for model.grad_checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(3)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_convolutional_stem_keeps_the_grid(patch: int) -> None:
    model = vit(f"Ti/{patch}", 5, stem="conv", depth=1, image_size=64)
    assert model.embed(torch.randn(1, 3, 64, 64)).shape == (1, (64 // patch) ** 2 + 1, 192)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.patch_embed.parameters())


def test_sincos_positions_tell_neighbours_apart() -> None:
    grid = small(position_init="sincos").pos_embed[0, 1:]
    similarity = F.normalize(grid, dim=1) @ F.normalize(grid, dim=1).T
    assert similarity[5].argmax() == 5
    assert similarity[5, 6] > similarity[5, 7]
    assert torch.allclose(similarity[5, 6], similarity[5, 9], atol=1e-6)  # one column to the right, one row down


@pytest.mark.parametrize(("batch", "heads"), [(3, 3), (2, 12), (9, 1)])
def test_gradient_of_bf16_attention(batch: int, heads: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(batch, 37, 3, heads, 16)
    grad = torch.randn(batch, 37, heads, 16)
    low = qkv.bfloat16().requires_grad_()
    exact = low.detach().double().requires_grad_()
    out, expected = attend(low), attend(exact)
    assert (out - expected).norm() < 0.01 * expected.norm()
    out.backward(grad.bfloat16())
    expected.backward(grad.bfloat16().double())
    assert low.grad is not None
    assert exact.grad is not None
    for part in range(3):
        assert (low.grad[:, :, part] - exact.grad[:, :, part]).norm() < 0.01 * exact.grad[:, :, part].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_follows_full_precision(dtype: torch.dtype) -> None:
    model, x = small(layer_scale=0.5), torch.randn(2, 3, 64, 64)
    full = model(x)
    with torch.autocast("cpu", dtype):
        low = model.train()(x)
    low.float().sum().backward()
    assert (low.float() - full).abs().max() < 0.03 * full.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("XL/16", {}),
        ("B/15", {}),
        ("Ti/16", {"pool": "max"}),
        ("Ti/16", {"image_size": 100}),
        ("Ti/16", {"class_token": False}),
        ("Ti/16", {"distilled": True, "pool": "avg"}),
        ("S/14", {"stem": "conv"}),
        ("Ti/16", {"width": 100}),
        ("Ti/16", {"no_such_option": 1}),
    ],
)
def test_what_does_not_exist_is_refused(variant: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        vit(variant, 5, **options)


def test_the_table_by_name() -> None:
    with torch.device("meta"):
        model = module.vit_base_16(num_classes=3)
    assert (model.width, len(model.blocks), model.patch, model.head.out_features) == (*SIZES["B"][:2], 16, 3)


def test_exported_with_a_free_batch() -> None:
    model = small()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 80, 80),), dynamic_shapes=({0: batch},))
    for size in (1, 3):
        x = torch.randn(size, 3, 80, 80)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)
