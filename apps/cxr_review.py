"""Review chest films: ``streamlit run apps/cxr_review.py -- --bundle B --studies FILMS --store sqlite:///reviews.db``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.films.export import films_team_page
from apps.films.reading_page import reading_page
from apps.films.session import NOTICE, Session, open_worklist, parse_options
from apps.films.worklist_page import worklist_page
from apps.shared.address import address
from apps.shared.components import LUNGS
from apps.shared.session import (
    Screen,
    about,
    blinded_switch,
    connect,
    log_out,
    other_page,
    role_switch,
    run_page,
)


def open_session() -> Session:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: The bundle or the store cannot be opened, or nobody knows who is at the other end.
    """
    options = parse_options(sys.argv[1:])
    connected = connect(options, Session.title)
    return Session(*connected, open_worklist(options.bundle, options.studies, options.cache, options.threads))


def draw(session: Session) -> Screen:
    """The page that the address names."""
    item = address().get("item", "")
    if address().get("show") == "team":
        films_team_page(session)
        return "", []
    if item:
        reading_page(session, item)
    else:
        worklist_page(session)
    return item, []


def side_bar(session: Session) -> None:
    """Who reviews with what, and the few switches."""
    about(session, [f"Model: {session.bundle.model}, bundle {session.bundle.id}"])
    other_page("team", "Team, agreement, export", "Films")
    role_switch(session)
    blinded_switch(session)
    if session.options.phi:
        st.toggle("Show patients' data", key="phi", value=False)
    log_out(session)


run_page(Session.title, LUNGS, NOTICE, open_session, draw, side_bar)
