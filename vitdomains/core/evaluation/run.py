"""A model on labelled images: calibration on the validation split, the report, and the baselines beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitdomains.core.bundle import Bundle
from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import labels, take
from vitdomains.core.data.preprocess import thumbnail
from vitdomains.core.errors import ImageError, ManifestError, VitDomainsError
from vitdomains.core.evaluation.baselines import Sample, baselines
from vitdomains.core.evaluation.evaluate import evaluate, predictions_table
from vitdomains.core.evaluation.external import ClassNames
from vitdomains.core.inference.predictor import Predictor, ahead, batched
from vitdomains.core.metrics.calibrate import choose_thresholds, fit_temperature
from vitdomains.core.tasks import Kind

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int, str], None]
"""Called with the name of the phase, what is done, what there is in all, and a short text."""

METADATA = ("view", "sex", "age", "width", "height", "sensor", "season")
"""Columns from which a model could guess without looking at the image."""
UNREADABLE_SHARE = 0.1
"""Above this share of files that cannot be read, the folder or the reader is wrong, not the files."""


def calibrate_bundle(predictor: Predictor, val: ImageDataset, config: Config, on_progress: OnProgress) -> Bundle:
    """The bundle with temperature and thresholds, both from the validation split only.

    Raises:
        VitDomainsError: More than a tenth of the validation images have no finite logits.
    """
    recipe, bundle = config.recipe, predictor.bundle
    logits, errors = run_model(predictor, val, on_progress, "calibrate")
    good = check_errors(errors)
    logits, targets = logits[good], labels(val.manifest)[good]
    temperature = fit_temperature(logits, targets, bundle.task_kind)
    scores = bundle.task.scores(logits, temperature)
    if bundle.task_kind == "singlelabel":
        return replace(bundle, temperature=temperature, threshold_rule="argmax")
    aimed = recipe.threshold_rule not in ("youden", "f1")
    rule = f"{recipe.threshold_rule}>={recipe.threshold_target}" if aimed else recipe.threshold_rule
    thresholds = choose_thresholds(targets, scores, recipe.threshold_rule, recipe.threshold_target)
    return replace(bundle, temperature=temperature, thresholds=thresholds, threshold_rule=rule)


def evaluate_model(
    predictor: Predictor,
    images: ImageDataset,
    roles: npt.NDArray[Any],
    names: ClassNames,
    config: Config,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], pd.DataFrame, ImageDataset]:
    """A bundle on labelled images, in one pass that holds a few batches at a time.

    Args:
        predictor: The bundle at work.
        images: N images; their classes are those of ``names``.
        roles: [N] what training did with each, see ``roles``.
        names: How they come from the bundle's.
        config: Sub-groups, bootstrap replicates and seed.
        on_progress: Told of each batch.

    Returns:
        The report; the table of predictions behind it (id, group, split, role, labels, scores); the images in it. An image
        that cannot be read or has no finite scores is left out and counted in ``report["errors"]``.

    Raises:
        VitDomainsError: More than a tenth have no scores.
    """
    logits, errors = run_model(predictor, images, on_progress, "test")
    good = check_errors(errors)
    part = take(images.manifest, good)
    bundle, table = predictor.bundle, part.table
    targets, scores = labels(part), names.scores(predictor.scores(logits[good]), bundle.task_kind)
    columns = [c for c in config.run.subgroups if c in table and c not in names.classes]
    report = evaluate(
        targets, scores, table["group"].to_numpy(), names.classes, names.thresholds(bundle.thresholds), bundle.task_kind,
        subgroup_columns=table[columns] if columns else None, bootstrap=config.run.bootstrap, seed=config.run.seed,
    )  # fmt: skip
    wrong = np.flatnonzero(~good)
    ids = images.manifest.table["id"]
    report["errors"] = {"n": len(wrong), "first": [f"{ids.iloc[i]}: {errors[i]}" for i in wrong[:5]]}
    further = table[["split", *columns]].assign(role=roles[good])
    predictions = predictions_table(table["id"], targets, scores, names.classes, groups=table["group"], further=further)
    return report, predictions, ImageDataset(part, images.read_image, images.spec, cache=images.cache)


def run_model(
    predictor: Predictor, images: ImageDataset, on_progress: OnProgress, phase: str
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Logits [N, K] of a data set in its order, and N errors: why an image has none, empty where it has.

    Images are decoded beside the computation: on a CPU by streams that each read and compute a batch of their own.
    """

    def load(index: int) -> npt.NDArray[Any] | str:
        try:
            image = images.image(index)
        except ImageError as error:
            return str(error)
        return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))

    streams = predictor.streams

    def compute(loaded: Sequence[npt.NDArray[Any] | str]) -> tuple[npt.NDArray[np.float32], list[str]]:
        out = np.full((len(loaded), len(predictor.bundle.classes)), np.nan, np.float32)
        errors = [image if isinstance(image, str) else "" for image in loaded]
        # Grey and colour files may stand in one data set; each goes through as what it is.
        for channels in {image.shape[0] for image in loaded if not isinstance(image, str)}:
            rows = [i for i, image in enumerate(loaded) if not isinstance(image, str) and image.shape[0] == channels]
            stacked = torch.from_numpy(np.stack([np.asarray(loaded[i]) for i in rows]))
            out[rows] = predictor.logits(stacked, streams=streams)
            for i in rows:
                if not np.isfinite(out[i]).all():
                    errors[i] = "the model gives no finite logits for it"
        return out, errors

    def batches() -> Iterator[tuple[npt.NDArray[np.float32], list[str]]]:
        indices = batched(range(len(images)), predictor.stream_batch)
        if streams > 1:
            yield from predictor.in_streams(lambda batch: compute([load(i) for i in batch]), indices)
        else:
            decoded = ahead(load, range(len(images)), predictor.threads, 2 * predictor.batch_size)
            yield from map(compute, batched(decoded, predictor.batch_size))

    logits: list[npt.NDArray[np.float32]] = []
    errors: list[str] = []
    for part, why in batches():
        logits.append(part)
        errors += why
        on_progress(phase, len(errors), len(images), "images")
    return np.concatenate(logits), errors


def check_errors(errors: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which images have scores, [N]; a few that have none are a warning.

    Raises:
        VitDomainsError: They are more than a tenth.
    """
    good = np.array([not error for error in errors], dtype=np.bool_)
    if good.all():
        return good
    first, count = next(filter(None, errors)), int((~good).sum())
    text = f"{count} of {len(good)} images have no scores"
    if count > UNREADABLE_SHARE * len(good):
        unreadable = "finite" not in first
        hint = "Check data.root and the source." if unreadable else "The weights are damaged, or training diverged."
        raise (ManifestError if unreadable else VitDomainsError)(f"{text}; the first: {first}", hint=hint)
    logger.warning("%s and are left out; the first: %s", text, first)
    return good


def model_baselines(
    images: ImageDataset, predictions: pd.DataFrame, kind: Kind, config: Config, train: ImageDataset | None = None
) -> dict[str, Any]:
    """What shuffled labels, the metadata alone and a regression on 32 x 32 thumbnails reach on the same images.

    Without a training split the two regressions are cross-validated on the images themselves.
    """

    def sample(data: ImageDataset) -> Sample:
        table, classes = data.manifest.table, data.manifest.classes  # a class may be called view
        known = [
            c for c in METADATA if c in table and c not in classes and (train is None or c in train.manifest.table)
        ]
        metadata = table[known] if known else None
        targets = labels(data.manifest).astype(np.float64)
        return Sample(targets, table["group"].to_numpy(), lambda rows: thumbnails(data, rows), metadata)

    scores = predictions[[f"score:{c}" for c in images.manifest.classes]].to_numpy()
    return baselines(sample(images), scores, kind, None if train is None else sample(train),
                     bootstrap=config.run.bootstrap, seed=config.run.seed)  # fmt: skip


def thumbnails(images: ImageDataset, rows: Sequence[int] | npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """[n, 32 * 32 * C] of prepared images; grey ones among colour ones are repeated to theirs."""
    small = [thumbnail(images.image(int(i))).ravel() for i in rows]
    width = max(map(len, small))
    return np.array([part if len(part) == width else np.repeat(part, width // len(part)) for part in small], np.float64)
