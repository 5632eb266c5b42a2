"""Page of the chest film app: the worklist, its filters, and films that are not in it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import streamlit as st

from apps.films.filters import CALLS, Filters, group_choices, next_unread, sort_choices, status_choices, visible
from apps.films.session import Session
from apps.films.uploads import upload_film
from apps.row_list import page_of, pager, row_list
from apps.shared.actions import open_item, undo
from apps.shared.address import go, settle_part
from apps.shared.commands import command
from apps.shared.components import empty, hold, label, plain, show_failure
from apps.shared.filter_row import clear, pick, search, slide_range

PAGE = 50


def worklist_page(session: Session) -> None:
    """Filters, the films in sight a page at a time, and the way into the next one."""
    with st.container():  # a place of its own: what comes and goes in it moves nothing else
        if st.session_state.pop("finished", False):
            mine = session.decisions.assigned_to(session.reviewer.name, session.role)
            st.success("All films that are assigned to you are read." if mine else "All films in sight are read.")
        _progress(session)
        show_failure()
    filters = _filters(session)
    found = visible(session, filters)
    read = session.decisions.read_by(session.reviewer.name, session.role)
    all_items = session.worklist.table["item"]
    head, middle, take_back = st.columns([2, 4.2, 0.8], vertical_alignment="center")
    following = next_unread(session)
    command(head, "Next to read", "start", open_item, "", following, key="N", type="primary", disabled=not following)
    middle.markdown(
        f"**{len(found):,}** of {all_items.nunique():,} films in sight, **{all_items.isin(read).sum():,}** read by you"
    )
    command(take_back, "Undo", "undo", undo, key="Z", help="Take your last decision back: a new row, nothing is erased")
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
    now = Filters.from_address(session)
    row = st.columns([2, 2, 1.2, 1.6, 2.2, 2, 1.4, 1], vertical_alignment="bottom")
    pick(row[0], "Status", "status", status_choices(session), now.status, "all")
    if not session.blinded:
        pick(
            row[1],
            "Finding",
            "finding",
            {"": "any finding"} | {c: label(c) for c in session.bundle.classes},
            now.finding,
        )
        pick(row[2], "Call", "call", CALLS, now.call, "any")
        slide_range(row[3], "Probability", now.low, now.high)
    choices = group_choices(session)
    hold("filter:group", [g for g in now.groups if g in choices])
    row[4].multiselect("Sub-groups", choices, key="filter:group", format_func=label, placeholder="all",
                       on_change=lambda: go(group=st.session_state["filter:group"], page=""))  # fmt: skip
    pick(row[5], "Order", "sort", sort_choices(session), now.sort, "listed")
    search(row[6], "Film", "its code", now.search)
    clear(row[7], "status", "finding", "call", "low", "high", "group", "sort", "search")
    return now


def _table(session: Session, found: pd.DataFrame) -> None:
    """One page of films; a row opens its film."""
    page, pages = page_of(len(found), PAGE)
    part = found.iloc[(page - 1) * PAGE : page * PAGE]
    shown = _columns(session, part, (page - 1) * PAGE)
    row_list(shown, part["item"].tolist(), lambda item: go(item=item), key="films", label="Films in sight", height=470,
             bars=("Probability",), notes={"Uncertainty": "1 at the threshold, 0 at 0 and at 1"})  # fmt: skip
    pager(page, pages)


def _columns(session: Session, part: pd.DataFrame, before: int) -> pd.DataFrame:
    """What the table shows: nothing of the model in a blinded reading, nothing of the patient unless switched on."""
    read = session.decisions.read_by(session.reviewer.name, session.role)
    mine = session.decisions.assigned_to(session.reviewer.name, session.role)
    shown: dict[str, Any] = {"No.": range(before + 1, before + len(part) + 1), "Film": part["item"].str[:8].tolist()}
    if session.shows_patients:
        shown["File"] = part["name"].tolist()
    shown["Status"] = [_status(session, i, e, read, mine) for i, e in zip(part["item"], part["error"], strict=True)]
    for column, title in (("view", "View"), ("sex", "Sex"), ("age_band", "Age"), ("modality", "Modality")):
        shown[title] = part[column].tolist()
    if (part["quality"] != "").any():
        shown["Remark"] = part["quality"].tolist()
    if not session.blinded:
        shown["Leading finding"] = [label(str(name)) for name in part["top"]]
        shown["Probability"] = part["probability"].tolist()
        shown["Called"] = ["called" if yes else "" for yes in part["called"]]
        shown["Uncertainty"] = part["uncertainty"].tolist()
    return pd.DataFrame(shown)


def _status(session: Session, item: str, error: str, read: frozenset[str], mine: frozenset[str]) -> str:
    if error:
        return error
    standing = session.decisions.standing(item)
    if "adjudicator" in session.reviewer.roles and standing.disagreement:
        return "readers disagree"
    if standing.adjudicated:
        return "adjudicated"
    if item in read:
        return "read"
    return "assigned" if item in mine else "to read"
