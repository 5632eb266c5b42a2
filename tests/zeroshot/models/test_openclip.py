"""open_clip checkpoints: the same numbers after conversion, and activations that contradict each other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitdomains.core.errors import WeightsError
from vitdomains.zeroshot.models.openclip import (
    clip_tokenizer,
    convert,
    read_architecture,
    renamed,
    tokenizer_from_merges,
)
from vitdomains.zeroshot.models.towers import load_towers

open_clip = pytest.importorskip("open_clip")
VISION = {"image_size": 32, "layers": 2, "width": 160, "patch_size": 8, "head_width": 80}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
PROMPTS = ["a satellite photo of a forest.", "an aerial view of the parking lot, it's full of 300 cars!", "río — naïve"]


def write_config(folder: Path, **more: Any) -> Path:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **more}}))
    return path


def random_model(custom_text: bool = False, quick_gelu: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    model: torch.nn.Module = kind(
        embed_dim=24, vision_cfg=dict(VISION), text_cfg=dict(TEXT), quick_gelu=quick_gelu
    ).eval()
    with torch.no_grad():  # biases start at zero, where a mistake would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("custom_text", "quick_gelu"), [(False, True), (False, False), (True, False)])
def test_features_are_those_of_open_clip(tmp_path: Path, custom_text: bool, quick_gelu: bool) -> None:
    model: Any = random_model(custom_text, quick_gelu)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "mine.pt")
    config = write_config(tmp_path, quick_gelu=quick_gelu)
    folder = convert(tmp_path / "mine.pt", str(config), tmp_path / "out")
    towers = load_towers(folder)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = F.normalize(model.encode_image(images), dim=-1)
        torch.testing.assert_close(towers.image(images), expected, atol=1e-5, rtol=1e-4)
        texts = F.normalize(model.encode_text(open_clip.tokenize(PROMPTS)), dim=-1)
        torch.testing.assert_close(towers.text.encode(PROMPTS), texts, atol=1e-5, rtol=1e-4)
    assert towers.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    about = json.loads((folder / "conversion.json").read_text())
    assert about["activation"] == ("quick_gelu" if quick_gelu else "gelu") and len(about["sha256"]) == 64


def test_the_tokenizer_is_open_clips() -> None:
    origin = importlib.util.find_spec("open_clip").origin  # type: ignore[union-attr]
    tokenizer = tokenizer_from_merges(Path(str(origin)).with_name("bpe_simple_vocab_16e6.txt.gz"))
    theirs = open_clip.tokenize(PROMPTS)
    for text, row in zip(PROMPTS, theirs, strict=True):
        assert tokenizer(text)["input_ids"] == row[: int(row.argmax()) + 1].tolist()
    for wanted in ("nobody/has-it", "absent.txt.gz"):
        with pytest.raises(WeightsError, match=wanted):
            clip_tokenizer(wanted)


def test_no_weight_is_left_over(tmp_path: Path) -> None:
    state = random_model().state_dict()
    assert (
        len(renamed(dict(state))) == len(state) + 2 * 4 * 2
    )  # q, k, v from one, weight and bias, two blocks, two towers


@pytest.mark.parametrize(
    ("file", "architecture", "activation"),
    [
        ("RS5M_ViT-B-32.pt", "ViT-B-32", "quick_gelu"),
        ("SkyCLIP_ViT_B32_top50pct.pt", "ViT-B-32", "gelu"),
        ("RemoteCLIP-ViT-L-14.pt", "ViT-L-14", "gelu"),
        ("mine.pt", "ViT-B-32-quickgelu", "quick_gelu"),
        ("mine.pt", "ViT-B-32", "gelu"),
    ],
)
def test_the_activation_is_what_the_publisher_says(
    file: str, architecture: str, activation: str, caplog: pytest.LogCaptureFixture
) -> None:
    from vitdomains.zeroshot.models.openclip import _activation

    chosen, why = _activation(read_architecture(architecture), file, architecture, "auto")
    assert chosen == activation and why
    assert (file == "mine.pt" or activation == "quick_gelu") == bool(caplog.records)


def test_a_quickgelu_mismatch_is_an_error(tmp_path: Path) -> None:
    torch.save(random_model().state_dict(), tmp_path / "RS5M_ViT-B-32.pt")
    config = write_config(tmp_path, quick_gelu=False)
    with pytest.raises(WeightsError, match="QuickGELU mismatch"):
        convert(tmp_path / "RS5M_ViT-B-32.pt", str(config), tmp_path / "out")
    with pytest.raises(WeightsError, match="tanh"):
        convert(tmp_path / "RS5M_ViT-B-32.pt", str(config), tmp_path / "out", activation="tanh")


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    torch.save(random_model().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match="width 160 with 2 layers"):
        convert(tmp_path / "mine.pt", "ViT-B-32", tmp_path / "out")
    with pytest.raises(WeightsError, match="ViT-Z-1"):
        convert(tmp_path / "mine.pt", "ViT-Z-1", tmp_path / "out")
    with pytest.raises(WeightsError, match=r"absent\.pt"):
        convert(tmp_path / "absent.pt", "ViT-B-32", tmp_path / "out")
    torch.save({"trunk.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"visual\.conv1\.weight"):
        convert(tmp_path / "other.pt", "ViT-B-32", tmp_path / "out")


def test_weights_of_transformers_are_told_from_those_of_open_clip(tmp_path: Path) -> None:
    names = ("logit_scale", "text_model.final_layer_norm.weight", "vision_model.post_layernorm.weight")
    torch.save({name: torch.ones(4) for name in names}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"names of transformers.*config\.json.*--model"):
        convert(tmp_path / "pytorch_model.bin", "ViT-B-32", tmp_path / "out")
