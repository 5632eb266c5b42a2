"""What a reviewer does in any app: go to a page, take the last act back."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pandas as pd

from apps.shared.address import go, say
from apps.shared.session import Reviewing
from vitdomains.core.review.store import Decision

BULK = "bulk-"
"""Beginning of the tokens of decisions that were made together: ``bulk-BATCH-NUMBER``."""
_UNDO = "undo-"


def bulk_tokens(count: int) -> list[str]:
    """Tokens of decisions that are taken back together."""
    batch = uuid.uuid4().hex
    return [f"{BULK}{batch}-{n}" for n in range(count)]


def leave(session: Reviewing, item: str) -> None:
    """To the first page."""
    go(item="", heat="", show="")


def open_item(session: Reviewing, item: str, wanted: str) -> None:
    """To the page of an item."""
    go(item=wanted, heat="")


def turn_page(session: Reviewing, item: str, to: int) -> None:
    """To a page of the list."""
    go(page=str(to))


def undo(session: Reviewing, item: str) -> None:
    """Take the last act back, a decision or all of one bulk, by new rows that say what held before.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written.
    """
    session.decisions.refresh()
    table = session.decisions.table
    mine = table[(table["reviewer"] == session.reviewer.name) & (table["role"] == session.role)]
    standing = _standing(mine)
    if not len(standing):
        say("There is nothing of yours to take back.")
        return
    token = str(standing["token"].iloc[-1])
    together = token[: token.rindex("-") + 1] if token.startswith(BULK) else token
    taken = standing[standing["token"].str.startswith(together)]
    session.require(session.role)
    session.store.add(*_before(session, standing, taken))
    items = taken["item"].tolist()
    session.forget(*items)
    if len(items) == 1 and session.known(items[0]):
        go(item=items[0], heat="")
    go()
    say(f"Taken back: {len(items):,} {'decision' if len(items) == 1 else 'decisions'}.")


def _standing(mine: pd.DataFrame) -> pd.DataFrame:
    """The decisions that were neither taken back nor take one back."""
    undoing = mine["token"].str.startswith(_UNDO)
    undone = mine.loc[undoing, "token"].str.split("-").str[1].astype("int64")
    return mine[~undoing & ~mine["seq"].isin(undone)]


def _before(session: Reviewing, standing: pd.DataFrame, taken: pd.DataFrame) -> list[Decision]:
    """Rows that take these back: for each, what the reviewer had said before, or nothing."""
    rows = []
    earlier = standing[standing["item"].isin(taken["item"]) & ~standing["token"].isin(taken["token"])]
    last: dict[str, str] = dict(zip(earlier["item"], earlier["token"], strict=True))
    for seq, item, bundle_id in taken[["seq", "item", "bundle_id"]].itertuples(index=False, name=None):
        token = f"{_UNDO}{seq}-{uuid.uuid4().hex}"
        if item in last:
            decision: Any = next(d for d in session.decisions.of_item(item) if d.token == last[item])
            rows.append(replace(decision, token=token, seconds=0.0))
        else:
            rows.append(
                Decision(item, bundle_id, session.reviewer.name, {}, role=session.role, note="taken back", token=token)
            )
    return rows
