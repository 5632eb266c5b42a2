"""What a reviewer does to tiles: answer, save, go on, accept in bulk, take back. Callbacks: they run before the page is drawn."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from apps.shared.address import address, fail, go, say
from apps.shared.components import label
from apps.shared.drafts import decision_of, options_of
from apps.shared.session import finish_then
from apps.tiles.filters import next_tile, next_unread
from apps.tiles.session import TileSession
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.review.export import SUBJECT
from vitdomains.core.review.store import Answer, Decision

KEYED = 9
"""Classes that have a key of their own."""
_BULK, _UNDO = "bulk-", "undo-"  # beginnings of tokens: which rows belong together, which takes which back


def class_order(session: TileSession, row: int) -> list[str]:
    """Classes as the page lists them: in the bundle's order where each has a key, so that keys stay, or where the model is not
    shown; else by probability."""
    classes = session.tiles.classes
    if (session.single and len(classes) <= KEYED) or not session.revealed(str(session.tiles.table["item"].iat[row])):
        return list(classes)
    p = np.nan_to_num(session.tiles.probabilities[row], nan=-1.0)
    return [classes[k] for k in np.argsort(-p, kind="stable")]


def focus(session: TileSession, row: int) -> str:
    """The class in focus, whose heat map is shown: what the address says, else the most probable; blinded, the first."""
    named = address().get("heat", "")
    if named in session.tiles.classes:
        return named
    shown = session.revealed(str(session.tiles.table["item"].iat[row]))
    return session.tiles.classes[max(0, int(session.tiles.code[row])) if shown else 0]


def move_focus(session: TileSession, row: int, by: int) -> None:
    """The class before or after the one in focus."""
    order = class_order(session, row)
    go(heat=order[(order.index(focus(session, row)) + by) % len(order)])


def subject_in_focus(session: TileSession, row: int) -> str:
    """What A, D and U speak of."""
    return SUBJECT if session.single else focus(session, row)


def answer_now(session: TileSession, item: str, which: int) -> None:
    """The subject in focus is answered by a key or a button; of several, the next one without an answer gets the focus."""
    row = session.tiles.position[item]
    draft, subject = session.draft(item, row), subject_in_focus(session, row)
    draft.put(subject, options_of(session.seen_calls(row).get(subject, ""), revealed=True)[which])
    if not session.single:
        order = class_order(session, row)
        at = order.index(subject)
        go(heat=next((c for c in [*order[at + 1 :], *order[:at]] if c not in draft.answers), subject))
    go()


def choose_class(session: TileSession, item: str, name: str) -> None:
    """Say which class a tile is; of a multi-label tile, bring the class into focus."""
    row = session.tiles.position[item]
    if not session.single:
        go(heat=name)
        return
    session.draft(item, row).put(SUBJECT, "agree" if session.seen_calls(row).get(SUBJECT) == name else name)
    go()


def choose_other(session: TileSession, item: str, key: str) -> None:
    """A class without a key was chosen from the list."""
    if st.session_state[key]:
        choose_class(session, item, st.session_state[key])


def step(session: TileSession, item: str, by: int) -> None:
    """The tile before or after this one, whatever its state."""
    following = next_tile(session, item, by)
    if following:
        go(item=following, heat="")
    else:
        say("That was the last tile in sight." if by > 0 else "That was the first tile in sight.")


def save(session: TileSession, item: str) -> bool:
    """Write the draft; true where it is in the store. What went wrong stands in the page's ``problem``."""
    row = session.row(item)
    if row is None:
        return False
    draft, shown = session.draft(item, row), session.revealed(item)
    try:
        session.require(session.role)
        made = decision_of(
            draft, item=item, bundle_id=model_of(session, row), reviewer=session.reviewer.name, role=session.role,
            probabilities=session.tiles.shown(row), calls=session.calls(row), blinded=not shown,
        )  # fmt: skip
        (number,) = session.store.add(made)
    except VitDomainsError as error:
        fail(error)
        return False
    draft.saved()
    session.ledger.refresh()
    if not shown:
        # From here on the page speaks of the model's calls: the answers are put into those words.
        session.drafts.pop((session.reviewer.name, session.role, item), None)
    said = session.said()[item]
    say(f"Saved as decision {number}: {label(said[SUBJECT]) if session.single else f'{len(said)} classes'}.")
    return True


def finish(session: TileSession, item: str) -> None:
    """The one key: save what was said and go on to the next tile that is not reviewed; blinded, the model is shown before."""
    row = session.row(item)
    if row is None:
        return
    draft, hidden = session.draft(item, row), not session.revealed(item)
    if draft.changed and draft.answers:
        if not save(session, item) or hidden:
            return
    elif hidden:
        say("Say what the tile is; the model is shown after that.")
        return
    elif not draft.answers:
        say("Nothing was judged: nothing saved.")
    following = next_unread(session, item)
    go(item=following, heat="")
    if not following:
        st.session_state["finished"] = True


def agree_and_next(session: TileSession, item: str) -> None:
    """Agree with all that has no answer yet, save, and go on."""
    row = session.tiles.position[item]
    draft = session.draft(item, row)
    for subject in session.seen_calls(row):
        if session.single or subject not in draft.answers:
            draft.put(subject, "agree")
    finish_then(item)


def accept_all(session: TileSession, rows: NDArray[np.int64]) -> None:
    """Agree with the model on many tiles: a decision each, all or none of them."""
    batch = uuid.uuid4().hex
    made = []
    if session.blinded:
        return
    for n, row in enumerate(map(int, rows)):
        calls = session.calls(row)
        if calls:
            made.append(
                Decision(
                    str(session.tiles.table["item"].iat[row]), model_of(session, row), session.reviewer.name,
                    {subject: Answer("agree") for subject in calls}, session.tiles.shown(row), calls, session.role,
                    note="accepted in bulk", token=f"{_BULK}{batch}-{n}",
                )
            )  # fmt: skip
    try:
        session.require(session.role)
        session.store.add(*made)
    except VitDomainsError as error:
        fail(error)
        return
    _refresh(session, [decision.item for decision in made])
    say(f"Agreed with the model on {len(made):,} tiles. Undo takes them all back.")


def undo(session: TileSession) -> None:
    """Take the last act back, a decision or all of one bulk, by new rows that say what held before."""
    session.ledger.refresh()
    table = session.ledger.table
    mine = table[(table["reviewer"] == session.reviewer.name) & (table["role"] == session.role)]
    standing = _standing(mine)
    if not len(standing):
        say("There is nothing of yours to take back.")
        return
    token = str(standing["token"].iloc[-1])
    together = token[: token.rindex("-") + 1] if token.startswith(_BULK) else token
    taken = standing[standing["token"].str.startswith(together)]
    try:
        session.require(session.role)
        session.store.add(*_before(session, standing, taken))
    except VitDomainsError as error:
        fail(error)
        return
    items = taken["item"].tolist()
    _refresh(session, items)
    if len(items) == 1 and session.row(items[0]) is not None:
        go(item=items[0], heat="")
    say(f"Taken back: {len(items):,} {'decision' if len(items) == 1 else 'decisions'}.")


def _standing(mine: pd.DataFrame) -> pd.DataFrame:
    """The decisions that were neither taken back nor take one back."""
    undoing = mine["token"].str.startswith(_UNDO)
    undone = mine.loc[undoing, "token"].str.split("-").str[1].astype("int64")
    return mine[~undoing & ~mine["seq"].isin(undone)]


def _before(session: TileSession, standing: pd.DataFrame, taken: pd.DataFrame) -> list[Decision]:
    """Rows that take these back: for each, what the reviewer had said before, or nothing."""
    rows = []
    earlier = standing[standing["item"].isin(taken["item"]) & ~standing["token"].isin(taken["token"])]
    last: dict[str, str] = dict(zip(earlier["item"], earlier["token"], strict=True))
    for seq, item, bundle_id in taken[["seq", "item", "bundle_id"]].itertuples(index=False, name=None):
        token = f"{_UNDO}{seq}-{uuid.uuid4().hex}"
        if item in last:
            said: Any = next(d for d in session.ledger.decisions(item) if d.token == last[item])
            rows.append(replace(said, token=token, seconds=0.0))
        else:
            rows.append(
                Decision(item, bundle_id, session.reviewer.name, {}, role=session.role, note="taken back", token=token)
            )
    return rows


def _refresh(session: TileSession, items: Sequence[str]) -> None:
    session.ledger.refresh()
    for item in items:
        session.drafts.pop((session.reviewer.name, session.role, item), None)


def model_of(session: TileSession, row: int) -> str:
    """The bundle that labelled a tile."""
    found = session.tiles.table["model_id"].iat[row] if "model_id" in session.tiles.table else ""
    return str(found) if isinstance(found, str) else ""
