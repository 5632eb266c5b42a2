"""A teacher to distil from: a bundle, or any model with weights."""

from __future__ import annotations

from pathlib import Path

import torch

from vitdomains.core.backbones import build_model, default_mean_std
from vitdomains.core.bundle import load_model, read_bundle
from vitdomains.core.config import Config, Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.feeds import Forward
from vitdomains.core.preprocess import PreprocessSpec


def load_teacher(config: Config, spec: PreprocessSpec, classes: tuple[str, ...]) -> Forward:
    """Logits [B, K] of the teacher for images as the student gets them.

    The student's normalisation is undone and the teacher's applied, so the two may come from different schools.

    Raises:
        ConfigError: The teacher's classes are not the student's, or it was given no weights.
    """
    name = config.recipe.teacher
    if (Path(name) / "bundle.json").is_file():
        bundle = read_bundle(name)
        if bundle.classes != classes:
            raise ConfigError(
                f"The teacher {name} knows {', '.join(bundle.classes)}.",
                hint=f"Set data.classes to these, or train one for {', '.join(classes)}.",
            )
        model, mean, std, size = (
            load_model(bundle),
            bundle.preprocess.mean,
            bundle.preprocess.std,
            bundle.preprocess.height,
        )
    else:
        if not config.recipe.teacher_weights:
            raise ConfigError(
                f"recipe.teacher = {name!r} has no weights.",
                hint="Set recipe.teacher_weights, or name a bundle that was trained on these classes.",
            )
        teacher = Model(name=name, weights=config.recipe.teacher_weights, channels=config.model.channels)
        size = spec.height
        model, (mean, std) = build_model(teacher, len(classes), image_size=size), default_mean_std(teacher)
    model = model.eval().requires_grad_(False)

    def forward(images: torch.Tensor) -> torch.Tensor:
        model.to(images.device)
        shift = [images.new_tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std, mean, std)]
        raw = images * shift[1] + shift[0]
        if images.shape[-1] != size:
            raw = torch.nn.functional.interpolate(raw, (size, size), mode="bilinear", antialias=True)
        logits: torch.Tensor = model((raw - shift[2]) / shift[3])
        return logits

    return forward
