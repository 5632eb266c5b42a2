"""Review chest films: ``streamlit run apps/cxr_review.py -- --bundle B --studies FILMS --store sqlite:///reviews.db``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.films import actions
from apps.films.options import Options, parse_options
from apps.films.reading_page import reading_page
from apps.films.session import NOTICE, Session, open_worklist
from apps.films.team_page import team_page
from apps.films.worklist_page import worklist_page
from apps.shared.access import identify
from apps.shared.address import address, settle
from apps.shared.components import LUNGS, icon, notice, show_problem, style
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
from vitdomains.core.errors import VitDomainsError


def main() -> None:
    """One run of the page."""
    address()  # before anything is drawn: a run that is cut short must have heard of the way back
    st.set_page_config(Session.title, page_icon=icon(LUNGS), layout="wide", initial_sidebar_state="collapsed")
    style()
    notice(NOTICE)
    try:
        session = open_session(parse_options(sys.argv[1:]))
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
            team_page(session)
        elif item:
            reading_page(session, item)
        else:
            worklist_page(session)
    except VitDomainsError as error:
        show_problem(error)


def open_session(options: Options) -> Session:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: The bundle or the store cannot be opened, or nobody knows who is at the other end.
    """
    store = open_store(options.store)
    reviewer = identify(store, options.identity, Session.title)
    worklist = open_worklist(options.bundle, options.studies, options.cache, options.threads)
    ledger = open_ledger(options.store)
    ledger.refresh()
    return Session(options, reviewer, store, ledger, worklist, drafts(options.store))


def _sidebar(session: Session) -> None:
    """Who reviews with what, and the few switches."""
    with st.sidebar:
        about(session, [f"Model: {session.facts.model}, bundle {session.facts.id}"])
        other_page("team", "Team, agreement, export", "Films")
        role_switch(session)
        blinded_switch(session)
        if session.options.phi:
            st.toggle("Show patients' data", key="phi", value=False)
        log_out(session)


main()
