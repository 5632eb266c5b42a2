"""A linear probe on reviewed tiles in the place of the text: the same tower, the same embeddings, another last layer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from vitdomains.core.commands.probe import knn_scores
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.tasks import SingleLabel
from vitdomains.core.terminal import console, shown_progress
from vitdomains.core.training.optim import fit_head
from vitdomains.zeroshot.embeddings.store import Index, TilePlan, open_index, places_of
from vitdomains.zeroshot.labels.classify import Classifier
from vitdomains.zeroshot.labels.label import Options, text_classifier, write_labels
from vitdomains.zeroshot.labels.outputs import write_label_bundle
from vitdomains.zeroshot.labels.prompts import read_prompts
from vitdomains.zeroshot.models.towers import load_towers
from vitdomains.zeroshot.students.student import read_reviewed, read_tiles, student_config, student_manifest

FOLDS = 5
STRENGTH = 1.0
"""Inverse strength of the L2 penalty of the linear probe, on standardised embeddings."""


@dataclass(frozen=True)
class Refined:
    """A linear probe on reviewed labels, and the cross-validated accuracy of it, of k-NN, and of the text alone."""

    classifier: Classifier
    accuracy: dict[str, float]
    reviewed: int


def refine(
    classifier: Classifier, index: Index, tiles: pd.DataFrame, keys: Mapping[str, str], reviewed: Mapping[str, str]
) -> Refined:
    """Replace the text's classifier by logistic regression on the embeddings of reviewed tiles.

    A class without a reviewed tile keeps its text. Accuracies come from stratified folds of the reviewed tiles, as many as
    the rarest class allows, at most five.

    Args:
        classifier: The text's; has to be a softmax.
        index: With the embeddings.
        tiles: The tile table.
        keys: Tile id -> content key.
        reviewed: Tile id -> class; other words do not count.

    Raises:
        ManifestError: Fewer than two classes were reviewed, or one with a single tile.
    """
    names = classifier.prompts.names
    ids = [t for t in tiles["tile_id"] if reviewed.get(t) in names]
    vectors, _ = index.take(index.find(keys[t] for t in ids))
    known = ~np.isnan(vectors).any(axis=1)
    x, truth = vectors[known].astype(np.float64), np.array([names.index(reviewed[t]) for t in ids])[known]
    counts = np.bincount(truth, minlength=len(names))
    if (counts > 0).sum() < 2 or counts[counts > 0].min() < 2:
        raise ManifestError(
            "The reviewed tiles are of fewer than two classes, or one has a single tile.",
            hint="Review two of each class.",
        )
    y = np.eye(len(names))[truth]
    folds = StratifiedKFold(min(FOLDS, int(counts[counts > 0].min())), shuffle=True, random_state=0)
    right = dict.fromkeys(("text", "linear probe", "k-NN"), 0)
    for train, test in folds.split(x, truth):
        fitted = _fitted(classifier, x[train], y[train])
        scores = {
            "text": classifier.logits(vectors[known][test]),
            "linear probe": fitted.logits(vectors[known][test]),
            "k-NN": knn_scores(x[train], y[train], x[test]),
        }
        for name, score in scores.items():
            right[name] += int((np.asarray(score).argmax(axis=1) == truth[test]).sum())
    accuracy = {name: count / len(truth) for name, count in right.items()}
    return Refined(_fitted(classifier, x, y), accuracy, len(truth))


def _fitted(classifier: Classifier, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Classifier:
    head = nn.Linear(x.shape[1], y.shape[1])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(classifier.weights / classifier.temperature))
        head.bias.copy_(torch.from_numpy(classifier.bias / np.float32(classifier.temperature)))
    fit_head(head, x, y, SingleLabel(classifier.prompts.names), STRENGTH)
    weights, bias = (p.detach().numpy() for p in (head.weight, head.bias))
    return replace(classifier, weights=weights, bias=bias, temperature=1.0, calibrated_on=0)


# --------------------
# The commands behind a review: what people said goes into the labels again (refine), or into a model of one's own (student).


def student_command(domain: Domain, argv: list[str]) -> int:
    """Write what a student is trained with: reviewed and confident labels with weights, and a training file."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} student", description=student_command.__doc__, allow_abbrev=False
    )
    parser.add_argument("labels", help="folder that label wrote")
    parser.add_argument("--reviewed", default="", help="table with tile_id and label, or what `reviews export` wrote")
    parser.add_argument("--confident", type=float, default=0.9, help="least probability of other labels (%(default)s)")
    parser.add_argument(
        "--weight", type=float, default=0.5, help="of those labels, times their probability (%(default)s)"
    )
    parser.add_argument("--out", default="", help="training file to write (default: LABELS/student.yaml)")
    args = parser.parse_args(argv)
    folder = Path(args.labels)
    given = _reviewed(folder, args.reviewed) if args.reviewed else {}
    manifest = student_manifest(folder, given, args.confident, args.weight)
    config = student_config(folder, args.out or folder / "student.yaml")
    console.print(
        f"manifest  {manifest}\nnext:\n  python -m vitdomains.satellite train --config {config}", soft_wrap=True
    )
    return 0


def refine_command(domain: Domain, argv: list[str]) -> int:
    """Label again with a linear probe on reviewed tiles; no image is read."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} refine", description=refine_command.__doc__, allow_abbrev=False
    )
    parser.add_argument("labels", help="folder that label wrote")
    parser.add_argument(
        "--reviewed", required=True, help="table with tile_id and label, or what `reviews export` wrote"
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--threshold", type=float, default=-1.0, help="least probability of a label, else unknown (0)")
    args = parser.parse_args(argv)
    folder, out = Path(args.labels), Path(args.out)
    if out.resolve() == folder.resolve():
        raise ConfigError("--out is the folder that is refined.", hint="Choose another, to compare the two.")
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    index = open_index(folder / run["index"])
    towers = load_towers(index.about.source)
    tiles = read_tiles(folder)
    keyed = index.tiles().set_index("tile_id")["key"]
    keys = {t: str(keyed.get(t, "")) for t in tiles["tile_id"]}
    options = Options("softmax", args.threshold)
    text = text_classifier(towers, read_prompts(folder / "prompts.json"), options, index.folder, index.about.precision)
    refined = refine(text, index, tiles, keys, _reviewed(folder, args.reviewed))
    bundle = write_label_bundle(
        out / "bundle",
        towers,
        refined.classifier,
        index.about,
        len(tiles),
        f"linear probe on {refined.reviewed} reviewed tiles",
    )
    plan = TilePlan(tiles, places_of(tiles))
    wrong = {keys[t]: e for t, e in zip(tiles["tile_id"], tiles["error"], strict=True) if e}
    with shown_progress() as on_progress:
        write_labels(out, bundle, refined.classifier, plan, index, list(keys.values()), wrong, options, on_progress)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in refined.accuracy.items())
    console.print(f"accuracy on {refined.reviewed} reviewed tiles, cross-validated: {shown}\nlabels  {out}")
    return 0


def _reviewed(folder: Path, file: str) -> dict[str, str]:
    tiles = read_tiles(folder)
    files = folder / json.loads((folder / "run.json").read_text(encoding="utf-8"))["index"] / "files.parquet"
    if not files.is_file():
        raise ManifestError(f"{folder} has lost its index ({files.parent}).", hint="Label the tiles again.")
    known = pd.read_parquet(files)
    return read_reviewed(file, tiles, dict(zip(known["path"], known["digest"], strict=True)))
