"""Rollout and its relatives against plain implementations of the papers, which keep every head and multiply whole matrices."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitdomains.core.explain.relevance import gradient_relevance, gradient_rollout, rollout
from vitdomains.core.models.vit import vit

SIZE = 48
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def timm_vit(name: str = "vit_tiny_patch16_224", **options: object) -> nn.Module:
    torch.manual_seed(1)
    options = {"embed_dim": 32, "num_heads": 4, "depth": 3, "img_size": SIZE, **options}
    model = timm.create_model(name, num_classes=3, **options).eval()
    for parameter in model.parameters():  # attention of fresh weights is almost uniform: spread it
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def attention_maps(model: nn.Module, images: Tensor, k: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [B,h,N,N] of each timm block from its own unfused code, and with ``k`` the gradients of that logit's sum."""
    kept: list[Tensor] = []
    handles = []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda m, a, out: kept.append(out)))
    logits = model(images)
    for handle, block in zip(handles, model.blocks, strict=True):
        handle.remove()
        block.attn.fused_attn = True
    gradients = [] if k is None else list(torch.autograd.grad(logits[:, k].sum(), kept))
    return [weights.detach() for weights in kept], gradients


def plain_discard(fused: Tensor, ratio: float, own: list[int]) -> Tensor:
    out = fused.clone()
    for image in range(len(out)):
        flat = out[image].flatten()
        flat[flat.argsort()[: int(len(flat) * ratio)]] = 0
        matrix = flat.view_as(out[image])
        for token in own:
            matrix[token, token] = fused[image, token, token]
        out[image] = matrix
    return out


def plain_rollout(
    fused: list[Tensor], ratio: float = 0.0, own: list[int] | None = None, residual: float = 0.5
) -> Tensor:
    identity = torch.eye(fused[0].shape[-1])
    result = identity.expand_as(fused[0])
    for layer in fused:
        layer = plain_discard(layer, ratio, own or [0])
        layer = (1 - residual) * layer + residual * identity
        result = (layer / layer.sum(-1, keepdim=True)) @ result
    return result


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 5),
    fusion=st.sampled_from(["mean", "max", "min"]),
    ratio=st.sampled_from([0.0, 0.5, 0.9]),
    residual=st.sampled_from([0.5, 0.2]),
)
def test_rollout_equals_the_full_product(batch: int, fusion: str, ratio: float, residual: float) -> None:
    model = timm_vit()
    images = torch.randn(batch, 3, SIZE, SIZE)
    fuse = {"mean": lambda a: a.mean(1), "max": lambda a: a.amax(1), "min": lambda a: a.amin(1)}[fusion]
    with torch.no_grad():
        expected = plain_rollout([fuse(a) for a in attention_maps(model, images)[0]], ratio, [0], residual)[:, 0, 1:]
    found = rollout(model, images, head_fusion=fusion, discard_ratio=ratio, residual=residual)  # type: ignore[arg-type]
    assert found.shape == (batch, 1, 3, 3)
    torch.testing.assert_close(found.flatten(1), expected, **TOLERANCE)


def test_rollout_of_a_distilled_model_starts_at_both_tokens() -> None:
    model = timm_vit("deit_tiny_distilled_patch16_224")
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        product = plain_rollout([a.mean(1) for a in attention_maps(model, images)[0]], 0.6, own=[0, 1])
    found = rollout(model, images, discard_ratio=0.6)
    torch.testing.assert_close(found.flatten(1), product[:, :2, 2:].mean(1), **TOLERANCE)


def test_rollout_of_mean_pooling_starts_at_the_mean_of_the_patches() -> None:
    model = timm_vit(global_pool="avg")
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        product = plain_rollout([a.mean(1) for a in attention_maps(model, images)[0]])
    torch.testing.assert_close(rollout(model, images).flatten(1), product[:, 1:, 1:].mean(1), **TOLERANCE)
    asked = rollout(model, images, readout="token").flatten(1)
    torch.testing.assert_close(asked, product[:, 0, 1:], **TOLERANCE)


def test_rollout_of_our_vit_equals_its_own_maps() -> None:
    torch.manual_seed(0)
    model = vit("Ti/16", num_classes=2, image_size=SIZE, depth=2, pool="token+avg", register_tokens=3).eval()
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = model(images, return_attn=True)[1]
        product = plain_rollout([a.mean(1) for a in maps])
    expected = (product[:, 0, 4:] + product[:, 4:, 4:].mean(1)) / 2
    torch.testing.assert_close(rollout(model, images).flatten(1), expected, **TOLERANCE)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 4), name=st.sampled_from(["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]))
def test_relevance_equals_chefer_2021(batch: int, name: str) -> None:
    model = timm_vit(name)
    images = torch.randn(batch, 3, SIZE, SIZE)
    found = gradient_relevance(model, images)
    tokens = [0] if "distilled" not in name else [0, 1]
    for k in range(3):
        weights, gradients = attention_maps(model, images, k)
        relevance = torch.eye(weights[0].shape[-1]).expand(batch, -1, -1)
        for a, g in zip(weights, gradients, strict=True):  # equation 5, then equation 6
            relevance = relevance + (g * a).clamp(min=0).mean(1) @ relevance
        expected = relevance[:, tokens][:, :, len(tokens) :].mean(1)
        torch.testing.assert_close(found[:, k].flatten(1), expected, **TOLERANCE)


def test_gradient_rollout_pairs_each_gradient_with_its_layer() -> None:
    model = timm_vit()
    images = torch.randn(2, 3, SIZE, SIZE)
    found = gradient_rollout(model, images, [2, 0], discard_ratio=0.3)
    for position, k in enumerate([2, 0]):
        weights, gradients = attention_maps(model, images, k)
        fused = [(a * g).mean(1).clamp(min=0) for a, g in zip(weights, gradients, strict=True)]
        expected = plain_rollout(fused, 0.3)[:, 0, 1:]
        reverse = [(a * g).mean(1).clamp(min=0) for a, g in zip(weights, gradients[::-1], strict=True)]
        # Gradients are small beside the identity: scale to the map before comparing.
        unit = expected.max()
        torch.testing.assert_close(found[:, position].flatten(1) / unit, expected / unit, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(plain_rollout(reverse, 0.3)[:, 0, 1:] / unit, expected / unit, atol=1e-2)


def test_discarding_treats_every_image_alike() -> None:
    model = timm_vit()
    images = torch.randn(3, 3, SIZE, SIZE)
    together = rollout(model, images, discard_ratio=0.8)
    alone = torch.cat([rollout(model, image[None], discard_ratio=0.8) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(
        together[1:], rollout(model, images[1:]), atol=1e-4
    )  # it acts on images after the first, too


def test_discarding_almost_everything_keeps_the_class_tokens_own_path() -> None:
    from vitdomains.core.explain.relevance import _discard

    fused = torch.rand(2, 5, 5) + 1
    fused[:, 0, 0] = 0.01  # the smallest of all
    kept = _discard(fused, 0.9, (0,), 2, None)
    assert (kept[:, 0, 0] == fused[:, 0, 0]).all()
    assert ((kept == 0).flatten(1).sum(1) == int(25 * 0.9) - 1).all()


def test_rows_are_normalised_each_by_its_own_sum() -> None:
    """Without keepdim the sum of row i would divide column i."""
    model = timm_vit(class_token=False, global_pool="avg")
    found = rollout(model, torch.randn(2, 3, SIZE, SIZE), head_fusion="max")
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(2), rtol=1e-5, atol=1e-5)


def test_beit_bias_and_eva_rotation_are_in_the_weights() -> None:
    """Weights rebuilt from what was captured reproduce the attention's own output."""
    from vitdomains.core.explain.attention import capture

    for name, size in (("beit_base_patch16_224", SIZE), ("eva02_tiny_patch14_224", 42)):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=2, img_size=size, depth=2, embed_dim=64, num_heads=2).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        images = torch.randn(2, 3, size, size)
        found = capture(model, images, gradients=True)
        assert (found.layers[0].bias is not None) == name.startswith("beit")
        for layer in found.layers:
            everyone = torch.arange(layer.shape[2])
            assert layer.output is not None and layer.value is not None
            torch.testing.assert_close(layer.rows(everyone) @ layer.value, layer.output, rtol=1e-4, atol=1e-5)
        fused = capture(model, images).layers
        for streamed, layer in zip(fused, found.layers, strict=True):
            own = streamed.fuse(lambda a: a.mean(1)) if streamed.fused is None else streamed.fused
            torch.testing.assert_close(own, layer.fuse(lambda a: a.mean(1)), rtol=1e-4, atol=1e-6)


def test_long_sequences_stream_in_short_runs_of_rows(monkeypatch: object) -> None:
    from vitdomains.core.explain import attention as room

    model = timm_vit(num_heads=2)
    images = torch.randn(2, 3, SIZE, SIZE)
    whole = rollout(model, images, discard_ratio=0.2)
    seen: list[int] = []
    rows = room.Attention.rows
    monkeypatch.setattr(room, "_ROW_BYTES", 200)  # type: ignore[attr-defined]
    monkeypatch.setattr(room.Attention, "rows", lambda self, index: seen.append(len(index)) or rows(self, index))  # type: ignore[attr-defined]
    torch.testing.assert_close(rollout(model, images, discard_ratio=0.2), whole)
    assert set(seen) == {1}


def test_half_precision_is_computed_in_single() -> None:
    model = timm_vit().bfloat16()
    found = rollout(model, torch.randn(1, 3, SIZE, SIZE).bfloat16())
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())
    assert F.cosine_similarity(found.flatten(1), found.flatten(1)).item() > 0.99
