"""Page of the satellite app: the scene with its tiles, filters, the list, acceptance in bulk."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.row_list import row_list
from apps.shared.address import address, choose, go
from apps.shared.components import empty, hold, label, show_problem, soft
from apps.tiles import actions
from apps.tiles.filters import (
    REVIEW_COLOURS,
    TileFilters,
    colourings,
    in_sight,
    listed,
    member,
    next_unread,
    sort_choices,
    status_choices,
)
from apps.tiles.map_pane import look_choices, map_pane
from apps.tiles.session import TileSession

PAGE = 100
LEGEND_ROWS = 45
_IN_ADDRESS = ("status", "class", "low", "high", "margin", "entropy", "sort", "search", "area", "page")


def map_page(session: TileSession) -> None:
    """Filters and the ways in, the map, and beside it the tiles in sight with the legend."""
    with st.container():  # a place of its own: what comes and goes in it moves nothing else
        if st.session_state.pop("finished", False):
            st.success("All tiles in sight are reviewed.")
        problem = st.session_state.pop("problem", None)
        if problem is not None:
            show_problem(problem)
        if not session.ground.own_model:
            st.warning(
                "The tiles were labelled by another bundle than the one given: heat maps are those of this bundle."
            )
    filters = _filters(session)
    rows = in_sight(session, filters)
    colouring = _ways(session, filters, rows)
    left, right = st.columns([1.8, 1], gap="small")
    with left:
        map_pane(session, rows, colouring, taken=232)
    with right:
        if len(rows):
            _list(session, rows)
        else:
            _nothing(session, filters)
        st.html(_legend(session, rows, colouring))


def _nothing(session: TileSession, filters: TileFilters) -> None:
    if not session.tiles.labelled.any() and filters.status != "nodata":
        empty(
            "No tile has a label.",
            "All tiles were without data or failed: see the status without a label, and map again.",
        )
    else:
        empty("No tile passes the filters.", "Take a filter back, or press Clear.")


def _filters(session: TileSession) -> TileFilters:
    """The filter row. The address leads: a change is written there first, and each widget shows what stands there."""
    now = TileFilters.from_address(session)
    row = st.columns([1.6, 1.5, 1.3, 1, 1, 1.7, 1.2, 0.75], vertical_alignment="bottom")
    statuses, sorts = status_choices(session), sort_choices(session)
    names = {"": "any class"} | {c: label(c) for c in session.tiles.classes}

    def pick(place: Any, title: str, name: str, options: dict[str, str], current: str) -> None:
        hold(f"filter:{name}", current)
        place.selectbox(
            title, list(options), format_func=options.__getitem__, key=f"filter:{name}", on_change=_take, args=(name,)
        )

    def slide(place: Any, title: str, name: str, current: Any, help_: str) -> None:
        hold(f"filter:{name}", current)
        place.slider(title, 0.0, 1.0, step=0.01, key=f"filter:{name}", on_change=_take, args=(name,), help=help_)

    pick(row[0], "Status", "status", statuses, now.status)
    if not session.blinded:
        pick(row[1], "Class", "class", names, now.name)
        slide(row[2], "Probability", "p", (now.low, max(now.low, now.high)), "Of the chosen class, else of the label")
        slide(row[3], "Margin up to", "margin", now.margin, "Lead of the most probable class over the second")
        slide(
            row[4], "Entropy from", "entropy", now.entropy, "As a share of the highest possible: 1 is knowing nothing"
        )
    pick(row[5], "Order", "sort", sorts, now.sort)
    hold("filter:search", now.search)
    row[6].text_input("Tile", key="filter:search", placeholder="part of its id", on_change=_take, args=("search",))
    row[7].button("Clear", key="clear", on_click=_clear, width="stretch", help="Take all filters and the area back")
    return now


def _take(name: str) -> None:
    """A filter was changed: write it into the address, and begin at the first page."""
    value = st.session_state[f"filter:{name}"]
    if name == "p":
        go(low="" if value[0] == 0.0 else str(value[0]), high="" if value[1] == 1.0 else str(value[1]))
    else:
        text = str(value).strip()
        defaults = {"status": "all", "sort": "listed", "margin": "1.0", "entropy": "0.0"}
        go(**{name: "" if text == defaults.get(name, "") else text})  # defaults need no place in the address
    go(page="")


def _clear() -> None:
    go(**dict.fromkeys(_IN_ADDRESS, ""))


def _ways(session: TileSession, filters: TileFilters, rows: NDArray[np.int64]) -> str:
    """The row over the map: next, counts, what is shown, acceptance in bulk, undo. Returns the colouring."""
    row = st.columns([1.35, 1.9, 1.4, 1.9, 1.3, 1.25, 0.85], vertical_alignment="bottom")
    following = next_unread(session)
    row[0].button("Next to review", key="start", type="primary", shortcut="N", width="stretch", disabled=not following,
                  on_click=go, kwargs={"item": following, "heat": ""})  # fmt: skip
    read = member(session, session.ledger.read_by(session.reviewer.name, session.role))
    area = ", within the area drawn" if filters.area else ""
    row[1].markdown(
        f":small[**{len(rows):,}** of {len(session.tiles):,} tiles in sight{area}, **{read.sum():,}** reviewed by you]"
    )
    known = colourings(session)
    usual, colouring = next(iter(known)), address().get("colour", "")
    hold("colour", colouring if colouring in known else usual)
    row[2].selectbox("Colour by", list(known), format_func=known.__getitem__, key="colour", on_change=choose,
                     args=("colour", "colour", usual))  # fmt: skip
    look_choices(session, row[3:5])
    open_ = rows[~read[rows]]
    with row[5].popover("Accept in bulk", width="stretch", disabled=session.blinded or not len(open_)):
        st.markdown(
            f"**{len(open_):,}** tiles in sight are not reviewed by you. Narrow them by class, probability or area first; each "
            "becomes a decision of its own that agrees with the model, and can be undone."
        )
        st.button(f"Agree with the model on {len(open_):,} tiles", key="bulk", type="primary",
                  on_click=actions.accept_all, args=(session, open_))  # fmt: skip
    row[6].button("Undo", key="undo", shortcut="Z", width="stretch", on_click=actions.undo, args=(session,),
                  help="Take your last decision back, or the last in bulk: a new row, nothing is erased")  # fmt: skip
    return str(st.session_state["colour"])


def _list(session: TileSession, rows: NDArray[np.int64]) -> None:
    """One page of tiles; a row opens its tile."""
    pages = math.ceil(len(rows) / PAGE)
    text = address().get("page", "1")
    page = min(pages, max(1, int(text) if text.isdecimal() else 1))
    part = rows[(page - 1) * PAGE : page * PAGE]
    shown = listed(session, part)
    items = session.tiles.table["item"].iloc[part].tolist()
    row_list(shown, items, lambda item: go(item=item, heat=""), key="tiles", label="Tiles in sight", height=285)
    back, where, forth = st.columns([1, 1.2, 1], vertical_alignment="center")
    back.button("Previous", key="page-back", disabled=page == 1, on_click=go, kwargs={"page": str(page - 1)},
                shortcut="PageUp", width="stretch")  # fmt: skip
    with where:
        soft(f"page {page:,} of {pages:,}")
    forth.button("Next", key="page-forth", disabled=page == pages, on_click=go, kwargs={"page": str(page + 1)},
                 shortcut="PageDown", width="stretch")  # fmt: skip


def _legend(session: TileSession, rows: NDArray[np.int64], colouring: str) -> str:
    """What the colours mean, with how many tiles of each are in sight."""
    tiles = session.tiles
    if colouring in ("probability", "margin", "entropy"):
        return _ramp(colouring)
    if colouring == "status":
        from apps.tiles.filters import review_words

        counts = np.bincount(review_words(session)[rows], minlength=len(REVIEW_COLOURS))
        lines = [(name, rgb, int(n)) for (name, rgb), n in zip(REVIEW_COLOURS.items(), counts, strict=True)]
    else:
        counts = tiles.called[rows].sum(axis=0)
        lines = [(label(c), tuple(tiles.palette[k]), int(counts[k])) for k, c in enumerate(tiles.classes)]
        lines = sorted(lines, key=lambda line: -line[2])[:LEGEND_ROWS]
    total = max(1, len(rows))
    body = "".join(
        f'<div class="vd-key-row"><i style="background:rgb({r},{g},{b})"></i><span>{escape(plain_name)}</span>'
        f"<b>{n:,}</b><em>{n / total:.1%}</em></div>"
        for plain_name, (r, g, b), n in lines
    )
    return f'<div class="vd-legend" role="list" aria-label="Legend: tiles in sight">{body}</div>'


def _ramp(colouring: str) -> str:
    from vitdomains.core.explain.overlay import colours

    stops = colours(np.linspace(0, 1, 9, dtype=np.float32)[None], "viridis")[0]
    gradient = ", ".join(f"rgb({r},{g},{b})" for r, g, b in stops)
    high = {"probability": "1, sure", "margin": "1, a clear lead", "entropy": "1, knowing nothing"}[colouring]
    return (
        f'<div class="vd-legend"><div class="vd-ramp" style="background:linear-gradient(90deg, {gradient})"></div>'
        f'<div class="vd-key-row"><span>0</span>{high}</div></div>'
    )


def no_tile(session: TileSession) -> None:
    """The address names a tile that is not there."""
    empty(
        "There is no such tile.",
        f"It is not in {session.options.tiles} for this scene. Was the scene mapped with other tiles? Go back to the map.",
    )
    st.button("Map", on_click=go, kwargs={"item": ""}, key="to-map", shortcut="Esc")
