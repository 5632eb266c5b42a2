"""A bundle whose answer is known: bright tiles are ``bright``, dark ones ``dark``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import Bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.geo.map.scene import LabelTiles
from vitdomains.core.geo.read.raster import read_window
from vitdomains.core.inference.predictor import Predictor

CLASSES = ("dark", "bright")


class Brightness(nn.Module):
    """Logits [B, 2] from the mean of an image [B, C, H, W] in 0..1: how far it is below and above a half."""

    def forward(self, images: Tensor) -> Tensor:
        excess = (images.float().mean(dim=(1, 2, 3)) - 0.5) * 20
        return torch.stack([-excess, excess], dim=1)


def bundle(kind: str = "singlelabel", size: int = 16, channels: int = 1, fill: float = 0.0) -> Bundle:
    return Bundle(
        path=Path("nowhere"), domain="satellite", task_kind=kind, classes=CLASSES, model=Model(name="brightness"),
        preprocess=PreprocessSpec(size, size, "squash", channels, (0.0,), (1.0,), "float32", fill), temperature=(1.0,),
        thresholds=(0.5, 0.5), threshold_rule="", metrics={}, data_card="squares", provenance={}, exports={}, files={},
    )  # fmt: skip


def read_pixels(path: str, window: tuple[int, int, int, int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    found = read_window(path, window)
    return found.pixels.transpose(1, 2, 0), found.valid


def worker(cell: int, made: Bundle | None = None, **options: object) -> LabelTiles:
    made = made or bundle()
    make = partial(Predictor, made, read_pixels, model=Brightness(), precision="fp32", device="cpu")
    return LabelTiles(make, read_pixels, cell, **options)  # type: ignore[arg-type]
