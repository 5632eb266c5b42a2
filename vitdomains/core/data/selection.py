"""Active learning: which tiles to label next, by uncertainty, by diversity, or both.

Works on the tile table (``core/geo/map/tiles_table.py``), whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ConfigError, VitDomainsError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Embed = Callable[[pd.DataFrame], npt.NDArray[np.floating]]
"""Rows of the tile table to embeddings [N, D]."""

CHOICES = ("both", "entropy", "margin", "diversity")
POOL = 5
"""How many times as many uncertain tiles as wanted are offered to the choice by diversity."""


def k_centre(embeddings: npt.ArrayLike, n: int, known: npt.ArrayLike | None = None) -> tuple[Ints, Floats]:
    """Greedy k-centre: again and again the row farthest from all that are chosen or known (Sener & Savarese 2018, Alg. 1).

    Args:
        embeddings: [N, D].
        n: How many to choose; all, where there are fewer.
        known: [M, D] embeddings of what is covered already (the labelled tiles); None: the choice begins with the row that
            is nearest to the mean.

    Returns:
        Row numbers in order of choice, [n], and the distance of each to all before it when it was chosen, [n]; it never
        grows. Of equal distances the first row goes first. Without ``known`` the first distance is infinite.

    Raises:
        VitDomainsError: An embedding is not finite.
    """
    x = np.asarray(embeddings, dtype=np.float64)
    if not np.isfinite(x).all():
        raise VitDomainsError("An embedding is not finite.", hint="Leave out tiles that could not be read.")
    nearest = np.full(len(x), np.inf)
    for centre in np.empty((0, x.shape[1])) if known is None else np.asarray(known, dtype=np.float64):
        np.minimum(nearest, ((x - centre) ** 2).sum(axis=1), out=nearest)
    chosen: list[int] = []
    reach: list[float] = []
    for _ in range(min(n, len(x))):
        start = not chosen and np.isinf(nearest).all()
        row = int(((x - x.mean(axis=0)) ** 2).sum(axis=1).argmin() if start else nearest.argmax())
        chosen.append(row)
        reach.append(float(np.sqrt(nearest[row])))
        np.minimum(nearest, ((x - x[row]) ** 2).sum(axis=1), out=nearest)
        nearest[row] = -1.0  # never again, also where another row is the same
    return np.array(chosen, dtype=np.int64), np.array(reach)


def queue(
    tiles: pd.DataFrame, n: int, by: str = "both", *, embed: Embed | None = None, known: npt.ArrayLike | None = None
) -> pd.DataFrame:
    """The next ``n`` tiles to label, the first one first.

    Args:
        tiles: Tile table; rows with an error or without a label have nothing to say and are left out.
        n: How many.
        by: ``entropy`` (highest), ``margin`` (lowest; Scheffer et al. 2001), ``diversity`` (k-centre on embeddings), or
            ``both``: k-centre among the ``POOL`` times ``n`` tiles of highest entropy.
        embed: Embeddings of rows, for ``diversity`` and ``both``.
        known: [M, D] embeddings of labelled tiles, for those two.

    Returns:
        The rows with ``rank`` (from 1), ``score`` (entropy, 1 - margin, or distance to what comes before; higher is sooner)
        and ``reason`` in front of the table's own columns.

    Raises:
        ConfigError: Another ``by``, or no ``embed`` where it is needed.
        VitDomainsError: No tile is left to choose from.
    """
    if by not in CHOICES:
        raise ConfigError(f"{by!r} chooses nothing.", hint=f"Use one of {', '.join(CHOICES)}.")
    usable = tiles[tiles["entropy"].notna() & (tiles["error"] == "")]
    if not len(usable):
        raise VitDomainsError("No tile with a prediction is left to choose from.", hint="Check the table's `error`.")
    doubt = 1 - usable["margin"] if by == "margin" else usable["entropy"]
    ranked = usable.assign(score=doubt).sort_values("score", ascending=False, kind="stable")
    if by in ("margin", "entropy"):
        chosen = ranked.head(n).assign(reason=by)
    else:
        if embed is None:
            raise ConfigError(f"A choice by {by} needs embeddings.", hint="Give --bundle, or choose by entropy.")
        pool = ranked.head(POOL * n) if by == "both" else usable
        rows, reach = k_centre(embed(pool), n, known)
        # Without anything known the first has no distance to anything: it shares that of the second.
        reach[np.isinf(reach)] = reach[1] if len(reach) > 1 else 0.0
        chosen = pool.iloc[rows].assign(score=reach, reason="entropy and diversity" if by == "both" else by)
    front = ["tile_id", "path", "scene", "rank", "score", "reason"]
    chosen = chosen.assign(rank=np.arange(1, len(chosen) + 1), score=chosen["score"].astype(np.float32))
    return chosen[[*front, *(c for c in chosen.columns if c not in front)]].reset_index(drop=True)
