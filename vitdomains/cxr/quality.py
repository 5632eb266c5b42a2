"""Acceptance checks of a frontal chest film, from its header and its grey values, each with a reason.

A remark never stops anything: the model was trained on upright, frontal, well exposed chest films, and its probabilities
for another picture mean little. Thresholds without a source were chosen on phantoms and 800 films of NIH ChestX-ray14 so that
few acceptable ones are remarked on: 0 of 200 phantoms, 0.5 % of the 800. Of the same films made wrong, remarked on were 100 %
where inverted, blank, noise, collimated to a quarter or cut to a strip, and 79 to 100 % (real) where a half of the grey scale
was clipped away; but only 40 % (real) and 4 % (phantoms) where turned by 90 degrees, 36 and 54 % where a quarter was cut out,
and hardly any lower half (``benchmarks/cxr_film_quality.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.film.film import Film, read_film

NOT_FRONTAL = frozenset(
    ("LATERAL", "RLD", "LLD", "RLO", "LLO", "RAO", "LAO", "RPO", "LPO", "RL", "LL", "OBLIQUE", "DECUBITUS")
)
"""Views that are not PA or AP: the defined terms of View Position (PS3.3, C.8.1.3 and C.8.11.2), and obliques by their names."""
CHEST_WORDS = ("CHEST", "THORA", "TORAX", "LUNG")
"""Parts of Body Part Examined (PS3.16, annex L, and what devices write) that name a chest; nothing at all is taken for one."""
MIN_SIDE = 224
"""Pixels: the smallest input of the usual models; below it there is less on the film than they were trained to see."""
MAX_ASPECT = 2.0
"""Longer by shorter side. Detectors have up to 1.23 (35 x 43 cm); above 2 not both lungs can be on the film."""
MIN_CONTRAST = 0.1
"""Difference of the 2nd and 98th percentile over ``GRID`` x ``GRID`` means, in which noise has no part. Least of 800: 0.39."""
MAX_CLIPPED = 0.2
"""Share of the central half of the sides (a quarter of the area) at either end of the grey scale."""
MIN_FIELD = 0.4
"""Share of the film that the smallest rectangle around what differs from its margin takes. Least of 800: 0.57."""
MIN_LIKENESS, INVERTED_LIKENESS = 0.1, -0.2
"""Correlation with ``LAYOUT`` of a frontal chest film, and of one whose grey values are turned round. Median of 800: 0.67."""
MAX_DEVIATION = 3.0
"""Deviation index, +3 is twice and -3 half the target exposure: AAPM Task Group 116 (Shepard et al. 2009, table II) asks for
follow-up beyond."""
GRID = 16
_BLACK, _WHITE = 0.004, 0.996  # one of 256 grey levels
_MARGIN_TOLERANCE = 0.06  # grey values apart from the margin's to count as exposed
_MARGIN_SHARE = 0.05  # of a line, so that a side marker on a collimated margin does not

LAYOUT = np.array(
    [
        [-22, -24, -17, 0, 0, -17, -24, -22],
        [-15, -17, -8, 10, 10, -8, -17, -15],
        [-9, -4, -3, 9, 9, -3, -4, -9],
        [-7, 0, 2, 13, 13, 2, 0, -7],
        [-9, 2, 7, 18, 18, 7, 2, -9],
        [-11, 2, 11, 18, 18, 11, 2, -11],
        [-12, 5, 15, 19, 19, 15, 5, -12],
        [-13, 5, 15, 18, 18, 15, 5, -13],
    ],
    dtype=np.float64,
)
"""How a frontal film is laid out: the mean of 200 phantoms in 8 x 8 cells, made symmetric, so that no real film is in it."""


@dataclass(frozen=True)
class Check:
    """One question: ``reason`` says in words why the film is not acceptable by it, "" where it is."""

    name: str
    reason: str


@dataclass(frozen=True)
class FilmQuality:
    """All questions that could be asked of a film, in a fixed order."""

    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the film is not acceptable; empty where it is."""
        return tuple(check.reason for check in self.checks if check.reason)

    @property
    def acceptable(self) -> bool:
        """Whether no check has a reason against it."""
        return not self.reasons


def film_quality(film: Film) -> FilmQuality:
    """Ask everything of a film; the last four only where there is a picture at all.

    Args:
        film: As ``read_film`` gives it: float32 [H, W] in 0..1, bone bright.

    Returns:
        The checks ``view``, ``orientation``, ``body_part``, ``exposure``, ``size``, ``aspect``, ``empty``, then ``clipped``,
        ``field``, ``inverted`` and ``layout``.
    """
    checks = [Check(name, ask(film)) for name, ask in _OF_FILM.items()]
    if not checks[-1].reason:
        checks += [Check(name, ask(film)) for name, ask in _OF_PICTURE.items()]
    return FilmQuality(tuple(checks))


def read_checked(path: str | Path) -> tuple[NDArray[np.float32], str]:
    """``read_image``, and why the film is not acceptable as a frontal chest film, in words; "" where it is.

    Raises:
        ImageError: As ``read_film``.
    """
    film = read_film(path)
    return film.pixels, "; ".join(film_quality(film).reasons)


def likeness(pixels: NDArray[np.float32]) -> float:
    """Correlation (-1 to 1) of a film's large-scale brightness with that of a frontal chest film; 0 of a constant one."""
    cells = _means(pixels, len(LAYOUT))
    cells, layout = cells - cells.mean(), LAYOUT - LAYOUT.mean()
    size = float(np.linalg.norm(cells) * np.linalg.norm(layout))
    return float((cells * layout).sum()) / size if size > 1e-9 else 0.0


def _view(film: Film) -> str:
    return f"not a frontal view (View Position {film.view})" if film.view in NOT_FRONTAL else ""


def _orientation(film: Film) -> str:
    return f"left and right may be mirrored: orientation {film.turn.text}" if film.turn.is_unknown else ""


def _body_part(film: Film) -> str:
    part = film.body_part.upper()
    return f"not a chest (Body Part Examined {part[:16]})" if part and not any(w in part for w in CHEST_WORDS) else ""


def _exposure(film: Film) -> str:
    index = film.deviation_index
    if index is None or abs(index) <= MAX_DEVIATION:
        return ""
    return f"{'over' if index > 0 else 'under'}exposed (deviation index {index:+.1f})"


def _size(film: Film) -> str:
    rows, columns = film.pixels.shape
    return f"small ({rows} x {columns} pixels)" if min(rows, columns) < MIN_SIDE else ""


def _aspect(film: Film) -> str:
    rows, columns = film.pixels.shape
    return (
        f"too narrow for a chest ({rows} x {columns})" if max(rows, columns) > MAX_ASPECT * min(rows, columns) else ""
    )


def _empty(film: Film) -> str:
    low, high = np.percentile(_means(film.pixels, GRID), (2, 98))
    return f"nearly empty (contrast {high - low:.2f})" if high - low < MIN_CONTRAST else ""


def _clipped(film: Film) -> str:
    rows, columns = film.pixels.shape
    centre = np.s_[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    known = film.pixels[centre] if film.valid is None else film.pixels[centre][film.valid[centre]]
    if not known.size:
        return ""
    for share, end in ((np.mean(known <= _BLACK), "black"), (np.mean(known >= _WHITE), "white")):
        if share > MAX_CLIPPED:
            return f"clipped ({share:.0%} of the centre is {end})"
    return ""


def _field(film: Film) -> str:
    shown = _means(film.pixels, 8 * GRID)
    margin = np.concatenate([shown[0], shown[-1], shown[:, 0], shown[:, -1]])
    exposed = np.abs(shown - np.median(margin)) > _MARGIN_TOLERANCE
    sides = [np.flatnonzero(exposed.mean(axis=axis) > _MARGIN_SHARE) for axis in (0, 1)]
    share = float(np.prod([(side[-1] - side[0] + 1) / len(shown) if side.size else 0.0 for side in sides]))
    return f"collimated to {share:.0%} of the film" if share < MIN_FIELD else ""


def _inverted(film: Film) -> str:
    found = likeness(film.pixels)
    return f"likely inverted (likeness to a chest film {found:.2f})" if found < INVERTED_LIKENESS else ""


def _layout(film: Film) -> str:
    found = likeness(film.pixels)
    odd = INVERTED_LIKENESS <= found < MIN_LIKENESS
    return f"not laid out as a frontal chest film (likeness {found:.2f})" if odd else ""


def _means(pixels: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """The film squashed to ``side`` x ``side`` cells, each the mean of its pixels."""
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), dtype=np.float64)


_OF_FILM: dict[str, Callable[[Film], str]] = {
    "view": _view,
    "orientation": _orientation,
    "body_part": _body_part,
    "exposure": _exposure,
    "size": _size,
    "aspect": _aspect,
    "empty": _empty,
}
_OF_PICTURE: dict[str, Callable[[Film], str]] = {
    "clipped": _clipped,
    "field": _field,
    "inverted": _inverted,
    "layout": _layout,
}
