"""Who has decided what: the store's rows, kept in memory and refreshed by those that were added since."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from vitdomains.core.review import Decision, ReviewStore
from vitdomains.core.review_agreement import disagreements, readings


@dataclass(frozen=True)
class Standing:
    """Where an item stands: its readers, whether they disagree, whether an adjudicator has spoken."""

    readers: tuple[str, ...] = ()
    disagreement: bool = False
    adjudicated: bool = False


class Ledger:
    """A view of the store that is cheap to ask again and again; safe to share among threads."""

    def __init__(self, store: ReviewStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seq = {"review_decisions": 0, "review_assignments": 0}
        self._table = pd.DataFrame()
        self._by: dict[tuple[str, str], set[str]] = {}
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
                self._seq["review_decisions"] = int(self._table["seq"].iloc[-1])
                for item, reviewer, role in fresh[["item", "reviewer", "role"]].itertuples(index=False, name=None):
                    self._by.setdefault((reviewer, role), set()).add(item)
                self._restate(set(fresh["item"]))
            if heads["review_assignments"].seq > self._seq["review_assignments"]:
                table = self._store.assignments()
                self._assigned = {
                    (str(reviewer), str(role)): set(group["item"])
                    for (reviewer, role), group in table.groupby(["reviewer", "role"])
                }
                self._seq["review_assignments"] = heads["review_assignments"].seq
            return self._seq["review_decisions"]

    def _restate(self, items: Iterable[str]) -> None:
        """Work out again where these items stand."""
        rows = self._table[self._table["item"].isin(list(items))]
        open_ = set(disagreements(readings(rows)))
        for item, group in rows.groupby("item"):
            readers = group.loc[group["role"] == "reader", "reviewer"].unique()
            adjudicated = bool((group["role"] == "adjudicator").any())
            self._standing[str(item)] = Standing(tuple(map(str, readers)), item in open_, adjudicated)

    def read_by(self, reviewer: str, role: str = "reader") -> frozenset[str]:
        """Items on which a reviewer has decided in a role."""
        return frozenset(self._by.get((reviewer, role), ()))

    def assigned_to(self, reviewer: str, role: str = "reader") -> frozenset[str]:
        """Items that are assigned to a reviewer in a role."""
        return frozenset(self._assigned.get((reviewer, role), ()))

    def standing(self, item: str) -> Standing:
        """Where an item stands."""
        return self._standing.get(item, Standing())

    def values(self, item: str, reviewer: str, role: str) -> dict[str, str] | None:
        """What a reviewer's latest decision says of each finding (see ``resolved``); None where there is none."""
        table = self._table
        if not len(table):
            return None
        rows = table[(table["item"] == item) & (table["reviewer"] == reviewer) & (table["role"] == role)]
        if not len(rows):
            return None
        said = readings(rows)
        return dict(zip(said["subject"], said["value"], strict=True))

    def decisions(self, item: str) -> list[Decision]:
        """All decisions on an item, straight from the store."""
        return self._store.decisions(item=item)

    @property
    def table(self) -> pd.DataFrame:
        """All decisions, as ``ReviewStore.table`` gives them."""
        return self._table if len(self._table) else self._store.table()
