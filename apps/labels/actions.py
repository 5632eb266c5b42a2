"""What a reviewer does: decide, go on, accept many at once, change classes and thresholds. Callbacks, but ``accept_many``."""

from __future__ import annotations

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.labels.filters import PAGE, Sight, following, in_sight, undecided
from apps.labels.labelling import View
from apps.labels.prompts import keep, parse
from apps.labels.session import Session
from apps.shared.address import fail, go, say
from apps.shared.components import label
from apps.shared.drafts import Draft
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.review.export import SUBJECT
from vitdomains.core.review.store import Answer, Decision, ReviewError

AT_ONCE = 500
"""Decisions that are written together: a bulk accept shows how far it is."""


def chosen(item: str) -> str:
    """The tile that was clicked in the sheet and not taken up yet; else ``item``.

    A key that follows a click at once comes with it, and its callback runs before the sheet's: it is meant for what was clicked,
    and the click must not lead back there afterwards.
    """
    act = (st.session_state.get("sheet") or {}).get("act") or {}
    if not isinstance(act.get("item"), str) or act.get("at") == st.session_state.get("sheet-taken"):
        return item
    st.session_state["sheet-taken"] = act.get("at")
    return str(act["item"])


def choose() -> None:
    """Open the tile that was clicked."""
    item = chosen("")
    if item:
        go(item=item)


def decide(session: Session, item: str, answer: Answer) -> None:
    """Write one decision and go on to the next tile that waits."""
    item = chosen(item)
    view = session.view
    sight = Sight.from_address(view)
    numbers = in_sight(session, view, sight)
    draft, number = session.draft(item), session.number(item)
    try:
        session.require(session.role)
        if number < 0 or not view.label[number]:
            raise ReviewError("There is nothing to decide on this tile.", hint="Go on to the next one.")
        draft.touch()
        (seq,) = session.store.add(_decision(session, view, number, answer, draft))
    except VitDomainsError as error:
        fail(error)
        return
    session.drafts.pop((session.reviewer.name, session.role, item), None)
    session.ledger.refresh()
    say(f"Saved as decision {seq}: {label(answer.label or f'{answer.verdict}, {view.call(number)}')}.")
    onward(session, view, numbers, item)


def relabel(session: Session, item: str, name: str) -> None:
    """The reviewer's own word; the model's own is agreement."""
    item = chosen(item)
    number = session.number(item)
    agrees = number >= 0 and session.view.call(number) == name
    decide(session, item, Answer("agree") if agrees else Answer("label", name))


def onward(session: Session, view: View, numbers: NDArray[np.int64], item: str) -> None:
    """To the next tile that waits; where none does, stay."""
    wanted = following(session, view, numbers, item)
    if wanted:
        go(item=wanted)
    else:
        say("All tiles in sight are reviewed.")


def next_waiting(session: Session, item: str) -> None:
    """The first tile in sight that waits, behind the one that is open."""
    view = session.view
    onward(session, view, in_sight(session, view, Sight.from_address(view)), chosen(item))


def step(session: Session, item: str, by: int) -> None:
    """Move by some tiles, whatever their state."""
    view = session.view
    numbers = in_sight(session, view, Sight.from_address(view))
    items = session.labels.items[session.labels.rows][numbers]
    at = np.flatnonzero(items == chosen(item))
    if len(items):
        go(item=str(items[int(np.clip((at[0] if len(at) else 0) + by, 0, len(items) - 1))]))


def turn(session: Session, numbers: NDArray[np.int64], to: int) -> None:
    """Open the first tile of a page, counted from 0."""
    go(item=str(session.labels.items[session.labels.rows[numbers[to * PAGE]]]))


def accept_many(session: Session, view: View, numbers: NDArray[np.int64], note: str) -> int:
    """Agree with the labels of tiles that this reviewer has not decided on, in portions; returns how many. Not for callbacks.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written.
    """
    session.require(session.role)
    waiting = undecided(session, view, numbers)
    bar = st.progress(0.0, text="accepting")
    for at in range(0, len(waiting), AT_ONCE):
        _agree(session, view, waiting[at : at + AT_ONCE], note)
        done = min(at + AT_ONCE, len(waiting))
        bar.progress(done / len(waiting), text=f"accepting: {done:,} of {len(waiting):,}")
    bar.empty()
    session.ledger.refresh()
    return len(waiting)


def _agree(session: Session, view: View, numbers: NDArray[np.int64], note: str) -> None:
    session.store.add(*(_decision(session, view, int(i), Answer("agree"), Draft(note=note)) for i in numbers))


def accept_page(session: Session, numbers: NDArray[np.int64]) -> None:
    """Agree with all on a page that has not been decided on, and go on."""
    view = session.view
    sight = in_sight(session, view, Sight.from_address(view))
    waiting = undecided(session, view, numbers)
    try:
        session.require(session.role)
        _agree(session, view, waiting, "accepted with its contact sheet")
    except VitDomainsError as error:
        fail(error)
        return
    session.ledger.refresh()
    say(f"Accepted: {len(waiting)}.")
    onward(session, view, sight, str(session.labels.items[session.labels.rows[numbers[-1]]]))


def _decision(session: Session, view: View, number: int, answer: Answer, draft: Draft) -> Decision:
    p = dict(zip(view.prompts.names, view.p[number].tolist(), strict=True))
    return Decision(
        item=str(session.labels.items[session.labels.rows[number]]), bundle_id=session.bundle_id,
        reviewer=session.reviewer.name, answers={SUBJECT: answer}, probabilities=p, calls={SUBJECT: view.call(number)},
        role=session.role, note=draft.note, seconds=round(draft.seconds, 1), token=draft.token,
    )  # fmt: skip


def set_threshold(session: Session, view: View, name: str, value: float) -> None:
    """The threshold of a class, or of all for an empty name, goes into the address."""
    names = view.prompts.names
    set_to = [value if name in ("", c) else t for c, t in zip(names, view.thresholds, strict=True)]
    usual = session.usual_thresholds(view.prompts)
    go(t="" if np.allclose(set_to, usual) else ",".join(f"{t:.4g}" for t in set_to))


def ask(session: Session, text: str, templates: tuple[str, ...]) -> None:
    """Take other classes and prompts; a text that is none stays in the editor, with what is wrong about it."""
    view = session.view
    st.session_state.pop("prompt_problem", None)
    st.session_state.pop("prompt_draft", None)
    try:
        prompts = parse(text, templates, session.labels.prompts)
        own = prompts.id == session.labels.prompts.id
        identity = "" if own else keep(session.labels.folder, prompts)
    except VitDomainsError as error:
        st.session_state["prompt_problem"], st.session_state["prompt_draft"] = error, text
        go()
        return
    now, usual = dict(zip(view.prompts.names, view.thresholds, strict=True)), session.usual_thresholds(prompts)
    carried = [now.get(name, t) for name, t in zip(prompts.names, usual, strict=True)]
    go(asked=identity, t="" if np.allclose(carried, usual) else ",".join(f"{t:.4g}" for t in carried))


def as_labelled() -> None:
    """Back to the classes and thresholds that the labels were written with."""
    st.session_state.pop("prompt_problem", None)
    st.session_state.pop("prompt_draft", None)
    go(asked="", t="")
