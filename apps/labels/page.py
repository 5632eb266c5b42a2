"""The zero-shot app's page: classes left, the contact sheet in the middle, the tile in focus with its answers right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.contact_sheet import contact_sheet
from apps.labels import actions as actions
from apps.labels.classes import classes_panel
from apps.labels.filters import ORDERS, PAGE, STATUSES, Sight, in_sight, said
from apps.labels.labelling import View
from apps.labels.session import Session
from apps.labels.store import places
from apps.shared.address import address, go
from apps.shared.components import empty, hold, label, plain, show_problem, soft
from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.review.store import Answer

KEYS = [*"123456789", *(f"Shift+{n}" for n in range(1, 10))]
"""Shortcuts of the first classes, in their order."""
ANSWERS_HEIGHT = 268
_STYLE = """
<style>
.zs-picture { display: block; width: 100%; border-radius: 5px; height: 224px; object-fit: contain; background: var(--vd-line); }
.st-key-answers button { min-height: 1.75rem; font-size: .82rem; }
.st-key-answers button p { font-size: .82rem; }
.st-key-answers button > div, .st-key-answers button > div > span { width: 100%; }
.st-key-answers button > div > span { justify-content: space-between; }
.st-key-labels label { min-height: 0; padding-block: 0; }
.st-key-labels label p { font-size: .85rem; line-height: 1.2; }
.st-key-classes textarea { font-size: .82rem; line-height: 1.3; padding: .35rem .5rem; }
.st-key-answers > div > [data-testid="stHorizontalBlock"], .st-key-answers [data-testid="stVerticalBlock"] { gap: .25rem; }
.zs-bars { position: relative; height: 26px; display: flex; align-items: flex-end; gap: 1px; margin: -6px 0 2px; }
.zs-bars i { flex: 1; background: var(--vd-soft); min-height: 1px; }
.zs-bars b { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--vd-mark); }
</style>
"""


def review_page(session: Session) -> None:
    """The whole working place; what is wrong with a part of it leaves the others."""
    st.html(_STYLE)
    view = session.view
    sight = Sight.from_address(view)
    left, middle, right = st.columns([1.02, 2.1, 1.1], gap="small")
    with left:
        classes_panel(session, view, sight)
    with middle:
        _tools(session, sight)
        numbers = _found(session, view, sight)
        items = session.labels.items[session.labels.rows]
        item = address().get("item", "") or (str(items[numbers[0]]) if len(numbers) else "")
        _sheet(session, view, sight, numbers, item)
    with right:
        _tile(session, view, item)
        problem = st.session_state.pop("problem", None)
        if problem is not None:
            show_problem(problem)


def _found(session: Session, view: View, sight: Sight) -> NDArray[np.int64]:
    try:
        return in_sight(session, view, sight)
    except VitDomainsError as error:
        show_problem(error)
        return np.empty(0, np.int64)


def _tools(session: Session, sight: Sight) -> None:
    """Search, order, status, near misses. The address leads: each of them shows what stands there."""
    search, order, status, near = st.columns([1.9, 1.55, 1.6, 1.35], vertical_alignment="center")
    like = address().get("like", "")
    hold("q", address().get("q", ""))
    search.text_input("Search by text", key="q", label_visibility="collapsed", max_chars=300,
                      placeholder=f"like tile {like[:8]}" if like else "Search by text, e.g. solar farm",
                      disabled=session.model.loading or bool(session.model.problem),
                      on_change=lambda: go(q=st.session_state["q"].strip(), like="", order="", item=""))  # fmt: skip
    choices = [name for name in ORDERS if name != "similar" or sight.searching]
    hold("order", sight.order)
    order.selectbox("Order", choices, key="order", format_func=ORDERS.__getitem__, label_visibility="collapsed",
                    on_change=lambda: go(order=st.session_state["order"], item=""))  # fmt: skip
    hold("status", sight.status)
    status.selectbox("Status", list(STATUSES), key="status", format_func=STATUSES.__getitem__, label_visibility="collapsed",
                     on_change=lambda: go(status=st.session_state["status"], item=""))  # fmt: skip
    hold("near", sight.near)
    near.checkbox("near misses", key="near", help="Also tiles that lack at most 0.10 to have the label, in a dashed frame",
                  on_change=lambda: go(near="1" if st.session_state["near"] else ""))  # fmt: skip


def _sheet(session: Session, view: View, sight: Sight, numbers: NDArray[np.int64], item: str) -> None:
    """One page of the tiles in sight: the one with the tile in focus."""
    if not len(numbers):
        empty("No tile passes.", "Choose another label or status, lower the threshold, or take the search back.")
        if sight.searching or sight.status != "all" or sight.label:
            st.button("Show all tiles", key="show-all", on_click=go,
                      kwargs={"label": "", "status": "", "q": "", "like": "", "order": "", "item": ""})  # fmt: skip
        return
    items = session.labels.items[session.labels.rows]
    at = np.flatnonzero(items[numbers] == item)
    page, pages = int(at[0]) // PAGE if len(at) else 0, math.ceil(len(numbers) / PAGE)
    part = numbers[page * PAGE : (page + 1) * PAGE]
    data = {"tiles": _thumbnails(session, view, sight, part), "current": item}
    contact_sheet(key="sheet", data=data, on_act_change=actions.choose)
    back, where, accept, forth = st.columns([1, 1.5, 1.5, 1], vertical_alignment="center")
    back.button("Back", key="page-back", shortcut="PageUp", width="stretch", disabled=page == 0,
                on_click=actions.turn, args=(session, numbers, page - 1))  # fmt: skip
    forth.button("Next", key="page-forth", shortcut="PageDown", width="stretch",
                 disabled=page + 1 >= pages, on_click=actions.turn, args=(session, numbers, page + 1))  # fmt: skip
    accept.button("Accept page", key="accept-page", shortcut="Shift+A", width="stretch", on_click=actions.accept_page,
                  args=(session, part), help="Agree with the labels of this page that you have not decided on")  # fmt: skip
    with where:
        soft(f"{len(numbers):,} in sight, page {page + 1} of {pages:,}")
    for place in places(session.labels, numbers[(page + 1) * PAGE : (page + 2) * PAGE].tolist()):
        session.pictures.thumbnail(place)  # ahead: the next page is there when it is turned to


def _thumbnails(session: Session, view: View, sight: Sight, part: NDArray[np.int64]) -> list[dict[str, Any]]:
    listed = places(session.labels, part.tolist())
    waiting = [session.pictures.thumbnail(place) for place in listed]  # all are begun before the first is waited for
    mine = said(session, [str(place["item"]) for place in listed])
    similarity = session.similarity() if sight.order == "similar" else None
    probability, calls = view.probability(sight.label), view.calls(part)
    member = view.members(sight.label)
    tiles = []
    for number, place, thumbnail, call in zip(part.tolist(), listed, waiting, calls, strict=True):
        url, problem = "", ""
        try:
            url = thumbnail.result()
        except ImageError as error:
            problem = error.problem
        value = probability[number] if similarity is None else similarity[number]
        text = mine.get(str(place["item"]), "")
        state = "" if not text else "done" if text == call else "none" if text in ("unsure", UNKNOWN) else "other"
        words = [
            label(call) or "no label",
            f"{value:.2f}" if value == value else "",
            f"you: {text}" if text else "",
            problem,
        ]
        shown = label(text) if state == "other" else label(call)
        tiles.append({
            "item": place["item"], "url": url, "state": state, "near": not member[number],
            "title": ", ".join(w for w in words if w), "caption": f"{value:.2f} {shown}" if value == value else problem,
        })  # fmt: skip
    return tiles


def _tile(session: Session, view: View, item: str) -> None:
    """The tile in focus."""
    number = session.number(item)
    if number < 0:
        if item:
            empty("There is no such tile.", "It is not among these labels. Choose one from the sheet.")
        return
    (place,) = places(session.labels, [number])
    _moves(session, item)
    try:
        picture = session.pictures.picture(place).result()
        st.html(f'<img class="zs-picture" src="{picture}" alt="the tile in focus">')
    except ImageError as error:
        show_problem(error)
    soft(_facts(view, number, place))
    if not view.label[number]:
        soft("The model says nothing of this tile, so there is nothing to decide.")
        return
    draft = session.draft(item)
    draft.touch()
    _answers(session, view, number, item)
    key = f"note:{item[:16]}"
    hold(key, draft.note)
    st.text_input("Note", key=key, max_chars=2000, label_visibility="collapsed", placeholder="Note, kept with your answer",
                  on_change=lambda: draft.write(st.session_state[key]))  # fmt: skip


def _facts(view: View, number: int, place: dict[str, Any]) -> str:
    window = f" at {place['col']},{place['row']}" if place["width"] >= 0 else ""
    name = "/".join(Path(str(place["path"])).parts[-2:])
    parts = [f"{name}{window}", f"labelled {label(view.label[number]) or 'nothing'}"]
    if view.boundary[number] == view.boundary[number]:
        parts.append(f"{view.boundary[number]:.2f} from another label")
    return ", ".join(parts)


def _moves(session: Session, item: str) -> None:
    back, forth, on, like = st.columns([1, 1, 1.5, 1], gap="small")
    back.button("◀", key="previous", shortcut="Left", width="stretch", help="The tile before",
                on_click=actions.step, args=(session, item, -1))  # fmt: skip
    forth.button("▶", key="next", shortcut="Right", width="stretch", help="The tile after",
                 on_click=actions.step, args=(session, item, 1))  # fmt: skip
    on.button("Undecided", key="waiting", shortcut="N", width="stretch", help="The next tile that you have not decided on",
              on_click=actions.next_waiting, args=(session, item))  # fmt: skip
    like.button("Like", key="like", shortcut="L", width="stretch", help="Sort by likeness to this tile",
                on_click=go, kwargs={"like": item, "q": "", "order": "", "label": ""})  # fmt: skip


def _answers(session: Session, view: View, number: int, item: str) -> None:
    """Accept what the model says, or say what it is; the reviewer's last word is marked."""
    mine, call = said(session, [item]).get(item, ""), view.call(number)
    accept, unsure, none = st.columns([1.5, 1, 1], gap="small")
    accept.button("Accept", key="accept", shortcut="A", type="primary", width="stretch", on_click=actions.decide,
                  args=(session, item, Answer("agree")), help=f"It is {label(call)}")  # fmt: skip
    unsure.button("Unsure", key="unsure", shortcut="U", width="stretch", on_click=actions.decide,
                  args=(session, item, Answer("unsure")))  # fmt: skip
    none.button("None", key="none", shortcut="0", width="stretch", on_click=actions.relabel, args=(session, item, UNKNOWN),
                help="It is none of the classes")  # fmt: skip
    others = [said_by for said_by in _others(session, item) if said_by]
    soft(f"You said: {label(mine)}. {' '.join(others)}" if mine else f"Not reviewed by you. {' '.join(others)}")
    with st.container(height=ANSWERS_HEIGHT, border=True, gap="small", key="answers"):
        names = [c.name for c in view.prompts.classes if not c.background]
        columns = st.columns(2, gap="small")
        for i, name in enumerate(names):
            p = view.p[number, view.prompts.names.index(name)]
            columns[i % 2].button(
                f"{p:.2f} {plain(label(name))}", key=f"class:{name}", shortcut=KEYS[i] if i < len(KEYS) else None,
                type="primary" if name == mine else "secondary", width="stretch", on_click=actions.relabel,
                args=(session, item, name),
            )  # fmt: skip


def _others(session: Session, item: str) -> list[str]:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    if session.role != "adjudicator":
        return []
    readers = session.ledger.standing(item).readers
    return [f"{r}: {next(iter((session.ledger.values(item, r, 'reader') or {}).values()), '')}." for r in readers]
