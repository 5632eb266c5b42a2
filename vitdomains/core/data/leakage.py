"""Leakage between splits: groups, files and near-duplicates that lie in two of them.

Near-copies are found in two steps: a 256-bit difference hash (the sign of the horizontal gradient on a 16 x 17 grid)
proposes pairs by Hamming distance, and the correlation of the 32 x 32 thumbnails decides. The default limits come from
800 chest films of NIH ChestX-ray14: no pair of two patients (319,083 pairs) correlates above 0.96, while noise,
JPEG, a gamma curve, scaling or a crop of 1 % keep a film at 0.97 to 1.0 and within 20 bits of itself. A 3 % crop is
not found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitdomains.core.data.manifest import Manifest
from vitdomains.core.data.preprocess import thumbnail
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import file_sha256

SIDE = 32
_BLOCK = 2048
_CHUNK = 16384
_SHOWN = 100  # pairs listed in a report

Image = npt.NDArray[Any]


def audit(
    m: Manifest,
    thumbnails: Image | Callable[[str], Image] | None = None,
    *,
    content: bool = True,
    max_distance: int = 40,
    min_correlation: float = 0.97,
) -> dict[str, Any]:
    """Look for leakage between the splits, and for copies within one.

    Args:
        m: The manifest, with its split column filled.
        thumbnails: [N, h, w] grey images in row order (any size, any scale), or a reader ``path -> [H, W]``; None:
            near-copies are not looked for.
        content: Compare file contents (only files of equal size are read).
        max_distance: Largest Hamming distance of the difference hashes, 0..256 bits, that proposes a pair.
        min_correlation: Least Pearson correlation of the thumbnails that confirms it, -1..1.

    Returns:
        Counts and lists that can be written as JSON: ``groups_across_splits`` (names), ``same_file`` and
        ``same_content`` (lists of ids), ``near_duplicates`` (dicts a, b, split_a, split_b, same_group, distance,
        correlation; those across splits first, then the most alike, at most 100; all are counted in
        ``n_near_duplicates``), ``leaks`` (how many of all these cross splits) and ``clean``.

    Raises:
        ManifestError: The thumbnails do not fit the rows.
    """
    table = m.table
    ids = table["id"].to_numpy(dtype=object)
    splits = table["split"].to_numpy(dtype=object)
    pairs = table[["group", "split"]].drop_duplicates()
    across = sorted(pairs["group"][pairs["group"].duplicated()].unique().tolist())
    paths = [str(p) for p in table["path"]]
    same_file = _clusters([os.path.realpath(p) for p in paths])
    same_content = _clusters(_digests(paths)) if content else []
    near: list[dict[str, Any]] = []
    if thumbnails is not None and len(m):
        near = _near(m, _as_thumbnails(thumbnails, paths), max_distance, min_correlation)
    crossing = [c for c in (*same_file, *same_content) if len({splits[i] for i in c}) > 1]
    near_crossing = [pair for pair in near if pair["split_a"] != pair["split_b"]]
    leaks = len(across) + len(crossing) + len(near_crossing)
    ordered = sorted(near, key=lambda p: (p["split_a"] == p["split_b"], -p["correlation"], p["a"]))
    return {
        "rows": len(m),
        "groups": int(table["group"].nunique()),
        "groups_across_splits": across,
        "same_file": [[str(ids[i]) for i in c] for c in same_file],
        "same_content": [[str(ids[i]) for i in c] for c in same_content],
        "near_duplicates": ordered[:_SHOWN],
        "n_near_duplicates": len(near),
        "n_near_duplicates_across_splits": len(near_crossing),
        "leaks": leaks,
        "clean": leaks == 0,
    }


def grey_thumbnail(image: Image, side: int = SIDE) -> npt.NDArray[np.float32]:
    """float32 [side, side] by area averaging, of a grey [H, W] or coloured [H, W, C] image (mean over C)."""
    if np.ndim(image) not in (2, 3):
        raise ManifestError(f"A thumbnail needs [H, W] or [H, W, C], not {np.shape(image)}.", hint="Pass one image.")
    small = thumbnail(image, side)
    return small if small.ndim == 2 else small.mean(axis=2)


def difference_hash(small: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """bool [N, 256] of thumbnails [N, h, w]: is a cell brighter than its left neighbour, on a 16 x 17 grid."""
    grids = np.stack([cv2.resize(t, (17, 16), interpolation=cv2.INTER_AREA) for t in small])
    return np.asarray((np.diff(grids, axis=2) > 0).reshape(len(small), -1))


def near_duplicates(
    small: npt.NDArray[np.float32], max_distance: int = 40, min_correlation: float = 0.97
) -> list[tuple[int, int, int, float]]:
    """Pairs of rows that show nearly the same picture.

    Args:
        small: float32 thumbnails [N, h, w].
        max_distance: Hamming distance that proposes a pair.
        min_correlation: Pearson correlation that confirms it.

    Returns:
        ``(row, later row, distance, correlation)``, in row order. A picture without contrast matches nothing.
    """
    bits = difference_hash(small)
    signs = np.where(bits, np.float32(1), np.float32(-1))
    flat = small.reshape(len(small), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 1e-6)
    found = []
    for start in range(0, len(small), _BLOCK):
        for other in range(start, len(small), _BLOCK):
            # Inner product of signs = bits - 2 x Hamming distance.
            distance = (signs.shape[1] - signs[start : start + _BLOCK] @ signs[other : other + _BLOCK].T) / 2
            rows, columns = np.nonzero(distance <= max_distance)
            keep = rows + start < columns + other
            a, b = rows[keep] + start, columns[keep] + other
            # In chunks: films that all look alike propose millions of pairs.
            for chunk in range(0, len(a), _CHUNK):
                i, j = a[chunk : chunk + _CHUNK], b[chunk : chunk + _CHUNK]
                correlation = np.einsum("ij,ij->i", flat[i], flat[j])
                for k in np.flatnonzero(correlation >= min_correlation):
                    apart = int(distance[i[k] - start, j[k] - other])
                    found.append((int(i[k]), int(j[k]), apart, float(correlation[k])))
    return sorted(found)


def _near(m: Manifest, small: npt.NDArray[np.float32], max_distance: int, least: float) -> list[dict[str, Any]]:
    columns = {c: m.table[c].to_numpy(dtype=object) for c in ("id", "split", "group")}
    return [
        {
            "a": str(columns["id"][a]),
            "b": str(columns["id"][b]),
            "split_a": str(columns["split"][a]),
            "split_b": str(columns["split"][b]),
            "same_group": bool(columns["group"][a] == columns["group"][b]),
            "distance": distance,
            "correlation": round(correlation, 4),
        }
        for a, b, distance, correlation in near_duplicates(small, max_distance, least)
    ]


def _as_thumbnails(given: Image | Callable[[str], Image], paths: Sequence[str]) -> npt.NDArray[np.float32]:
    images = [given(p) for p in paths] if callable(given) else given
    if len(images) != len(paths):
        raise ManifestError(f"{len(images)} thumbnails for {len(paths)} rows.", hint="Pass one a row, in row order.")
    return np.stack([grey_thumbnail(image) for image in images])


def _digests(paths: Sequence[str]) -> list[str]:
    """A key a file that two files share if and only if their bytes are equal (up to a hash collision)."""
    sizes = [os.path.getsize(p) if os.path.isfile(p) else -1 for p in paths]
    alike: dict[int, int] = {}
    for size in sizes:
        alike[size] = alike.get(size, 0) + 1
    return [
        file_sha256(p) if size >= 0 and alike[size] > 1 else f"only:{i}"
        for i, (p, size) in enumerate(zip(paths, sizes, strict=True))
    ]


def _clusters(keys: Sequence[str]) -> list[list[int]]:
    """Positions that share a key, two or more, in order of first appearance."""
    positions: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        positions.setdefault(key, []).append(i)
    return [p for p in positions.values() if len(p) > 1]
