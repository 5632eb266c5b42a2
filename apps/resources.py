"""What the review apps share once a server: the store, the view of it, drafts; and the page's address."""

from __future__ import annotations

import streamlit as st

from apps.drafts import Draft
from apps.ledger import Ledger
from vitdomains.core.review import ReviewStore


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


def go(**params: str) -> None:
    """Change the address of the page: what stands in it survives a reload and can be passed on. Empty values are taken out."""
    for key, value in params.items():
        if value:
            st.query_params[key] = value
        elif key in st.query_params:
            del st.query_params[key]
