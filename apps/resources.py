"""What the review apps share once a server: the store, the view of it, drafts."""

from __future__ import annotations

import streamlit as st

from apps.shared.decisions import Ledger
from apps.shared.drafts import Draft
from vitdomains.core.review.store import ReviewStore


@st.cache_resource(show_spinner=False)
def open_store(url: str) -> ReviewStore:
    """One store a server."""
    return ReviewStore(url)


@st.cache_resource(show_spinner=False)
def open_ledger(url: str) -> Ledger:
    """One view of the store a server."""
    return Ledger(open_store(url))


@st.cache_resource(show_spinner=False)
def drafts(url: str) -> dict[tuple[str, str, str], Draft]:
    """What was begun and not saved, by (reviewer, role, item); it outlives the reload of a page."""
    return {}
