"""Weights are found, checked and loaded, or refused with the ways out."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import WeightsError
from vitdomains.core.models import weights
from vitdomains.core.models.build import build_model, describe
from vitdomains.core.models.vit import vit

OPTIONS = {"depth": 2}


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return vit("Ti/16", 7, **OPTIONS, image_size=64).state_dict()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and a hub that does not answer."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tmp_path


def spec(path: Path | str, **changes: Any) -> Model:
    return Model(**{"name": "vit:Ti/16", "options": OPTIONS, "weights": str(path), **changes})


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_a_file_is_loaded_and_its_hash_recorded(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3}, path)
    model = build_model(spec(path), 7, image_size=64)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    info = describe(model)
    assert info.weights == str(path)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_becomes_single(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "w.safetensors")
    model = build_model(spec(tmp_path / "w.safetensors"), 7, image_size=64)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_head_of_another_size_is_new_and_said_so(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    for changed, name in ((Model(), "vit:Ti/16"), (Model(), "timm:vit_tiny_patch16_224")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            model: Any = build_model(spec(tmp_path / "w.safetensors", name=name, head=changed.head), 3, image_size=64)
        assert "the head is new" in caplog.text
        assert model.head.out_features == 3
        assert torch.equal(model.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_grey_images_sum_the_first_convolution(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    for name in ("vit:Ti/16", "timm:vit_tiny_patch16_224"):
        model: Any = build_model(spec(tmp_path / "w.safetensors", name=name, channels=1), 7, image_size=64)
        summed = state["patch_embed.proj.weight"].sum(1, keepdim=True)
        assert torch.allclose(model.patch_embed.proj.weight, summed, atol=1e-6)


@pytest.mark.parametrize("name", ["vit:Ti/16", "timm:vit_tiny_patch16_224"])
def test_too_little_is_an_error_unless_allowed(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    part = {key: value for key, value in state.items() if not key.startswith("blocks.1.")}
    save_file({**part, "extra.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"fills 5\d\.\d%.*blocks\.1\..*unused: extra\.weight") as caught:
        build_model(spec(tmp_path / "w.safetensors", name=name), 7, image_size=64)
    assert "allow_partial" in caught.value.hint
    with caplog.at_level(logging.WARNING):
        model: Any = build_model(spec(tmp_path / "w.safetensors", name=name, allow_partial=True), 7, image_size=64)
    assert "blocks.1." in caplog.text
    assert torch.equal(model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])


def test_a_little_missing_is_said(tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    del state["blocks.1.attn.qkv.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING):
        build_model(spec(tmp_path / "w.safetensors"), 7, image_size=64)
    assert "blocks.1.attn.qkv.bias" in caplog.text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vit:Ti/16", "pretrained"),
        ("timm:resnet50", "pretrained"),
        ("vit:Ti/16", "someone/some-weights"),
        ("vit:Ti/16", "no/such/file.safetensors"),
        ("vit:Ti/16", "not a name"),
        ("hf:google/vit-base-patch16-224", "pretrained"),
    ],
)
def test_what_cannot_be_had_has_three_ways_out(name: str, wanted: str) -> None:
    with pytest.raises(WeightsError, match="cannot be had") as caught:
        build_model(Model(name=name, weights=wanted), 7)
    assert all(f"({way})" in caught.value.hint for way in (1, 2, 3))


def test_pretrained_without_a_publication() -> None:
    with pytest.raises(WeightsError, match="no published weights"):
        build_model(Model(name="vit:H/32", weights="pretrained"), 7)


def test_the_cache_comes_before_the_hub(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def cached(repository: str, filename: str, **_: Any) -> str | None:
        asked.append(repository)
        return str(tmp_path / filename) if (tmp_path / filename).is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    found = weights.resolve(spec("pretrained"))
    assert (found.source, asked) == ("cache", ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(tmp_path / name))
    assert weights.resolve(spec("someone/weights")).source == "hub"
    assert weights.resolve(spec(tmp_path)).source == "path"


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("code was run",))


def test_no_pickled_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Dangerous()))
    torch.save({"model": Dangerous()}, tmp_path / "v.pt")
    np.savez(tmp_path / "u.npz", cls=np.array([Dangerous()], dtype=object))
    for name in ("w.pt", "v.pt", "u.npz"):
        with pytest.raises(WeightsError, match=r"cannot be read|holds pickled objects .*: builtins\.print\."):
            build_model(spec(tmp_path / name), 7)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "npz"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 not a zip"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        build_model(spec(tmp_path / f"w.{suffix}"), 7)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "beit_base_patch16_224", "resnet50"])
def test_other_timm_families_take_their_own_weights(tmp_path: Path, name: str) -> None:
    small: dict[str, Any] = {
        "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)},
        "beit_base_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    }.get(name, {})
    source = timm.create_model(name, num_classes=9, **small).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    built = build_model(Model(name=f"timm:{name}", weights=str(tmp_path / "w.safetensors"), options=small), 9)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(source(x), built.eval()(x), atol=1e-5)


def test_transformers_weights_at_another_size_and_channel_count(tmp_path: Path) -> None:
    import transformers as t

    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 16,
    }
    source = t.ViTForImageClassification(t.ViTConfig(**shape, image_size=64, num_labels=5)).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    same = build_model(Model(name="hf:vit", weights=path, options=shape), 5, image_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(source(x).logits, same(x), atol=1e-6)
    grey: Any = build_model(Model(name="hf:vit", weights=path, options=shape, channels=1), 9, image_size=96)
    embeddings = grey.backbone.vit.embeddings
    kernel = source.vit.embeddings.patch_embeddings.projection.weight.sum(1, keepdim=True)
    assert torch.allclose(embeddings.patch_embeddings.projection.weight, kernel, atol=1e-6)
    assert embeddings.position_embeddings.shape == (1, 37, 32)
    assert torch.equal(embeddings.position_embeddings[:, 0], source.vit.embeddings.position_embeddings[:, 0])
    assert grey.backbone.classifier.out_features == 9
    with pytest.raises(WeightsError, match="fills"):
        build_model(Model(name="hf:dinov2", weights=path, options={"hidden_size": 32, "num_attention_heads": 2}), 5)
