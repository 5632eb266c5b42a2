"""The recipe in numbers: the learning rate of every group, the schedule, distillation, the sharpness-aware step."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from tests.core import toy
from tests.core.models.test_build import HF, HF_SWIN, SWIN, VIT
from tests.core.training.test_loop import SPEC, apart, run
from vitdomains.core.config.schema import Config, Model, Recipe
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import subset
from vitdomains.core.models.build import build_model, layer_ids
from vitdomains.core.tasks import MultiLabel, SingleLabel
from vitdomains.core.training.loop import set_up, train_epoch
from vitdomains.core.training.optim import distillation_loss, learning_rate, parameter_groups, sam_ascend, sam_descend

RECIPE = Recipe(lr=1e-3, layer_decay=0.75, weight_decay=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("squares"), n=40)


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """(factor on the learning rate, weight decay) of every parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit:Ti/16", {"depth": 3, "layer_scale": 0.1, "register_tokens": 2}, 64),
        ("vit:Ti/16", {"depth": 3, "distilled": True}, 64),
        ("timm:vit_tiny_patch16_224", VIT, 64),
        ("timm:beit_base_patch16_224", VIT, 64),
        ("timm:swin_tiny_patch4_window7_224", SWIN, 64),
        ("timm:swinv2_tiny_window8_256", SWIN, 64),
        ("timm:convnext_atto", {}, 64),
        ("timm:resnet18", {}, 64),
        ("hf:vit", {**HF, "intermediate_size": 64}, 64),
        ("hf:swin", HF_SWIN, 128),
    ],
)
def test_the_learning_rate_of_every_group(name: str, options: dict[str, Any], size: int) -> None:
    """The head learns at the full rate, each block below at 0.75 of the one above it, the embedding at the least."""
    model = build_model(Model(name=name, options=options), 5, image_size=size)
    depth, groups = layer_ids(model), parameter_groups(model, replace(RECIPE, head_lr_scale=2.0))
    top, found = max(depth.values()), by_name(model, groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert sum(len(group["params"]) for group in groups) == len(found)
    for parameter, (scale, decay) in found.items():
        assert scale == pytest.approx(0.75 ** (top - depth[parameter]) * (2.0 if depth[parameter] == top else 1.0))
        assert decay in (0.0, 0.1)
    assert {scale for scale, _ in found.values()} >= {2.0, 0.75, 0.75**top}
    assert all(decay == 0.0 for parameter, (_, decay) in found.items() if model.get_parameter(parameter).ndim <= 1)


def test_vit_and_swin_by_hand() -> None:
    vit = by_name(model := build_model(Model(name="vit:Ti/16"), 5, image_size=32), parameter_groups(model, RECIPE))
    assert vit["head.weight"] == (1.0, 0.1) and vit["norm.weight"] == (0.75, 0.0)
    assert vit["blocks.11.mlp.fc2.weight"] == (0.75, 0.1) and vit["blocks.0.attn.qkv.bias"] == (0.75**12, 0.0)
    assert vit["patch_embed.proj.weight"] == (0.75**13, 0.1) and vit["pos_embed"] == vit["cls_token"] == (0.75**13, 0.0)
    # Swin-T: two, two, six and two blocks.
    swin = by_name(
        model := build_model(Model(name="timm:swin_tiny_patch4_window7_224"), 5), parameter_groups(model, RECIPE)
    )
    assert swin["head.fc.weight"] == (1.0, 0.1)
    expected = {(0, 0): 12, (0, 1): 11, (1, 0): 10, (2, 0): 8, (2, 5): 3, (3, 0): 2, (3, 1): 1}
    for (stage, block), below in expected.items():
        prefix = f"layers.{stage}.blocks.{block}"
        assert swin[f"{prefix}.mlp.fc1.weight"] == (pytest.approx(0.75**below), 0.1)
        assert swin[f"{prefix}.attn.relative_position_bias_table"] == (pytest.approx(0.75**below), 0.0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_groups_are_timms(name: str) -> None:
    small = SWIN if name.startswith("swin") else VIT
    model: nn.Module = build_model(Model(name=f"timm:{name}", options=small), 5, image_size=64)
    mine = {id(p): group["lr_scale"] for group in parameter_groups(model, RECIPE) for p in group["params"]}
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(model, 0.1, layer_decay=0.75)
        for p in group["params"]
    }
    assert mine.keys() == theirs.keys() and all(mine[key] == pytest.approx(theirs[key]) for key in mine)


def test_what_is_frozen_is_in_no_group() -> None:
    model = build_model(Model(name="vit:Ti/16", freeze="8"), 5, image_size=32)
    found = by_name(model, parameter_groups(model, RECIPE))
    assert not any(re.match(r"patch_embed|pos_embed|cls_token|blocks\.[0-7]\.", name) for name in found)
    assert found["blocks.8.attn.qkv.weight"] == (pytest.approx(0.75**4), 0.1)


def test_the_schedule() -> None:
    recipe = Recipe(lr=1.0, min_lr=0.1)
    rates = [learning_rate(step, 110, 10, recipe) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert learning_rate(0, 100, 0, recipe) == pytest.approx(1.0)


def test_the_loop_gives_each_group_its_rate(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path, epochs=2, layer_decay=0.5, head_lr_scale=3.0, accumulate=2)
    manifest = toy.build_manifest(config.data)
    train, val = (
        ImageDataset(subset(manifest, split), toy.read_image, SPEC, augment=build_augment(config.recipe))
        for split in ("train", "val")
    )
    model = build_model(config.model, 2, image_size=toy.SIZE)
    session = set_up(model, MultiLabel(toy.CLASSES), train, val, SPEC, config, None, lambda *a: None)
    train_epoch(session, 0, toy.SIZE)
    session.log.close()
    # 24 images: three batches, in two optimiser steps an epoch; the last was the second of four.
    rate = learning_rate(1, 4, config.recipe.warmup_epochs * 2, config.recipe)
    found = sorted({group["lr"] for group in session.optimizer.param_groups})
    assert found == pytest.approx([rate * 0.125, rate * 0.25, rate * 0.5, rate * 3.0])
    assert len(session.optimizer.param_groups) == 8  # with and without weight decay


def test_hard_and_soft_distillation() -> None:
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(size=(6, 4))) for _ in range(2))
    one, many = SingleLabel(tuple("abcd")), MultiLabel(tuple("abcd"))
    hard, soft = Recipe(distillation="hard"), Recipe(distillation="soft", distillation_tau=2.0)
    log_p = student.log_softmax(1).numpy()
    chosen = log_p[np.arange(6), teacher.numpy().argmax(1)]
    assert distillation_loss(one, student, teacher, hard).item() == pytest.approx(-chosen.mean())
    q, p = ((logits / 2).softmax(1).numpy() for logits in (teacher, student))
    assert distillation_loss(one, student, teacher, soft).item() == pytest.approx(4 * (q * np.log(q / p)).sum(1).mean())
    q, p = ((logits / 2).sigmoid().numpy() for logits in (teacher, student))
    kl = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    assert distillation_loss(many, student, teacher, soft).item() == pytest.approx(4 * kl.mean())
    sure = (teacher > 0).double()
    each = -(sure * student.sigmoid().log() + (1 - sure) * (1 - student.sigmoid()).log())
    assert distillation_loss(many, student, teacher, hard).item() == pytest.approx(each.mean().item())
    for task in (one, many):
        assert distillation_loss(task, teacher, teacher, soft).item() == pytest.approx(0.0, abs=1e-9)


def test_the_sharpness_aware_step() -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(5, dtype=torch.float64)), nn.Parameter(torch.randn(3, dtype=torch.float64))
    optimizer = torch.optim.SGD(weights, lr=0.1)
    before = [w.detach().clone() for w in weights]
    sum((w**2).sum() for w in weights).backward()
    gradient = torch.cat([w.grad for w in weights])  # type: ignore[misc]
    moved = sam_ascend(optimizer, 0.05)
    step = torch.cat([w.detach() - b for w, b in zip(weights, before, strict=True)])
    assert torch.allclose(step, 0.05 * gradient / gradient.norm()) and step.norm().item() == pytest.approx(0.05)
    assert all(w.grad is None for w in weights)
    sum((w**2).sum() for w in weights).backward()
    sam_descend(moved)
    assert all(torch.equal(w.detach(), b) for w, b in zip(weights, before, strict=True))
    assert torch.allclose(torch.cat([w.grad for w in weights]), gradient + 2 * step)  # type: ignore[misc]


def test_mixing_is_off_for_the_last_epochs(root: Path, tmp_path: Path) -> None:
    def weights(name: str, **recipe: object) -> dict[str, torch.Tensor]:
        return run(toy.config(root, tmp_path / name, epochs=2, **recipe))[1]

    plain = weights("a")
    assert apart(plain, weights("b", mixup=0.8, cutmix=1.0, mix_off_epochs=2)) == 0.0
    assert apart(plain, weights("c", mixup=0.8, cutmix=1.0, mix_off_epochs=1)) > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiling_changes_nothing_but_rounding() -> None:
    # In a process of its own, as training is: beside the export runtimes, which other tests load, TorchInductor crashes.
    call = "from tests.core.training.test_optim import compare_compiled; compare_compiled()"
    ended = subprocess.run(
        [sys.executable, "-c", call], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def compare_compiled() -> None:
    """Train an epoch with and without ``recipe.compile``."""
    tmp_path = Path(tempfile.mkdtemp())
    root = toy.write_images(tmp_path / "images", n=40)

    def weights(config: Config) -> dict[str, torch.Tensor]:
        one = replace(config, model=replace(config.model, options={"depth": 1}))
        return run(one)[1]

    plain = weights(toy.config(root, tmp_path / "a", epochs=1))
    compiled = weights(toy.config(root, tmp_path / "b", epochs=1, compile=True))
    assert apart(plain, compiled) < 1e-3  # AdamW turns the rounding of near-zero gradients into steps of up to lr
