"""Chest X-ray: films, findings, phantoms. ``DOMAIN`` is what the shared commands need to know of it."""

from __future__ import annotations

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.data.endings import FILMS
from vitdomains.core.domain import Deferred, Domain

NOTICE = "Research use only. Not a medical device: it must not be used for diagnosis or treatment."


def default_config() -> Config:
    """The main job: findings on phantom films, a small ViT from scratch; the same as ``configs/cxr/phantoms.yaml``."""
    return Config(
        data=Data(root="runs/phantoms", sources=[Source(name="phantoms", limit=1800)], image_size=384),
        model=Model(name="vit:Ti/32", channels=1, options={"stem": "conv", "pool": "lse", "depth": 4}),
        recipe=Recipe(
            epochs=13, batch_size=16, lr=1e-3, weight_decay=0.05, warmup_epochs=1.0, ema_decay=0.99, region_weight=1.0
        ),
        run=Run(dir="runs/cxr"),
    )  # fmt: skip


DOMAIN = Domain(
    name="cxr",
    title="Chest X-ray findings",
    build_manifest=Deferred("vitdomains.cxr.data.sources:build_manifest"),
    read_image=Deferred("vitdomains.cxr.film.film:read_image"),
    task="multilabel",
    default_config=default_config,
    extensions=FILMS,
    sources=("phantoms", "nih", "chexpert", "padchest", "vindr", "mimic", "csv"),
    notice=NOTICE,
    read_regions=Deferred("vitdomains.cxr.data.sources:read_regions"),
    read_checked=Deferred("vitdomains.cxr.quality:read_checked"),
)
