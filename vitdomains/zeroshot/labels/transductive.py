"""Transductive labels: all tiles of a job or scene are labelled together, from the text, their neighbours and their clusters.

TransCLIP (Zanella, Gérin and Ben Ayed 2024, "Boosting Vision-Language Models with Transduction", NeurIPS, arXiv:2406.01837). With
assignments z_i in the simplex, text posteriors y_i, one Gaussian N(mu_k, diag(sigma)) a class and affinities w_ij of near
neighbours, its objective over the open tiles Q and the labelled ones S is

    - 1/|Q| sum_Q z_i . log p_i  -  sum_ij w_ij z_i . z_j  +  sum_Q KL_lambda(z_i || y_i)  -  gamma/|S| sum_S z_i . log p_i

and every step below is the closed-form update of one block of variables. No image and no text is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import softmax

Floats = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Transduction:
    """The settings, by default those of the authors' experiments.

    Attributes:
        neighbours: Of each tile in the graph.
        affinity: Weight of a whole neighbourhood, next to the log-likelihood of a tile.
        prior: Weight of the text, lambda, where no tile is labelled.
        prior_labelled: The same where some are.
        labelled: Weight of the labelled tiles, gamma; they take it from 0.002 to 0.2.
        steps: Rounds over all blocks.
        inner_steps: Updates of the assignments a round.
        confident: Tiles a class whose mean the rounds start from.
    """

    neighbours: int = 3
    affinity: float = 25.0
    prior: float = 1.0
    prior_labelled: float = 0.5
    labelled: float = 0.02
    steps: int = 10
    inner_steps: int = 5
    confident: int = 8


PAPER = Transduction()
BLOCK = 50_000
"""Tiles that are labelled together; of more, random blocks of this size are, for the graph grows with their square."""
_ROWS = 2048


def neighbour_graph(vectors: Floats, neighbours: int) -> csr_array:
    """Sparse [N, N] affinities of unit vectors [N, D]: the similarity of each tile with its nearest others, above 0, plus
    the transpose."""
    n, k = len(vectors), min(neighbours, len(vectors) - 1)
    columns, weights = np.zeros((n, k), np.int64), np.zeros((n, k), np.float32)
    for at in range(0, n if k else 0, _ROWS):
        similarity = vectors[at : at + _ROWS] @ vectors.T
        own = np.arange(len(similarity))
        similarity[own, at + own] = -np.inf
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        columns[at : at + _ROWS], weights[at : at + _ROWS] = best, np.take_along_axis(similarity, best, axis=1)
    rows = np.repeat(np.arange(n), k)
    graph = csr_array((np.maximum(weights, 0).ravel(), (rows, columns.ravel())), shape=(n, n))
    return graph + graph.T


def transductive_scores(
    vectors: Floats, text: Scores, truths: Sequence[Ints], how: Transduction = PAPER, seed: int = 0
) -> list[Scores]:
    """Class probabilities [N, K] of tiles that are labelled together, once for each choice of labelled tiles; the graph is one.

    Args:
        vectors: Unit vectors [N, D] without NaN.
        text: Posteriors [N, K] of the classes' texts.
        truths: Of each choice [N] the class of the labelled tiles, -1 for the others.
        how: The settings.
        seed: Of the blocks, where there are more than ``BLOCK`` tiles.

    Returns:
        Assignments z, rows that sum to 1; a labelled tile has its class.
    """
    shown = (np.stack(truths) >= 0).any(axis=0)
    given, order = np.flatnonzero(shown), np.random.default_rng(seed).permutation(np.flatnonzero(~shown))
    out = [text.copy() for _ in truths]
    for part in np.array_split(order, max(1, -(-len(order) // BLOCK))):
        rows = np.concatenate([given, part])
        graph = neighbour_graph(vectors[rows], how.neighbours) * (how.affinity / how.neighbours)
        for scores, truth in zip(out, truths, strict=True):
            scores[rows] = _together(vectors[rows], text[rows], truth[rows], graph, how)
    return out


def _together(vectors: Floats, text: Scores, truth: Ints, graph: csr_array, how: Transduction) -> Scores:
    k, shown = text.shape[1], truth >= 0
    start = np.where(shown[:, None], np.eye(k)[truth], text)
    if shown.all():
        return np.asarray(start)
    gamma = how.labelled if shown.any() else 0.0
    # Weight of each tile in the means and variances: 1/|Q| of an open one, gamma/|S| of a labelled one.
    weight = np.where(shown, gamma / max(1, shown.sum()), 1.0 / (~shown).sum())
    prior = (how.prior_labelled if shown.any() else how.prior) * np.log(np.clip(text, 1e-12, 1.0))
    z, mean = start, _confident_means(vectors, start, how.confident)
    variance = np.full(vectors.shape[1], 1.0 / vectors.shape[1])
    for _ in range(how.steps):
        log_p = _log_gaussian(vectors, mean, variance)
        for _ in range(how.inner_steps):  # the neighbours' assignments are those of the step before
            z = np.where(shown[:, None], start, softmax(prior + log_p + graph @ z, axis=1))
        share = weight[:, None] * z
        mean = (share.T @ vectors) / np.maximum(share.sum(axis=0), 1e-12)[:, None]
        # The sum of squares is expanded, so that no [N, K, D] is made.
        spread = (weight[:, None] * vectors**2).sum(axis=0) - (share.sum(axis=0)[:, None] * mean**2).sum(axis=0)
        variance = np.maximum(spread / weight.sum(), 1e-9)
    return np.asarray(z, dtype=np.float64)


def _confident_means(vectors: Floats, z: Scores, count: int) -> Scores:
    """Mean of the most certain tiles of each class, where the iteration starts."""
    best = np.argsort(-z, axis=0, kind="stable")[:count]
    return np.asarray(vectors[best].mean(axis=0), dtype=np.float64)


def _log_gaussian(vectors: Floats, mean: Scores, variance: Scores) -> Scores:
    """log p_ik [N, K] up to what all classes share: -1/2 of the squared Mahalanobis distance."""
    scaled = vectors / variance
    return np.asarray(scaled @ mean.T - 0.5 * (mean**2 / variance).sum(axis=1))
