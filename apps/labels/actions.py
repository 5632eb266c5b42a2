"""What a reviewer does: decide, go on, accept many at once, change classes and thresholds."""

from __future__ import annotations

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.labels.filters import PAGE, LabelFilters, undecided, visible, waiting
from apps.labels.labelling import View
from apps.labels.prompts import parse, write_asked
from apps.labels.session import Session
from apps.shared.actions import bulk_tokens
from apps.shared.address import address, go, say
from apps.shared.components import label
from apps.shared.drafts import Draft
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.review.export import SUBJECT
from vitdomains.core.review.schema import Verdict
from vitdomains.core.review.store import Answer, Decision, ReviewError

AT_ONCE = 500
"""Decisions that are written together: a bulk accept shows how far it is."""


def choose() -> None:
    """Open the tile that was clicked."""
    item = ((st.session_state.get("sheet") or {}).get("act") or {}).get("item")
    if isinstance(item, str):
        go(item=item)


def decide(session: Session, item: str, verdict: Verdict, name: str = "") -> None:
    """Write one decision and go on to the next tile that waits.

    Raises:
        VitDomainsError: There is nothing to decide, the role is not held, or the store cannot be written.
    """
    view = session.view
    numbers = visible(session, view, LabelFilters.from_address(view))
    draft, number = session.draft(item), session.number(item)
    session.require(session.role)
    if not view.label[number]:
        raise ReviewError("There is nothing to decide on this tile.", hint="Go on to the next one.")
    draft.touch()
    answer = Answer(verdict, name)
    (seq,) = session.store.add(_decision(session, view, number, answer, draft))
    session.forget(item)
    say(f"Saved as decision {seq}: {label(answer.label or f'{answer.verdict}, {view.call(number)}')}.")
    if address().get("item", "") in ("", item):  # else the reviewer chose another one meanwhile
        onward(session, view, numbers, item)


def relabel(session: Session, item: str, name: str) -> None:
    """The reviewer's own word; the model's own is agreement.

    Raises:
        VitDomainsError: As ``decide``.
    """
    if session.view.call(session.number(item)) == name:
        decide(session, item, "agree")
    else:
        decide(session, item, "label", name)


def onward(session: Session, view: View, numbers: NDArray[np.int64], item: str) -> None:
    """To the next tile that waits; where none does, stay."""
    found = waiting(session, view, numbers, item)
    if found:
        go(item=found[0])
    else:
        mine = session.decisions.assigned_to(session.reviewer.name, session.role)
        say("All tiles that are assigned to you are reviewed." if mine else "All tiles in sight are reviewed.")
    go()


def next_waiting(session: Session, item: str) -> None:
    """The first tile in sight that waits, behind the one that is open."""
    view = session.view
    onward(session, view, visible(session, view, LabelFilters.from_address(view)), item)


def step(session: Session, item: str, by: int) -> None:
    """Move by some tiles, whatever their state."""
    view = session.view
    numbers = visible(session, view, LabelFilters.from_address(view))
    items = session.labels.items[session.labels.rows][numbers]
    at = np.flatnonzero(items == item)
    if len(items):
        go(item=str(items[int(np.clip((at[0] if len(at) else 0) + by, 0, len(items) - 1))]))


def turn(session: Session, item: str, to: int) -> None:
    """Open the first tile of a page, counted from 0."""
    view = session.view
    numbers = visible(session, view, LabelFilters.from_address(view))
    go(item=str(session.labels.items[session.labels.rows[numbers[to * PAGE]]]))


def like(session: Session, item: str) -> None:
    """Sort by likeness to a tile."""
    go(like=item, q="", order="", label="")


def to_output(session: Session, item: str) -> None:
    """To the page of exports."""
    go(show="output")


def accept_many(session: Session, view: View, numbers: NDArray[np.int64], note: str) -> int:
    """Agree with the labels of tiles that this reviewer has not decided on, in portions; returns how many. Not for callbacks.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written.
    """
    session.require(session.role)
    open_ = undecided(session, view, numbers)
    bar, tokens = st.progress(0.0, text="accepting"), bulk_tokens(len(open_))
    for at in range(0, len(open_), AT_ONCE):
        _agree(session, view, open_[at : at + AT_ONCE], note, tokens[at : at + AT_ONCE])
        done = min(at + AT_ONCE, len(open_))
        bar.progress(done / len(open_), text=f"accepting: {done:,} of {len(open_):,}")
    bar.empty()
    session.decisions.refresh()
    return len(open_)


def _agree(session: Session, view: View, numbers: NDArray[np.int64], note: str, tokens: list[str]) -> None:
    pairs = zip(numbers.tolist(), tokens, strict=True)
    session.store.add(
        *(_decision(session, view, i, Answer("agree"), Draft(note=note, token=token)) for i, token in pairs)
    )


def accept_page(session: Session, item: str, numbers: NDArray[np.int64]) -> None:
    """Agree with all on a page that has not been decided on, and go on.

    Raises:
        VitDomainsError: The role is not held, or the store cannot be written.
    """
    view = session.view
    filters = visible(session, view, LabelFilters.from_address(view))
    open_ = undecided(session, view, numbers)
    session.require(session.role)
    if len(open_):
        _agree(session, view, open_, "accepted with its contact sheet", bulk_tokens(len(open_)))
    session.decisions.refresh()
    say(f"Accepted: {len(open_)}.")
    onward(session, view, filters, str(session.labels.items[session.labels.rows[numbers[-1]]]))


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
        identity = "" if own else write_asked(session.labels.folder, prompts)
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
