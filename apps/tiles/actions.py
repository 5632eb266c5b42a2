"""What a reviewer does to tiles: answer, save, go on, accept in bulk; all before the page is drawn again."""

from __future__ import annotations

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.shared.actions import bulk_tokens
from apps.shared.address import address, go, say
from apps.shared.components import label
from apps.shared.drafts import decision_of, options_of
from apps.tiles.filters import next_tile, next_unread
from apps.tiles.session import TileSession
from vitdomains.core.review.export import SUBJECT
from vitdomains.core.review.store import Answer, Decision

KEYED = 9
"""Classes that have a key of their own."""


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


def move_focus(session: TileSession, item: str, by: int) -> None:
    """The class before or after the one in focus."""
    row = session.tiles.position[item]
    order = class_order(session, row)
    go(heat=order[(order.index(focus(session, row)) + by) % len(order)])


def advances(session: TileSession, item: str) -> bool:
    """Whether one answer is a whole decision, after which the next tile is shown: not where the model is shown first."""
    return session.single and session.revealed(item) and address().get("advance") != "0"


def answer_now(session: TileSession, item: str, which: int) -> None:
    """The subject in focus is answered by a key or a button; of several, the next one without an answer gets the focus."""
    row = session.tiles.position[item]
    draft, subject = session.draft(item), SUBJECT if session.single else focus(session, row)
    draft.put(subject, options_of(session.seen_calls(row).get(subject, ""), revealed=True)[which])
    if not session.single:
        order = class_order(session, row)
        at = order.index(subject)
        go(heat=next((c for c in [*order[at + 1 :], *order[:at]] if c not in draft.answers), subject))
    go()
    if advances(session, item):
        finish(session, item)


def choose_class(session: TileSession, item: str, number: int) -> None:
    """Say which class a tile is, by its number from 1 in ``class_order``."""
    row = session.tiles.position[item]
    choose_named(session, item, class_order(session, row)[number - 1])


def choose_named(session: TileSession, item: str, name: str) -> None:
    """Say which class a tile is."""
    row = session.tiles.position[item]
    session.draft(item).put(SUBJECT, "agree" if session.seen_calls(row).get(SUBJECT) == name else name)
    go()
    if advances(session, item):
        finish(session, item)


def step(session: TileSession, item: str, by: int) -> None:
    """The tile before or after this one, whatever its state."""
    following = next_tile(session, item, by)
    if following:
        go(item=following, heat="")
    else:
        say("That was the last tile in sight." if by > 0 else "That was the first tile in sight.")


def save(session: TileSession, item: str) -> None:
    """Write the draft.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written; the draft stays.
    """
    row, draft, shown = session.tiles.position[item], session.draft(item), session.revealed(item)
    session.require(session.role)
    made = decision_of(
        draft, item=item, bundle_id=model_of(session, row), reviewer=session.reviewer.name, role=session.role,
        probabilities=session.tiles.shown(row), calls=session.calls(row), blinded=not shown,
    )  # fmt: skip
    (number,) = session.store.add(made)
    draft.saved()
    session.decisions.refresh()
    if not shown:
        # From here on the page speaks of the model's calls: the answers are put into those words.
        session.forget(item)
    values = session.answers[item]
    say(f"Saved as decision {number}: {label(values[SUBJECT]) if session.single else f'{len(values)} classes'}.")


def finish(session: TileSession, item: str) -> None:
    """The one key: save what was said and go on to the next tile that is not reviewed; blinded, the model is shown before.

    Raises:
        VitDomainsError: As ``save``.
    """
    draft, hidden = session.draft(item), not session.revealed(item)
    if draft.changed and draft.answers:
        save(session, item)
        if hidden:
            return
    elif hidden:
        say("Say what the tile is; the model is shown after that.")
        return
    elif not draft.answers:
        say("Nothing was judged: nothing saved.")
    following = next_unread(session, item)
    go(item=following, heat="")
    st.session_state["finished"] = not following


def agree_and_next(session: TileSession, item: str) -> None:
    """Agree with all that has no answer yet, save, and go on."""
    draft = session.draft(item)
    for subject in session.seen_calls(session.tiles.position[item]):
        if session.single or subject not in draft.answers:
            draft.put(subject, "agree")
    finish(session, item)


def accept_all(session: TileSession, item: str, rows: NDArray[np.int64]) -> None:
    """Agree with the model on many tiles: a decision each, all or none of them.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written.
    """
    if session.blinded:
        return
    called = [(int(row), calls) for row in rows if (calls := session.calls(int(row)))]
    made = [
        Decision(
            str(session.tiles.table["item"].iat[row]), model_of(session, row), session.reviewer.name,
            {subject: Answer("agree") for subject in calls}, session.tiles.shown(row), calls, session.role,
            note="accepted in bulk", token=token,
        ) for (row, calls), token in zip(called, bulk_tokens(len(called)), strict=True)
    ]  # fmt: skip
    session.require(session.role)
    session.store.add(*made)
    session.forget(*(decision.item for decision in made))
    go()
    say(f"Agreed with the model on {len(made):,} tiles. Undo takes them all back.")


def model_of(session: TileSession, row: int) -> str:
    """The bundle that labelled a tile."""
    found = session.tiles.table["model_id"].iat[row] if "model_id" in session.tiles.table else ""
    return str(found) if isinstance(found, str) else ""
