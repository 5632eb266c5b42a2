"""The published recipes: each file can be read, is possible, names weights that exist, and merges with a file of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm

from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config

PRESETS = sorted((Path(__file__).resolve().parents[3] / "configs" / "presets").glob("*.yaml"))
BATCHES = {"deit": (504, 1008), "deit3": (512,), "augreg": (4096,), "swin": (1024,), "beit": (512, 1024)}


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_is_a_whole_recipe(file: Path) -> None:
    config = parse_config(["--config", str(file)], Config(), "train")
    recipe, text = config.recipe, file.read_text(encoding="utf-8")
    assert re.search(r"^# .*arXiv:\d{4}\.\d{5}", text, re.MULTILINE), "it cites no paper"
    assert f"configs/presets/{file.name}" in text
    assert recipe.batch_size * recipe.accumulate in BATCHES[file.stem.split("_")[0]]
    assert recipe.batch_size % recipe.repeated_augmentation == 0
    assert (config.model.weights != "") == ("finetune" in file.stem), (
        "fine-tuning starts from weights, a scratch run does not"
    )
    family, _, name = config.model.name.partition(":")
    if config.model.weights == "pretrained":
        assert family == "timm" and timm.get_pretrained_cfg(name, allow_unregistered=False) is not None
        assert timm.get_pretrained_cfg(name).has_weights


def test_every_size_of_every_paper_is_there() -> None:
    names = {file.stem for file in PRESETS}
    assert {"deit_tiny_scratch", "deit_base_384_finetune", "deit3_base_384_finetune", "augreg_small_scratch"} <= names
    assert {"swin_tiny_scratch", "swin_base_384_finetune", "beit_large_finetune", "beit_base_pt22k_finetune"} <= names


def test_a_later_file_and_an_option_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {root: films, image_size: 224}\nrecipe: {lr: 1, epochs: 3}\nrun: {dir: here}\n")
    preset = next(file for file in PRESETS if file.stem == "deit3_base_384_finetune")
    config = parse_config(["--config", str(mine), "--config", str(preset), "--recipe.epochs", "5"], Config(), "train")
    assert (config.data.root, config.run.dir) == ("films", "here")
    assert (config.data.image_size, config.recipe.lr, config.recipe.epochs) == (384, 1e-5, 5)
