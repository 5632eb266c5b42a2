"""Review chest films: ``streamlit run apps/cxr_review.py -- --bundle B --studies FILMS --store sqlite:///reviews.db``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.access import identify
from apps.components import icon, notice, show_problem, soft, style
from apps.options import Options, parse_options
from apps.reading_page import reading_page
from apps.review_session import NOTICE, Session, drafts, go, open_ledger, open_store, open_worklist
from apps.team_page import team_page
from apps.worklist_page import worklist_page
from vitdomains.core.errors import VitDomainsError


def main() -> None:
    """One run of the page."""
    st.set_page_config("Chest film review", page_icon=icon(), layout="wide", initial_sidebar_state="collapsed")
    style()
    notice(NOTICE)
    try:
        session = open_session(parse_options(sys.argv[1:]))
    except VitDomainsError as error:
        show_problem(error)
        return
    _sidebar(session)
    if not session.reviewer.roles:
        st.warning("You are known and hold no role yet. Ask an admin to grant you one (page Team).")
        return
    item = st.query_params.get("item", "")
    try:
        if st.query_params.get("show") == "team":
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
    reviewer = identify(store, options.identity)
    worklist = open_worklist(options.bundle, options.studies, options.cache, options.threads)
    ledger = open_ledger(options.store)
    ledger.refresh()
    return Session(options, reviewer, store, ledger, worklist, drafts(options.store))


def _sidebar(session: Session) -> None:
    """Who reviews with what, and the few switches."""
    with st.sidebar:
        st.markdown("**Chest film review**")
        soft(f"Reviewer: {session.reviewer.name} ({', '.join(sorted(session.reviewer.roles)) or 'no role'})")
        soft(f"Model: {session.facts.model}, bundle {session.facts.id}")
        team = st.query_params.get("show") == "team"
        if team:
            st.button("Films", on_click=go, kwargs={"show": ""}, width="stretch", key="show-films")
        else:
            st.button("Team, agreement, export", on_click=go, kwargs={"show": "team"}, width="stretch", key="show-team")
        if "adjudicator" in session.reviewer.roles:
            st.session_state["adjudicate"] = session.role == "adjudicator"
            st.toggle("Decide as adjudicator", key="adjudicate", help="You see what the readers said, and have the last word",
                      on_change=lambda: go(role="adjudicator" if st.session_state["adjudicate"] else ""))  # fmt: skip
        if session.options.blinded:
            soft("Blinded: the model is shown once you have decided.")
        elif session.role == "reader":
            st.session_state["blind"] = session.blinded
            st.toggle("Blinded: decide first, then see the model", key="blind",
                      on_change=lambda: go(blinded="1" if st.session_state["blind"] else ""))  # fmt: skip
        if session.options.phi:
            st.toggle("Show patients' data", key="phi", value=False)
        if not session.reviewer.local and not session.options.identity.user_header:
            st.button("Log out", on_click=st.logout, key="logout")


main()
