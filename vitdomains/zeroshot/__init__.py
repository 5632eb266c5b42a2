"""Labels without training: two towers, prompts, embeddings, labels. ``DOMAIN`` is what the shared commands need to know."""

from __future__ import annotations

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.domain import Domain
from vitdomains.zeroshot.embeddings.reader import read_image, reader
from vitdomains.zeroshot.embeddings.sources import SOURCES, build_manifest
from vitdomains.zeroshot.embeddings.store import EXTENSIONS
from vitdomains.zeroshot.models.towers import clip_zero_shot_classification

__all__ = ["DOMAIN", "clip_zero_shot_classification", "default_config"]


def default_config() -> Config:
    """A small student of confident and reviewed labels; zero-shot itself needs no training."""
    return Config(
        data=Data(sources=[Source(name="tiles")], image_size=224, resize="squash"),
        model=Model(name="timm:vit_tiny_patch16_224", weights="pretrained"),
        recipe=Recipe(epochs=8, batch_size=32, lr=5e-4, layer_decay=0.75, augment="overhead", label_smoothing=0.1),
        run=Run(dir="runs/student"),
    )


DOMAIN = Domain(
    name="zeroshot",
    title="Zero-shot labels of tiles",
    build_manifest=build_manifest,
    read_image=read_image,
    task="singlelabel",
    default_config=default_config,
    extensions=EXTENSIONS,
    sources=tuple(SOURCES),
    reader=reader,
)
