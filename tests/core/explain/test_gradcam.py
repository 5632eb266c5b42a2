"""Grad-CAM and occlusion against their formulas and against what must be seen."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import explain
from vitdomains.core.explain.gradcam import gradcam, occlusion


def plain(feature: Tensor, slope: Tensor) -> Tensor:
    """[B,C,h,w] twice: equations 1 and 2 in loops."""
    out = torch.zeros(feature.shape[0], *feature.shape[2:])
    for b in range(feature.shape[0]):
        for c in range(feature.shape[1]):
            out[b] += slope[b, c].mean() * feature[b, c]
    return out.clamp(min=0)


def test_vit_weighs_what_the_last_attention_reads() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=64, depth=2).eval()
    images = torch.randn(3, 3, 64, 64)
    found = gradcam(model, images, [1])
    kept: list[Tensor] = []
    handle = model.blocks[-1].norm1.register_forward_hook(lambda m, a, out: kept.append(out))
    logits = model(images)
    handle.remove()
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), kept)
    maps = [t[:, 1:].transpose(1, 2).reshape(3, -1, 4, 4) for t in (kept[0].detach(), slope)]
    torch.testing.assert_close(found[:, 0], plain(*maps), rtol=1e-4, atol=1e-6)
    assert float(found.max()) > 0


def test_swin_and_convolutional_nets() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=2,
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
    ).eval()
    tokens = swin.forward_features(images).detach()
    assert gradcam(swin, images).shape == (2, 2, *tokens.shape[1:3])
    sizes = {
        "image_size": 64,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
        "num_labels": 2,
    }
    hf = transformers.SwinForImageClassification(transformers.SwinConfig(**sizes))
    assert gradcam(hf, images, [0]).shape == (2, 1, 8, 8)
    net = timm.create_model("test_resnet.r160_in1k", num_classes=2).eval()
    found = gradcam(net, images, [0])
    feature = net.forward_features(images).detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.forward_head(feature)[:, 0].sum(), feature)
    torch.testing.assert_close(found[:, 0], plain(feature.detach(), slope), rtol=1e-4, atol=1e-6)


def test_a_target_by_name() -> None:
    net = timm.create_model("test_resnet.r160_in1k", num_classes=2).eval()
    images = torch.randn(1, 3, 64, 64)
    assert gradcam(net, images, [0], target="layer1").shape[-1] > gradcam(net, images, [0]).shape[-1]
    with pytest.raises(ExplainError, match="no module 'nose'"):
        gradcam(net, images, target="nose")
    with pytest.raises(ExplainError):
        gradcam(net, images, [0], target="fc")


class Corner(nn.Module):
    """Class 0 sees the mean of the upper left quarter, class 1 minus that of the lower right."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.stack([x[:, :, :half, :half].mean((1, 2, 3)), -x[:, :, half:, half:].mean((1, 2, 3))], dim=1)


def test_occlusion_finds_the_evidence_of_every_class() -> None:
    images = torch.full((2, 3, 32, 32), 0.1)
    images[:, :, :16, :16] = 1.0
    images[1, :, 16:, 16:] = -1.0
    found = occlusion(Corner(), images, mask_size=8, mode=0.0)
    assert found.shape == (2, 2, 32, 32)
    upper, lower = found[:, 0, 4:12, 4:12], found[:, 1, 20:28, 20:28]
    assert bool((upper > 0).all()) and bool((lower[1] > 0).all())
    assert found[:, 0, 20:, 20:].abs().max() < 1e-6 and found[:, 1, :12, :12].abs().max() < 1e-6
    assert bool((lower[0] < 0).all())  # there the image speaks against the class
    with pytest.raises(ExplainError):
        occlusion(Corner(), images, mask_size=33)


def test_occlusion_through_the_door_keeps_the_training_mode() -> None:
    model = Corner().train()
    assert explain(model, torch.rand(1, 3, 32, 32), "occlusion", [1], mask_size=8).shape == (1, 1, 32, 32)
    assert model.training
