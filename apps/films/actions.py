"""What a reviewer does to a film: answer, mark, save, go on; all before the page is drawn again, callbacks but ``finish``."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from apps.films.filters import next_item, next_unread
from apps.films.session import Session
from apps.films.worklist import over_threshold
from apps.shared.address import address, fail, go, say
from apps.shared.components import label
from apps.shared.drafts import decision_of, options_of
from vitdomains.core.errors import VitDomainsError

KEYS = ("agree", "disagree", "unsure")
"""The three answers in the order of their buttons: before the model is shown they read present, absent, unsure."""


def answer_now(session: Session, item: str, finding: str, which: int) -> None:
    """The finding in focus is answered by a key or a button; the focus moves on to the next one without an answer."""
    row = session.film(item) or {}
    draft = session.draft(item, row)
    calls = session.facts.calls(session.probabilities(row))
    draft.put(finding, options_of(calls.get(finding, ""), session.revealed(item))[which])
    order = finding_order(session, row)
    rest = [*order[order.index(finding) + 1 :], *order[: order.index(finding)]]
    go(heat=next((name for name in rest if name not in draft.answers), finding))
    go()


def agree_with_rest(session: Session, item: str) -> None:
    """Agree with what the model called of every finding that has no answer yet."""
    row = session.film(item) or {}
    draft = session.draft(item, row)
    for finding in session.facts.calls(session.probabilities(row)):
        if finding not in draft.answers:
            draft.put(finding, "agree")
    go()


def finding_order(session: Session, row: dict[str, Any]) -> list[str]:
    """Findings as the page lists them: by how far they lie over their thresholds; blinded, as the bundle lists them."""
    if not session.revealed(str(row.get("item", ""))):
        return list(session.facts.classes)
    p = session.probabilities(row)
    over = over_threshold(np.array([p[c] for c in session.facts.classes]), np.array(session.facts.thresholds))
    return [session.facts.classes[k] for k in np.argsort(-np.nan_to_num(over, nan=-2.0), kind="stable")]


def focus(session: Session, row: dict[str, Any]) -> str:
    """The finding in focus: what the address says, else the first of the list."""
    named = address().get("heat", "")
    return named if named in session.facts.classes else focus_of_new(session, row)


def focus_of_new(session: Session, row: dict[str, Any]) -> str:
    """The finding that will be in focus when a film is opened."""
    return finding_order(session, row)[0]


def move_focus(session: Session, item: str, step: int) -> None:
    """The finding before or after the one in focus."""
    row = session.film(item) or {}
    order = finding_order(session, row)
    go(heat=order[(order.index(focus(session, row)) + step) % len(order)])


def step(session: Session, item: str, by: int) -> None:
    """The film before or after this one, whatever its state."""
    following = next_item(session, item, by)
    st.session_state["heading"] = by
    if following:
        go(item=following, heat="")
    else:
        say("That was the last film in sight." if by > 0 else "That was the first film in sight.")


def take_marks(session: Session, row: dict[str, Any]) -> None:
    """Marks that the viewer sent."""
    act = (st.session_state.get("viewer") or {}).get("act") or {}
    if act.get("kind") != "regions" or act.get("item") != row["item"]:
        return
    sent = [r for r in act.get("regions", []) if isinstance(r, dict)][:200]
    session.draft(str(row["item"]), row).mark(sent)


def save(session: Session, item: str) -> bool:
    """Write the draft; true where it is in the store. What went wrong stands in the session's ``problem``."""
    row = session.film(item)
    if row is None:
        return False
    draft = session.draft(item, row)
    shown = session.revealed(item)
    p = session.probabilities(row)
    try:
        session.require(session.role)
        made = decision_of(
            draft, item=item, bundle_id=session.facts.id, reviewer=session.reviewer.name, role=session.role, probabilities=p,
            calls=session.facts.calls(p), blinded=not shown,
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
    say(f"Saved as decision {number}: {', '.join(map(label, made.answers))}.")
    return True


def finish(session: Session, item: str) -> None:
    """The one key: save what was said and go on; in a blinded reading the model is shown before going on."""
    row = session.film(item)
    if row is None:
        return
    draft = session.draft(item, row)
    hidden = not session.revealed(item)
    if draft.changed and draft.answers:
        if not save(session, item) or hidden:
            return
    elif hidden:
        say("Judge one finding at least; the model is shown after that.")
        return
    elif not draft.answers:
        say("Nothing was judged: nothing saved.")
    following = next_unread(session, item)
    st.session_state["heading"] = 1
    if following:
        go(item=following, heat="")
    else:
        go(item="", heat="")
        st.session_state["finished"] = True
