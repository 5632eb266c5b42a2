"""Checkpoints as training scripts of other projects write them: loaded, or refused with what is in the way."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import WeightsError
from vitdomains.core.models.build import build_model
from vitdomains.core.models.state_dicts import looks_like, unwrap
from vitdomains.core.models.vit import vit

OPTIONS = {"depth": 2}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    made = vit("Ti/16", 7, **OPTIONS, image_size=64).state_dict()
    return {name: value + torch.randn(value.shape) * 0.1 for name, value in made.items()}


def build(path: Path, name: str = "vit:Ti/16", size: int = 64, **changes: Any) -> nn.Module:
    return build_model(Model(**{"name": name, "options": OPTIONS, "weights": str(path), **changes}), 7, image_size=size)


def body(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items() if not name.startswith("head")}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in state.items()}


def wrapped(kind: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Checkpoints whose backbone is that of ``state``."""
    heads = {"head.mlp.0.weight": torch.zeros(8, 192), "head.last_layer.weight_g": torch.zeros(8, 1)}
    return {
        "dino teacher": {"teacher": {**body(state, "backbone."), **heads}},
        "dino run": {
            "student": {**body(other(state), "module.backbone."), **{f"module.{k}": v for k, v in heads.items()}},
            "teacher": {**body(state, "backbone."), **heads}, "epoch": 99, "optimizer": {"state": {}},
        },
        "dinov2 teacher": {"teacher": {
            **{f"backbone.{name}".replace(".blocks.1.", ".blocks.0.1.").replace(".blocks.0.n", ".blocks.0.0.n")
               .replace(".blocks.0.attn", ".blocks.0.0.attn").replace(".blocks.0.mlp", ".blocks.0.0.mlp"): value
               for name, value in body(state).items()},
            "dino_head.mlp.0.weight": torch.zeros(8, 192), "ibot_head.mlp.0.weight": torch.zeros(8, 192)}},
        "lightning": {"state_dict": {**body(state, "model."), "criterion.weight": torch.ones(3)}, "epoch": 3, "loops": {},
                      "pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 1e-3}},
        "lightly": {"state_dict": {**body(other(state), "student_backbone."), **body(state, "teacher.backbone.")}},
        "ddp": {"model": {f"module.{name}": value for name, value in state.items()}, "scaler": {}},
        "compiled": {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        "timm with ema": {"state_dict": other(state), "state_dict_ema": state, "arch": "vit_tiny_patch16_224"},
        "deit with ema": {"model": other(state), "model_ema": state, "lr_scheduler": {}},
        "mae": {"model": {**body(state), "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192),
                          "decoder_blocks.0.attn.qkv.weight": torch.zeros(24, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}},
        "moco": {"state_dict": {**body(state, "module.base_encoder."), **body(other(state), "module.momentum_encoder."),
                                "module.predictor.0.weight": torch.zeros(8, 192)}},
        "two nests": {"model": {"backbone": body(state), "head": {"weight": torch.zeros(4, 192)}}},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("name", ["vit:Ti/16", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    "kind",
    ["dino teacher", "dino run", "dinov2 teacher", "lightning", "lightly", "ddp", "compiled", "timm with ema", "deit with ema",
     "mae", "moco", "two nests"],
)  # fmt: skip
def test_the_backbone_is_found_in_its_wrapping(
    tmp_path: Path, state: dict[str, Tensor], kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ("last.ckpt" if kind == "lightning" else "checkpoint.pth.tar" if "timm" in kind else "w.pth")
    torch.save(wrapped(kind, state), path)
    with caplog.at_level(logging.INFO):
        model = build(path, name)
    own = model.state_dict()
    for key, value in body(state).items():
        assert torch.equal(own[key], value), key
    if kind == "dino teacher":
        assert "weights under backbone.; left out: head.mlp.0.weight, head.last_layer.weight_g" in caplog.text
        assert "unused" not in caplog.text


def test_a_convolutional_network_is_found_by_its_own_names(tmp_path: Path) -> None:
    source = timm.create_model("resnet18", num_classes=7)
    torch.save({"state_dict": {f"net.encoder.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.ckpt")
    model = build(tmp_path / "w.ckpt", "timm:resnet18", options={})
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_a_transformers_classifier_keeps_its_head(tmp_path: Path, prefix: str) -> None:
    options = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    source = build_model(Model(name="hf:vit", options=options), 7, image_size=64)
    torch.save({"state_dict": {prefix + k: v for k, v in source.backbone.state_dict().items()}}, tmp_path / "w.ckpt")
    for name, more in (("hf:vit", options), ("vit:Ti/16", {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0})):
        model = build(tmp_path / "w.ckpt", name, options=more).eval()
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(model(x), source.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["folder", "index", "folder without index", "one shard", "bin"])
def test_shards_are_put_together(tmp_path: Path, state: dict[str, Tensor], how: str) -> None:
    stem, suffix = ("pytorch_model", "bin") if how == "bin" else ("model", "safetensors")
    names = [f"{stem}-0000{i + 1}-of-00002.{suffix}" for i in range(2)]
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {key: names[i % 2] for i, key in enumerate(state)}}))
    for i, name in enumerate(names):
        part = {key: value for n, (key, value) in enumerate(state.items()) if n % 2 == i}
        torch.save(part, tmp_path / name) if how == "bin" else save_file(part, tmp_path / name)
    if "without" in how:
        index.unlink()
    path = {"index": index, "one shard": tmp_path / names[1]}.get(how, tmp_path)
    model = build(path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    (tmp_path / names[0]).unlink()
    with pytest.raises(WeightsError, match=f"one of 2 shards; missing: {names[0]}"):
        build(tmp_path / names[1] if "without" in how else path)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(WeightsError, match="outside its folder"):
        build(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="no index of shards"):
        build(index)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"args": argparse.Namespace(lr=1e-4)}, r"argparse\.Namespace"),
        ({"best": np.float64(0.5), "at": Path("x")}, r"numpy.*scalar"),
        ({"callback": nn.Linear(2, 2)}, r"torch\.nn\.modules\.linear\.Linear"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_named_with_the_way_to_leave_them_out(
    tmp_path: Path, state: dict[str, Tensor], beside: dict[str, Any], named: str, zipped: bool
) -> None:
    path = tmp_path / "with_args.pth"
    torch.save({"state_dict": state, **beside}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=f"holds pickled objects beside the weights.*{named}") as caught:
        build(path)
    assert "\x1b" not in str(caught.value) and "allow_partial" not in caught.value.hint
    code = caught.value.hint.split('python -c "', 1)[1].rsplit('"', 1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(code, {})  # what the hint says, done
    model = build(tmp_path / "with_args-weights.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"", "cannot be read"),
        (b"\x80\x02}q\x00.", "corrupt file"),
    ],
)
def test_files_that_are_no_weights_are_named_for_what_they_are(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=named):
        build(tmp_path / "w.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="no tensors under names"):
        build(tmp_path / "list.pt")


def test_the_content_says_what_a_file_is(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "download")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("download", "b.safetensors"):
        assert torch.equal(build(tmp_path / name).state_dict()["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("name", ["vit:Ti/16", "timm:vit_tiny_patch16_224"])
def test_positions_of_a_grid_that_is_no_square_are_refused(
    tmp_path: Path, state: dict[str, Tensor], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, 192).repeat(1, 1, 2, 1).reshape(1, 32, 192)
    wide = {**state, "pos_embed": torch.cat([state["pos_embed"][:, :1], grid], 1)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"of another shape: pos_embed.*32, which is no square") as caught:
        build(tmp_path / "wide.safetensors", name)
    assert "allow_partial to true: what is missing then starts at random" in caught.value.hint
    with caplog.at_level(logging.WARNING):
        model = build(tmp_path / "wide.safetensors", name, allow_partial=True)
    assert "pos_embed" in caplog.text
    assert torch.equal(model.state_dict()["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("gone", ["patch_embed.proj.weight", "pos_embed", "cls_token"])
def test_a_small_share_that_all_depends_on_is_not_filled_at_random(
    tmp_path: Path, state: dict[str, Tensor], gone: str
) -> None:
    part = {name: value for name, value in state.items() if name != gone}
    save_file(part, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=gone):
        build(tmp_path / "w.safetensors", "timm:vit_tiny_patch16_224")


def test_registers_that_are_added_leave_the_positions_of_the_others(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = build(tmp_path / "w.safetensors", options={**OPTIONS, "register_tokens": 3})
    positions = model.state_dict()["pos_embed"]
    assert torch.equal(positions[:, :1], state["pos_embed"][:, :1]) and not positions[:, 1:4].any()
    assert torch.allclose(positions[:, 4:], state["pos_embed"][:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", ["vit:Ti/16", "timm:vit_tiny_patch16_224", "hf:vit"])
def test_a_file_of_another_model_is_never_offered_as_a_partial_one(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    torch.manual_seed(0)
    wider = vit("S/32", 7, image_size=64).state_dict()
    save_file(wider, tmp_path / "w.safetensors")
    options = {} if name == "hf:vit" else OPTIONS
    with pytest.raises(WeightsError, match=r"fills \d+\.\d%") as caught:
        build(tmp_path / "w.safetensors", name, options=options)
    assert "allow_partial" not in caught.value.hint
    assert "vit:S/32, width 384, 12 blocks, patches of 32 px, 2 x 2 positions" in caught.value.hint
    save_file({"weight": torch.ones(2)}, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"fills 0\.0%"):
        build(tmp_path / "none.safetensors", name, options=options, allow_partial=True)
    assert looks_like({"weight": torch.ones(2)}) == "" and unwrap(None) == {}
