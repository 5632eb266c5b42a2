"""Tiles seen from above: sensors and bands, sources, scenes and maps. ``DOMAIN`` is what the shared commands need to know."""

from __future__ import annotations

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.data.endings import RASTERS
from vitdomains.core.domain import Deferred, Domain


def default_config() -> Config:
    """The main job: land use of aerial tiles in class folders, a pretrained ViT-Ti: ``configs/satellite/aid_vit_tiny.yaml``."""
    return Config(
        data=Data(sources=[Source(name="folders")], image_size=224, resize="squash", val_fraction=0.15, test_fraction=0.28),
        model=Model(name="timm:vit_tiny_patch16_224", weights="pretrained"),
        recipe=Recipe(epochs=8, batch_size=32, lr=5e-4, layer_decay=0.75, augment="overhead", label_smoothing=0.1),
        run=Run(dir="runs/satellite"),
    )  # fmt: skip


DOMAIN = Domain(
    name="satellite",
    title="Land use and land cover of tiles",
    build_manifest=Deferred("vitdomains.satellite.data.sources:build_manifest"),
    read_image=Deferred("vitdomains.satellite.data.reader:read_image"),
    task="singlelabel",
    default_config=default_config,
    extensions=RASTERS,
    sources=(
        "eurosat",
        "aid",
        "resisc45",
        "ucmerced",
        "rsscn7",
        "bigearthnet",
        "bigearthnet43",
        "folders",
        "tiles",
        "csv",
    ),
    reader=Deferred("vitdomains.satellite.data.reader:reader"),
    preprocess=Deferred("vitdomains.satellite.data.reader:complete_spec"),
)
