"""Store of reviewers' decisions in which none is lost and none is changed."""

from __future__ import annotations

import json
import math
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import pandas as pd
from sqlalchemy import Table, func, select

from vitdomains.core.review import chain as chain
from vitdomains.core.review.chain import Head
from vitdomains.core.review.schema import (
    ASSIGNMENTS,
    CHAINS,
    DECISIONS,
    GRANTS,
    Answer,
    Assignment,
    Decision,
    Region,
    ReviewError,
    Role,
    clean_text,
)

__all__ = ["Answer", "Assignment", "Decision", "Head", "Region", "ReviewError", "ReviewStore", "Role"]


class ReviewStore:
    """Append-only decisions, assignments and roles, in SQLite or PostgreSQL.

    Safe to share among threads; several processes and machines may open the same one.

    Args:
        url: ``sqlite:///reviews.db`` (a file on a local disk, not on a network share) or ``postgresql://USER@HOST/DATABASE``.
        make: Make the file where there is none.

    Raises:
        ReviewError: The store cannot be opened, or is of another version.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        self._engine = chain.open_engine(url, make=make)
        # Writers of one process queue here: SQLite lets waiting writers try at random intervals, which starves some.
        self._turn = threading.Lock()
        with chain.translated(self._engine):
            chain.create(self._engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @property
    def name(self) -> str:
        """The URL, without a password."""
        return self._engine.url.render_as_string(hide_password=True)

    def add(self, *decisions: Decision) -> list[int]:
        """Write decisions, all or none, and return their numbers. Once this returns they are on the disk."""
        return chain.append(self._engine, self._turn, DECISIONS, [_decision_row(d) for d in decisions])

    def assign(self, assignments: Iterable[Assignment], by: str) -> list[int]:
        """Write assignments; the latest of an item, reviewer and role holds."""
        rows = [
            {**asdict(a), "active": int(a.active), "assigned_by": by, "token": uuid.uuid4().hex} for a in assignments
        ]
        return chain.append(self._engine, self._turn, ASSIGNMENTS, rows)

    def grant(self, reviewer: str, role: Role, by: str, *, active: bool = True) -> None:
        """Give a role to a reviewer, or take it back."""
        if role not in ("reader", "adjudicator", "admin"):
            raise ReviewError(f"There is no role {role!r}.", hint="Use reader, adjudicator or admin.")
        row = {"reviewer": reviewer, "role": role, "active": int(active), "granted_by": by, "token": uuid.uuid4().hex}
        chain.append(self._engine, self._turn, GRANTS, [row])

    def roles(self, reviewer: str = "") -> dict[str, frozenset[str]]:
        """Reviewer to the roles that were granted; of one reviewer alone where named."""
        table = self._table(GRANTS, GRANTS.c.reviewer == reviewer if reviewer else None)
        latest = table.drop_duplicates(["reviewer", "role"], keep="last")
        held = latest[latest["active"] == 1]
        return {str(name): frozenset(rows) for name, rows in held.groupby("reviewer")["role"]}

    def decisions(self, item: str = "", reviewer: str = "") -> list[Decision]:
        """Decisions in the order in which they were written, of one item or reviewer where named."""
        wanted = [DECISIONS.c.item == item] * bool(item) + [DECISIONS.c.reviewer == reviewer] * bool(reviewer)
        query = select(DECISIONS).where(*wanted).order_by(DECISIONS.c.seq)
        with chain.translated(self._engine), self._engine.connect() as connection:
            return [_decision({**row}) for row in connection.execute(query).mappings()]

    def table(self, since: int = 0) -> pd.DataFrame:
        """All decisions after row ``since`` as they are stored, JSON columns as text; cheap to refresh by the last ``seq``."""
        return self._table(DECISIONS, DECISIONS.c.seq > since)

    def assignments(self, reviewer: str = "") -> pd.DataFrame:
        """The assignments that hold: item, reviewer, role, assigned_by, time; of one reviewer where named."""
        table = self._table(ASSIGNMENTS, ASSIGNMENTS.c.reviewer == reviewer if reviewer else None)
        latest = table.drop_duplicates(["item", "reviewer", "role"], keep="last")
        columns = ["item", "reviewer", "role", "assigned_by", "time"]
        return latest.loc[latest["active"] == 1, columns].reset_index(drop=True)

    def count(self) -> int:
        """Decisions written so far."""
        with chain.translated(self._engine), self._engine.connect() as connection:
            return int(connection.scalar(select(func.count()).select_from(DECISIONS)) or 0)

    def heads(self) -> dict[str, Head]:
        """The last row of each chain: what to write down elsewhere, so that ``verify`` can hold the store against it."""
        with chain.translated(self._engine), self._engine.connect() as connection:
            return chain.read_heads(connection)

    def verify(
        self,
        known: Mapping[str, Head] | None = None,
        on_progress: Callable[[str, int, int], None] = lambda chain, done, total: None,
    ) -> dict[str, Head]:
        """Walk all chains and find any row that was edited, deleted, inserted or moved since it was written.

        Args:
            known: Heads that were kept elsewhere, by chain; the store must still contain them.
            on_progress: Called with (chain, rows done, rows in all).

        Returns:
            The head of each chain.

        Raises:
            ReviewError: Naming the table and the row.
        """
        kept = known or {}
        with chain.translated(self._engine), self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":  # rows and heads of one moment, as SQLite gives anyway
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            return {t.name: chain.check_chain(connection, t, kept.get(t.name), on_progress) for t in CHAINS}

    def _table(self, table: Table, condition: Any = None) -> pd.DataFrame:
        query = select(table).order_by(table.c.seq)
        with chain.translated(self._engine), self._engine.connect() as connection:
            rows = connection.execute(query if condition is None else query.where(condition)).all()
        return pd.DataFrame(rows, columns=[c.name for c in table.columns])


def deal(items: Sequence[str], reviewers: Sequence[str], readers_per_item: int = 2, seed: int = 0) -> list[Assignment]:
    """Deal items out so that each has as many different readers as asked for and all readers have as much to do.

    Every pair of readers comes up about as often as any other (readers are drawn, the least busy first), so that agreement is
    not measured on one pair alone.

    Raises:
        ReviewError: Fewer reviewers than readers an item needs.
    """
    names = list(dict.fromkeys(reviewers))
    if not 1 <= readers_per_item <= len(names):
        raise ReviewError(
            f"{readers_per_item} readers an item, of {len(names)} reviewers.",
            hint="Name more reviewers, or ask for fewer.",
        )
    rng = random.Random(seed)
    load = dict.fromkeys(names, 0)
    dealt = []
    for item in rng.sample(list(items), len(items)):
        chosen = sorted(names, key=lambda name: (load[name], rng.random()))[:readers_per_item]
        for name in chosen:
            load[name] += 1
            dealt.append(Assignment(item, name))
    return dealt


def _decision_row(d: Decision) -> chain.Row:
    shown = {name: None if math.isnan(p) else float(p) for name, p in d.probabilities.items()}
    return {
        "token": d.token,
        "item": d.item,
        "bundle_id": d.bundle_id,
        "reviewer": d.reviewer,
        "role": d.role,
        "answers": chain.canonical({subject: [a.verdict, a.label] for subject, a in d.answers.items()}),
        "probabilities": chain.canonical(shown),
        "calls": chain.canonical(dict(d.calls)),
        "regions": chain.canonical([asdict(r) for r in d.regions]),
        "note": clean_text(d.note),
        "seconds": float(d.seconds),
        "blinded": int(d.blinded),
    }


def _decision(row: Mapping[str, Any]) -> Decision:
    return Decision(
        item=row["item"],
        bundle_id=row["bundle_id"],
        reviewer=row["reviewer"],
        role=row["role"],
        answers=parse_answers(row["answers"]),
        probabilities={k: float("nan") if p is None else p for k, p in json.loads(row["probabilities"]).items()},
        calls=json.loads(row["calls"]),
        regions=tuple(Region(**r) for r in json.loads(row["regions"])),
        note=row["note"],
        seconds=row["seconds"],
        blinded=bool(row["blinded"]),
        token=row["token"],
    )


def parse_answers(text: str) -> dict[str, Answer]:
    """Subject to answer, from the column ``answers``."""
    return {subject: Answer(verdict, label) for subject, (verdict, label) in json.loads(text).items()}
