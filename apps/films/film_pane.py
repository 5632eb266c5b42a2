"""The film on the reading page: viewer, heat map, priors, and what a heat map cannot tell."""

from __future__ import annotations

import threading
from typing import Any

import streamlit as st

from apps.films.actions import focus_of_new, take_marks
from apps.films.filters import next_item, next_unread
from apps.films.session import Session
from apps.shared.address import address, choose, go, settle_part
from apps.shared.components import empty, hold, label, plain, problems, soft
from apps.shared.heat_choices import METHOD_NAMES, colour_maps
from apps.shared.memo import not_there
from apps.viewer import film_viewer

STAYED = 0.6  # seconds on a film after which the reader is thought to look at it
HEIGHT = 520  # pixels: with the bars around it, all of it is seen on a screen of 768 pixels


def priors(session: Session, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Other films of the patient, the latest first; films after this one are none."""
    table = session.worklist.table
    if not row.get("patient"):
        return []
    same = table[(table["patient"] == row["patient"]) & (table["item"] != row["item"]) & (table["error"] == "")]
    dated = same[same["date"] <= row["date"]] if row["date"] else same[same["path"] < row["path"]]
    ordered = dated.sort_values(["date", "path"], ascending=False).drop_duplicates("item")
    return [{str(k): v for k, v in r.items()} for r in ordered.to_dict("records")]


@st.fragment
def film_pane(session: Session, row: dict[str, Any], finding: str) -> None:
    """The viewer with its controls; drawn again alone while a heat map is on its way."""
    settle_part()
    item, revealed = str(row["item"]), session.revealed(str(row["item"]))
    earlier = priors(session, row)
    prior, method = _choices(session, item, earlier, revealed, finding)
    with problems():
        film = session.engine.film(item, str(row["path"])).result()
        before = session.engine.film(str(prior["item"]), str(prior["path"])).result() if prior else None
        draft = session.draft(item, row)
        heat = _heat(session, row, finding, method) if revealed else None
        data = {
            "item": item,
            "film": film.for_viewer("film"),
            "prior": before.for_viewer("prior", item=prior["item"]) if before and prior else None,
            "labels": ["this film", "prior film"],
            "heat": heat,
            "blinded": not revealed,
            "regions": draft.regions,
            "subject": finding,
            "colourMaps": colour_maps(),
            "height": HEIGHT,
            "next": _ahead(session, item, heat, method),
        }
        film_viewer(key="viewer", data=data, on_act_change=lambda: take_marks(session, row))
    if revealed:
        _what_maps_cannot_tell(session, row, finding, method)


def _choices(
    session: Session, item: str, earlier: list[dict[str, Any]], revealed: bool, finding: str
) -> tuple[dict[str, Any] | None, str]:
    """Which prior, which heat map."""
    left, right = st.columns([1, 1.4], vertical_alignment="center")
    prior, method = None, ""
    if earlier:
        names = [f"prior {i + 1} of {len(earlier)}" + _date(session, r) for i, r in enumerate(earlier)]
        chosen = left.selectbox(
            "Prior film",
            range(len(earlier)),
            format_func=names.__getitem__,
            key=f"prior:{item[:16]}",
            label_visibility="collapsed",
        )
        prior = earlier[chosen or 0]
    else:
        with left:
            soft("no prior film of this patient in the list")
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
    return prior, method


def _date(session: Session, row: dict[str, Any]) -> str:
    return f", {row['date'][:8]}" if session.shows_patients and row["date"] else ""


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
        asked = following, str(row["path"]), focus_of_new(session, row), method
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


def no_film(session: Session) -> None:
    """The address names a film that is not there."""
    if session.worklist.progress.running:
        empty(
            "This film has not been read yet.",
            "The list is still being read; the page opens it when its turn has come.",
        )
        st.button("Try again", key="again", type="primary")
    else:
        empty(
            "There is no such film.",
            "It is not among the studies that this app was started with. Go back to the worklist.",
        )
    st.button("Worklist", on_click=go, kwargs={"item": ""}, key="to-list")
