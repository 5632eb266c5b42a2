"""What a frozen backbone knows before it is trained on the task: a linear probe and a k-NN vote on its pooled features.

Beside the main job: ``python -m vitdomains.DOMAIN probe`` measures any backbone of ``build_model`` on any data of the domain,
with the same splits, preprocessing and metrics as a training run that it is to be compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning_fabric
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from vitdomains.core import pipeline
from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.loading import batches
from vitdomains.core.data.manifest import Manifest, labels, subset
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.domain import Domain, task_kind
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.baselines import METRICS, logistic_scores
from vitdomains.core.evaluation.label_errors import held_out_scores, label_errors
from vitdomains.core.evaluation.run import OnProgress
from vitdomains.core.metrics.bootstrap import Draws, draw, estimate, replicate
from vitdomains.core.metrics.scores import Array
from vitdomains.core.models.build import TransformersClassifier, build_model, describe
from vitdomains.core.models.vit import VisionTransformer
from vitdomains.core.process import has_fast_bf16, physical_cores
from vitdomains.core.tasks import Kind

logger = logging.getLogger(__name__)

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C tried for the linear probe, on standardised features."""
TEMPERATURE = 0.07
"""Of the votes of the neighbours (Wu et al. 2018; Caron et al. 2021)."""


@dataclass(frozen=True)
class Probe:
    """What the probes of one backbone reached on the test split.

    ``scores`` are probabilities [M, K] by probe (``linear``, ``knn``); ``values`` the metrics of each as
    ``{value, low, high}``; ``strength`` the C that the validation split chose.
    """

    scores: dict[str, Array]
    values: dict[str, dict[str, dict[str, float]]]
    strength: float
    features: int


def headless(model: nn.Module) -> nn.Module:
    """Take the head off a model of ``build_model``, in place: [B,C,height,width] -> pooled features [B,D], as the head sees them.

    Raises:
        ConfigError: The model pools logits and not features.
    """
    foreign: Any = model
    if isinstance(model, VisionTransformer):
        if model.combine is not None:
            raise ConfigError("pool: lse has no pooled features.", hint="Set model.options to {pool: token+avg}.")
        model.head = nn.Identity()
        model.head_dist = nn.Identity() if model.head_dist is not None else None
    elif isinstance(model, TransformersClassifier):
        for prefix in model.head_prefixes():
            model.set_submodule(prefix.rstrip("."), nn.Identity())
    else:
        foreign.reset_classifier(0)
    return model.eval()


@torch.inference_mode()
def pooled_features(
    model: nn.Module, images: ImageDataset, spec: PreprocessSpec, device: torch.device, batch_size: int,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Features [N, D] of a headless model for every image, without augmentation."""
    rows: list[npt.NDArray[np.float32]] = []
    model.to(device)
    fast = device.type == "cuda" or has_fast_bf16()
    for batch, _, _ in batches(images.without_augmentation(), batch_size, shuffle=False, seed=0, epoch=0):
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            rows.append(model(normalise(batch.to(device), spec)).float().cpu().numpy())
        on_progress("features", sum(map(len, rows)), len(images), "images")
    return np.concatenate(rows)


def knn_scores(
    x: Array, y: Array, x_new: Array, k: int = 20, temperature: float = TEMPERATURE, *, chunk: int = 1024
) -> Array:
    """Share [M, K] of the weighted votes of the ``k`` nearest training images for each class.

    Neighbours are those of highest cosine similarity s, and vote with weight exp(s / temperature) (Wu et al. 2018, section
    3.4; Caron et al. 2021, DINO, appendix F.1). With several labels an image, each class is voted on by the neighbours whose
    label is known; where none is, the share of positives stands.

    Args:
        x: Training features [N, D].
        y: Training labels [N, K]: 1, 0 or NaN.
        x_new: Features [M, D].
        k: Neighbours; all, where there are fewer.
        temperature: Smaller: the nearest decide alone.
        chunk: Rows of ``x_new`` that are compared at a time.
    """
    unit, unit_new = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (x, x_new))
    k = min(k, len(x))
    known, positive = ~np.isnan(y), np.nan_to_num(y)
    prior = positive.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    out = np.empty((len(x_new), y.shape[1]))
    for first in range(0, len(x_new), chunk):
        similarity = unit_new[first : first + chunk] @ unit.T  # [m, N]
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]  # [m, k]
        best = np.take_along_axis(similarity, nearest, axis=1)
        # Less the largest, which changes no share, so that no weight overflows.
        votes = np.exp((best - best.max(axis=1, keepdims=True)) / temperature)[:, :, None]
        cast = (votes * known[nearest]).sum(axis=1)  # [m, K]
        won = (votes * positive[nearest]).sum(axis=1)
        out[first : first + chunk] = np.where(cast > 0, won / np.where(cast > 0, cast, 1), prior)
    return out


def linear_probe(x: Array, y: Array, x_val: Array, y_val: Array, x_new: Array, kind: Kind) -> tuple[Array, float]:
    """Probabilities [M, K] of logistic regression on standardised features, and the C that was best on the validation split."""
    scaler = StandardScaler().fit(x)
    z, z_val, z_new = (scaler.transform(a) for a in (x, x_val, x_new))
    lead = next(iter(METRICS[kind].values()))
    merits = [lead(y_val, logistic_scores(z, y, z_val, kind, c, max_iter=1000)) for c in STRENGTHS]
    strength = STRENGTHS[int(np.argmax(np.nan_to_num(merits, nan=-1.0)))]
    return logistic_scores(z, y, z_new, kind, strength, max_iter=1000), strength


def probe(
    domain: Domain, config: Config, k: int = 20, on_progress: OnProgress = lambda phase, done, total, text: None
) -> tuple[Probe, dict[str, Any]]:
    """Measure the frozen backbone of ``config.model`` on the data of ``config.data``; nothing is trained but the probes.

    Returns:
        The probes, and what they were made from: model, weights, images, C, k.

    Raises:
        ManifestError: A split is empty.
        ConfigError: The model has no pooled features.
    """
    torch.set_num_threads(config.run.threads or physical_cores())
    manifest, spec = domain.build_manifest(config.data), pipeline.preprocess_spec(config, domain)
    kind = task_kind(domain, config.data)
    model = build_model(replace(config.model, head="linear"), len(manifest.classes), image_size=spec.height)
    info = describe(model)
    device = lightning_fabric.Fabric(accelerator=config.run.accelerator, devices=1).device
    cache = pipeline.image_cache(config, spec)
    manifest, _ = pipeline.drop_unreadable(domain, manifest, spec, cache, None, on_progress)
    parts = {split: _part(domain, manifest, split, spec, cache, config) for split in ("train", "val", "test")}
    headless(model)
    size = config.recipe.batch_size
    x = {s: pooled_features(model, part, spec, device, size, on_progress).astype(float) for s, part in parts.items()}
    y = {s: part.targets.astype(float) for s, part in parts.items()}
    linear, strength = linear_probe(x["train"], y["train"], x["val"], y["val"], x["test"], kind)
    scores = {"linear": linear, "knn": knn_scores(x["train"], y["train"], x["test"], k)}
    draws = draw(parts["test"].manifest.table["group"], config.run.bootstrap, config.run.seed)
    values = {name: _values(y["test"], s, draws, kind) for name, s in scores.items()}
    made = {
        "model": asdict(replace(config.model, weights=Path(config.model.weights).name)),
        "weights_sha256": info.sha256,
        "parameters": info.total,
        "image_size": spec.height,
        "features": x["train"].shape[1],
        "images": {split: len(part) for split, part in parts.items()},
        "data": manifest.name,
        "k": k,
        "temperature": TEMPERATURE,
        "c": strength,
    }
    return Probe(scores, values, strength, x["train"].shape[1]), made


def backbone_features(
    domain: Domain, config: Config, manifest: Manifest, on_progress: OnProgress = lambda phase, done, total, text: None
) -> npt.NDArray[np.float64]:
    """Pooled features [N, D] of the frozen backbone of ``config.model`` for every image of a manifest.

    Raises:
        ImageError: An image cannot be read.
        ConfigError: The model has no pooled features.
    """
    torch.set_num_threads(config.run.threads or physical_cores())
    spec = pipeline.preprocess_spec(config, domain)
    model = headless(build_model(replace(config.model, head="linear"), len(manifest.classes), image_size=spec.height))
    device = lightning_fabric.Fabric(accelerator=config.run.accelerator, devices=1).device
    images = pipeline.dataset(domain, manifest, spec, None, config)
    return pooled_features(model, images, spec, device, config.recipe.batch_size, on_progress).astype(float)


def doubtful_labels(
    domain: Domain, config: Config, manifest: Manifest, on_progress: OnProgress = lambda phase, done, total, text: None
) -> pd.DataFrame:
    """The queue of ``label_errors`` for a manifest: its labels against those that ``backbone_features`` suggest, by folds of its
    groups; images that cannot be read are left out.

    Raises:
        ManifestError: Too many images cannot be read, or there are fewer than two groups.
    """
    kind, cache = task_kind(domain, config.data), ImageCache(pipeline.preprocess_spec(config, domain), None)
    manifest, _ = pipeline.drop_unreadable(domain, manifest, cache.spec, cache, None, on_progress)
    x, y = backbone_features(domain, config, manifest, on_progress), labels(manifest).astype(float)
    scores = held_out_scores(x, y, kind, list(manifest.table["group"]), seed=config.run.seed)
    return label_errors(list(manifest.table["id"]), y, scores, manifest.classes, kind)


def _part(
    domain: Domain, m: Manifest, split: str, spec: PreprocessSpec, cache: ImageCache | None, config: Config
) -> ImageDataset:
    part = pipeline.dataset(domain, subset(m, split), spec, cache, config)
    if not len(part):
        raise ManifestError(
            f"The {split} split is empty.", hint="Set data.val_fraction and data.test_fraction, or data.split."
        )
    return part


def _values(y: Array, scores: Array, draws: Draws, kind: Kind) -> dict[str, dict[str, float]]:
    used = METRICS[kind]
    found = replicate(lambda w: {name: metric(y, scores, weight=w) for name, metric in used.items()}, draws)
    none: Mapping[str, Array] = dict.fromkeys(used, np.empty(0))
    return {name: estimate(metric(y, scores), (found or none)[name]) for name, metric in used.items()}
