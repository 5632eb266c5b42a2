"""What some prompts and thresholds make of the tiles: labels, counts, and how near each tile is to another label. Pure numpy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitdomains.core.geo.map.tiles_table import PLACE, UNKNOWN, tile_table
from vitdomains.zeroshot.labels.classify import Classifier, decide, groups
from vitdomains.zeroshot.labels.prompts import PromptSet
from vitdomains.zeroshot.models.towers import Kind

Floats = NDArray[np.float64]
Order = Literal["borderline", "surest", "listed", "similar"]
ORDERS = get_args(Order)
NO_LABEL = "(no label)"
"""In the place of a label: tiles without data, or that cannot be read."""
NEAR = 0.1
"""A tile is a near miss of a class if this much more probability would give it the class."""
BINS = 40


@dataclass(frozen=True)
class View:
    """M tiles under K classes.

    Attributes:
        prompts: The classes.
        kind: softmax or sigmoid.
        thresholds: [K].
        p: [M, K] probabilities, NaN where there are none.
        label: [M] as the tile table has it: a class, a group, ``unknown``, classes joined by ``|``, or empty.
        lead: [M, K] how much probability a tile has to spare for a class, below 0: how much it lacks.
        boundary: [M] distance of the nearest change of label.
        counts: Tiles by label; of several labels each counts.
    """

    prompts: PromptSet
    kind: Kind
    thresholds: tuple[float, ...]
    p: Floats
    label: NDArray[np.object_]
    lead: Floats
    boundary: Floats
    counts: dict[str, int]

    @property
    def labels(self) -> list[str]:
        """Labels to choose from: classes but background ones, groups in use, unknown, and ``NO_LABEL`` if there is any."""
        classes = [c.name for c in self.prompts.classes if not c.background]
        risen = [name for name, _ in groups(self.prompts) if self.counts.get(name)]
        return [*classes, *risen, UNKNOWN, *([NO_LABEL] if self.counts.get(NO_LABEL) else [])]

    def members(self, label: str) -> NDArray[np.bool_]:
        """Which tiles have a label; all for an empty one."""
        if not label:
            return np.ones(len(self.p), bool)
        if label == NO_LABEL:
            return np.asarray(self.label == "")
        if self.kind == "sigmoid" and label in self.prompts.names:
            k = self.prompts.names.index(label)
            return np.asarray(np.nan_to_num(self.p[:, k], nan=-1.0) >= self.thresholds[k])
        return np.asarray(self.label == label)

    def near_misses(self, label: str) -> NDArray[np.bool_]:
        """Which tiles lack little to have a class."""
        if label not in self.prompts.names:
            return np.zeros(len(self.p), bool)
        lead = self.lead[:, self.prompts.names.index(label)]
        return (lead < 0) & (lead >= -NEAR)

    def call(self, number: int) -> str:
        """The one word of the model on a tile: its label, of several the most probable, empty where it has none."""
        label = str(self.label[number])
        if "|" not in label or label in self.labels:
            return label
        names = self.prompts.names
        return max(label.split("|"), key=lambda name: self.p[number, names.index(name)])

    def calls(self, numbers: NDArray[np.int64]) -> list[str]:
        """``call`` of several tiles."""
        return [self.call(int(i)) for i in numbers]

    def probability(self, label: str) -> Floats:
        """[M] of a class, else the largest of any."""
        if label in self.prompts.names:
            return self.p[:, self.prompts.names.index(label)]
        return np.where(np.isnan(self.p).any(axis=1), np.nan, np.nan_to_num(self.p).max(axis=1))

    def ordered(
        self, numbers: NDArray[np.int64], label: str, order: Order, similarity: Floats | None = None
    ) -> NDArray[np.int64]:
        """Tiles in an order, those without a probability last; equals stay as they are listed.

        Args:
            numbers: Which tiles.
            label: Whose borderline or certainty; empty: that of each tile's own label.
            order: ``borderline``: nearest to another label first; ``surest``: farthest from it; ``similar``: to a query.
            similarity: [M], for ``similar``.
        """
        if order == "listed" or (order == "similar" and similarity is None):
            return numbers
        if order == "similar":
            value = -np.asarray(similarity)
        elif label in self.prompts.names:
            lead = self.lead[:, self.prompts.names.index(label)]
            value = np.abs(lead) if order == "borderline" else -lead
        else:
            value = self.boundary if order == "borderline" else -self.boundary
        return numbers[np.argsort(value[numbers], kind="stable")]  # NaN is sorted to the end

    def histogram(self, label: str) -> NDArray[np.int64]:
        """Tiles in each of ``BINS`` equal steps of probability, 0..1."""
        value = self.probability(label)
        return np.histogram(value[~np.isnan(value)], bins=BINS, range=(0.0, 1.0))[0]


def make_view(prompts: PromptSet, kind: Kind, thresholds: tuple[float, ...], p: Floats, tiles: pd.DataFrame) -> View:
    """Labels and distances of M tiles.

    Args:
        prompts: K classes.
        kind: softmax or sigmoid.
        thresholds: [K].
        p: [M, K] probabilities.
        tiles: [M] rows of a tile table.
    """
    empty = np.empty((0, 0), np.float32)
    classifier = Classifier(prompts, empty, empty, kind, thresholds)
    table = tile_table(
        tiles[list(PLACE)], p, prompts.names, model_id="", kind=classifier.task_kind, thresholds=thresholds
    )
    label = decide(table, classifier)["label"].to_numpy(dtype=object)
    lead = p - np.asarray(thresholds)
    if kind == "softmax":
        lead = np.minimum(lead, p - _best_other(p))
        boundary = np.abs(lead.max(axis=1)) if len(p) else np.empty(0)
    else:
        boundary = np.abs(lead).min(axis=1) if len(p) else np.empty(0)
    return View(prompts, kind, thresholds, p, label, lead, boundary, _counts(label, p, prompts, kind, thresholds))


def _best_other(p: Floats) -> Floats:
    """[M, K] largest probability of another class."""
    if p.shape[1] < 2:
        return np.where(np.isnan(p), np.nan, 0.0)
    first_two = -np.partition(-p, 1, axis=1)[:, :2]
    best = np.nan_to_num(p).argmax(axis=1)
    return np.where(np.arange(p.shape[1]) == best[:, None], first_two[:, 1:], first_two[:, :1])


def _counts(
    label: NDArray[np.object_], p: Floats, prompts: PromptSet, kind: Kind, thresholds: tuple[float, ...]
) -> dict[str, int]:
    known = Counter(label.tolist())
    counts = {name: n for name, n in known.items() if name}
    if kind == "sigmoid":
        called = (np.nan_to_num(p, nan=-1.0) >= np.asarray(thresholds)).sum(axis=0)
        counts = {UNKNOWN: known[UNKNOWN], **dict(zip(prompts.names, called.tolist(), strict=True))}
    return counts | ({NO_LABEL: known[""]} if known[""] else {})


def similarity_to(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> Floats:
    """[M] cosine similarity of unit vectors [M, D] to a unit vector [D]; NaN where a tile has none."""
    return np.asarray(vectors @ query, dtype=np.float64)
