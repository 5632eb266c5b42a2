"""The film on the reading page: viewer, heat map, priors, and what a heat map cannot tell."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from apps.films.actions import finding_order, take_marks
from apps.films.filters import next_item, next_unread
from apps.films.session import Session
from apps.shared.actions import leave
from apps.shared.address import address, choose, settle_part
from apps.shared.commands import command
from apps.shared.components import empty, hold, label, plain, problems, soft
from apps.shared.loading import METHOD_NAMES, colour_maps
from apps.shared.memo import not_there
from apps.viewer import film_viewer

STAYED = 0.6  # seconds on a film after which the reader is thought to look at it
HEIGHT = 520  # pixels: with the bars around it, all of it is seen on a screen of 768 pixels


def priors(session: Session, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Films of the patient's earlier studies, the latest first. Other views of this study and copies of its films are none."""
    if not row.get("patient") or not row.get("date"):
        return []
    same = _of_patient(session, row)
    found = same[(same["study"] != row["study"]) & (same["date"] != "") & (same["date"] < row["date"])]
    # The same view first among those of a study: it compares best.
    ordered = (
        found.assign(other=found["view"] != row["view"])
        .sort_values("path")
        .sort_values(["date", "other"], ascending=[False, True], kind="stable")
    )
    return [{str(k): v for k, v in r.items()} for r in ordered.to_dict("records")]


def other_views(session: Session, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The other films of this study."""
    same = _of_patient(session, row)
    found = same[(same["study"] == row["study"]) & (same["study"] != "")]
    return [{str(k): v for k, v in r.items()} for r in found.to_dict("records")]


def _of_patient(session: Session, row: dict[str, Any]) -> pd.DataFrame:
    table = session.worklist.table
    same = table[(table["patient"] == row["patient"]) & (table["item"] != row["item"]) & (table["error"] == "")]
    found: pd.DataFrame = same.drop_duplicates("item")
    return found


def interval(earlier: str, date: str) -> str:
    """How long one study (YYYYMMDD...) was before another, in words."""
    try:
        days = (datetime.strptime(date[:8], "%Y%m%d") - datetime.strptime(earlier[:8], "%Y%m%d")).days
    except ValueError:
        return ""
    for name, length in (("year", 365.25), ("month", 30.44), ("week", 7.0)):
        if days >= 2 * length:
            return f"{days / length:.0f} {name}s earlier"
    return "the same day" if days == 0 else f"{days} day{'s' if days > 1 else ''} earlier"


@st.fragment
def film_pane(session: Session, row: dict[str, Any], finding: str) -> None:
    """The viewer with its controls; drawn again alone while a heat map is on its way."""
    settle_part()
    item, revealed = str(row["item"]), session.revealed(str(row["item"]))
    with problems():
        beside, method = _choices(session, row, revealed, finding)
        film = session.engine.film(item, str(row["path"])).result()
        before = session.engine.film(str(beside["item"]), str(beside["path"])).result() if beside else None
        heat = _heat(session, row, finding, method) if revealed else None
        data = {
            "item": item,
            "film": film.for_viewer("film"),
            "prior": before.for_viewer("prior", item=beside["item"]) if before and beside else None,
            "labels": ["this film", beside["named"] if beside else ""],
            "heat": heat,
            "faint": bool(heat) and session.calls(item).get(finding) != "present",
            "blinded": not revealed,
            "regions": session.draft(item).regions,
            "subject": finding,
            "colourMaps": colour_maps(),
            "height": HEIGHT,
            "next": _ahead(session, item, heat, method),
        }
        film_viewer(key="viewer", data=data, on_act_change=lambda: take_marks(session, row))
        if revealed:
            _what_maps_cannot_tell(session, row, finding, method)


def _choices(session: Session, row: dict[str, Any], revealed: bool, finding: str) -> tuple[dict[str, Any] | None, str]:
    """Which film is shown beside this one (with the name that it goes by), and which heat map."""
    left, right = st.columns([1, 1.4], vertical_alignment="center")
    beside, method = None, ""
    offered = [r | {"named": _named(session, r, row, "prior")} for r in priors(session, row)]
    offered += [r | {"named": _named(session, r, row, "other")} for r in other_views(session, row)]
    if offered:
        chosen = left.selectbox(
            "Film beside this one",
            range(len(offered)),
            format_func=lambda n: offered[n]["named"],
            key=f"prior:{str(row['item'])[:16]}",
            label_visibility="collapsed",
        )
        beside = offered[chosen or 0]
    else:
        with left:
            soft("no earlier study of this patient in the list")
    if revealed:
        known = session.engine.methods()
        named = address().get("method", known[0])
        # The browser knows the choices by their text, and the text names the finding: another finding, another widget.
        key = f"method:{finding}"
        hold(key, named if named in known else known[0])
        method = right.selectbox(
            "Heat map by",
            known,
            format_func=lambda m: f"{label(finding)} by {METHOD_NAMES[m]}",
            key=key,
            label_visibility="collapsed",
            on_change=choose,
            args=("method", key, known[0]),
        )
    else:
        with right:
            soft("blinded: the model is shown when you have decided")
    return beside, method


def _named(session: Session, row: dict[str, Any], now: dict[str, Any], what: str) -> str:
    """What a film beside this one is called: its view, and how long before it was taken."""
    view = f", {row['view']}" if row["view"] else ""
    if what == "other":
        return f"other view of this study{view}"
    date = f", {row['date'][:8]}" if session.shows_patients else ""
    return f"prior, {interval(row['date'], now['date'])}{view}{date}"


def _heat(session: Session, row: dict[str, Any], finding: str, method: str) -> dict[str, Any]:
    """The heat map where it is ready; else its key, at which the viewer asks again."""
    item, key = str(row["item"]), f"{str(row['item'])[:16]}:{finding}:{method}"
    future = session.engine.heat(item, str(row["path"]), finding, method)
    if not future.done():
        session.engine.forget_waiting(item, finding, method)
    return not_there(future, key) or future.result().for_viewer("heat", key=key)


def _ahead(session: Session, item: str, heat: dict[str, Any] | None, method: str) -> str:
    """Make what comes next while the reader looks at this one; the address of the next film, once it is there."""
    back = st.session_state.get("heading", 1) < 0
    following = next_item(session, item, -1) if back else next_unread(session, item)
    row = session.film(following) if following else None
    if row is None:
        return ""
    if heat is not None and not session.blinded:
        asked = following, str(row["path"]), finding_order(session, row)[0], method
        _heat_ahead(session, asked, wait=bool(heat.get("pending")))
    future = session.engine.film(following, str(row["path"]))
    if not future.done() or future.exception() is not None:
        return ""
    return str(future.result().for_viewer("next")["url"])


def _heat_ahead(session: Session, asked: tuple[str, str, str, str], *, wait: bool) -> None:
    """Begin a heat map that will probably be looked at next, once the reader has stayed: who leafs on wants another one first.

    Args:
        session: Of the page.
        asked: Item, path, finding and method, as ``Engine.heat`` takes them.
        wait: The reader's own heat map comes first.
    """
    before, timer = st.session_state.get("ahead") or ((), None)
    if timer is not None and (wait or before != asked):
        timer.cancel()
    if wait:
        st.session_state["ahead"] = None
    elif before != asked:
        timer = threading.Timer(STAYED, session.engine.heat, asked)
        timer.daemon = True
        timer.start()
        st.session_state["ahead"] = asked, timer


def _what_maps_cannot_tell(session: Session, row: dict[str, Any], finding: str, method: str) -> None:
    from vitdomains.cxr.report.content import CAUTION

    soft(CAUTION)
    if st.button("How faithful is this map to the model?", key="faithful", type="tertiary"):
        with problems(), st.spinner("taking the film apart, piece by piece"):
            text = session.engine.faithfulness(str(row["path"]), finding, method)
            st.caption(plain(
                f"{label(finding)} by {method}: {text}. Deletion: mean probability while the warmest parts are blurred away "
                "first, lower is more faithful; deletion random: the same for maps of noise; gain: the difference."
            ))  # fmt: skip


def no_film(session: Session, item: str) -> None:
    """The address names a film that is not there, or not yet."""
    if session.worklist.progress.running:
        empty(
            "This film has not been read yet.",
            "The list is still being read; the page opens it when its turn has come.",
        )
        _open_when_read(session, item)
    else:
        empty(
            "There is no such film.",
            "It is not among the studies that this app was started with. Go back to the worklist.",
        )
    command(st, "Worklist", "to-list", leave, key="Esc", width="content")


@st.fragment(run_every=1.0)
def _open_when_read(session: Session, item: str) -> None:
    """Draws the page anew when the film has been read, or nothing is left to be read."""
    if not session.worklist.progress.running or session.film(item) is not None:
        st.rerun()
