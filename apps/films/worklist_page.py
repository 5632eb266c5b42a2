"""Page of the chest film app: the worklist, its filters, and films that are not in it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import streamlit as st

from apps.films.filters import CALLS, Filters, group_choices, in_sight, next_unread, sort_choices, status_choices
from apps.films.session import Session
from apps.films.uploads import upload_film
from apps.row_list import row_list
from apps.shared.address import address, go, settle_part
from apps.shared.components import empty, hold, label, plain, soft

PAGE = 50


def worklist_page(session: Session) -> None:
    """Filters, the films in sight a page at a time, and the way into the next one."""
    with st.container():  # a place of its own: what comes and goes in it moves nothing else
        if st.session_state.pop("finished", False):
            st.success("All films in sight are read.")
        _progress(session)
    filters = _filters(session)
    found = in_sight(session, filters)
    read = session.ledger.read_by(session.reviewer.name, session.role)
    all_items = session.worklist.table["item"]
    head, middle = st.columns([2, 5], vertical_alignment="center")
    following = next_unread(session)
    head.button("Next to read", key="start", type="primary", shortcut="N", width="stretch",
                disabled=not following, on_click=go, kwargs={"item": following})  # fmt: skip
    middle.markdown(
        f"**{len(found):,}** of {all_items.nunique():,} films in sight, **{all_items.isin(read).sum():,}** read by you"
    )
    if not len(session.worklist.table):
        if not session.worklist.progress.running:
            empty(
                "No film yet.", f"Put DICOM, PNG or JPEG films into {session.options.studies} and start the app again."
            )
    elif not len(found):
        empty("No film passes the filters.", "Take a filter back, or press Clear filters.")
    else:
        _table(session, found)
    with st.expander("Look at a film that is not in the list"):
        upload_film(session)


@st.fragment(run_every=2.0)
def _ticking(session: Session, begun: bool) -> None:
    """While films are being read: how far it is, without drawing the rest of the page again, but when the first are ``begun``."""
    settle_part()
    progress = session.worklist.progress
    if not progress.running or (not begun and len(session.worklist.table)):
        st.rerun()
    total = progress.total or 1
    left = progress.seconds_left
    wait = (
        "" if math.isnan(left) else f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"
    )
    state = (
        "loading the model"
        if not session.engine.ready
        else f"reading films: {progress.done:,} of {progress.total:,}{wait}"
    )
    st.progress(min(1.0, progress.done / total), text=f"{state}. The list grows meanwhile; you can begin.")


def _progress(session: Session) -> None:
    progress = session.worklist.progress
    if progress.running:
        _ticking(session, begun=bool(len(session.worklist.table)))
    elif progress.error:
        st.error(
            plain(
                f"The films could not all be read: {progress.error} Mend it and start the app again: it goes on from here."
            )
        )
    if progress.failed:
        st.caption(
            f"Films that cannot be read: {progress.failed:,}. The status of that name shows them with the reason."
        )


def _filters(session: Session) -> Filters:
    """The filter row. The address leads: a change is written there first, and each widget shows what stands there."""
    now = Filters.from_address(session)
    statuses, sorts = status_choices(session), sort_choices(session)
    row = st.columns([2, 2, 1.2, 1.6, 2.2, 2, 1.4, 1], vertical_alignment="bottom")

    def pick(place: Any, title: str, name: str, options: dict[str, str], current: str) -> None:
        hold(f"filter:{name}", current)
        place.selectbox(
            title, list(options), format_func=options.__getitem__, key=f"filter:{name}", on_change=_take, args=(name,)
        )

    pick(row[0], "Status", "status", statuses, now.status if now.status in statuses else "all")
    if not session.blinded:
        findings = {"": "any finding"} | {c: label(c) for c in session.facts.classes}
        pick(row[1], "Finding", "finding", findings, now.finding)
        pick(row[2], "Call", "call", CALLS, now.call)
        hold("filter:p", (now.low, max(now.low, now.high)))
        row[3].slider("Probability", 0.0, 1.0, step=0.01, key="filter:p", on_change=_take, args=("p",))
    choices = group_choices(session)
    hold("filter:group", [g for g in now.groups if g in choices])
    row[4].multiselect("Sub-groups", choices, key="filter:group", format_func=label, placeholder="all", on_change=_take,
                       args=("group",))  # fmt: skip
    pick(row[5], "Order", "sort", sorts, now.sort)
    hold("filter:search", now.search)
    row[6].text_input("Film", key="filter:search", placeholder="its code", on_change=_take, args=("search",))
    row[7].button("Clear", key="clear", on_click=_clear, width="stretch", help="Take all filters back")
    return now


def _take(name: str) -> None:
    """A filter was changed: write it into the address, and begin at the first page."""
    value = st.session_state[f"filter:{name}"]
    if name == "p":
        go(low="" if value[0] == 0.0 else str(value[0]), high="" if value[1] == 1.0 else str(value[1]))
    elif name == "group":
        go(group=value)
    else:
        text = str(value).strip()
        go(**{name: "" if text == getattr(Filters(), name) else text})  # defaults need no place in the address
    go(page="")


def _clear() -> None:
    go(**dict.fromkeys(("status", "finding", "call", "low", "high", "group", "sort", "search", "page"), ""))


def _table(session: Session, found: pd.DataFrame) -> None:
    """One page of films; a row opens its film."""
    pages = math.ceil(len(found) / PAGE)
    text = address().get("page", "1")
    page = min(pages, max(1, int(text) if text.isdecimal() else 1))
    part = found.iloc[(page - 1) * PAGE : page * PAGE]
    shown = _columns(session, part, (page - 1) * PAGE)
    row_list(shown, part["item"].tolist(), lambda item: go(item=item), key="films", label="Films in sight", height=470,
             bars=("Probability",), notes={"Uncertainty": "1 at the threshold, 0 at 0 and at 1"})  # fmt: skip
    back, where, forth = st.columns([1, 2, 1], vertical_alignment="center")
    back.button(
        "Previous page",
        disabled=page == 1,
        on_click=go,
        kwargs={"page": str(page - 1)},
        shortcut="PageUp",
        width="stretch",
    )
    with where:
        soft(f"page {page} of {pages}")
    forth.button(
        "Next page",
        disabled=page == pages,
        on_click=go,
        kwargs={"page": str(page + 1)},
        shortcut="PageDown",
        width="stretch",
    )


def _columns(session: Session, part: pd.DataFrame, before: int) -> pd.DataFrame:
    """What the table shows: nothing of the model in a blinded reading, nothing of the patient unless switched on."""
    read = session.ledger.read_by(session.reviewer.name, session.role)
    mine = session.ledger.assigned_to(session.reviewer.name, session.role)
    shown: dict[str, Any] = {"No.": range(before + 1, before + len(part) + 1), "Film": part["item"].str[:8].tolist()}
    if session.shows_patients:
        shown["File"] = part["name"].tolist()
    shown["Status"] = [_status(session, i, e, read, mine) for i, e in zip(part["item"], part["error"], strict=True)]
    for column, title in (("view", "View"), ("sex", "Sex"), ("age_band", "Age"), ("modality", "Modality")):
        shown[title] = part[column].tolist()
    if not session.blinded:
        shown["Leading finding"] = [label(str(name)) for name in part["top"]]
        shown["Probability"] = part["probability"].tolist()
        shown["Called"] = ["called" if yes else "" for yes in part["called"]]
        shown["Uncertainty"] = part["uncertainty"].tolist()
    return pd.DataFrame(shown)


def _status(session: Session, item: str, error: str, read: frozenset[str], mine: frozenset[str]) -> str:
    if error:
        return error
    standing = session.ledger.standing(item)
    if "adjudicator" in session.reviewer.roles and standing.disagreement:
        return "readers disagree"
    if standing.adjudicated:
        return "adjudicated"
    if item in read:
        return "read"
    return "assigned" if item in mine else "to read"
