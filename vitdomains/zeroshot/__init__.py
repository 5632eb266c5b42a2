"""Labels without training: two towers, prompts, embeddings, labels. ``DOMAIN`` is what the shared commands need to know."""

from __future__ import annotations

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.data.endings import RASTERS
from vitdomains.core.domain import Deferred, Domain

__all__ = ["DOMAIN", "clip_zero_shot_classification", "default_config"]


def default_config() -> Config:
    """A small student of confident and reviewed labels; zero-shot itself needs no training."""
    return Config(
        data=Data(sources=[Source(name="tiles")], image_size=224, resize="squash"),
        model=Model(name="timm:vit_tiny_patch16_224", weights="pretrained"),
        recipe=Recipe(epochs=8, batch_size=32, lr=5e-4, layer_decay=0.75, augment="overhead", label_smoothing=0.1),
        run=Run(dir="runs/student"),
    )


clip_zero_shot_classification = Deferred("vitdomains.zeroshot.models.towers:clip_zero_shot_classification")

DOMAIN = Domain(
    name="zeroshot",
    title="Zero-shot labels of tiles",
    build_manifest=Deferred("vitdomains.zeroshot.embeddings.sources:build_manifest"),
    read_image=Deferred("vitdomains.zeroshot.embeddings.reader:read_image"),
    task="singlelabel",
    default_config=default_config,
    extensions=RASTERS,
    sources=(
        "folders",
        "tiles",
    ),
    reader=Deferred("vitdomains.zeroshot.embeddings.reader:reader"),
)
