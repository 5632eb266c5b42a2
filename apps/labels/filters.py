"""Which tiles are in sight, in which order, and what was said of them: all from the page's address and the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.labels.labelling import Order, View
from apps.labels.session import Session
from apps.shared.address import address

PAGE = 30
STATUSES = {
    "all": "all tiles",
    "open": "not reviewed by me",
    "done": "reviewed by me",
    "mine": "assigned to me, not reviewed",
    "disagreement": "reviewers disagree",
}
ORDERS: dict[str, str] = {
    "borderline": "borderline first",
    "surest": "surest first",
    "listed": "as listed",
    "similar": "most similar first",
}


@dataclass(frozen=True)
class LabelFilters:
    """What the address asks for; what it cannot mean is taken for the default."""

    label: str
    status: str
    order: Order
    near: bool
    searching: bool

    @classmethod
    def from_address(cls, view: View) -> LabelFilters:
        """Read the page's address."""
        q = address()
        searching = bool(q.get("q", "").strip() or q.get("like"))
        order = q.get("order", "similar" if searching else "borderline")
        order = order if order in get_args(Order) and (searching or order != "similar") else "borderline"
        status = q.get("status", "all")
        return cls(
            label=q.get("label", "") if q.get("label") in view.labels else "",
            status=status if status in STATUSES else "all",
            order=order,  # type: ignore[arg-type]
            near=q.get("near") == "1",
            searching=searching,
        )


def visible(session: Session, view: View, filters: LabelFilters) -> NDArray[np.int64]:
    """Numbers of the tiles that pass, in order."""
    keep = view.members(filters.label)
    if filters.near:
        keep = keep | view.near_misses(filters.label)
    if filters.status != "all":
        keep = keep & _of_status(session, filters.status)
    similarity = session.similarity() if filters.order == "similar" else None
    return view.ordered(np.flatnonzero(keep), filters.label, filters.order, similarity)


def _of_status(session: Session, status: str) -> NDArray[np.bool_]:
    shown = pd.Series(session.labels.items[session.labels.rows])
    if status == "disagreement":
        return shown.isin(session.decisions.in_disagreement()).to_numpy(bool)
    read = shown.isin(session.decisions.read_by(session.reviewer.name, session.role)).to_numpy(bool)
    if status == "mine":
        return ~read & shown.isin(session.decisions.assigned_to(session.reviewer.name, session.role)).to_numpy(bool)
    return read if status == "done" else ~read


def undecided(session: Session, view: View, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some tiles that this reviewer has not decided on and that have a label to decide on."""
    return numbers[_of_status(session, "open")[numbers] & (view.label[numbers] != "")]


def waiting(session: Session, view: View, numbers: NDArray[np.int64], after: str, most: int = 1) -> list[str]:
    """The next items that wait for this reviewer, behind one and around; empty where none does."""
    items = session.labels.items[session.labels.rows][numbers]
    return session.unread(items, after, most, but=lambda n: not view.label[numbers[n]])


def own_word(session: Session, item: str) -> str:
    """What this reviewer said of an item last; empty where nothing."""
    return next(iter(session.answers.get(item, {}).values()), "")
