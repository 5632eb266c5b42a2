"""A linear probe on reviewed tiles in the place of the text: the same tower, the same embeddings, another last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from vitdomains.core.errors import ManifestError
from vitdomains.core.probe import knn_scores
from vitdomains.core.tasks import SingleLabel
from vitdomains.core.training.optim import fit_head
from vitdomains.zeroshot.embeddings.store import Index
from vitdomains.zeroshot.labels.classify import Classifier

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
