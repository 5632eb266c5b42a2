"""Rollout through windows, shifts and merging against full token-to-token matrices that are built entry by entry."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from vitdomains.core.explain.attention import SwinWindow, capture, from_windows, to_windows, unmerge
from vitdomains.core.explain.relevance import gradient_relevance, rollout

Grid = tuple[int, int]


def swin(name: str = "swin_tiny_patch4_window7_224", size: int = 64, window: int = 4) -> nn.Module:
    torch.manual_seed(2)
    model = timm.create_model(
        name, num_classes=3, img_size=size, window_size=window, embed_dim=16, depths=(2, 2), num_heads=(2, 4)
    ).eval()
    return spread(model)


def hf_swin(version: int, size: int = 64, window: int = 4) -> nn.Module:
    torch.manual_seed(2)
    sizes = {
        "image_size": size,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": window,
        "num_labels": 3,
    }
    if version == 1:
        return spread(transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).eval())
    return spread(transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**sizes)).eval())


def spread(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def plain_matrix(fused: Tensor, window: SwinWindow) -> Tensor:
    """[windows,slots,slots] of one image -> [N,N], entry by entry: where does each slot come from?"""
    (height, width), (rows, cols), (down, right) = window.grid, window.size, window.shift
    padded = (-(-height // rows) * rows, -(-width // cols) * cols)
    roll = padded if window.pad_first else (height, width)  # timm shifts before padding, transformers after it
    matrix = torch.zeros(height * width, height * width)
    index = 0
    for top in range(0, padded[0], rows):
        for left in range(0, padded[1], cols):
            tokens = []
            for y in range(top, top + rows):
                for x in range(left, left + cols):
                    inside = y < roll[0] and x < roll[1]
                    source = ((y + down) % roll[0], (x + right) % roll[1])
                    real = inside and source[0] < height and source[1] < width
                    tokens.append(source[0] * width + source[1] if real else None)
            for i, a in enumerate(tokens):
                for j, b in enumerate(tokens):
                    if a is not None and b is not None:
                        matrix[a, b] = fused[index, i, j]
            index += 1
    return matrix


def plain_merging(grid: Grid, merged: Grid) -> Tensor:
    """[n,N]: each merged token is the mean of its children."""
    matrix = torch.zeros(merged[0] * merged[1], grid[0] * grid[1])
    for y in range(grid[0]):
        for x in range(grid[1]):
            matrix[(y // 2) * merged[1] + x // 2, y * grid[1] + x] = 1
    return matrix / matrix.sum(1, keepdim=True)


def plain_product(model: nn.Module, image: Tensor, chefer: int | None = None) -> Tensor:
    """The full product, last grid x first grid, of one image."""
    found = capture(model, image[None], gradients=True)
    slopes: tuple[Tensor, ...] = ()
    if chefer is not None:
        slopes = torch.autograd.grad(found.logits[0, chefer], [layer.differentiable() for layer in found.layers])
    result, grid = None, None
    for index, layer in enumerate(found.layers):
        window = layer.window
        assert window is not None
        weights = layer.rows(torch.arange(layer.shape[2]))
        if slopes:
            slope = slopes[index] if layer.weights is not None else slopes[index] @ layer.value.transpose(-2, -1)
            matrix = plain_matrix((weights * slope).clamp(min=0).mean(1).detach(), window)
            matrix = matrix + torch.eye(len(matrix))
        else:
            matrix = plain_matrix(weights.mean(1), window)
            matrix = 0.5 * matrix + 0.5 * torch.eye(len(matrix))
            matrix = matrix / matrix.sum(1, keepdim=True)
        if result is None:
            result = torch.eye(len(matrix))
        elif grid != window.grid:
            result = plain_merging(grid, window.grid) @ result
        result, grid = matrix @ result, window.grid
    assert result is not None
    return result


MODELS = {
    "timm v1": lambda: (swin(), 64),
    "timm v1, padded": lambda: (swin(size=56, window=4), 56),
    "timm v2": lambda: (swin("swinv2_tiny_window8_256"), 64),
    "transformers v1": lambda: (hf_swin(1), 64),
    "transformers v1, padded": lambda: (hf_swin(1, size=72, window=5), 72),
    "transformers v2": lambda: (hf_swin(2), 64),
}


@pytest.mark.parametrize("name", MODELS)
def test_rollout_equals_the_full_token_to_token_product(name: str) -> None:
    model, size = MODELS[name]()
    batch = int(torch.randint(1, 4, ()))
    images = torch.randn(batch, 3, size, size)
    found = rollout(model, images)
    for image, heat in zip(images, found, strict=True):
        expected = plain_product(model, image).mean(0)  # the head reads the mean of the last grid
        assert heat.shape == (1, size // 4, size // 4)
        torch.testing.assert_close(heat.flatten(), expected, rtol=1e-4, atol=1e-5 / len(expected))
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["timm v1", "timm v1, padded", "transformers v1"])
def test_relevance_equals_the_full_product(name: str) -> None:
    model, size = MODELS[name]()
    images = torch.randn(2, 3, size, size)
    found = gradient_relevance(model, images, [1])
    for image, heat in zip(images, found, strict=True):
        expected = plain_product(model, image, chefer=1).mean(0)
        torch.testing.assert_close(heat.flatten(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("fused", "size"), [(False, 64), (True, 64), (False, 56)])
def test_the_windows_lie_where_the_model_puts_them(fused: bool, size: int) -> None:
    """The full matrix times the tokens' own values gives what the model's shifted layer gives: the mapping is the model's."""
    model = swin(size=size, window=4)
    block = model.layers[0].blocks[1]
    block.attn.qkv.bias.data.zero_()  # padding has no value then, as in the matrix
    assert tuple(block.shift_size) == (2, 2)
    kept: dict[str, Tensor] = {}
    handle = block.norm1.register_forward_hook(lambda m, a, out: kept.update(tokens=out))
    block._attn_original = block._attn
    block._attn = lambda x: kept.setdefault("out", block._attn_original(x))
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    found = capture(model, torch.randn(1, 3, size, size), gradients=True)
    handle.remove()
    layer = found.layers[1]
    assert (layer.weights is None) == fused
    tokens = kept["tokens"].flatten(1, 2)[0]  # [N,C]
    value = block.attn.qkv(tokens)[:, 2 * tokens.shape[1] :].view(len(tokens), 2, -1)  # [N,h,d]
    weights = layer.rows(torch.arange(16))
    assert layer.window is not None
    heads = [plain_matrix(weights[:, h], layer.window) @ value[:, h] for h in range(2)]
    torch.testing.assert_close(
        block.attn.proj(torch.cat(heads, dim=1)), kept["out"].flatten(1, 2)[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("pad_first", [False, True])
def test_windows_there_and_back(pad_first: bool) -> None:
    window = SwinWindow((5, 7), (3, 4), (1, 2), pad_first)
    row = torch.rand(3, 35)
    slots, real = to_windows(row, window)
    assert slots.shape == (3 * 4, 12) and int(real.sum()) == 3 * 35
    torch.testing.assert_close(from_windows(slots, window, 3), row)


def test_unmerging_shares_equally_and_keeps_the_sum() -> None:
    row = torch.rand(2, 6)
    found = unmerge(row, (2, 3), (3, 6))  # an odd edge: the last row of parents has one row of children
    torch.testing.assert_close(found, row @ plain_merging((3, 6), (2, 3)))
    torch.testing.assert_close(found.sum(1), row.sum(1))


def test_discarding_in_windows_counts_each_images_real_entries() -> None:
    model = swin(size=56)
    images = torch.randn(3, 3, 56, 56)
    together = rollout(model, images, discard_ratio=0.7)
    alone = torch.cat([rollout(model, image[None], discard_ratio=0.7) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(together, rollout(model, images), rtol=1e-2)
