"""The linter warns of what it should, and is silent on a sound recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run
from vitdomains.core.config.warnings import FEW_IMAGES, Caution, lint

SOUND = Config(
    data=Data(image_size=224),
    model=Model(name="timm:deit3_base_patch16_224", weights="pretrained"),
    recipe=Recipe(lr=1e-4, batch_size=32, accumulate=8, warmup_epochs=2, augment="cxr"),
)


def cautions(config: Config = SOUND, **changes: Any) -> list[Caution]:
    arguments: dict[str, Any] = {"n_images": 5000, "pretrained_size": 224, "domain": "cxr"} | changes
    return lint(config, **arguments)


def changed(section: str, **values: Any) -> Config:
    return replace(SOUND, **{section: replace(getattr(SOUND, section), **values)})


def test_a_sound_recipe_is_met_with_silence() -> None:
    assert cautions() == []


@pytest.mark.parametrize(
    ("section", "values", "key", "reference"),
    [
        ("model", {"weights": ""}, "model.weights", "Dosovitskiy"),
        ("recipe", {"lr": 3e-4}, "recipe.lr", "Touvron"),
        ("recipe", {"lr": 2e-3, "layer_decay": 0.75}, "recipe.lr", "He et al. 2022"),
        ("recipe", {"warmup_epochs": 0.0}, "recipe.warmup_epochs", "Touvron"),
        ("data", {"image_size": 384}, "model.image_size", "Dosovitskiy"),
        ("recipe", {"progressive_sizes": [(0.5, 112), (1.0, 224)]}, "model.image_size", "Dosovitskiy"),
        ("recipe", {"precision": "fp32"}, "recipe.precision", "Micikevicius"),
        ("recipe", {"accumulate": 7}, "recipe.accumulate", "Goyal"),
        ("recipe", {"augment": "imagenet"}, "recipe.augment", "Elgendi"),
        ("recipe", {"augment": "overhead"}, "recipe.augment", "Elgendi"),
    ],
)
def test_one_mistake_gives_one_caution(section: str, values: dict[str, Any], key: str, reference: str) -> None:
    (caution,) = cautions(changed(section, **values))
    assert caution.key == key
    assert reference in caution.reference
    assert any(letter.isdigit() for letter in caution.reason), "a caution states its number"
    assert str(caution).startswith(f"{key} = {caution.given}: ")


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (changed("recipe", lr=1e-3, layer_decay=0.75), {}),  # layer decay shields the lower blocks
        (replace(changed("recipe", lr=1e-2), model=replace(SOUND.model, freeze="backbone")), {}),  # head alone
        (changed("data", image_size=384), {"positions_resampled": True}),
        (changed("data", image_size=384), {"pretrained_size": None}),
        (changed("recipe", augment="overhead"), {"domain": "satellite"}),
        (replace(changed("recipe", accumulate=2), run=Run(devices=2, num_nodes=2)), {}),
    ],
)
def test_what_is_sound_in_its_place_passes(config: Config, changes: dict[str, Any]) -> None:
    assert cautions(config, **changes) == []


def test_few_images_from_a_random_start() -> None:
    scratch = changed("model", weights="")
    assert cautions(scratch, n_images=FEW_IMAGES, pretrained_size=None) == []
    assert cautions(scratch, n_images=None, pretrained_size=None) == []
    (caution,) = cautions(scratch, n_images=FEW_IMAGES - 1, pretrained_size=None)
    assert "9,999" in caution.given


def test_a_size_fixed_by_an_option_defeats_resampling() -> None:
    config = replace(changed("data", image_size=384), model=replace(SOUND.model, options={"img_size": 224}))
    (caution,) = cautions(config, positions_resampled=True)
    assert caution.key == "model.image_size"
    assert "384 px" in caution.given


def test_the_accumulation_that_is_asked_for_is_enough() -> None:
    (caution,) = cautions(changed("recipe", batch_size=24, accumulate=1))
    assert "Set recipe.accumulate to 11" in caution.reason
    assert cautions(changed("recipe", batch_size=24, accumulate=11)) == []
