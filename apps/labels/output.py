"""From decisions to labels: what reviewers settled, the classes in sight written as the labels, and a student's training file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from apps.labels.labelling import View
from apps.labels.model import TextModel
from apps.labels.store import Labels
from apps.shared.decisions import DecisionTable
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.review.agreement import consensus, readings
from vitdomains.core.review.export import SUBJECT
from vitdomains.core.terminal import OnProgress
from vitdomains.zeroshot.embeddings.store import TilePlan, places_of
from vitdomains.zeroshot.labels.label import Options, write_labels
from vitdomains.zeroshot.labels.outputs import write_label_bundle
from vitdomains.zeroshot.students.student import student_config, student_manifest


def accepted(decisions: DecisionTable) -> dict[str, str]:
    """Item to what all who decided on it say, or an adjudicator: a class, or ``unknown`` for none of them.

    An item that was looked at without such a word is ``unknown`` too: nobody would call its label confident.
    """
    settled = consensus(readings(decisions.table))
    settled = settled[settled["subject"] == SUBJECT]
    holds = settled["settled"] & ~settled["item"].isin(decisions.unfinished())
    word = settled["value"].where(holds & ~settled["value"].str.startswith("not "), UNKNOWN)
    return dict(zip(settled["item"], word.replace("unsure", UNKNOWN), strict=True))


def labels_of(labels: Labels, accepted_labels: Mapping[str, str]) -> pd.DataFrame:
    """``tile_id`` and ``label`` of the tiles with a settled class; copies of a picture have the same."""
    found = pd.DataFrame(
        {"tile_id": labels.tiles["tile_id"], "label": pd.Series(labels.items).map(dict(accepted_labels))}
    )
    return found[found["label"].notna() & (found["label"] != UNKNOWN)].reset_index(drop=True)


def write_view(labels: Labels, model: TextModel, view: View, on_progress: OnProgress) -> None:
    """Write classes and thresholds of a view as the labels of the folder; no image is embedded.

    Raises:
        VitDomainsError: The model cannot be had, or the labels come from a probe, which texts cannot stand for.
    """
    if not labels.from_text:
        raise ConfigError(
            "These labels come from a probe on reviewed tiles, not from texts.",
            hint="Start the app with the folder that `label` wrote, or run `refine --threshold`.",
        )
    towers, index = model.towers, labels.index
    classifier = model.classifier(view.prompts, view.thresholds)
    tiles = labels.tiles
    on_progress("bundle", 0, 1, "")
    bundle = write_label_bundle(labels.folder / "bundle", towers, classifier, index.about, len(tiles))
    wrong = {key: text for key, text in zip(labels.keys, tiles["error"], strict=True) if text}
    labelled = tiles["label"] != ""
    least = float(tiles.loc[labelled, "valid_fraction"].min()) if labelled.any() else 0.25
    own = view.prompts.id == labels.prompts.id
    options = Options(labels.kind, prior=labels.prior and own, min_valid=float(np.clip(least, 0.0, 1.0)))
    plan = TilePlan(tiles, places_of(tiles))
    write_labels(labels.folder, bundle, classifier, plan, index, list(labels.keys), wrong, options, on_progress)


def make_student(
    labels: Labels, accepted_labels: Mapping[str, str], confident: float, weight: float, run_dir: str
) -> Path:
    """Write ``manifest.csv`` and ``student.yaml`` beside the labels; returns the training file.

    Raises:
        ManifestError: No tile is accepted or confident.
    """
    given = pd.Series(labels.items, index=labels.tiles["tile_id"]).map(dict(accepted_labels)).dropna()
    student_manifest(labels.folder, {str(k): str(v) for k, v in given.items()}, confident, weight)
    return student_config(labels.folder, labels.folder / "student.yaml", run_dir)


def student_words(labels: Labels) -> tuple[int, int]:
    """How many tiles of the student's manifest were reviewed, and how many were not."""
    table = read_manifest(labels.folder / "manifest.csv").table
    reviewed = int(table["reviewed"].sum())
    return reviewed, len(table) - reviewed
