"""Review a mapped scene: ``streamlit run apps/satellite_review.py -- --bundle B --tiles landcover.parquet --scene scene.tif``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.shared.access import identify
from apps.shared.address import address, settle
from apps.shared.components import TILES, icon, notice, show_problem, style
from apps.shared.session import (
    about,
    blinded_switch,
    drafts,
    finishing,
    log_out,
    open_ledger,
    open_store,
    other_page,
    role_switch,
)
from apps.tiles import actions
from apps.tiles.map_page import map_page
from apps.tiles.options import TileOptions, parse_tile_options
from apps.tiles.session import NOTICE, TITLE, TileSession, open_ground
from apps.tiles.team_page import tiles_team_page
from apps.tiles.tile_page import tile_page
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.geo.read.scene_paths import files_of


def main() -> None:
    """One run of the page."""
    address()  # before anything is drawn: a run that is cut short must have heard of the way back
    st.set_page_config(TITLE, page_icon=icon(TILES), layout="wide", initial_sidebar_state="collapsed")
    style()
    notice(NOTICE)
    try:
        session = open_session(parse_tile_options(sys.argv[1:]))
    except VitDomainsError as error:
        show_problem(error)
        return
    if (item := finishing()) and session.reviewer.roles:
        actions.finish(session, item)
    settle()
    _sidebar(session)
    if not session.reviewer.roles:
        st.warning("You are known and hold no role yet. Ask an admin to grant you one (page Team).")
        return
    item = address().get("item", "")
    try:
        if address().get("show") == "team":
            tiles_team_page(session)
        elif item:
            tile_page(session, item)
        else:
            map_page(session)
    except VitDomainsError as error:
        show_problem(error)


def open_session(options: TileOptions) -> TileSession:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: Bundle, tiles, scene or store cannot be opened, or nobody knows who is at the other end.
    """
    store = open_store(options.store)
    reviewer = identify(store, options.identity, TITLE)
    ground = open_ground(options)
    ledger = open_ledger(options.store)
    ledger.refresh()
    return TileSession(options, reviewer, store, ledger, ground, drafts(options.store))


def _sidebar(session: TileSession) -> None:
    """Who reviews with what, and the few switches."""
    with st.sidebar:
        files = ", ".join(Path(file).name for file in files_of(session.ground.scene.path))
        scene = f"Scene: {files}, {len(session.tiles):,} tiles"
        about(session, [f"Model: {session.facts.model}, bundle {session.facts.id}", scene])
        other_page("team", "Team, agreement, export", "Map")
        role_switch(session)
        blinded_switch(session)
        log_out(session)


main()
