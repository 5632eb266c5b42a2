"""The labelling job: embed new tiles, compare with the classes' texts, write tables, sheets and a bundle; and its accuracy.

    out/tiles/part-00000.parquet ...   the tile table of core/geo/map/tiles_table.py, GeoParquet where tiles have a place
    out/labels.csv  summary.csv  errors.csv  skipped.csv  sheets/CLASS.png  prompts.json  run.json  bundle/  index/

Stopped at any moment, the same call goes on; with other classes only the comparison is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.bundle import Bundle
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.evaluate import evaluate, predictions_table
from vitdomains.core.files import new_folder, write_text
from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.core.geo.map.tiles_table import tile_table
from vitdomains.core.geo.map.vectors import write_geoparquet
from vitdomains.core.jobs.pool import MakeWorker
from vitdomains.core.terminal import OnProgress
from vitdomains.zeroshot.embeddings.run import MakeEmbedder, about_towers, make_work
from vitdomains.zeroshot.embeddings.store import Index, TilePlan, add_tiles, open_index, tile_keys
from vitdomains.zeroshot.labels.classify import Classifier, calibrated, corrected_for_prior, decide, reweighted
from vitdomains.zeroshot.labels.outputs import (
    Examples,
    Summary,
    contact_sheets,
    label_list,
    write_label_bundle,
    write_totals,
)
from vitdomains.zeroshot.labels.prompts import (
    PromptSet,
    class_embeddings,
    random_word_prompts,
    remembering,
    single_prompt,
)
from vitdomains.zeroshot.models.towers import Towers

CHUNK = 8192
PART = 6 * CHUNK
"""Tiles a file of the table."""


@dataclass(frozen=True)
class Options:
    """How labels are made of probabilities.

    Attributes:
        scores: softmax (one class a tile), sigmoid (any number), or auto: what the checkpoint was trained for.
        threshold: Probability below which a class is not called, 0..1; below 0: 0 for a softmax, which calls every tile, and
            0.5 for a sigmoid.
        prior: Correct each scene (all files together) for its own class shares.
        min_valid: Share of a tile that has to hold data, else it gets no label, 0..1.
        top_k: Classes listed in ``labels.csv``.
        sheets: Draw contact sheets.
    """

    scores: Literal["auto", "softmax", "sigmoid"] = "auto"
    threshold: float = -1.0
    prior: bool = False
    min_valid: float = 0.25
    top_k: int = 3
    sheets: bool = True


@dataclass(frozen=True)
class Compute:
    """With what tiles are embedded; see ``MakeEmbedder`` and ``ComputeOptions``."""

    means: ComputeOptions = field(default_factory=ComputeOptions)
    precision: str = "auto"
    batch_size: int = 32
    readers: int = 2
    device: str = "auto"


DEFAULT_OPTIONS = Options()
DEFAULT_COMPUTE = Compute()


@dataclass(frozen=True)
class Labelled:
    """What a job left: its folder, its bundle, tiles by label, and the errors by tile."""

    folder: Path
    bundle: Bundle
    summary: Summary

    @property
    def errors(self) -> dict[str, str]:
        """Tile id, or path of a scene -> why it could not be read."""
        return self.summary.unread | self.summary.errors


def embed_tiles(
    towers: Towers,
    plan: TilePlan,
    folder: Path,
    compute: Compute = DEFAULT_COMPUTE,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[Index, list[str], dict[str, str]]:
    """Bring tiles into the index in ``folder``: the index, the key of each tile, and the error of each key that has one."""
    about = about_towers(towers, compute.precision, compute.device)
    index = open_index(folder, about)
    job = MakeEmbedder(about, compute.batch_size, compute.readers, compute.device)

    def make_worker() -> MakeWorker:
        # In this process the model is there already; elsewhere each worker loads it.
        return (lambda: make_work(job, lambda: towers.image)) if compute.means.executor == "inline" else job

    keys = tile_keys(
        plan.table, folder / "files.parquet", lambda done, total: on_progress("hash", done, total, "files")
    )
    index, errors = add_tiles(index, plan.table, keys, make_worker, compute.means, on_progress)
    return index, keys, errors


def text_classifier(
    towers: Towers, prompts: PromptSet, options: Options, memory: Path | None = None, precision: str = "fp32"
) -> Classifier:
    """The classes' texts as a classifier; ``memory`` is a folder in which embeddings of texts are kept."""
    kind = towers.kind if options.scores == "auto" else options.scores
    default = 0.0 if kind == "softmax" else 0.5
    threshold = options.threshold if options.threshold >= 0 else default

    def encode(texts: Any) -> npt.NDArray[np.float32]:
        return np.asarray(towers.text.encode(texts, bf16=precision == "bf16").numpy(), dtype=np.float32)

    known = remembering(encode, memory / f"texts-{towers.id}-{precision}.parquet") if memory else encode
    weights = np.float32(towers.logit_scale) * class_embeddings(prompts, known)
    bias = np.full(len(weights), towers.logit_bias, np.float32)
    return Classifier(prompts, weights, bias, kind, (threshold,) * len(weights))


def label_tiles(
    towers: Towers,
    prompts: PromptSet,
    plan: TilePlan,
    out: str | Path,
    *,
    index_folder: str | Path = "",
    options: Options = DEFAULT_OPTIONS,
    sample: tuple[TilePlan, npt.NDArray[np.float64]] | None = None,
    compute: Compute = DEFAULT_COMPUTE,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> Labelled:
    """Label tiles.

    Args:
        towers: The model.
        prompts: The classes.
        plan: The tiles.
        out: Folder to write; what an earlier labelling left there is replaced file by file.
        index_folder: Of the embeddings; empty: ``out/index``.
        options: How labels are made.
        sample: Labelled tiles for temperature and thresholds: their plan, and targets [N, K].
        compute: With what.
        on_progress: Called with phases "hash", "tiles", "label".

    Raises:
        VitDomainsError: As the steps do; what was embedded stays.
    """
    _check(options)
    folder = Path(out)
    index_folder = Path(index_folder) if index_folder else folder / "index"
    index, keys, errors = embed_tiles(towers, plan, index_folder, compute, on_progress)
    classifier = text_classifier(towers, prompts, options, index_folder, index.about.precision)
    if sample is not None:
        index, sample_keys, _ = embed_tiles(towers, sample[0], index_folder, compute, on_progress)
        classifier = calibrated(classifier, index.take(index.find(sample_keys))[0], sample[1])
    bundle = write_label_bundle(folder / "bundle", towers, classifier, index.about, len(plan.table))
    skipped = pd.DataFrame(list((plan.skipped | plan.unread).items()), columns=["path", "reason"])
    write_text(folder / "skipped.csv", skipped.to_csv(index=False))
    return write_labels(folder, bundle, classifier, plan, index, keys, errors, options, on_progress)


def write_labels(
    folder: Path,
    bundle: Bundle,
    classifier: Classifier,
    plan: TilePlan,
    index: Index,
    keys: list[str],
    errors: dict[str, str],
    options: Options = DEFAULT_OPTIONS,
    on_progress: OnProgress = lambda phase, done, total, text: None,
    scores: npt.NDArray[np.float64] | None = None,
) -> Labelled:
    """Everything of a labelling but its bundle, from embeddings; ``scores`` [N, K] take the place of the classifier's."""
    rows = index.find(keys)
    shares = _priors(plan, index, rows, classifier) if options.prior else None
    examples, summary = Examples(), Summary(unread=plan.unread)
    folder.mkdir(parents=True, exist_ok=True)
    with label_list(folder / "labels.csv", classifier, options.top_k) as listed:

        def tables() -> Iterator[pd.DataFrame]:
            for at in range(0, len(rows), CHUNK):
                part = slice(at, at + CHUNK)
                wrong = [errors.get(key, "") for key in keys[part]]
                table = _label_chunk(
                    plan.table.iloc[part], index, rows[part], classifier, bundle.id, wrong, shares, options,
                    None if scores is None else scores[part],
                )  # fmt: skip
                for collect in (examples.add, summary.add, listed):
                    collect(table)
                on_progress("label", min(at + CHUNK, len(rows)), len(rows), "tiles")
                yield table

        asked = json.dumps(classifier.prompts.to_dict(), ensure_ascii=False)
        about = {"model": index.about.source, "model_id": index.about.model_id, "prompts": asked}
        _write_parts(folder / "tiles", tables(), plan, classifier.prompts.names, about)
    write_totals(folder, summary, classifier.prompts.names)
    if options.sheets:
        with new_folder(folder / "sheets") as part:
            contact_sheets(examples, bundle.preprocess, part)
    write_text(folder / "prompts.json", json.dumps(classifier.prompts.to_dict(), indent=1, ensure_ascii=False) + "\n")
    names = classifier.prompts.names
    prior = {scene: dict(zip(names, found.tolist(), strict=True)) for scene, found in (shares or {}).items()}
    run = {
        "bundle": bundle.id, "index": os.path.relpath(index.folder, folder), "model": index.about.source,
        "model_id": index.about.model_id, "precision": index.about.precision, "scores": classifier.kind,
        "temperature": classifier.temperature, "thresholds": list(classifier.thresholds),
        "calibrated_on": classifier.calibrated_on, "prior": prior, "tiles": len(rows),
        "errors": len(summary.errors) + len(summary.unread),
        "labels": dict(summary.counts),
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    return Labelled(folder, bundle, summary)


def _check(options: Options) -> None:
    if not 0 <= options.min_valid <= 1:
        raise ConfigError(f"min_valid is {options.min_valid}, not within 0..1.", hint="Give a share, e.g. 0.25.")
    if options.threshold > 1:
        raise ConfigError(f"threshold is {options.threshold}, not within 0..1.", hint="Give a probability, e.g. 0.5.")
    if options.scores not in ("auto", "softmax", "sigmoid"):
        raise ConfigError(f"scores {options.scores!r} is not known.", hint="Use auto, softmax or sigmoid.")


def scene_of(tiles: pd.DataFrame) -> npt.NDArray[Any]:
    """The scene of each row of a tile table; all plain files are one."""
    return np.where((tiles["width"] < 0).to_numpy(), "files", tiles["scene"].to_numpy(dtype=object))


def _priors(
    plan: TilePlan, index: Index, rows: npt.NDArray[np.int64], classifier: Classifier
) -> dict[str, npt.NDArray[np.float64]]:
    if classifier.kind != "softmax":
        raise ConfigError("A prior over classes needs scores that exclude each other.", hint="Add --scores softmax.")
    scenes = scene_of(plan.table)
    found = {}
    for scene in dict.fromkeys(scenes):
        own = rows[scenes == scene]
        parts = [classifier.probabilities(index.take(own[at : at + CHUNK])[0]) for at in range(0, len(own), CHUNK)]
        found[str(scene)] = corrected_for_prior(np.concatenate(parts))[1]
    return found


def _label_chunk(
    plan: pd.DataFrame,
    index: Index,
    rows: npt.NDArray[np.int64],
    classifier: Classifier,
    bundle_id: str,
    errors: list[str],
    shares: dict[str, npt.NDArray[np.float64]] | None,
    options: Options,
    given: npt.NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    vectors, valid = index.take(rows)
    vectors[valid < options.min_valid] = np.nan
    scores = classifier.probabilities(vectors)
    if given is not None:
        scores = np.where(np.isnan(scores), np.nan, given)
    if shares is not None:
        scenes = scene_of(plan)
        for scene in dict.fromkeys(scenes):
            scores[scenes == scene] = reweighted(scores[scenes == scene], shares[str(scene)])
    table = tile_table(
        plan, scores.astype(np.float32), classifier.prompts.names, model_id=bundle_id, kind=classifier.task_kind,
        thresholds=classifier.thresholds, valid_fraction=valid, errors=errors,
    )  # fmt: skip
    return decide(table, classifier)


def _write_parts(
    target: Path, tables: Iterator[pd.DataFrame], plan: TilePlan, names: tuple[str, ...], about: dict[str, str]
) -> None:
    """The tile table in files of ``PART`` tiles, with what was asked in their metadata; the folder appears whole."""

    with new_folder(target) as folder:
        for number in range(max(1, -(-len(plan.table) // PART))):
            pieces = islice(tables, PART // CHUNK)
            write_geoparquet(pieces, folder / f"part-{number:05d}.parquet", names, plan.places, about)


VARIANTS = ("ensemble", "single prompt", "random words")


def assess(
    towers: Towers,
    prompts: PromptSet,
    sample: tuple[TilePlan, npt.NDArray[np.float64]],
    index_folder: str | Path,
    *,
    options: Options = DEFAULT_OPTIONS,
    compute: Compute = DEFAULT_COMPUTE,
    bootstrap: int = 1000,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """Measure zero-shot labels; nothing is calibrated on the sample.

    Args:
        towers: The model.
        prompts: The classes.
        sample: Labelled tiles and their targets [N, K] (``labelled_sample``).
        index_folder: Where embeddings are kept.
        options: ``scores`` and ``threshold`` count.
        compute: With what.
        bootstrap: Replicates behind the intervals.
        on_progress: As in ``label_tiles``.

    Returns:
        For ``ensemble`` (all names, synonyms, descriptions and templates), ``single prompt`` (the name in the first template) and
        ``random words`` (behind the name, as a floor): the report of ``core.evaluate``, and the predictions behind it.

    Raises:
        ManifestError: No tile could be read.
    """
    plan, targets = sample
    index, keys, _ = embed_tiles(towers, plan, Path(index_folder), compute, on_progress)
    vectors, _ = index.take(index.find(keys))
    known = ~np.isnan(vectors).any(axis=1)
    if not known.any():
        raise ManifestError("None of the labelled tiles could be read.", hint="Check the files.")
    ids = plan.table["tile_id"].to_numpy(dtype=object)[known]
    reports, tables = {}, {}
    variants = (prompts, single_prompt(prompts), random_word_prompts(prompts))
    for name, variant in zip(VARIANTS, variants, strict=True):
        classifier = text_classifier(towers, variant, options, Path(index_folder), index.about.precision)
        scores = classifier.probabilities(vectors[known])
        report = evaluate(
            targets[known], scores, ids, prompts.names, classifier.thresholds, classifier.task_kind, bootstrap=bootstrap
        )
        reports[name] = report | {
            "prompts": variant.to_dict(),
            "model_id": towers.id,
            "unreadable": int((~known).sum()),
        }
        tables[name] = predictions_table(ids, targets[known], scores, prompts.names, groups=ids)
    return reports, tables
