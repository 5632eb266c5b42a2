"""Labels from reviewed tiles, texts and cached embeddings: the best of several methods by cross-validation, as a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.label_errors import held_out_scores, label_errors
from vitdomains.core.tasks import Kind
from vitdomains.zeroshot.embeddings.store import Index
from vitdomains.zeroshot.labels.classify import Classifier
from vitdomains.zeroshot.labels.fewshot import (
    METHODS,
    OUTER,
    Measured,
    as_layer,
    compare,
    measure,
    nearest_layer,
    probabilities,
    split,
)
from vitdomains.zeroshot.labels.label import scene_of
from vitdomains.zeroshot.labels.transductive import transductive_scores
from vitdomains.zeroshot.students.student import scene_blocks

logger = logging.getLogger(__name__)

TOGETHER = {"transductive": "all tiles of the job at once", "transductive by scene": "the tiles of each scene at once"}
"""Ways to label tiles together (TransCLIP)."""
CHOICES = ("auto", *METHODS, *TOGETHER)
MOST = 500_000
"""Tiles above which nothing is labelled together."""


@dataclass(frozen=True)
class Refined:
    """What was learned from reviewed tiles.

    Attributes:
        classifier: One linear layer, for the bundle.
        scores: [N, K] probabilities of the tiles; None: those of the classifier.
        chosen: The method.
        measured: By method its accuracy on held-out reviewed tiles; empty where they are too few.
        agreement: Share of the tiles to which the classifier gives the class of ``scores``.
        reviewed: Tiles that were learned from.
    """

    classifier: Classifier
    scores: npt.NDArray[np.float64] | None
    chosen: str
    measured: dict[str, Measured]
    agreement: float
    reviewed: int


def refine(
    text: Classifier, index: Index, tiles: pd.DataFrame, keys: Mapping[str, str], reviewed: Mapping[str, str],
    method: str = "auto",
) -> Refined:  # fmt: skip
    """Learn from reviewed tiles, keeping the text.

    Args:
        text: The texts' classifier; has to be a softmax.
        index: With the embeddings.
        tiles: The tile table.
        keys: Tile id -> content key.
        reviewed: Tile id -> class; other words do not count.
        method: One of ``CHOICES``; auto: the best of ``METHODS`` by nested cross-validation, or tiles labelled together where
            that was right more often on the same held-out tiles.

    Raises:
        ManifestError: No reviewed tile has an embedding.
        ConfigError: The method is unknown, or asks for classes that were all reviewed.
    """
    if method not in CHOICES:
        raise ConfigError(f"The method {method!r} is not known.", hint=f"Use one of {', '.join(CHOICES)}.")
    names = text.prompts.names
    vectors, _ = index.take(index.find(keys[t] for t in tiles["tile_id"]))
    known = ~np.isnan(vectors).any(axis=1)
    rows = np.flatnonzero(known & tiles["tile_id"].map(lambda t: reviewed.get(t) in names).to_numpy(bool))
    if not len(rows):
        raise ManifestError("No reviewed tile has an embedding.", hint="Review tiles that were labelled.")
    y = np.array([names.index(reviewed[t]) for t in tiles["tile_id"].iloc[rows]])
    groups = pd.factorize(scene_blocks(tiles.iloc[rows]))[0].astype(np.int64)
    wanted = (
        METHODS if method == "auto" else {method: METHODS[method]} if method in METHODS else {"text": METHODS["text"]}
    )
    if method in METHODS and not METHODS[method].unseen and len(np.unique(y)) < len(names):
        raise ConfigError(
            f"{method} knows only classes with a reviewed tile.", hint="Review some of each, or use auto."
        )
    found = compare(text, vectors[rows], y, groups, wanted)
    chosen, measured = found.chosen, {name: value for name, value in found.measured.items() if name != "chosen"}
    if method == "auto" and "chosen" in found.measured:
        measured["the choice among these"] = found.measured["chosen"]
    ways = [method] if method in TOGETHER else list(TOGETHER) if method == "auto" and known.sum() <= MOST else []
    posterior = text.probabilities(vectors[known])
    scenes, at = scene_of(tiles.iloc[np.flatnonzero(known)]), np.cumsum(known)[rows] - 1
    best = np.nan_to_num(found.right.get("chosen", np.empty(0)))
    scores = None
    for way in ways if method in TOGETHER or measured else []:
        parts = [scenes == s for s in dict.fromkeys(scenes)] if way.endswith("scene") else [np.ones(known.sum(), bool)]
        if way.endswith("scene") and len(parts) == 1 and method == "auto":
            continue
        tried, hits = _held_out(vectors[known], posterior, parts, at, y, groups)
        if (~np.isnan(hits)).any():
            measured[way] = measure(hits[~np.isnan(hits)])
        if method == way or np.nansum(hits) > best.sum():
            chosen, scores, best = way, tried, np.nan_to_num(hits)
    if scores is None and METHODS[chosen].linear:
        layer = as_layer(text, METHODS[chosen].fit(text, vectors[rows], y, **found.parameters))
        return Refined(layer, None, chosen, measured, 1.0, len(y))
    if scores is None:
        scores = probabilities(METHODS[chosen].fit(text, vectors[rows], y, **found.parameters), vectors[known])
    layer = nearest_layer(text, vectors[known], scores)
    agreement = float((layer.logits(vectors[known]).argmax(axis=1) == scores.argmax(axis=1)).mean())
    whole = np.full((len(tiles), len(names)), np.nan)
    whole[known] = scores
    return Refined(layer, whole, chosen, measured, agreement, len(y))


def doubtful_labels(
    index: Index, tiles: pd.DataFrame, keys: Mapping[str, str], names: Sequence[str], reviewed: Mapping[str, str]
) -> pd.DataFrame:
    """The queue of ``core.evaluation.label_errors`` for a labelling: reviewed labels, and those of the table where nobody looked,
    against what the embeddings of other scene blocks suggest; with a column ``reviewed``.

    Tiles without an embedding and labels that are none of the classes do not count.

    Raises:
        ManifestError: There are fewer than two blocks.
    """
    vectors, _ = index.take(index.find(keys[t] for t in tiles["tile_id"]))
    given = np.array(
        [reviewed.get(t, label) for t, label in zip(tiles["tile_id"], tiles["label"], strict=True)], dtype=object
    )
    y = np.stack([[name in label.split("|") for name in names] for label in given]).astype(float)
    single = bool((y.sum(axis=1) <= 1).all())
    rows = np.flatnonzero(~np.isnan(vectors).any(axis=1) & y.any(axis=1))
    kind: Kind = "singlelabel" if single else "multilabel"
    shown, x = tiles.iloc[rows], vectors[rows].astype(np.float64)
    scores = held_out_scores(x, y[rows], kind, list(scene_blocks(shown)))
    queue = label_errors(list(shown["tile_id"]), y[rows], scores, names, kind)
    return queue.assign(reviewed=queue["id"].isin(list(reviewed)))


def _held_out(
    vectors: npt.NDArray[np.float32], posterior: npt.NDArray[np.float64], parts: Sequence[npt.NDArray[np.bool_]],
    at: npt.NDArray[np.int64], y: npt.NDArray[np.int64], groups: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:  # fmt: skip
    """Probabilities with all reviewed tiles shown, and whether each was right when it was not; part by part."""
    folds = list(split(y, groups, OUTER))
    truths = np.full((len(folds) + 1, len(vectors)), -1)
    truths[-1, at] = y
    for truth, (train, _) in zip(truths, folds, strict=False):
        truth[at[train]] = y[train]
    scores = np.empty((len(truths), *posterior.shape))
    for part in parts:
        scores[:, part] = np.stack(transductive_scores(vectors[part], posterior[part], list(truths[:, part])))
    hits = np.full(len(y), np.nan)
    for found, (_, test) in zip(scores, folds, strict=False):
        hits[test] = found[at[test]].argmax(axis=1) == y[test]
    return scores[-1], hits
