"""Which tiles are in sight, in which order, in which colours: filters that live in the page's address. All of it in arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.shared.address import address
from apps.shared.filter_row import fraction
from apps.tiles.session import TileSession
from vitdomains.core.review.agreement import UNSURE
from vitdomains.core.review.export import SUBJECT

STATUSES = {
    "all": "all labelled tiles",
    "unread": "not reviewed by me",
    "read": "reviewed by me",
    "queue": "in the queue",
    "mine": "assigned to me, not reviewed",
    "disagreement": "reviewers disagree",
    "nodata": "without a label",
}
SORTS = {
    "listed": "as mapped",
    "queue": "the queue first",
    "unsure": "probability, lowest first",
    "sure": "probability, highest first",
    "margin": "margin, smallest first",
    "entropy": "entropy, highest first",
}
COLOURINGS = {
    "class": "class",
    "faded": "class, paler where unsure",
    "probability": "probability",
    "margin": "margin",
    "entropy": "entropy",
    "status": "my review",
}
REVIEW_COLOURS = {
    "agreed": (40, 160, 90),
    "corrected": (230, 120, 20),
    "unsure": (160, 90, 200),
    "not reviewed": (128, 128, 128),
}
AREA_POINTS = 60
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TileFilters:
    """What to show; every field stands in the address."""

    status: str = "all"
    name: str = ""
    """A class that is called."""
    low: float = 0.0
    high: float = 1.0
    margin: float = 1.0
    """Highest margin."""
    entropy: float = 0.0
    """Lowest entropy, as a share of the highest possible."""
    sort: str = "listed"
    search: str = ""
    area: Points = ()
    """Corners of an area on the scene, pixels."""

    @classmethod
    def from_address(cls, session: TileSession) -> TileFilters:
        """What the page's address says; what it cannot mean is taken for the default."""
        q = address()
        status, sort, name = q.get("status", "all"), q.get("sort", "listed"), q.get("class", "")
        status = status if status in status_choices(session) else "all"
        sort = sort if sort in sort_choices(session) else "listed"
        search, area = q.get("search", ""), points_of(q.get("area", ""))
        if session.blinded:  # filters of what the model said would tell it
            return cls(status=status, sort=sort, search=search, area=area)
        return cls(
            status=status,
            name=name if name in session.tiles.classes else "",
            low=fraction("low", 0.0),
            high=fraction("high", 1.0),
            margin=fraction("margin", 1.0),
            entropy=fraction("entropy", 0.0),
            sort=sort,
            search=search,
            area=area,
        )


def points_of(text: str) -> Points:
    """Corners from ``x,y;x,y;...``; none where there are fewer than three, or they are nonsense."""
    try:
        pairs = [tuple(float(word) for word in pair.split(",")) for pair in text.split(";") if pair]
    except ValueError:
        return ()
    good = len(pairs) >= 3 and all(len(p) == 2 and math.isfinite(p[0]) and math.isfinite(p[1]) for p in pairs)
    return tuple((p[0], p[1]) for p in pairs[:AREA_POINTS]) if good else ()


def status_choices(session: TileSession) -> dict[str, str]:
    """Statuses that this reviewer can choose."""
    hidden = set() if "adjudicator" in session.reviewer.roles else {"disagreement"}
    hidden |= set() if _has_queue(session) else {"queue"}
    return {k: v for k, v in STATUSES.items() if k not in hidden}


def sort_choices(session: TileSession) -> dict[str, str]:
    """Orders that there are: in a blinded review none that gives the model away."""
    known = {"listed": SORTS["listed"]} if session.blinded else SORTS
    return {k: v for k, v in known.items() if k != "queue" or _has_queue(session)}


def colourings(session: TileSession) -> dict[str, str]:
    """What the tiles can be coloured by: in a blinded review only by what the reviewer said."""
    return {"status": COLOURINGS["status"]} if session.blinded else COLOURINGS


def _has_queue(session: TileSession) -> bool:
    """Whether there is one to show: blinded there is none, for it says where the model is unsure."""
    return not session.blinded and bool((session.tiles.queued < len(session.tiles)).any())


def highest_entropy(session: TileSession) -> float:
    """The entropy of knowing nothing, nats."""
    return math.log(len(session.tiles.classes)) if session.single and len(session.tiles.classes) > 1 else math.log(2)


def member(session: TileSession, items: frozenset[str] | set[str]) -> NDArray[np.bool_]:
    """[N] which tiles are among these items."""
    found = np.zeros(len(session.tiles), np.bool_)
    rows = [row for item in items if (row := session.tiles.position.get(item)) is not None]
    found[rows] = True
    return found


def visible(session: TileSession, filters: TileFilters) -> NDArray[np.int64]:
    """Rows of the tiles that pass the filters, in order."""
    tiles, table = session.tiles, session.tiles.table
    keep = ~tiles.labelled if filters.status == "nodata" else tiles.labelled.copy()
    if filters.status in ("read", "unread", "mine"):
        read = member(session, session.decisions.read_by(session.reviewer.name, session.role))
        keep &= read if filters.status == "read" else ~read
        if filters.status == "mine":
            keep &= member(session, session.decisions.assigned_to(session.reviewer.name, session.role))
    elif filters.status == "queue":
        keep &= tiles.queued < len(tiles)
    elif filters.status == "disagreement":
        keep &= member(session, session.decisions.in_disagreement())
    chosen = table["probability"].to_numpy(np.float32)
    if filters.name:
        k = tiles.classes.index(filters.name)
        keep &= tiles.called[:, k]
        chosen = tiles.probabilities[:, k]
    if (filters.low, filters.high) != (0.0, 1.0):
        keep &= (chosen >= filters.low) & (chosen <= filters.high)
    if filters.margin < 1.0:
        keep &= table["margin"].to_numpy(np.float32) <= filters.margin
    if filters.entropy > 0.0:
        keep &= table["entropy"].to_numpy(np.float32) >= filters.entropy * highest_entropy(session)
    if filters.search:
        keep &= table["tile_id"].str.contains(filters.search.strip(), regex=False).to_numpy(np.bool_)
    if filters.area:
        keep &= _inside(tiles.centres, filters.area)
    rows = np.flatnonzero(keep)
    orders = {
        "queue": tiles.queued, "unsure": chosen, "sure": -chosen, "margin": table["margin"].to_numpy(np.float32),
        "entropy": -table["entropy"].to_numpy(np.float32),
    }  # fmt: skip
    return rows[np.argsort(orders[filters.sort][rows], kind="stable")] if filters.sort in orders else rows


def _inside(points: NDArray[np.float64], area: Points) -> NDArray[np.bool_]:
    import shapely

    polygon = shapely.Polygon(area).buffer(0)  # a line drawn by hand may cross itself
    shapely.prepare(polygon)
    return np.asarray(shapely.contains_xy(polygon, points[:, 0], points[:, 1]), dtype=np.bool_)


def next_tile(session: TileSession, after: str, step: int = 1) -> str:
    """The tile before or after one, in sight and in order; empty at the end."""
    rows = visible(session, TileFilters.from_address(session))
    at = _where(session, rows, after)
    if at is None:
        return str(session.tiles.table["item"].iloc[rows[0]]) if len(rows) and step > 0 else ""
    return str(session.tiles.table["item"].iloc[rows[at + step]]) if 0 <= at + step < len(rows) else ""


def next_unread(session: TileSession, after: str = "") -> str:
    """The next tile in sight that this reviewer has not decided on, from one on and around; empty where all are."""
    found = waiting(session, after)
    return found[0] if found else ""


def waiting(session: TileSession, after: str = "", most: int = 1) -> list[str]:
    """The next tiles of ``next_unread``, ``most`` of them."""
    filters = TileFilters.from_address(session)
    if filters.status in ("read", "nodata"):
        filters = replace(filters, status="all")
    return session.unread(session.tiles.items[visible(session, filters)], after, most)


def _where(session: TileSession, rows: NDArray[np.int64], item: str) -> int | None:
    row = session.tiles.position.get(item)
    found = np.flatnonzero(rows == row) if row is not None else np.empty(0, np.int64)
    return int(found[0]) if len(found) else None


def review_words(session: TileSession) -> NDArray[np.int8]:
    """[N] what this reviewer says of each tile, as an index into ``REVIEW_COLOURS``."""
    words = np.full(len(session.tiles), len(REVIEW_COLOURS) - 1, np.int8)
    for item, values in session.answers.items():
        row = session.row(item)
        if row is None:
            continue
        calls = session.calls(row)
        if any(value == UNSURE for value in values.values()):
            words[row] = 2
        else:
            words[row] = 0 if all(value == calls.get(subject) for subject, value in values.items()) else 1
    return words


def paint(session: TileSession, rows: NDArray[np.int64], colouring: str) -> NDArray[np.uint8]:
    """[N, 4] RGBA of every tile; clear where it is not in sight."""
    from vitdomains.core.explain.overlay import colours

    tiles, table = session.tiles, session.tiles.table
    out = np.zeros((len(tiles), 4), np.uint8)
    if colouring in ("class", "faded"):
        out[:, :3] = tiles.palette[tiles.code]
    elif colouring == "status":
        out[:, :3] = np.array(list(REVIEW_COLOURS.values()), np.uint8)[review_words(session)]
    else:
        values = table[colouring].to_numpy(np.float32) / (highest_entropy(session) if colouring == "entropy" else 1.0)
        out[:, :3] = colours(values.astype(np.float32)[None], "viridis")[0]
    out[rows, 3] = 255
    if colouring == "faded":
        chance = 1 / len(tiles.classes)
        sure = np.nan_to_num((table["probability"].to_numpy(np.float32) - chance) / (1 - chance + 1e-9))
        out[rows, 3] = np.rint(40 + 215 * np.clip(sure[rows], 0, 1)).astype(np.uint8)
    return out


def listed(session: TileSession, rows: NDArray[np.int64]) -> pd.DataFrame:
    """What the list shows of these tiles."""
    table = session.tiles.table.iloc[rows]
    mine = [_short(session.answers.get(item, {}), session) for item in table["item"]]
    shown = {
        "Tile": table["tile_id"].str.removeprefix(str(table["scene"].iloc[0]) + "_").to_numpy() if len(table) else []
    }
    if not session.blinded:
        shown |= {c.capitalize(): table[c].to_numpy() for c in ("label", "probability", "margin")}
    return pd.DataFrame(shown | {"Mine": mine})


def _short(values: dict[str, str], session: TileSession) -> str:
    if not values:
        return ""
    return values.get(SUBJECT, "") if session.single else f"{len(values)} classes"
