"""A bundle that knows something, made in a second: a random ViT whose head is solved for, on the images of ``toy``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.core import toy
from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Data, Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import subset
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.models.build import build_model

MODEL = Model(name="vit:Ti/8", channels=1, options={"depth": 2})
SPEC = PreprocessSpec(toy.SIZE, toy.SIZE, "letterbox", 1, (0.3,), (0.2,))


def validation(root: Path) -> ImageDataset:
    """The validation images of ``toy.write_images(root)``."""
    return ImageDataset(subset(toy.build_manifest(Data(root=str(root))), "val"), toy.read_image, SPEC)


def make(folder: Path, root: Path, spec: Model = MODEL, outliers: float = 1.0) -> Bundle:
    """A bundle in ``folder``, fitted to the training images of ``root``.

    With ``outliers`` one channel before each ``attn.qkv`` is that many times larger, and the weights that it meets as many times
    smaller: the same function, of which eight bits for all channels lose the rest.
    """
    torch.manual_seed(0)
    model = build_model(spec, len(toy.CLASSES), image_size=toy.SIZE).eval()
    images = ImageDataset(subset(toy.build_manifest(Data(root=str(root))), "train"), toy.read_image, SPEC)
    stored = torch.from_numpy(np.stack([images.image(i) for i in range(len(images))]))[:, None]
    with torch.no_grad():
        head = next(m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.endswith("head"))
        seen: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(normalise(stored, SPEC))
        hook.remove()
        features = torch.cat([seen[0], torch.ones(len(stored), 1)], dim=1).double()
        targets = 8 * torch.from_numpy(images.targets).double() - 4
        penalty = 30 * torch.eye(features.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(features.T @ features + penalty, features.T @ targets).float()
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
        for block in getattr(model, "blocks", ()):
            block.norm1.weight[0] *= outliers
            block.norm1.bias[0] *= outliers
            block.attn.qkv.weight[:, 0] /= outliers
    config = asdict(toy.config(root, folder.parent))
    bundle = Bundle(
        path=folder, domain="toy", task_kind="multilabel", classes=toy.CLASSES, model=spec, preprocess=SPEC, temperature=(1.5,),
        thresholds=(0.5, 0.4), threshold_rule="youden", metrics={}, data_card="squares",
        provenance={"config": config}, exports={}, files={},
    )  # fmt: skip
    return write_bundle(bundle, model.state_dict())
