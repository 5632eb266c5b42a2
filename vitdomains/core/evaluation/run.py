"""A model against labelled images: calibration on the validation split, then the report and the floors beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from vitdomains.core.bundle import Bundle
from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.loading import batches
from vitdomains.core.data.manifest import labels
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.evaluation.baselines import floors, thumbnail
from vitdomains.core.evaluation.evaluate import evaluate
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.metrics.calibrate import choose_thresholds, fit_temperature
from vitdomains.core.tasks import Kind

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int, str], None]
"""Called with the name of the phase, what is done, what there is in all, and a short text."""

METADATA = ("view", "sex", "age", "width", "height", "sensor", "season")
"""Columns from which a model could guess without looking at the image."""


def calibrated(
    bundle: Bundle, model: nn.Module, domain: Domain, val: ImageDataset, config: Config, on_progress: OnProgress
) -> Bundle:
    """The bundle with temperature and thresholds, both from the validation split only."""
    recipe = config.recipe
    reader = domain_reader(domain, bundle.preprocess)
    predictor = Predictor(bundle, reader, batch_size=recipe.batch_size, model=model, threads=config.run.threads)
    logits, targets = logits_of(predictor, val, config, on_progress, "calibrate"), labels(val.manifest)
    temperature = fit_temperature(logits, targets, bundle.task_kind)
    scores = bundle.task.scores(logits, temperature)
    if bundle.task_kind == "singlelabel":
        return replace(bundle, temperature=temperature, threshold_rule="argmax")
    rule = (
        recipe.threshold_rule
        if recipe.threshold_rule in ("youden", "f1")
        else f"{recipe.threshold_rule}>={recipe.threshold_target}"
    )
    thresholds = choose_thresholds(targets, scores, recipe.threshold_rule, recipe.threshold_target)
    return replace(bundle, temperature=temperature, thresholds=thresholds, threshold_rule=rule)


def measure(
    predictor: Predictor, images: ImageDataset, config: Config, on_progress: OnProgress
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The report of a bundle on a data set, and the table of predictions behind it (id, group, labels, scores)."""
    bundle, table, classes = predictor.bundle, images.manifest.table, list(predictor.bundle.classes)
    targets, scores = (
        labels(images.manifest),
        predictor.scores(logits_of(predictor, images, config, on_progress, "test")),
    )
    columns = [c for c in config.run.subgroups if c in table]
    report = evaluate(
        targets, scores, table["group"].to_numpy(), bundle.classes, bundle.thresholds, bundle.task_kind,
        subgroup_columns=table[columns] if columns else None, bootstrap=config.run.bootstrap, seed=config.run.seed,
    )  # fmt: skip
    shown = table[["id", "group", "split", *columns]].copy()
    for k, name in enumerate(classes):
        shown[f"label:{name}"], shown[f"score:{name}"] = targets[:, k], scores[:, k]
    return report, shown


def floor_table(
    train: ImageDataset, held_out: ImageDataset, predictions: pd.DataFrame, kind: Kind, config: Config
) -> dict[str, Any]:
    """What shuffled labels, the metadata alone and a regression on 32 x 32 thumbnails reach on the same images."""
    tables = [images.manifest.table for images in (train, held_out)]
    known = [c for c in METADATA if c in tables[0]]
    return floors(
        train.targets, held_out.targets, predictions[[f"score:{c}" for c in held_out.manifest.classes]].to_numpy(),
        tables[1]["group"].to_numpy(), kind,
        train_groups=tables[0]["group"].to_numpy(), train_thumbnails=thumbnails(train), test_thumbnails=thumbnails(held_out),
        train_meta=tables[0][known] if known else None, test_meta=tables[1][known] if known else None,
        bootstrap=config.run.bootstrap, seed=config.run.seed,
    )  # fmt: skip


def logits_of(
    predictor: Predictor, images: ImageDataset, config: Config, on_progress: OnProgress, phase: str
) -> np.ndarray:
    """Logits [N, K] of a whole data set, in its order."""
    out = []
    for batch, _, _ in batches(
        images, config.recipe.batch_size, shuffle=False, seed=0, epoch=0, workers=config.run.workers
    ):
        out.append(predictor.logits(batch))
        on_progress(phase, sum(map(len, out)), len(images), "images")
    return np.concatenate(out)


def thumbnails(images: ImageDataset) -> np.ndarray:
    """Float32 [N, 32 * 32 * C] of the prepared images."""
    return np.stack([thumbnail(images.image(i)) for i in range(len(images))])
