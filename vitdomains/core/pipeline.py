"""The main job: a configuration and a domain in, a bundle out.

``Config -> Manifest -> split -> Dataset -> fit -> calibrate -> evaluate -> Bundle``. What the commands ``train`` and
``evaluate`` do, without the command line.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Config, Data
from vitdomains.core.config.warnings import lint
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset, warm
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.manifest import (
    Manifest,
    Skipped,
    labels,
    manifest_hash,
    select_classes,
    subset,
    take,
    write_skipped,
)
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.domain import Domain, domain_reader, task_kind
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation import card as cards
from vitdomains.core.evaluation.evaluate import summary
from vitdomains.core.evaluation.report import write_report
from vitdomains.core.evaluation.run import OnProgress, calibrated, floor_table, measure
from vitdomains.core.explain.render import example_pictures
from vitdomains.core.files import write_text
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.models.build import ModelInfo, build_model, default_mean_std, describe, portable_spec
from vitdomains.core.process import helps_another, physical_cores
from vitdomains.core.tasks import build_task
from vitdomains.core.training.distill import load_teacher
from vitdomains.core.training.loop import FitResult, fit
from vitdomains.core.training.memory import training_memory

logger = logging.getLogger(__name__)


UNREADABLE_SHARE = 0.1
"""Above this share of files that cannot be read, the folder or the reader is wrong, not the files."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its bundle, the report, and what was measured on the way.

    ``bundle`` is None in the processes that trained beside the first one (``run.devices``), which writes it.
    """

    bundle: Bundle | None
    report: dict[str, Any]
    fit: FitResult | None = None
    skipped: tuple[tuple[str, str], ...] = ()


def train(domain: Domain, config: Config, on_progress: OnProgress = lambda phase, done, total, text: None) -> Outcome:
    """Run the main job; the bundle is ``run.dir/bundle``.

    Raises:
        VitDomainsError: With what to do; what earlier steps wrote stays and ``run.resume`` goes on from it.
    """
    run_dir = open_run_folder(config)
    torch.set_num_threads(config.run.threads or max(1, physical_cores() // config.run.devices))
    manifest = domain.build_manifest(config.data)
    spec = preprocess_spec(config, domain)
    cache = None
    if config.data.cache != "none":
        cache = ImageCache(spec, cache_folder(config) if config.data.cache == "disk" else None)
    listed_in = None if helps_another() else run_dir
    manifest, skipped = drop_unreadable(domain, manifest, spec, cache, listed_in, on_progress)
    train_set = dataset(domain, subset(manifest, "train"), spec, cache, config, augmented=True)
    val_set = dataset(domain, subset(manifest, "val"), spec, cache, config)
    for split, part in (("train", train_set), ("val", val_set)):
        if not len(part):
            raise ManifestError(
                f"The {split} split is empty.", hint="Set data.val_fraction and data.test_fraction, or data.split."
            )

    for caution in lint(
        config, n_images=len(train_set), pretrained_size=None, domain=domain.name, positions_resampled=True
    ):
        logger.warning("recipe: %s", caution)
    kind = task_kind(domain, config.data)
    task = build_task(kind, manifest.classes, config.recipe, labels(train_set.manifest))
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    teacher = load_teacher(config, spec, manifest.classes) if config.recipe.teacher else None
    fitted = fit(model, task, train_set, val_set, spec, config, teacher=teacher,
                 on_progress=lambda done, total, text: on_progress("train", done, total, text))  # fmt: skip
    if fitted.rank:
        return Outcome(None, {}, fitted)

    bundle = Bundle(
        path=run_dir / "bundle", domain=domain.name, task_kind=kind, classes=manifest.classes,
        model=replace(portable_spec(config.model, model), image_size=spec.height), preprocess=spec, temperature=(1.0,),
        thresholds=(0.5,) * len(manifest.classes), threshold_rule="", metrics={}, data_card=manifest.name,
        provenance=provenance(config, manifest, fitted, describe(model)), exports={}, files={},
    )  # fmt: skip
    bundle = calibrated(bundle, model, domain, val_set, config, on_progress)
    held_out = subset(manifest, "test")
    if not len(held_out):
        logger.warning(
            "There is no test split: the report is made on the validation split, which chose the thresholds."
        )
        held_out = val_set.manifest
    test_set = dataset(domain, held_out, spec, cache, config)
    reader = domain_reader(domain, spec)
    predictor = Predictor(bundle, reader, batch_size=config.recipe.batch_size, model=model, threads=config.run.threads)
    report, predictions = measure(predictor, test_set, config, on_progress)
    report["floors"] = floor_table(train_set, test_set, predictions, kind, config)
    pictures = _explained(predictor, test_set, predictions, on_progress)
    bundle = replace(bundle, metrics=summary(report))
    card = cards.model_card(bundle, domain, report)

    def fill(folder: Path) -> None:
        title = f"{domain.title}: held-out test"
        write_report(report, predictions, folder / "report", title=title, notice=domain.notice, pictures=pictures)
        write_text(folder / "MODEL_CARD.md", card)

    return Outcome(write_bundle(bundle, model.state_dict(), fill), report, fitted, tuple(skipped))


def rehearse(domain: Domain, config: Config) -> tuple[Manifest, dict[str, int]]:
    """Check the data and estimate the memory of a training step in bytes, by what it is for; nothing is trained or written."""
    manifest = domain.build_manifest(config.data)
    spec = preprocess_spec(config, domain)
    for caution in lint(config, n_images=len(subset(manifest, "train")), pretrained_size=None, domain=domain.name):
        logger.warning("recipe: %s", caution)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    return manifest, training_memory(model, spec, config)


def assess(
    domain: Domain,
    bundle: Bundle,
    data: Data,
    split: str,
    config: Config,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[dict[str, Any], pd.DataFrame, list[tuple[str, bytes]]]:
    """Measure a bundle on any data of its domain: the report, the predictions behind it, and explained examples.

    The floors of training stand in the report where the images are those that they were measured on.

    Args:
        data: Where the images are; classes are the bundle's, and those that this data does not label count nowhere.
        split: ``train``, ``val``, ``test`` or ``all``.
        config: Seed, bootstrap replicates and sub-groups.

    Raises:
        ManifestError: The split is empty.
    """
    manifest = domain.build_manifest(replace(data, classes=list(bundle.classes)))
    part = manifest if split == "all" else subset(manifest, split)
    if not len(part):
        found = ", ".join(f"{name or 'unassigned'}: {n}" for name, n in manifest.table["split"].value_counts().items())
        raise ManifestError(f"The {split} split is empty ({found}).", hint="Choose another --split, or all.")
    part = select_classes(part, bundle.classes)
    reader = domain_reader(domain, bundle.preprocess)
    predictor = Predictor(bundle, reader, batch_size=config.recipe.batch_size, threads=config.run.threads)
    part, _ = drop_unreadable(
        domain, part, bundle.preprocess, cache := ImageCache(bundle.preprocess), None, on_progress
    )
    images = dataset(domain, part, bundle.preprocess, cache, config)
    report, predictions = measure(predictor, images, config, on_progress)
    report["floors"] = _floors_on_record(bundle, predictions)
    return report, predictions, _explained(predictor, images, predictions, on_progress)


def _explained(
    predictor: Predictor, images: ImageDataset, predictions: pd.DataFrame, on_progress: OnProgress
) -> list[tuple[str, bytes]]:
    return example_pictures(
        predictor, images, predictions, lambda done, total: on_progress("explain", done, total, "pictures")
    )


def _floors_on_record(bundle: Bundle, predictions: pd.DataFrame) -> dict[str, Any]:
    """The floors in the bundle's report, where it is on the same images; floors are made from the training split."""
    there = bundle.path / "report"
    try:
        measured = pd.read_csv(there / "predictions.csv", usecols=["id"], dtype=str)["id"]
        floors: dict[str, Any] = json.loads((there / "report.json").read_text(encoding="utf-8")).get("floors", {})
    except (OSError, ValueError):
        return {}
    return floors if sorted(measured) == sorted(predictions["id"].astype(str)) else {}


def open_run_folder(config: Config) -> Path:
    """The run folder, made where absent.

    Raises:
        ConfigError: It holds another run, and neither ``run.resume`` nor ``run.overwrite`` is set.
    """
    folder = Path(config.run.dir)
    held = [name for name in ("checkpoint", "bundle") if (folder / name).exists()]
    if held and config.run.overwrite:
        # The cache of decoded images is right for any run; weights, logs and results are not.
        for name in ("checkpoint", "bundle", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "log.csv").unlink(missing_ok=True)
    elif held and not config.run.resume:
        raise ConfigError(
            f"run.dir = {folder} holds a run already ({', '.join(held)}).",
            hint="Go on with --run.resume true, start anew with --run.overwrite true, or choose another --run.dir.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_folder(config: Config) -> Path:
    """Where decoded images and frozen tokens are kept."""
    return Path(config.data.cache_dir or Path(config.run.dir) / "cache")


def preprocess_spec(config: Config, domain: Domain) -> PreprocessSpec:
    """The one description of how images become input, from the configuration and what the weights expect."""
    size = config.model.image_size or config.data.image_size
    mean, std = (config.data.mean, config.data.std) if config.data.mean else default_mean_std(config.model)
    spec = PreprocessSpec(
        size, size, config.data.resize, config.model.channels, tuple(mean), tuple(std), domain.storage
    )
    return domain.preprocess(config, spec) if domain.preprocess else spec


def dataset(
    domain: Domain,
    part: Manifest,
    spec: PreprocessSpec,
    cache: ImageCache | None,
    config: Config,
    *,
    augmented: bool = False,
) -> ImageDataset:
    """The images of one split."""
    recipe = config.recipe
    augment = build_augment(recipe, spec.storage) if augmented else None
    regions = domain.read_regions if augmented and recipe.region_weight else None
    return ImageDataset(part, domain_reader(domain, spec), spec, cache=cache, augment=augment, seed=config.run.seed,
                        read_regions=regions, region_grid=recipe.region_grid)  # fmt: skip


def drop_unreadable(
    domain: Domain,
    manifest: Manifest,
    spec: PreprocessSpec,
    cache: ImageCache | None,
    run_dir: Path | None,
    on_progress: OnProgress,
) -> tuple[Manifest, list[tuple[str, str]]]:
    """Read every image once, which fills the cache, and leave out those that cannot be read.

    They and what the sources left out (``Manifest.skipped``) are listed in ``skipped.csv`` of the run folder.

    Raises:
        ManifestError: More than a tenth cannot be read: that is not a few bad files but a wrong folder or reader.
    """
    if run_dir is not None:
        write_skipped(manifest, run_dir / "skipped.csv")
    if cache is None:
        return manifest, []
    everything = ImageDataset(manifest, domain_reader(domain, spec), spec, cache=cache, augment=None, seed=0)
    skipped = warm(everything, progress=lambda done, total: on_progress("read", done, total, "images"))
    if not skipped:
        return manifest, []
    bad = {identity for identity, _ in skipped}
    if run_dir is not None:
        unread = tuple(Skipped(error, (identity,)) for identity, error in skipped)
        write_skipped(replace(manifest, skipped=(*manifest.skipped, *unread)), run_dir / "skipped.csv")
    logger.warning(
        "%d of %d images cannot be read and are left out; the first: %s", len(bad), len(manifest), skipped[0][1]
    )
    if len(bad) > UNREADABLE_SHARE * len(manifest):
        raise ManifestError(
            f"{len(bad)} of {len(manifest)} images cannot be read; the first: {skipped[0][1]}",
            hint="Check data.root and the source; all are listed in skipped.csv of the run folder.",
        )
    return take(manifest, ~manifest.table["id"].isin(bad).to_numpy()), skipped


def provenance(config: Config, manifest: Manifest, fitted: FitResult, model: ModelInfo) -> dict[str, Any]:
    """How the bundle came to be: versions, seed, configuration, data."""
    widths = manifest.table.get("width", pd.Series(dtype=float)).dropna()
    packages = ("vitdomains", "torch", "timm", "transformers", "numpy", "pydicom", "albumentations", "lightning-fabric")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": versions,
        "seed": config.run.seed,
        "weights": {"file": Path(model.weights).name, "sha256": model.sha256},
        "parameters": {"trained": model.trainable, "total": model.total},
        "config": asdict(config),
        "manifest_sha256": manifest_hash(manifest),
        "images": {name or "unassigned": int(n) for name, n in manifest.table["split"].value_counts().items()},
        "groups": int(manifest.table["group"].nunique()),
        "tile_pixels": int(widths.median()) if len(widths) else 0,
        "best_epoch": fitted.best_epoch,
        "best_validation": fitted.best,
    }
