"""The zero-shot app's page: classes left, the contact sheet in the middle, the tile in focus with its answers right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.contact_sheet import contact_sheet
from apps.labels import actions
from apps.labels.classes import classes_panel
from apps.labels.filters import ORDERS, PAGE, STATUSES, LabelFilters, own_word, visible, waiting
from apps.labels.labelling import View
from apps.labels.session import Session
from apps.labels.store import places
from apps.shared.actions import undo
from apps.shared.address import address, go
from apps.shared.commands import command, note
from apps.shared.components import empty, hold, label, plain, problems, show_failure, show_problem, soft
from apps.shared.session import Screen
from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.geo.map.tiles_table import UNKNOWN

KEYS = [*"123456789", *(f"Shift+{n}" for n in range(1, 10))]
"""Shortcuts of the first classes, in their order."""
AHEAD = 12  # tiles that the browser can go on to by itself
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


def review_page(session: Session) -> Screen:
    """The whole working place; what is wrong with a part of it leaves the others."""
    st.html(_STYLE)
    view = session.view
    filters = LabelFilters.from_address(view)
    left, middle, right = st.columns([1.02, 2.1, 1.1], gap="small")
    with left, problems():
        classes_panel(session, view, filters)
    with middle:
        _tools(session, filters)
        numbers = _found(session, view, filters)
        items = session.labels.items[session.labels.rows]
        item = address().get("item", "") or (str(items[numbers[0]]) if len(numbers) else "")
        with problems():
            _sheet(session, view, filters, numbers, item)
    with right, problems():
        _tile(session, view, item)
        show_failure()
    if not session.known(item):
        return "", []
    following = waiting(session, view, numbers, item, AHEAD)
    return item, [{"item": name, "seen": session.draft(name).seen} for name in following]


def _found(session: Session, view: View, filters: LabelFilters) -> NDArray[np.int64]:
    try:
        return visible(session, view, filters)
    except VitDomainsError as error:
        show_problem(error)
        return np.empty(0, np.int64)


def _tools(session: Session, filters: LabelFilters) -> None:
    """Search, order, status, near misses. The address leads: each of them shows what stands there."""
    search, order, status, near = st.columns([1.9, 1.55, 1.6, 1.35], vertical_alignment="center")
    like = address().get("like", "")
    hold("q", address().get("q", ""))
    search.text_input("Search by text", key="q", label_visibility="collapsed", max_chars=300,
                      placeholder=f"like tile {like[:8]}" if like else "Search by text, e.g. solar farm",
                      disabled=session.model.loading or bool(session.model.problem),
                      on_change=lambda: go(q=st.session_state["q"].strip(), like="", order="", item=""))  # fmt: skip
    choices = [name for name in ORDERS if name != "similar" or filters.searching]
    hold("order", filters.order)
    order.selectbox("Order", choices, key="order", format_func=ORDERS.__getitem__, label_visibility="collapsed",
                    on_change=lambda: go(order=st.session_state["order"], item=""))  # fmt: skip
    hold("status", filters.status)
    status.selectbox("Status", list(STATUSES), key="status", format_func=STATUSES.__getitem__, label_visibility="collapsed",
                     on_change=lambda: go(status=st.session_state["status"], item=""))  # fmt: skip
    hold("near", filters.near)
    near.checkbox("near misses", key="near", help="Also tiles that lack at most 0.10 to have the label, in a dashed frame",
                  on_change=lambda: go(near="1" if st.session_state["near"] else ""))  # fmt: skip


def _sheet(session: Session, view: View, filters: LabelFilters, numbers: NDArray[np.int64], item: str) -> None:
    """One page of the tiles in sight: the one with the tile in focus."""
    if not len(numbers):
        empty("No tile passes.", "Choose another label or status, lower the threshold, or take the search back.")
        if filters.searching or filters.status != "all" or filters.label:
            st.button("Show all tiles", key="show-all", on_click=go,
                      kwargs={"label": "", "status": "", "q": "", "like": "", "order": "", "item": ""})  # fmt: skip
        return
    items = session.labels.items[session.labels.rows]
    at = np.flatnonzero(items[numbers] == item)
    page, pages = int(at[0]) // PAGE if len(at) else 0, math.ceil(len(numbers) / PAGE)
    part = numbers[page * PAGE : (page + 1) * PAGE]
    data = {"tiles": _thumbnails(session, view, filters, part), "current": item}
    contact_sheet(key="sheet", data=data, on_act_change=actions.choose)
    back, where, accept, take_back, forth = st.columns([1, 1.3, 1.4, 0.8, 1], vertical_alignment="center")
    command(back, "Back", "page-back", actions.turn, item, page - 1, key="PageUp", disabled=page == 0)
    command(forth, "Next", "page-forth", actions.turn, item, page + 1, key="PageDown", disabled=page + 1 >= pages)
    command(accept, "Accept page", "accept-page", actions.accept_page, item, part, key="Shift+A",
            help="Agree with the labels of this page that you have not decided on")  # fmt: skip
    command(
        take_back, "Undo", "undo", undo, item, key="Z", help="Take your last decision back, or the last page or class"
    )
    with where:
        soft(f"{len(numbers):,} in sight, page {page + 1} of {pages:,}")
    for place in places(session.labels, numbers[(page + 1) * PAGE : (page + 2) * PAGE].tolist()):
        session.pictures.thumbnail(place)  # ahead: the next page is there when it is turned to


def _thumbnails(session: Session, view: View, filters: LabelFilters, part: NDArray[np.int64]) -> list[dict[str, Any]]:
    listed = places(session.labels, part.tolist())
    begun = [session.pictures.thumbnail(place) for place in listed]  # all are begun before the first is waited for
    similarity = session.similarity() if filters.order == "similar" else None
    probability, calls = view.probability(filters.label), view.calls(part)
    member = view.members(filters.label)
    tiles = []
    for number, place, thumbnail, call in zip(part.tolist(), listed, begun, calls, strict=True):
        url, problem = "", ""
        try:
            url = thumbnail.result()
        except ImageError as error:
            problem = error.problem
        value = probability[number] if similarity is None else similarity[number]
        text = own_word(session, str(place["item"]))
        state = "" if not text else "done" if text == call else "none" if text in ("unsure", UNKNOWN) else "other"
        words = [
            label(call) or "no label",
            f"{value:.2f}" if value == value else "",
            f"you: {text}" if text else "",
            problem,
        ]
        # The number is the model's: it stands beside the model's word, and the reviewer's own after it.
        own = f" → {label(text)}" if state in ("other", "none") else ""
        tiles.append({
            "item": place["item"], "seen": session.draft(str(place["item"])).seen, "url": url, "state": state,
            "near": not member[number], "title": ", ".join(w for w in words if w),
            "caption": f"{value:.2f} {label(call)}{own}" if value == value else problem,
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
    note(session, item, draft, height=34)


def _facts(view: View, number: int, place: dict[str, Any]) -> str:
    window = f" at {place['col']},{place['row']}" if place["width"] >= 0 else ""
    name = "/".join(Path(str(place["path"])).parts[-2:])
    parts = [f"{name}{window}", f"labelled {label(view.label[number]) or 'nothing'}"]
    if view.boundary[number] == view.boundary[number]:
        parts.append(f"{view.boundary[number]:.2f} from another label")
    return ", ".join(parts)


def _moves(session: Session, item: str) -> None:
    back, forth, on, like = st.columns([1, 1, 1.5, 1], gap="small")
    command(back, "◀", "previous", actions.step, item, -1, key="Left", help="The tile before")
    command(forth, "▶", "next", actions.step, item, 1, key="Right", help="The tile after")
    command(
        on,
        "Undecided",
        "waiting",
        actions.next_waiting,
        item,
        key="N",
        help="The next tile that you have not decided on",
    )
    command(like, "Like", "like", actions.like, item, key="L", help="Sort by likeness to this tile")


def _answers(session: Session, view: View, number: int, item: str) -> None:
    """Accept what the model says, or say what it is; the reviewer's last word is marked."""
    mine, call = own_word(session, item), view.call(number)
    accept, unsure, none = st.columns([1.5, 1, 1], gap="small")

    def answer(place: Any, text: str, name: str, do: Any, word: str, **look: Any) -> None:
        command(place, text, name, do, item, word, decides=True, advances=True, **look)

    answer(accept, "Accept", "accept", actions.decide, "agree", key="A", type="primary", help=f"It is {label(call)}")
    answer(unsure, "Unsure", "unsure", actions.decide, "unsure", key="U")
    answer(none, "None", "none", actions.relabel, UNKNOWN, key="0", help="It is none of the classes")
    others = " ".join(filter(None, _others(session, item)))
    soft(f"You said: {label(mine)}. {others}" if mine else f"Not reviewed by you. {others}")
    with st.container(height=ANSWERS_HEIGHT, border=True, gap="small", key="answers"):
        names = [c.name for c in view.prompts.classes if not c.background]
        columns = st.columns(2, gap="small")
        for i, name in enumerate(names):
            p = view.p[number, view.prompts.names.index(name)]
            answer(columns[i % 2], f"{p:.2f} {plain(label(name))}", f"class:{name}", actions.relabel, name,
                   key=KEYS[i] if i < len(KEYS) else "", type="primary" if name == mine else "secondary")  # fmt: skip


def _others(session: Session, item: str) -> list[str]:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    if session.role != "adjudicator":
        return []
    readers = session.decisions.standing(item).readers
    return [f"{r}: {next(iter(session.decisions.values(r, 'reader').get(item, {}).values()), '')}." for r in readers]
