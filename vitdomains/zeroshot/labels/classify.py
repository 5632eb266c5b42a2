"""From embeddings to labels: a classifier made of text, its calibration, a scene's own prior, unknown and coarser levels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.geo.map.tiles_table import UNKNOWN, probability_columns
from vitdomains.core.metrics.calibrate import calibration_notes, choose_thresholds, fit_temperature
from vitdomains.core.tasks import Kind as TaskKind
from vitdomains.core.tasks import build_task
from vitdomains.zeroshot.labels.prompts import PromptSet
from vitdomains.zeroshot.models.towers import Kind

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
FEW = 20
"""Fewer labelled tiles than this say little about a temperature."""


@dataclass(frozen=True)
class Classifier:
    """Logits are ``vectors @ weights.T + bias``; scores a softmax over the classes, or a sigmoid each, of logits / temperature.

    ``weights`` [K, D] are the class embeddings times the logit scale, ``bias`` is [K]. ``thresholds`` [K] are probabilities
    below which a class is not called; with a softmax 0 means that every tile gets a class.
    """

    prompts: PromptSet
    weights: Floats
    bias: Floats
    kind: Kind
    thresholds: tuple[float, ...]
    temperature: float = 1.0
    calibrated_on: int = 0

    @property
    def task_kind(self) -> TaskKind:
        """What a bundle of this classifier is."""
        return "singlelabel" if self.kind == "softmax" else "multilabel"

    def logits(self, vectors: Floats) -> Floats:
        """[N, D] -> [N, K]; NaN rows stay NaN."""
        return np.asarray(vectors @ self.weights.T + self.bias, dtype=np.float32)

    def probabilities(self, vectors: Floats) -> npt.NDArray[np.float64]:
        """[N, D] -> [N, K]."""
        return build_task(self.task_kind, self.prompts.names).scores(self.logits(vectors), (self.temperature,))


def calibrated(classifier: Classifier, vectors: Floats, targets: npt.NDArray[np.float64]) -> Classifier:
    """The classifier with temperature and thresholds from a small labelled sample: least NLL, and largest F1 of each class.

    Args:
        classifier: As it comes from the text.
        vectors: [N, D] of the sample.
        targets: [N, K]: 1, 0, NaN.
    """
    known = ~np.isnan(vectors).any(axis=1)
    vectors, targets = vectors[known], targets[known]
    if len(vectors) < FEW:
        logger.warning("%d labelled tiles say little about temperature and thresholds", len(vectors))
    (temperature,) = fit_temperature(classifier.logits(vectors), targets, classifier.task_kind)
    fitted = replace(classifier, temperature=temperature, calibrated_on=len(vectors))
    thresholds = choose_thresholds(targets, fitted.probabilities(vectors), "f1")
    notes = calibration_notes(targets, classifier.prompts.names)
    silent = {note.split(":")[0] for note in notes if "not chosen" in note}
    return replace(
        fitted,
        thresholds=tuple(
            old if name in silent else new
            for name, old, new in zip(classifier.prompts.names, classifier.thresholds, thresholds, strict=True)
        ),
    )


def corrected_for_prior(
    probabilities: npt.NDArray[np.float64], iterations: int = 200, tolerance: float = 1e-6
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Posteriors under the class shares of these very tiles, found by EM (Saerens, Latinne and Decaestecker 2002, equation 2.9).

    A prompt gives every class the same prior; a scene does not. Rows of NaN stay, and count nowhere. Where posteriors are
    overconfident the correction has little effect; calibrate first.

    Args:
        probabilities: [N, K] posteriors of a softmax, made under a uniform prior.

    Returns:
        Corrected posteriors [N, K], and the shares [K].
    """
    known = ~np.isnan(probabilities).any(axis=1)
    p = probabilities[known]
    k = probabilities.shape[1]
    shares = np.full(k, 1.0 / k)
    if not len(p):
        return probabilities, shares
    for _ in range(iterations):
        weighted = p * (shares * k)
        posterior = weighted / weighted.sum(axis=1, keepdims=True)
        new = posterior.mean(axis=0)
        done = np.abs(new - shares).max() < tolerance
        shares = new
        if done:
            break
    return reweighted(probabilities, shares), shares


def reweighted(probabilities: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Posteriors [N, K], made under a uniform prior, under class shares [K]."""
    weighted = probabilities * shares
    return np.asarray(weighted / weighted.sum(axis=1, keepdims=True))


def decide(table: pd.DataFrame, classifier: Classifier) -> pd.DataFrame:
    """The tile table with its labels as the classes ask for them.

    What a background class wins is unknown, and so is what stays below the threshold of its class; unless one of the groups
    that the class is in is certain enough: then the finest such group is the label, and ``probability`` that of the group.

    Args:
        table: From ``tile_table``.
        classifier: Its prompts say which classes are background and in which groups the others are.
    """
    prompts = classifier.prompts
    p = table[probability_columns(prompts.names)].to_numpy(np.float64)
    known = ~np.isnan(p).any(axis=1)
    background = np.array([c.background for c in prompts.classes])
    label, probability = table["label"].to_numpy(dtype=object).copy(), table["probability"].to_numpy().copy()
    if classifier.kind == "sigmoid":
        called = (p >= np.asarray(classifier.thresholds)) & ~background
        names = np.asarray(prompts.names, dtype=object)
        for i in np.flatnonzero(known):
            label[i] = "|".join(names[called[i]]) or UNKNOWN
        return table.assign(label=pd.Series(label, dtype="str"))
    best = np.where(known, np.nan_to_num(p).argmax(axis=1), -1)
    sure = known & (np.nan_to_num(p).max(axis=1) >= np.asarray(classifier.thresholds)[best])
    label[known & ~sure] = UNKNOWN
    for group, members in groups(prompts):
        inside = p[:, members].sum(axis=1)
        # A group is as certain as the least that is asked of its classes.
        limit = min(classifier.thresholds[k] for k in members)
        rise = known & ~sure & np.isin(best, members) & (inside >= limit) & (label == UNKNOWN)
        label[rise], probability[rise] = group, inside[rise]
    label[known & background[best]] = UNKNOWN
    return table.assign(label=pd.Series(label, dtype="str"), probability=probability.astype(np.float32))


def groups(prompts: PromptSet) -> list[tuple[str, list[int]]]:
    """Groups of classes, the finest first: name, and the columns of its classes."""
    members: dict[str, list[int]] = {}
    depth: dict[str, int] = {}
    for k, c in enumerate(prompts.classes):
        for level, part in enumerate(part for part in c.parent.split("/") if part):
            members.setdefault(part, []).append(k)
            depth[part] = max(level, depth.get(part, 0))
    return sorted(members.items(), key=lambda item: -depth[item[0]])


def top_k(table: pd.DataFrame, names: Sequence[str], k: int) -> list[str]:
    """``forest 0.62; meadow 0.21; ...`` for each row; empty where there are no probabilities."""
    p = table[probability_columns(names)].to_numpy(np.float64)
    order = np.argsort(-np.nan_to_num(p), axis=1)[:, :k]
    return [
        "" if np.isnan(row).any() else "; ".join(f"{names[j]} {row[j]:.3f}" for j in best)
        for row, best in zip(p, order, strict=True)
    ]
