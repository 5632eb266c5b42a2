"""Which kinds of layers an artefact of low precision owes its error to, and which to leave in float32.

The same layer of every block is one kind: ``attn.qkv``, ``mlp.fc2``, ``conv_dw``. Each kind in turn is the only one in low
precision; the worst are then left in float32 together until the gates open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from vitdomains.core.export.reference import Reference
from vitdomains.core.inference.runtimes import Forward

_HOLDERS = frozenset(
    ("blocks", "block", "layers", "layer", "stages", "stage", "features", "model", "backbone", "encoder")
)
"""Modules that only hold others: their names say nothing about what a layer does."""

MOST_KEPT = 3
"""Kinds that are left in float32 at most before giving up."""


@dataclass(frozen=True)
class KindError:
    """The error that a kind of layer makes alone: root mean square, and that as a share of the outputs' deviation."""

    kind: str
    layers: int
    error: float
    share: float


@dataclass(frozen=True)
class Trial:
    """Kinds that were left in float32 together, what the gates said of the result ("" for a pass), and its size in bytes."""

    keep: tuple[str, ...]
    problem: str
    size: int


def kind_of(path: str) -> str:
    """What a layer does, from the path of its module: ``blocks.11.attn.qkv`` -> ``attn.qkv``, ``layer1.0.conv2`` -> ``conv2``."""
    words = [word for word in path.split(".") if not word.isdigit() and word.rstrip("0123456789_") not in _HOLDERS]
    return ".".join(words[-2:]) or path


def by_kind(layers: Mapping[str, str]) -> dict[str, set[str]]:
    """Names of layers by kind, from name -> path of the module."""
    kinds: dict[str, set[str]] = {}
    for name, path in layers.items():
        kinds.setdefault(kind_of(path), set()).add(name)
    return kinds


def errors_by_kind(
    kinds: Mapping[str, Collection[str]],
    make: Callable[[set[str]], Forward],
    reference: Reference,
    images: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[KindError, ...]:
    """The error of each kind when no other is in low precision, worst first.

    Args:
        kinds: Kind -> names of its layers.
        make: Names of layers to leave in float32 -> the artefact, loaded.
        reference: The validation split; its first ``images`` inputs are used.
        images: How many, about.
        on_progress: Called with kinds done and kinds in all.
    """
    everything = set().union(*kinds.values())
    found = []
    for done, (kind, names) in enumerate(kinds.items(), start=1):
        outputs = _first(map(make(everything - set(names)), reference.batches()), images)
        truth = reference.outputs[: len(outputs)]
        error = float(np.sqrt(np.mean((outputs - truth) ** 2)))
        found.append(KindError(kind, len(names), error, error / max(float(truth.std()), 1e-12)))
        on_progress(done, len(kinds))
    # A NaN is the worst that a layer can do.
    return tuple(sorted(found, key=lambda each: -(each.error if np.isfinite(each.error) else np.inf)))


def try_in_float32(
    errors: Iterable[KindError], kinds: Mapping[str, Collection[str]], attempt: Callable[[set[str]], tuple[str, int]]
) -> tuple[Trial, ...]:
    """Leave the worst kind in float32, then the two worst, and so on, until the gates open; the last one says whether they did.

    Args:
        errors: From ``errors_by_kind``, worst first.
        kinds: As there.
        attempt: Names of layers to leave in float32 -> (what the gates object to, size in bytes).
    """
    tried: list[Trial] = []
    in_float: list[str] = []
    for error in islice(errors, MOST_KEPT):
        in_float.append(error.kind)
        problem, size = attempt({name for kind in in_float for name in kinds[kind]})
        tried.append(Trial(tuple(in_float), problem, size))
        if not problem:
            break
    return tuple(tried)


def _first(outputs: Iterable[np.ndarray], rows: int) -> np.ndarray:
    taken: list[np.ndarray] = []
    for output in outputs:
        taken.append(output)
        if sum(map(len, taken)) >= rows:
            break
    return np.concatenate(taken)
