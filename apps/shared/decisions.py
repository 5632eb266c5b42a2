"""Who has decided what: the store's rows, kept in memory and refreshed by those that were added since."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from vitdomains.core.review.agreement import disagreements, readings
from vitdomains.core.review.store import Decision, ReviewStore

NO_ANSWERS = "{}"
"""The column ``answers`` of a decision that takes the one before back."""


@dataclass(frozen=True)
class Standing:
    """Where an item stands: its readers, whether they disagree, whether an adjudicator has spoken."""

    readers: tuple[str, ...] = ()
    disagreement: bool = False
    adjudicated: bool = False


class DecisionTable:
    """A view of the store that is cheap to ask again and again; safe to share among threads."""

    def __init__(self, store: ReviewStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seq = {"review_decisions": 0, "review_assignments": 0}
        self._table = pd.DataFrame()
        self._by: dict[tuple[str, str], set[str]] = {}
        self._ever: dict[tuple[str, str], set[str]] = {}
        self._values: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._standing: dict[str, Standing] = {}
        self._assigned: dict[tuple[str, str], set[str]] = {}

    def refresh(self) -> int:
        """Read what was written since; returns the number of the last decision."""
        heads = self._store.heads()
        with self._lock:
            last = heads["review_decisions"].seq
            if last > self._seq["review_decisions"]:
                fresh = self._store.table(since=self._seq["review_decisions"])
                self._table = pd.concat([self._table, fresh], ignore_index=True) if len(self._table) else fresh
                columns = ["item", "reviewer", "role", "answers"]
                for item, reviewer, role, answers in fresh[columns].itertuples(index=False, name=None):
                    # A row without answers takes the reviewer's earlier word back: the item waits again.
                    items = self._by.setdefault((reviewer, role), set())
                    items.discard(item) if answers == NO_ANSWERS else items.add(item)
                    self._ever.setdefault((reviewer, role), set()).add(item)
                    self._values.setdefault((reviewer, role), {}).pop(item, None)
                    self._times[reviewer, role, item] += 1
                read = readings(fresh)[["item", "reviewer", "role", "subject", "value"]]
                for item, reviewer, role, subject, value in read.itertuples(index=False, name=None):
                    self._values[reviewer, role].setdefault(item, {})[subject] = value
                self._restate(set(fresh["item"]))
                # Last: whoever keeps what they made of these rows keeps it under this number.
                self._seq["review_decisions"] = int(self._table["seq"].iloc[-1])
            if heads["review_assignments"].seq > self._seq["review_assignments"]:
                table = self._store.assignments()
                self._assigned = {
                    (str(reviewer), str(role)): set(group["item"])
                    for (reviewer, role), group in table.groupby(["reviewer", "role"])
                }
                self._seq["review_assignments"] = heads["review_assignments"].seq
            return self._seq["review_decisions"]

    def _restate(self, items: Iterable[str]) -> None:
        """Work out again where these items stand; thousands at once, after a decision in bulk."""
        wanted = set(items)
        rows = self._table[self._table["item"].isin(wanted)].drop_duplicates(["item", "reviewer", "role"], keep="last")
        rows = rows[rows["answers"] != NO_ANSWERS]
        readers: dict[str, list[str]] = {}
        by_readers = rows.loc[rows["role"] == "reader", ["item", "reviewer"]]
        for item, reviewer in by_readers.itertuples(index=False, name=None):
            readers.setdefault(item, []).append(reviewer)
        several = [item for item, names in readers.items() if len(names) > 1]
        open_ = set(disagreements(readings(rows[rows["item"].isin(several)])))
        adjudicated = set(rows.loc[rows["role"] == "adjudicator", "item"])
        for item in wanted:
            self._standing[item] = Standing(tuple(readers.get(item, ())), item in open_, item in adjudicated)

    def read_by(self, reviewer: str, role: str = "reader") -> frozenset[str]:
        """Items on which a reviewer has decided in a role."""
        return frozenset(self._by.get((reviewer, role), ()))

    def ever_read_by(self, reviewer: str, role: str = "reader") -> frozenset[str]:
        """As ``read_by``, with those on which the reviewer took the decision back."""
        return frozenset(self._ever.get((reviewer, role), ()))

    def times(self, reviewer: str, role: str, item: str) -> int:
        """How many rows a reviewer has written on an item in a role."""
        return self._times[reviewer, role, item]

    def assigned_to(self, reviewer: str, role: str = "reader") -> frozenset[str]:
        """Items that are assigned to a reviewer in a role."""
        return frozenset(self._assigned.get((reviewer, role), ()))

    def unfinished(self) -> frozenset[str]:
        """Items that someone who was assigned has not read, and on which no adjudicator has spoken: they are not settled."""
        waiting: set[str] = set()
        for (reviewer, role), items in self._assigned.items():
            if role == "reader":
                waiting |= items - self.read_by(reviewer)
        return frozenset(item for item in waiting if not self.standing(item).adjudicated)

    def standing(self, item: str) -> Standing:
        """Where an item stands."""
        return self._standing.get(item, Standing())

    @property
    def last(self) -> int:
        """Number of the last decision that was read."""
        return self._seq["review_decisions"]

    @property
    def seen(self) -> tuple[int, int]:
        """Numbers of the last decision and the last assignment that were read."""
        return self._seq["review_decisions"], self._seq["review_assignments"]

    def in_disagreement(self) -> frozenset[str]:
        """Items on which readers disagree and no adjudicator has spoken."""
        return frozenset(item for item, standing in self._standing.items() if standing.disagreement)

    def values(self, reviewer: str, role: str) -> Mapping[str, dict[str, str]]:
        """Item to what a reviewer's latest decision in a role says of each subject (see ``resolved``)."""
        return self._values.get((reviewer, role), {})

    def of_item(self, item: str) -> list[Decision]:
        """All decisions on an item, straight from the store."""
        return self._store.decisions(item=item)

    @property
    def table(self) -> pd.DataFrame:
        """All decisions, as ``ReviewStore.table`` gives them."""
        return self._table if len(self._table) else self._store.table()
