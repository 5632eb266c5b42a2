"""Splits by group: one patient, one scene, lies wholly in train, val or test, stratified on the classes.

Stratification is iterative (Sechidis, Tsoumakas, Vlahavas 2011, Algorithm 1) over groups instead of rows, with one
change: how many groups each split takes is fixed beforehand, so that small data sets keep the asked-for shares too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vitdomains.core.data.manifest import Manifest, labels, with_split
from vitdomains.core.errors import ConfigError, ManifestError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def grouped_split(m: Manifest, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """Fill the empty cells of the split column with train, val and test, by group.

    A row whose split is given keeps it, and the other rows of its group follow. A split that is already there (an
    official test list, say) is not enlarged: its fraction counts as zero.

    Args:
        m: The manifest; rows with an empty split are assigned.
        val_fraction, test_fraction: Shares of the groups that are assigned here, 0..1, together below 1.
        seed: The same seed and table give the same split.

    Returns:
        The manifest with a full split column.

    Raises:
        ConfigError: Impossible fractions.
        ManifestError: Fewer groups than splits, or a group given to two splits.
    """
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on.",
            hint="Both lie in 0..1 and their sum below 1.",
        )
    splits = m.table["split"].to_numpy(dtype=object).copy()
    codes, n_groups = group_codes(m)
    owner = np.full(n_groups, "", dtype=object)
    for name in ("train", "val", "test"):
        members = np.unique(codes[splits == name])
        if (owner[members] != "").any():
            bad = m.table["group"].iloc[int(np.flatnonzero(np.isin(codes, members[owner[members] != ""]))[0])]
            raise ManifestError(
                f"Group {bad} is in two splits.", hint="Correct the split column, or set `data.split: grouped`."
            )
        owner[members] = name
    free = np.flatnonzero(owner == "")
    shares = {
        "train": 0.0,
        "val": 0.0 if (splits == "val").any() else val_fraction,
        "test": 0.0 if (splits == "test").any() else test_fraction,
    }
    shares["train"] = 1.0 - shares["val"] - shares["test"]
    names = [name for name, share in shares.items() if share > 0]
    if len(free):
        needed = len(names) - int((splits == "train").any())
        if len(free) < needed:
            raise ManifestError(
                f"{len(free)} groups cannot fill {needed} splits.",
                hint="Add groups, set a fraction to 0, or give the splits in a column.",
            )
        fractions = np.array([shares[name] for name in names])
        chosen = stratify(group_positives(m, codes, n_groups)[free], fractions, seed)
        owner[free] = np.array(names, dtype=object)[chosen]
    return with_split(m, list(owner[codes]))


def grouped_folds(m: Manifest, k: int, seed: int) -> list[Ints]:
    """k folds by group, stratified; every row is in the test part of exactly one.

    Args:
        m: The manifest; its split column plays no part.
        k: Number of folds, at least 2.
        seed: The same seed and table give the same folds.

    Returns:
        k arrays of row positions, each sorted: the test rows of that fold.

    Raises:
        ManifestError: Fewer groups than folds, or k below 2.
    """
    codes, n_groups = group_codes(m)
    if not 2 <= k <= n_groups:
        raise ManifestError(f"{k} folds of {n_groups} groups.", hint="Choose 2 folds or more, and at most one a group.")
    chosen = stratify(group_positives(m, codes, n_groups), np.full(k, 1.0 / k), seed)
    return [np.flatnonzero(chosen[codes] == fold).astype(np.int64) for fold in range(k)]


def group_codes(m: Manifest) -> tuple[Ints, int]:
    """Each row's group as a number, in order of the group's name (so row order plays no part), and their count."""
    names, codes = np.unique(m.table["group"].to_numpy(dtype=object).astype(str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def group_positives(m: Manifest, codes: Ints, n_groups: int) -> npt.NDArray[np.bool_]:
    """bool [G, K]: the group has at least one positive of the class."""
    result = np.zeros((n_groups, len(m.classes)), dtype=bool)
    rows, classes = np.nonzero(labels(m) == 1)
    result[codes[rows], classes] = True
    return result


def stratify(positive: npt.NDArray[np.bool_], fractions: Floats, seed: int) -> Ints:
    """Iterative stratification of G groups over S parts, with fixed part sizes.

    The class with the fewest unassigned positive groups goes first; each of its groups goes to the part that still
    lacks the most of that class and has room, ties to the part with the most room, then by chance.

    Args:
        positive: bool [G, K].
        fractions: [S], summing to 1.
        seed: Seed of order and ties.

    Returns:
        int [G], the part of each group.
    """
    rng = np.random.default_rng(seed)
    n_groups, n_classes = positive.shape
    room = part_sizes(n_groups, fractions)
    wanted = positive.sum(axis=0)[:, None] * fractions[None, :]  # [K, S]
    result = np.full(n_groups, -1, dtype=np.int64)
    left = positive.sum(axis=0).astype(np.int64)
    members = [np.flatnonzero(column) for column in positive.T]
    while n_classes and left.max() > 0:
        rarest = int(np.argmin(np.where(left > 0, left, n_groups + 1)))
        pending = members[rarest][result[members[rarest]] < 0]
        for group in rng.permutation(pending):
            part = _neediest(wanted[rarest], room, rng)
            result[group] = part
            room[part] -= 1
            held = positive[group]
            wanted[held, part] -= 1
            left -= held
    rest = np.flatnonzero(result < 0)
    result[rng.permutation(rest)] = np.repeat(np.arange(len(room)), room)
    return result


def part_sizes(n_groups: int, fractions: Floats) -> Ints:
    """Whole numbers close to ``n_groups * fractions`` with that sum, each at least 1 while there are enough groups."""
    exact = n_groups * np.asarray(fractions, dtype=np.float64)
    sizes = np.floor(exact).astype(np.int64)
    for part in np.argsort(sizes - exact, kind="stable")[: n_groups - int(sizes.sum())]:
        sizes[part] += 1
    for part in np.flatnonzero(sizes == 0):
        largest = int(np.argmax(sizes))
        if sizes[largest] > 1:
            sizes[largest] -= 1
            sizes[part] = 1
    return sizes


def _neediest(wanted: Floats, room: Ints, rng: np.random.Generator) -> int:
    """The part with room that lacks most of a class; ties by room, then by chance."""
    open_parts = np.flatnonzero(room > 0)
    lack = wanted[open_parts]
    best = open_parts[lack >= lack.max() - 1e-9]
    if len(best) > 1:
        best = best[room[best] == room[best].max()]
    return int(best[0] if len(best) == 1 else rng.choice(best))
