"""The main job: a configuration and a domain in, a bundle out.

``Config -> Manifest -> split -> Dataset -> fit -> calibrate -> evaluate -> Bundle``. What the commands ``train`` and
``evaluate`` do, without the command line.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitdomains.core.bundle import Bundle, update_bundle, write_bundle
from vitdomains.core.config.parse import config_from_dict
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
from vitdomains.core.evaluation.card import model_card, provenance
from vitdomains.core.evaluation.evaluate import summary
from vitdomains.core.evaluation.external import ClassNames, class_names, home_figures, renamed_manifest
from vitdomains.core.evaluation.report import write_report
from vitdomains.core.evaluation.roles import (
    OF_SPLIT,
    PHRASES,
    UNTOUCHED,
    Rows,
    baselines_on_record,
    roles_of,
    rows_of,
    write_seen,
)
from vitdomains.core.evaluation.run import (
    UNREADABLE_SHARE,
    OnProgress,
    calibrate_bundle,
    evaluate_model,
    model_baselines,
)
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


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its bundle, the report, and what was measured on the way.

    ``bundle`` is None in the processes that trained beside the first one (``run.devices``), which writes it.
    """

    bundle: Bundle | None
    report: dict[str, Any]
    fit: FitResult | None = None
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Measured:
    """A report with the table of predictions behind it, explained examples (caption, PNG), and what the images are."""

    report: dict[str, Any]
    predictions: pd.DataFrame
    pictures: list[tuple[str, bytes]]
    rows: Rows


def train(domain: Domain, config: Config, on_progress: OnProgress = lambda phase, done, total, text: None) -> Outcome:
    """Run the main job; the bundle is ``run.dir/bundle``.

    Raises:
        VitDomainsError: With what to do; what earlier steps wrote stays and ``run.resume`` goes on from it.
    """
    run_dir = open_run_folder(config)
    torch.set_num_threads(config.run.threads or max(1, physical_cores() // config.run.devices))
    manifest = domain.build_manifest(config.data)
    spec = preprocess_spec(config, domain)
    cache = image_cache(config, spec)
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
        provenance=_provenance(config, manifest, fitted, describe(model)), exports={}, files={},
    )  # fmt: skip
    reader, threads = domain_reader(domain, spec), config.run.threads
    predictor = Predictor(bundle, reader, batch_size=config.recipe.batch_size, threads=threads, model=model)
    bundle = calibrate_bundle(predictor, val_set, config, on_progress)
    predictor = Predictor(bundle, reader, batch_size=config.recipe.batch_size, threads=threads, model=model)
    split = "test" if (manifest.table["split"] == "test").any() else "val"
    if split == "val":
        logger.warning(
            "There is no test split: the report is made on the images that chose the thresholds, and says so."
        )
    images = dataset(domain, subset(manifest, split), spec, cache, config)
    roles = np.full(len(images), OF_SPLIT[split], dtype=object)
    names = class_names(bundle, bundle.classes)
    measured = _measured(domain, predictor, images, roles, names, config, on_progress, split, train_set=train_set)
    rows = measured.rows

    def fill(folder: Path) -> None:
        write_seen(manifest, folder)
        _write(domain, measured, folder / rows.folder)
        write_text(folder / "MODEL_CARD.md", model_card(bundle, domain.title, domain.notice, measured.report))

    metrics = summary(measured.report) if rows.role == UNTOUCHED else {}
    written = write_bundle(replace(bundle, metrics=metrics), model.state_dict(), fill)
    return Outcome(written, measured.report, fitted, tuple(skipped))


def _measured(
    domain: Domain, predictor: Predictor, images: ImageDataset, roles: npt.NDArray[Any], names: ClassNames,
    config: Config, on_progress: OnProgress, split: str, *, home: bool = True, train_set: ImageDataset | None = None,
) -> Measured:  # fmt: skip
    bundle = predictor.bundle
    report, predictions, images = evaluate_model(predictor, images, roles, names, config, on_progress)
    rows = rows_of(predictions["role"].tolist(), split, home=home, data=images.manifest.name)
    report |= {"rows": rows.to_dict(), "names": {"renamed": dict(names.renamed), "notes": list(names.notes)}}
    found = {} if train_set else baselines_on_record(bundle, predictions)
    report["baselines"] = found or model_baselines(images, predictions, bundle.task_kind, config, train_set)
    shown = dataset(domain, select_classes(images.manifest, bundle.classes), images.spec, images.cache, config)
    pictures = example_pictures(
        predictor, shown, predictions, lambda done, total: on_progress("explain", done, total, "pictures")
    )
    return Measured(report, predictions, pictures, rows)


def _write(domain: Domain, measured: Measured, folder: Path) -> None:
    title = f"{domain.title}: {measured.rows.title}"
    facts = {"data": measured.rows.data, "split": measured.rows.split, "measured on": PHRASES[measured.rows.role]}
    write_report(measured.report, measured.predictions, folder, title=title, notice=domain.notice, facts=facts,
                 pictures=measured.pictures)  # fmt: skip


def dry_run(domain: Domain, config: Config) -> tuple[Manifest, dict[str, int]]:
    """Check the data and estimate the memory of a training step in bytes, by what it is for; nothing is trained or written."""
    manifest = domain.build_manifest(config.data)
    spec = preprocess_spec(config, domain)
    for caution in lint(config, n_images=len(subset(manifest, "train")), pretrained_size=None, domain=domain.name):
        logger.warning("recipe: %s", caution)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    return manifest, training_memory(model, spec, config)


def evaluate(
    domain: Domain,
    bundle: Bundle,
    config: Config,
    split: str = "",
    class_map: Mapping[str, str] | None = None,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> Measured:
    """Measure a bundle on any labelled data of its domain; nothing is written.

    Args:
        domain: The bundle's.
        bundle: On disk.
        config: ``data``: where the images are, and which ``classes`` of the bundle to measure. ``run``:
            seed, threads, bootstrap replicates and sub-groups.
        split: ``train``, ``val``, ``test`` or ``all``; empty: test of the data that the bundle was made from, all of others.
        class_map: Label of the data -> class of the bundle, or several joined by ``|`` where the label is coarser.
        on_progress: Told of each batch.

    Raises:
        ConfigError: The map names what is not there.
        ManifestError: The split is empty, data and bundle share no class, or a tenth of the images cannot be read.
    """
    manifest, roles, home = labelled_images(domain, bundle, config.data)
    asked = [] if config.data.classes == _trained_on(bundle).classes else config.data.classes
    names = class_names(bundle, manifest.classes, class_map, asked)
    manifest, known = renamed_manifest(manifest, names, bundle.task_kind)
    roles = roles[known]
    split = split or ("test" if home and bundle.provenance.get("manifest_sha256") else "all")
    chosen = np.ones(len(manifest), dtype=bool) if split == "all" else (manifest.table["split"] == split).to_numpy()
    if not chosen.any():
        found = ", ".join(f"{name or 'unassigned'}: {n}" for name, n in manifest.table["split"].value_counts().items())
        raise ManifestError(f"The {split} split is empty ({found}).", hint="Choose another --split, or all.")
    reader = domain_reader(domain, bundle.preprocess)
    predictor = Predictor(bundle, reader, batch_size=config.recipe.batch_size, threads=config.run.threads)
    images = dataset(domain, take(manifest, chosen), bundle.preprocess, None, config)
    measured = _measured(domain, predictor, images, roles[chosen], names, config, on_progress, split, home=home)
    if not home:
        measured.report["home"] = home_figures(bundle, measured.report)
    return measured


def write_evaluation(domain: Domain, bundle: Bundle, measured: Measured, out: Path | None = None) -> Path:
    """Write a report into ``out``, or into the bundle by what training did with its images, and return its folder.

    So none takes the place of the report on held-out images but one on held-out images of the same data set; the bundle's
    metrics and its card follow that one alone.
    """
    if out is not None:
        _write(domain, measured, out)
        return out
    held_out = measured.rows.folder == "report"

    def fill(folder: Path) -> None:
        _write(domain, measured, folder / measured.rows.folder)
        if held_out:
            write_text(folder / "MODEL_CARD.md", model_card(bundle, domain.title, domain.notice, measured.report))

    update_bundle(bundle, fill, **({"metrics": summary(measured.report)} if held_out else {}))
    return bundle.path / measured.rows.folder


def labelled_images(domain: Domain, bundle: Bundle, data: Data) -> tuple[Manifest, npt.NDArray[Any], bool]:
    """The data set of a configuration, the role of each image, and whether it is the one that the bundle was made from.

    Its classes are the bundle's at home, where the splits have to come out as in training; of other data all that it labels.
    """
    trained = _trained_on(bundle)
    if data.sources == trained.sources:
        try:
            manifest = domain.build_manifest(replace(data, classes=trained.classes))
        except ManifestError:
            if data.root == trained.root:
                raise
        else:
            same = replace(data, cache=trained.cache, cache_dir=trained.cache_dir) == trained
            roles, home = roles_of(bundle, manifest, same)
            if home:
                return manifest, roles, home
    manifest = domain.build_manifest(replace(data, classes=[], min_positives=0))
    return manifest, *roles_of(bundle, manifest)


def _trained_on(bundle: Bundle) -> Data:
    return config_from_dict(bundle.provenance["config"], check=False).data


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


def image_cache(config: Config, spec: PreprocessSpec) -> ImageCache | None:
    """Where prepared images are kept: as ``data.cache`` says, on disk in ``data.cache_dir`` or the run folder."""
    if config.data.cache == "none":
        return None
    folder = Path(config.data.cache_dir or Path(config.run.dir) / "cache")
    return ImageCache(spec, folder if config.data.cache == "disk" else None)


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


def _provenance(config: Config, manifest: Manifest, fitted: FitResult, model: ModelInfo) -> dict[str, Any]:
    """How the bundle came to be: versions, seed, configuration, data."""
    widths = manifest.table.get("width", pd.Series(dtype=float)).dropna()
    images = {str(name) or "unassigned": int(n) for name, n in manifest.table["split"].value_counts().items()}
    return provenance(
        config, model.weights, model.sha256, model.trainable, model.total, images,
        manifest_sha256=manifest_hash(manifest), groups=int(manifest.table["group"].nunique()),
        tile_pixels=int(widths.median()) if len(widths) else 0,
        best_epoch=fitted.best_epoch, best_validation=fitted.best,
    )  # fmt: skip
