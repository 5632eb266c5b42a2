"""What is captured, from whom, and that the model does not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import transformers
from torch import nn

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain import CLASS_AGNOSTIC, METHODS, explain
from vitdomains.core.explain.attention import TokenLayout, attention_blocks, capture
from vitdomains.core.models.build import TransformersClassifier
from vitdomains.core.models.vit import vit

ATTENTION_METHODS = ("rollout", "gradient_rollout", "relevance")
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "num_labels": 3,
}


def build_timm(name: str, **options: object) -> nn.Module:
    return timm.create_model(
        name, num_classes=3, **{"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2, **options}
    )


def build_hf(name: str, attention: str, **options: object) -> nn.Module:
    config = getattr(transformers, f"{name.removesuffix('WithTeacher')}Config")(**{**HF, **options})
    config._attn_implementation = attention
    kind = f"{name.removesuffix('WithTeacher')}ForImageClassification{'WithTeacher' if name.endswith('WithTeacher') else ''}"
    return getattr(transformers, kind)(config)


# name: model, prefix tokens, tokens of the prefix that the head reads, whether it reads the patches
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], bool]] = {
    "vit": (lambda: vit("Ti/16", num_classes=3, image_size=64, depth=2), 1, (0,), False),
    "vit distilled, registers": (
        lambda: vit("Ti/16", num_classes=3, image_size=64, depth=2, distilled=True, register_tokens=2),
        4,
        (0, 1),
        False,
    ),
    "vit avg": (
        lambda: vit("Ti/16", num_classes=3, image_size=64, depth=2, pool="avg", class_token=False),
        0,
        (),
        True,
    ),
    "timm vit": (lambda: build_timm("vit_tiny_patch16_224"), 1, (0,), False),
    "timm deit distilled": (lambda: build_timm("deit_tiny_distilled_patch16_224"), 2, (0, 1), False),
    "timm deit3": (lambda: build_timm("deit3_small_patch16_224"), 1, (0,), False),
    "timm beit": (lambda: build_timm("beit_base_patch16_224"), 1, (), True),
    "timm eva": (lambda: build_timm("eva02_tiny_patch14_224", img_size=56), 1, (), True),
    "timm dinov2 registers": (lambda: build_timm("vit_small_patch14_reg4_dinov2", img_size=56), 5, (0,), False),
    "hf vit": (lambda: build_hf("ViT", "sdpa"), 1, (0,), False),
    "hf vit eager": (lambda: build_hf("ViT", "eager"), 1, (0,), False),
    "hf deit teacher": (lambda: build_hf("DeiTWithTeacher", "sdpa"), 2, (0, 1), False),
    "hf beit": (lambda: build_hf("Beit", "sdpa", use_relative_position_bias=True), 1, (), True),
    "hf dinov2": (lambda: build_hf("Dinov2", "sdpa"), 1, (0,), True),
    "hf dinov2 registers": (lambda: build_hf("Dinov2WithRegisters", "eager"), 5, (0,), True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_captured_and_its_head_understood(name: str) -> None:
    torch.manual_seed(0)
    build, prefix, tokens, patches = FAMILIES[name]
    model = build()
    side = 56 if ("eva" in name or name == "timm dinov2 registers") else 64
    images = torch.randn(2, 3, side, side)
    found = capture(model, images)
    assert len(found.layers) == 2
    layout = TokenLayout.of(model, found, "auto")
    assert (layout.prefix, layout.grid) == (prefix, (4, 4))
    expected = torch.zeros(prefix + 16)
    if tokens:
        expected[list(tokens)] = 1 / len(tokens)
    if patches:
        expected[prefix:] = 1 / 16
    torch.testing.assert_close(layout.start[0], expected / expected.sum())
    for method in ATTENTION_METHODS:
        heat = explain(model, images, method, [2])
        assert heat.shape == (2, 1, side, side)
        assert heat.amin() == 0 and heat.amax() == 1 and float(heat.std()) > 0.02


def test_capture_does_not_change_the_logits_and_asks_nothing_of_the_kernel() -> None:
    model = build_timm("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(capture(model, images).logits, expected)
    assert all(block.attn.fused_attn for block in model.blocks)


def _state(model: nn.Module) -> tuple[object, ...]:
    modules = list(model.modules())
    return (
        [m.training for m in modules],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        {k: v.clone() for k, v in model.state_dict().items()},
        [getattr(m, "grad_checkpointing", None) for m in modules],
    )


def _same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    grads = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in zip(a[2], b[2], strict=True)
    )
    states = all(torch.equal(a[4][key], b[4][key]) for key in a[4])
    return grads and states and (a[0], a[1], a[3], a[5]) == (b[0], b[1], b[3], b[5])


@pytest.mark.parametrize("method", [m for m in METHODS if m != "occlusion"])
def test_the_model_is_left_as_it_was(method: str) -> None:
    model = build_timm("vit_tiny_patch16_224").train()
    model.blocks[0].eval()  # a mixed state, as with a frozen lower half
    model.set_grad_checkpointing(True)
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad = False
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    before, random_state = _state(model), torch.get_rng_state()
    explain(model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), method)
    assert _same(before, _state(model))
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("gradients", [False, True])
def test_an_exception_inside_leaves_the_model_as_it_was(gradients: bool) -> None:
    model = build_timm("vit_tiny_patch16_224").train()

    def fail(module: nn.Module, args: object) -> None:
        raise ValueError("broken inside")

    handle = model.blocks[1].mlp.register_forward_pre_hook(fail)
    before = _state(model)
    with pytest.raises(ValueError, match="broken inside"):
        capture(model, torch.randn(1, 3, 64, 64), gradients=gradients)
    assert _same(before, _state(model)) and torch.is_grad_enabled()
    handle.remove()


@pytest.mark.parametrize("method", [*ATTENTION_METHODS, "gradcam"])
def test_under_no_grad_inference_mode_and_with_a_frozen_model(method: str) -> None:
    model = build_timm("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 64, 64)
    expected = explain(model, images, method, [1])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(explain(model, images, method, [1]), expected)
            torch.testing.assert_close(explain(model, images.clone(), method, [1]), expected)
    model.requires_grad_(False)
    torch.testing.assert_close(explain(model, images, method, [1]), expected)


@pytest.mark.parametrize("method", ["relevance", "gradient_rollout", "gradcam"])
def test_gradients_of_a_half_precision_model_are_computed_in_single(method: str) -> None:
    torch.manual_seed(0)
    model = vit("Ti/16", num_classes=3, image_size=64, depth=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    half = copy.deepcopy(model).bfloat16()
    images = torch.randn(2, 3, 64, 64).bfloat16()
    model.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    torch.testing.assert_close(
        explain(half, images, method), explain(model, images.float(), method), rtol=1e-4, atol=1e-4
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(model, images.float(), method)
    torch.testing.assert_close(found, explain(model, images.float(), method), rtol=1e-4, atol=1e-4)


def test_transformers_models_in_their_wrapper() -> None:
    model = TransformersClassifier(build_hf("Dinov2", "sdpa"))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(explain(model, images), explain(model.backbone, images))


class _Silent(nn.Module):
    """A block whose attention nobody can see."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.attn(x))


def test_nothing_captured_is_an_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), _Silent(), nn.Linear(8, 2))
    with pytest.raises(ExplainError, match="0 were captured"):
        capture(model, torch.randn(1, 3, 4, 4))


def test_half_captured_is_an_error() -> None:
    model = build_timm("vit_tiny_patch16_224")
    model.blocks[1].attn.forward = lambda x, **_: x
    with pytest.raises(ExplainError, match="of 2 attention blocks 1 were captured"):
        capture(model, torch.randn(1, 3, 64, 64))


def test_a_convolutional_net_is_sent_to_gradcam() -> None:
    model = timm.create_model("test_resnet.r160_in1k", num_classes=2)
    assert attention_blocks(model) == []
    with pytest.raises(ExplainError, match="gradcam"):
        explain(model, torch.randn(1, 3, 64, 64), "rollout")


@pytest.mark.parametrize("method", sorted(set(ATTENTION_METHODS) | {"gradcam"}))
def test_any_batch_in_any_chunks(method: str) -> None:
    model = build_timm("vit_tiny_patch16_224").eval()
    images = torch.randn(5, 3, 64, 64)
    whole = explain(model, images, method, [0, 2], chunk=5)
    assert whole.shape[1] == (1 if method in CLASS_AGNOSTIC else 2)
    for chunk in (1, 2, 3):
        torch.testing.assert_close(explain(model, images, method, [0, 2], chunk=chunk), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("lime",), {}, "one of rollout"),
        (("rollout",), {"target": "x"}, "no option target"),
        (("relevance", [3]), {}, "indices from 0 to 2"),
        (("relevance", []), {}, "indices from 0 to 2"),
        (("rollout",), {"head_fusion": "sum"}, "mean, max, min"),
        (("rollout",), {"discard_ratio": 1.0}, "below 1"),
        (("rollout",), {"readout": "all"}, "readout"),
    ],
)
def test_wrong_options_are_explained(arguments: tuple[object, ...], options: dict[str, object], words: str) -> None:
    with pytest.raises(ExplainError) as caught:
        explain(build_timm("vit_tiny_patch16_224"), torch.randn(1, 3, 64, 64), *arguments, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_images_of_another_shape_are_explained() -> None:
    with pytest.raises(ExplainError, match="floats"):
        explain(nn.Identity(), torch.zeros(3, 8, 8))
    with pytest.raises(ExplainError, match="not logits"):
        explain(nn.Identity(), torch.zeros(1, 3, 8, 8), "occlusion")
