"""Which films of the worklist are in sight, in which order: filters that live in the page's address."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from apps.films.session import Session
from apps.films.worklist import SUBGROUPS, over_threshold, uncertainty
from apps.shared.address import address
from apps.shared.filter_row import fraction

STATUSES = {
    "all": "all films",
    "unread": "not read by me",
    "read": "read by me",
    "mine": "assigned to me, not read",
    "disagreement": "readers disagree",
    "quality": "with a remark on the film",
    "error": "cannot be read",
}
SORTS = {
    "listed": "as listed",
    "probability": "probability, highest first",
    "uncertainty": "uncertainty, highest first",
    "newest": "newest study first",
}
CALLS = {"any": "any", "called": "called", "quiet": "not called"}


@dataclass(frozen=True)
class Filters:
    """What to show; every field stands in the address, under its own name or as ``group``."""

    status: str = "all"
    finding: str = ""
    call: str = "any"
    low: float = 0.0
    high: float = 1.0
    groups: tuple[str, ...] = ()
    """``column: value``; values of one column are alternatives, columns add up."""
    sort: str = "listed"
    search: str = ""

    @classmethod
    def from_address(cls, session: Session) -> Filters:
        """What the page's address says; what it cannot mean is taken for the default."""
        q, plain = address(), cls()
        finding = q.get("finding", "")
        blinded = session.blinded
        return cls(
            status=q.get("status", "all") if q.get("status") in STATUSES else "all",
            finding=finding if finding in session.bundle.classes and not blinded else "",
            call=q.get("call", "any") if q.get("call") in CALLS and not blinded else "any",
            low=plain.low if blinded else fraction("low", plain.low),
            high=plain.high if blinded else fraction("high", plain.high),
            groups=tuple(q.get_all("group")),
            sort=q.get("sort", "listed") if q.get("sort") in _sorts(blinded) else "listed",
            search=q.get("search", ""),
        )


def _sorts(blinded: bool) -> dict[str, str]:
    return {k: v for k, v in SORTS.items() if not blinded or k in ("listed", "newest")}


def status_choices(session: Session) -> dict[str, str]:
    """Statuses that this reviewer can choose."""
    hidden = set() if "adjudicator" in session.reviewer.roles else {"disagreement"}
    return {k: v for k, v in STATUSES.items() if k not in hidden}


def sort_choices(session: Session) -> dict[str, str]:
    """Orders that this reviewer can choose: in a blinded reading none that gives the model away."""
    return _sorts(session.blinded)


def scored(session: Session, finding: str) -> pd.DataFrame:
    """The worklist with columns ``top`` (finding), ``probability``, ``called`` and ``uncertainty``, of one finding or of all.

    Of all findings, ``top`` is the one that lies highest over its threshold, and ``uncertainty`` the highest of any.
    """
    table, classes = session.worklist.table, session.bundle.classes
    chosen = [finding] if finding else list(classes)
    thresholds = np.array([session.bundle.thresholds[classes.index(c)] for c in chosen])
    p = table[[f"prob:{c}" for c in chosen]].to_numpy(np.float64).reshape(len(table), len(chosen))
    known = ~np.isnan(p).any(axis=1)
    filled = np.where(known[:, None], p, 0.0)
    margin = over_threshold(filled, thresholds)
    best = margin.argmax(axis=1) if len(table) else np.empty(0, int)
    rows = np.arange(len(table))
    return table.assign(
        top=np.where(known, np.array(chosen, dtype=object)[best], ""),
        probability=np.where(known, filled[rows, best], np.nan),
        called=known & (margin[rows, best] >= 0),
        uncertainty=np.where(known, uncertainty(filled, thresholds).max(axis=1, initial=0.0), np.nan),
    )


def visible(session: Session, filters: Filters) -> pd.DataFrame:
    """The films that pass the filters, in order, one row an item. Kept while nothing changes: a page asks several times."""
    table, seen = session.worklist.table, session.decisions.seen
    key = (filters, session.reviewer.name, session.role, session.shows_patients, seen)
    tables: dict[Any, tuple[pd.DataFrame, pd.DataFrame]] = st.session_state.get("visible", {})
    if key not in tables or tables[key][0] is not table:
        # Of one state of the decisions there are two at most: with the filters of the page, and to find what is to be read next.
        tables = {k: v for k, v in tables.items() if k[-1] == seen and v[0] is table and len(tables) < 4}
        tables[key] = table, _visible(session, filters)
        st.session_state["visible"] = tables
    return tables[key][1]


def _visible(session: Session, filters: Filters) -> pd.DataFrame:
    table = scored(session, filters.finding).drop_duplicates("item")
    read = session.decisions.read_by(session.reviewer.name, session.role)
    mine = session.decisions.assigned_to(session.reviewer.name, session.role)
    item = table["item"]
    status = {
        "unread": lambda: ~item.isin(read) & (table["error"] == ""),
        "read": lambda: item.isin(read),
        "mine": lambda: item.isin(mine - read),
        "disagreement": lambda: item.map(lambda i: session.decisions.standing(i).disagreement).astype(bool),
        "quality": lambda: table["quality"] != "",
        "error": lambda: table["error"] != "",
    }
    keep = pd.Series(True, index=table.index)
    if filters.status in status:
        keep &= status[filters.status]()
    if filters.call != "any":
        keep &= table["called"] == (filters.call == "called")
    if (filters.low, filters.high) != (0.0, 1.0):
        keep &= table["probability"].between(filters.low, filters.high)
    for column in SUBGROUPS:
        wanted = [g.partition(": ")[2] for g in filters.groups if g.startswith(f"{column}: ")]
        if wanted:
            keep &= table[column].isin(wanted)
    if filters.search:
        text = filters.search.strip().lower()
        hit = item.str.startswith(text)
        keep &= (hit | table["name"].str.lower().str.contains(text, regex=False)) if session.shows_patients else hit
    found = table[keep]
    if filters.sort == "newest":
        return found.sort_values("date", ascending=False, kind="stable")
    if filters.sort in ("probability", "uncertainty"):
        return found.sort_values(filters.sort, ascending=False, kind="stable", na_position="last")
    # Views of one study stand together, where the first of them is listed.
    return found.iloc[np.argsort(pd.factorize(found["study"])[0], kind="stable")]


def group_choices(session: Session) -> list[str]:
    """All sub-groups of the worklist as ``column: value``."""
    table = session.worklist.table
    return [f"{c}: {value}" for c in SUBGROUPS for value in sorted(set(table[c]) - {""})]


def next_item(session: Session, after: str, step: int = 1) -> str:
    """The item before or after one, in sight and in order; empty at the end."""
    items = visible(session, Filters.from_address(session))["item"].tolist()
    if after not in items:
        return items[0] if items and step > 0 else ""
    at = items.index(after) + step
    return items[at] if 0 <= at < len(items) else ""


def next_unread(session: Session, after: str = "") -> str:
    """The next film in sight that this reviewer has not decided on, from one on and around; empty where all are read."""
    filters = Filters.from_address(session)
    if filters.status in ("read", "error"):
        filters = replace(filters, status="all")
    table = visible(session, filters)
    errors = table["error"].tolist()
    found = session.unread(table["item"].to_numpy(dtype=object), after, but=lambda n: bool(errors[n]))
    return found[0] if found else ""
