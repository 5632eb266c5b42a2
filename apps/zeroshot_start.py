"""From the command line to a page of the zero-shot app: opens what a session needs, and draws the page that the address names."""

from __future__ import annotations

import streamlit as st

from apps.access import identify
from apps.components import hold, soft
from apps.resources import drafts, go, open_ledger, open_store
from apps.zeroshot_options import TITLE, Options, stamp
from apps.zeroshot_output_page import output_page
from apps.zeroshot_page import review_page
from apps.zeroshot_session import Session, open_labels, open_model, open_pictures


def show(options: Options) -> None:
    """Draw the page.

    Raises:
        VitDomainsError: The labels or the store cannot be opened, or nobody knows who is at the other end.
    """
    session = open_session(options)
    _sidebar(session)
    if not session.reviewer.roles:
        st.warning("You are known and hold no role yet. Ask an admin to grant you one.")
    elif st.query_params.get("show") == "output":
        output_page(session)
    else:
        review_page(session)


def open_session(options: Options) -> Session:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: The labels or the store cannot be opened, or nobody knows who is at the other end.
    """
    store = open_store(options.store)
    reviewer = identify(store, options.identity, TITLE)
    changed = stamp(options.labels)
    ledger = open_ledger(options.store)
    ledger.refresh()
    return Session(
        options, reviewer, store, ledger, changed, open_labels(options.labels, changed),
        open_model(options.labels, changed, options.model, options.threads), open_pictures(options.labels, changed),
        drafts(options.store),
    )  # fmt: skip


def _sidebar(session: Session) -> None:
    """Who reviews what, the other page, and the keys."""
    with st.sidebar:
        st.markdown(f"**{TITLE}**")
        soft(f"Reviewer: {session.reviewer.name} ({', '.join(sorted(session.reviewer.roles)) or 'no role'})")
        soft(f"Labels: {session.labels.folder.name}, bundle {session.labels.bundle_id}")
        copies = len(session.labels.tiles) - len(session.labels.rows)
        soft(f"Tiles: {len(session.labels.rows):,}" + (f", and {copies:,} copies of some of them" if copies else ""))
        if st.query_params.get("show") == "output":
            st.button("Review", on_click=go, kwargs={"show": ""}, width="stretch", key="show-review")
        else:
            st.button(
                "Export, labels, student", on_click=go, kwargs={"show": "output"}, width="stretch", key="show-output"
            )
        if "adjudicator" in session.reviewer.roles:
            hold("adjudicate", session.role == "adjudicator")
            st.toggle("Decide as adjudicator", key="adjudicate", help="You see what the readers said, and have the last word",
                      on_change=lambda: go(role="adjudicator" if st.session_state["adjudicate"] else ""))  # fmt: skip
        if not session.reviewer.local and not session.options.identity.user_header:
            st.button("Log out", on_click=st.logout, key="logout")
        soft(
            "Keys: left and right go from tile to tile, Page Up and Down from page to page, n to the next that waits; a accepts, "
            "1 to 9 and Shift+1 to 9 name a class, 0 none of them, u unsure, Shift+A accepts the page, l sorts by likeness, e "
            "export and student, Ctrl+Enter in the editor applies the classes."
        )
