"""Page of the satellite app: the scene with its tiles, filters, the list, acceptance in bulk."""

from __future__ import annotations

from html import escape

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.row_list import page_of, pager, row_list
from apps.shared.actions import leave, open_item, undo
from apps.shared.address import address, choose, go
from apps.shared.commands import command
from apps.shared.components import empty, hold, label, show_failure
from apps.shared.filter_row import clear, pick, search, slide, slide_range
from apps.tiles import actions
from apps.tiles.filters import (
    REVIEW_COLOURS,
    TileFilters,
    colourings,
    listed,
    member,
    next_unread,
    sort_choices,
    status_choices,
    visible,
)
from apps.tiles.map_pane import look_choices, map_pane
from apps.tiles.session import TileSession

PAGE = 100
LEGEND_ROWS = 45


def map_page(session: TileSession) -> None:
    """Filters and the ways in, the map, and beside it the tiles in sight with the legend."""
    with st.container():  # a place of its own: what comes and goes in it moves nothing else
        if st.session_state.pop("finished", False):
            st.success("All tiles in sight are reviewed.")
        show_failure()
        if not session.context.own_model:
            st.warning(
                "The tiles were labelled by another bundle than the one given: heat maps are those of this bundle."
            )
    filters = _filters(session)
    rows = visible(session, filters)
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
    now = TileFilters.from_address(session)
    row = st.columns([1.6, 1.5, 1.3, 1, 1, 1.7, 1.2, 0.75], vertical_alignment="bottom")
    pick(row[0], "Status", "status", status_choices(session), now.status, "all")
    if not session.blinded:
        pick(row[1], "Class", "class", {"": "any class"} | {c: label(c) for c in session.tiles.classes}, now.name)
        slide_range(row[2], "Probability", now.low, now.high, "Of the chosen class, else of the label")
        slide(row[3], "Margin up to", "margin", now.margin, 1.0, "Lead of the most probable class over the second")
        slide(row[4], "Entropy from", "entropy", now.entropy, 0.0,
              "As a share of the highest possible: 1 is knowing nothing")  # fmt: skip
    pick(row[5], "Order", "sort", sort_choices(session), now.sort, "listed")
    search(row[6], "Tile", "part of its id", now.search)
    clear(row[7], "status", "class", "low", "high", "margin", "entropy", "sort", "search", "area")
    return now


def _ways(session: TileSession, filters: TileFilters, rows: NDArray[np.int64]) -> str:
    """The row over the map: next, counts, what is shown, acceptance in bulk, undo. Returns the colouring."""
    row = st.columns([1.35, 1.9, 1.4, 1.9, 1.3, 1.25, 0.85], vertical_alignment="bottom")
    following = next_unread(session)
    command(
        row[0], "Next to review", "start", open_item, "", following, key="N", type="primary", disabled=not following
    )
    read = member(session, session.decisions.read_by(session.reviewer.name, session.role))
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
        command(st, f"Agree with the model on {len(open_):,} tiles", "bulk", actions.accept_all, "", open_, type="primary",
                disabled=session.blinded)  # fmt: skip
    command(
        row[6],
        "Undo",
        "undo",
        undo,
        key="Z",
        help="Take your last decision back, or the last in bulk: a new row, nothing is erased",
    )
    return str(st.session_state["colour"])


def _list(session: TileSession, rows: NDArray[np.int64]) -> None:
    """One page of tiles; a row opens its tile."""
    page, pages = page_of(len(rows), PAGE)
    part = rows[(page - 1) * PAGE : page * PAGE]
    row_list(listed(session, part), session.tiles.items[part].tolist(), lambda item: go(item=item, heat=""), key="tiles",
             label="Tiles in sight", height=285)  # fmt: skip
    pager(page, pages)


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
    command(st, "Map", "to-map", leave, key="Esc", width="content")
