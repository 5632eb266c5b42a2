"""What a reviewer does to a film: answer, mark, save, go on; all before the page is drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from apps.films.filters import next_item, next_unread
from apps.films.session import Session
from apps.films.worklist import over_threshold
from apps.shared.address import address, go, say
from apps.shared.components import label
from apps.shared.drafts import decision_of, options_of


def answer_now(session: Session, item: str, which: int) -> None:
    """The finding in focus is answered; the focus moves on to the next one without an answer."""
    row = session.film(item) or {}
    draft, finding = session.draft(item), focus(session, row)
    draft.put(finding, options_of(session.calls(item).get(finding, ""), session.revealed(item))[which])
    focus_next(session, row, finding)


def focus_next(session: Session, row: dict[str, Any], finding: str) -> None:
    """The next finding after one that has no answer."""
    order, draft = finding_order(session, row), session.draft(str(row["item"]))
    rest = [*order[order.index(finding) + 1 :], *order[: order.index(finding)]]
    go(heat=next((name for name in rest if name not in draft.answers), finding))
    go()


def agree_with_rest(session: Session, item: str) -> None:
    """Agree with what the model called of every finding that has no answer yet."""
    draft = session.draft(item)
    for finding in session.calls(item):
        if finding not in draft.answers:
            draft.put(finding, "agree")
    go()


def agree_and_next(session: Session, item: str) -> None:
    """Agree with all that has no answer, save, and go on."""
    agree_with_rest(session, item)
    finish(session, item)


def finding_order(session: Session, row: dict[str, Any]) -> list[str]:
    """Findings as the page lists them: by how far they lie over their thresholds; blinded, as the bundle lists them."""
    if not session.revealed(str(row.get("item", ""))):
        return list(session.bundle.classes)
    p = session.probabilities(row)
    over = over_threshold(np.array([p[c] for c in session.bundle.classes]), np.array(session.bundle.thresholds))
    return [session.bundle.classes[k] for k in np.argsort(-np.nan_to_num(over, nan=-2.0), kind="stable")]


def focus(session: Session, row: dict[str, Any]) -> str:
    """The finding in focus: what the address says, else the first of the list."""
    named = address().get("heat", "")
    return named if named in session.bundle.classes else finding_order(session, row)[0]


def focus_on(session: Session, item: str, finding: str) -> None:
    """Put a finding into focus, with its heat map; marks are of it."""
    go(heat=finding)


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
    session.draft(str(row["item"])).mark(sent)


def save(session: Session, item: str) -> None:
    """Write the draft.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written; the draft stays.
    """
    draft, shown = session.draft(item), session.revealed(item)
    session.require(session.role)
    calls = session.calls(item)
    made = decision_of(
        draft, item=item, bundle_id=session.bundle.id, reviewer=session.reviewer.name, role=session.role,
        probabilities=session.probabilities(session.film(item) or {}), calls=calls, blinded=not shown,
    )  # fmt: skip
    (number,) = session.store.add(made)
    draft.saved()
    session.decisions.refresh()
    if not shown:
        # From here on the page speaks of the model's calls: the answers are put into those words.
        session.forget(item)
    say(f"Saved as decision {number}: {', '.join(map(label, made.answers))}.")


def finish(session: Session, item: str) -> None:
    """The one key: save what was said and go on; in a blinded reading the model is shown before going on.

    Raises:
        VitDomainsError: As ``save``.
    """
    draft = session.draft(item)
    hidden, missing = not session.revealed(item), [c for c in session.bundle.classes if c not in draft.answers]
    if draft.changed and draft.answers:
        asked = st.session_state.get("asked-incomplete")
        if missing and asked != (item, draft.number):
            st.session_state["asked-incomplete"] = (item, draft.number)
            say(f"{len(missing)} of {len(session.bundle.classes)} findings have no answer: {', '.join(map(label, missing[:4]))}"
                f"{' and others' if len(missing) > 4 else ''}. The same key again saves without them.")  # fmt: skip
            go(heat=missing[0])
            return
        save(session, item)
        if hidden:
            return
    elif hidden:
        say("Judge the findings first; the model is shown after that.")
        return
    elif not draft.answers:
        say("Nothing was judged: nothing saved.")
    following = next_unread(session, item)
    st.session_state["heading"] = 1
    go(item=following, heat="")
    st.session_state["finished"] = not following
