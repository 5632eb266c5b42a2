"""Classifiers of cached embeddings from a few labelled tiles and the classes' texts, and the choice among them.

Vectors are unit embeddings [N, D]. Every method gives logits [N, K] whose softmax are probabilities; what it can be tuned by is
chosen in an inner cross-validation, what it reaches is measured in an outer one, on tiles that neither has seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedGroupKFold

from vitdomains.core.errors import ConfigError
from vitdomains.zeroshot.labels.classify import Classifier

Floats = npt.NDArray[np.float32]
Logits = Callable[[Floats], npt.NDArray[np.float64]]
Ints = npt.NDArray[np.int64]
OUTER, INNER = 5, 3
"""Folds of the measurement and of the choice of parameters."""
TIP_STEPS, TIP_RATE = 60, 2e-3
FITTED = 20_000


@dataclass(frozen=True)
class Method:
    """A way to learn: ``fit(text, x, y, **parameters)``, and the parameters that are tried; the first ones stand where nothing
    can be tried. ``unseen``: a class without a labelled tile can still be called. ``linear``: logits are affine in the vector."""

    fit: Callable[..., Logits]
    grid: tuple[dict[str, float], ...] = ({},)
    unseen: bool = True
    linear: bool = True


@dataclass(frozen=True)
class Measured:
    """Accuracy on ``tiles`` labelled tiles that were held out, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    tiles: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} ({self.low:.3f} to {self.high:.3f})"


def text_logits(text: Classifier, x: Floats, y: Ints) -> Logits:
    """The classes' texts alone."""
    return lambda v: np.asarray(text.logits(v), np.float64) / text.temperature


def logistic(text: Classifier, x: Floats, y: Ints, strength: float) -> Logits:
    """Logistic regression on standardised embeddings, which knows nothing of the text; ``strength`` of its L2 penalty."""
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)

    def features(v: Floats) -> npt.NDArray[np.float64]:
        return np.column_stack([(v - mean) / scale, np.ones(len(v))])

    weights = _regression(features(x), _hot(text, y), np.zeros((len(x), len(text.weights))), strength)
    weights[np.bincount(y, minlength=len(weights)) == 0, -1] = -1e4  # a class that was never shown is never called
    return lambda v: features(v) @ weights.T


def anchored(text: Classifier, x: Floats, y: Ints, strength: float) -> Logits:
    """Logistic regression whose L2 penalty pulls towards the texts' weights t_k: sum of cross-entropies plus strength / 2 times
    sum_k |w_k - t_k|^2 / s^2, s the length of the t_k (the zero-shot anchored probe of Silva-Rodriguez et al. 2024, CLAP,
    arXiv:2312.12730, with one weight for all classes)."""
    scale, base = _scale(text), text_logits(text, x, y)
    moved = scale * _regression(scale * x.astype(np.float64), _hot(text, y), base(x), strength)
    return lambda v: base(v) + v @ moved.T


def _regression(
    x: npt.NDArray[np.float64], hot: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], strength: float
) -> npt.NDArray[np.float64]:
    """Weights [K, D] of least cross-entropy of ``offset + x @ w.T`` to ``hot`` [N, K] plus strength / 2 times their squares."""
    shape = (offset.shape[1], x.shape[1])

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        w = flat.reshape(shape)
        log_p = log_softmax(offset + x @ w.T, axis=1)
        gradient = (np.exp(log_p) - hot).T @ x + strength * w
        return float(-(log_p * hot).sum() + strength / 2 * (w**2).sum()), gradient.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 150})
    return np.asarray(found.x.reshape(shape))


def tip_adapter(text: Classifier, x: Floats, y: Ints, alpha: float, beta: float) -> Logits:
    """Tip-Adapter (Zhang et al. 2022, arXiv:2111.03930): text logits plus alpha exp(-beta (1 - v F^T)) L, with the labelled tiles
    F and their one-hot classes L. ``alpha`` is for logits of scale 100, as CLIP's."""
    return _cache(text, x, y, alpha, beta)


def tip_adapter_f(text: Classifier, x: Floats, y: Ints, alpha: float, beta: float) -> Logits:
    """Tip-Adapter-F: the same with keys F that are trained, from the tiles on, by cross-entropy."""
    hot = torch.from_numpy(_hot(text, y).astype(np.float32))
    base = torch.from_numpy(text_logits(text, x, y)(x).astype(np.float32))
    tiles, truth = torch.from_numpy(x), torch.from_numpy(y)
    keys = torch.nn.Parameter(tiles.clone())
    optimizer = torch.optim.AdamW([keys], lr=TIP_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TIP_STEPS)
    scaled = alpha * _scale(text) / 100
    for _ in range(TIP_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(base + scaled * (-beta * (1 - tiles @ keys.T)).exp() @ hot, truth).backward()
        optimizer.step()
        schedule.step()
    return _cache(text, keys.detach().numpy(), y, alpha, beta)


def _hot(text: Classifier, y: Ints) -> npt.NDArray[np.float64]:
    return np.eye(len(text.weights))[y]


def _scale(text: Classifier) -> float:
    return float(np.linalg.norm(text.weights, axis=1).mean()) / text.temperature


def _cache(text: Classifier, keys: Floats, y: Ints, alpha: float, beta: float) -> Logits:
    hot, scaled, base = _hot(text, y), alpha * _scale(text) / 100, text_logits(text, keys, y)
    return lambda v: base(v) + scaled * np.exp(-beta * (1 - v @ keys.T)) @ hot


_TIP = tuple(
    {"alpha": a, "beta": b} for a, b in ((3.0, 5.5), (10.0, 5.5), (30.0, 5.5), (1.0, 5.5), (3.0, 1.0), (10.0, 1.0))
)
METHODS: dict[str, Method] = {
    "text": Method(text_logits),
    "anchored probe": Method(anchored, tuple({"strength": s} for s in (1.0, 0.1, 10.0, 100.0))),
    "Tip-Adapter": Method(tip_adapter, _TIP, linear=False),
    "Tip-Adapter-F": Method(tip_adapter_f, _TIP[:2], linear=False),
    "logistic regression": Method(logistic, tuple({"strength": s} for s in (10.0, 1.0, 100.0)), unseen=False),
}
"""By name, the simplest first: of equals the first is chosen."""


def tuned(
    method: Method, text: Classifier, x: Floats, y: Ints, groups: Ints, seed: int = 0
) -> tuple[dict[str, float], float]:
    """The parameters of the largest accuracy in an inner cross-validation, of equals those of the largest likelihood; and that
    accuracy, NaN where the tiles are too few for one."""
    folds = list(split(y, groups, INNER, seed))
    if not folds:
        return method.grid[0], float("nan")
    merits = []
    for parameters in method.grid:
        right = likelihood = 0.0
        for train, test in folds:
            log_p = log_softmax(method.fit(text, x[train], y[train], **parameters)(x[test]), axis=1)
            right += float((log_p.argmax(axis=1) == y[test]).sum())
            likelihood += float(log_p[np.arange(len(test)), y[test]].sum())
        merits.append((right, likelihood))
    best = max(range(len(merits)), key=lambda i: merits[i])
    return method.grid[best], merits[best][0] / sum(len(test) for _, test in folds)


def split(y: Ints, groups: Ints, count: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """At most ``count`` folds, stratified by class, a group on one side; none where no class has two tiles of two groups. A class
    of one tile is in training only."""
    several = np.isin(y, np.flatnonzero(np.bincount(y) > 1))
    folds = min(count, len(np.unique(groups[several])), int(np.bincount(y).max(initial=0)))
    if folds < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer tiles than there are folds
        for _, held in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, groups):
            test = held[several[held]]
            if len(test):
                yield np.flatnonzero(~np.isin(groups, groups[test])), test


@dataclass(frozen=True)
class Comparison:
    """What the methods reach on held-out labelled tiles.

    Attributes:
        measured: By method, and as ``chosen`` the choice by inner cross-validation (nested); empty where there are too few tiles.
        right: By the same names, [N] whether a tile was right; NaN where it was not held out.
        chosen: The method of the largest inner accuracy on all tiles.
        parameters: Its parameters.
    """

    measured: dict[str, Measured]
    right: dict[str, npt.NDArray[np.float64]]
    chosen: str
    parameters: dict[str, float]


def compare(
    text: Classifier,
    x: Floats,
    y: Ints,
    groups: Ints | None = None,
    methods: Mapping[str, Method] = METHODS,
    seed: int = 0,
) -> Comparison:
    """Measure methods on labelled tiles and choose one, by nested cross-validation.

    Args:
        text: The classes' texts; a softmax.
        x: Unit vectors [N, D].
        y: Classes [N], 0..K-1.
        groups: [N] what must not be on both sides, such as overlapping windows of a scene; None: every tile by itself.
        methods: Which; those that cannot call an unseen class are left out where a class has no tile.
        seed: Of the folds.

    Raises:
        ConfigError: No tile, or the classes do not exclude each other.
    """
    if text.kind != "softmax" or not len(x):
        raise ConfigError("There is nothing to learn from: no labelled tile, or classes that do not exclude each other.",
                          hint="Review some tiles; label with --scores softmax.")  # fmt: skip
    groups = np.arange(len(y)) if groups is None else groups
    whole = len(np.unique(y)) == len(text.weights)
    methods = {name: method for name, method in methods.items() if method.unseen or whole}
    right = {name: np.full(len(y), np.nan) for name in (*methods, "chosen")}
    for train, test in split(y, groups, OUTER, seed):
        reached = {}
        for name, method in methods.items():
            parameters, reached[name] = tuned(method, text, x[train], y[train], groups[train], seed + 1)
            right[name][test] = method.fit(text, x[train], y[train], **parameters)(x[test]).argmax(axis=1) == y[test]
        right["chosen"][test] = right[_best(reached)][test]
    final = {name: tuned(method, text, x, y, groups, seed) for name, method in methods.items()}
    chosen = _best({name: accuracy for name, (_, accuracy) in final.items()})
    measured = {name: measure(hits[~np.isnan(hits)]) for name, hits in right.items() if (~np.isnan(hits)).any()}
    return Comparison(measured, right, chosen, final[chosen][0])


def _best(reached: Mapping[str, float]) -> str:
    """The name of the largest accuracy; where nothing could be measured the anchored probe, which is never far from the text."""
    if np.isnan(list(reached.values())).all():
        return "anchored probe" if "anchored probe" in reached else next(iter(reached))
    return max(reached, key=lambda name: reached[name])


def measure(hits: npt.NDArray[np.float64]) -> Measured:
    """The share of 1 among 1 and 0, with its interval (Wilson 1927)."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Measured(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def as_layer(text: Classifier, logits: Logits) -> Classifier:
    """The classifier of affine logits, read off at the origin and the unit vectors."""
    width = text.weights.shape[1]
    bias = logits(np.zeros((1, width), np.float32))[0]
    weights = (logits(np.eye(width, dtype=np.float32)) - bias).T
    return replace(
        text, weights=weights.astype(np.float32), bias=bias.astype(np.float32), temperature=1.0, calibrated_on=0
    )


def nearest_layer(text: Classifier, vectors: Floats, scores: npt.NDArray[np.float64], seed: int = 0) -> Classifier:
    """The linear classifier nearest to probabilities ``scores`` [N, K] of ``vectors`` [N, D], by cross-entropy over at most
    ``FITTED`` tiles. A bundle holds one linear layer, which caches and transduction are not."""
    rows = np.random.default_rng(seed).permutation(len(vectors))[:FITTED]
    base = text_logits(text, vectors, np.empty(0, np.int64))
    scale, x, hot = _scale(text), vectors[rows].astype(np.float64), scores[rows]
    moved = scale * _regression(scale * x, hot, base(vectors[rows]), 1e-3)
    return as_layer(text, lambda v: base(v) + v @ moved.T)


def probabilities(logits: Logits, vectors: Floats) -> npt.NDArray[np.float64]:
    """Softmax of a method's logits, [N, K]; rows of NaN stay."""
    return np.asarray(softmax(logits(vectors), axis=1))
