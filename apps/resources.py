"""What the review apps share once a server: the store, the view of it, drafts; and the page's address."""

from __future__ import annotations

import streamlit as st

from apps.drafts import Draft
from apps.ledger import Ledger
from vitdomains.core.errors import VitDomainsError
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


def go(**params: str | list[str]) -> None:
    """Change the address of the page: what stands in it survives a reload and can be passed on. Empty values are taken out.

    The change comes with the next ``settle``, and with it the whole page is drawn: also without params. Streamlit ends a
    callback at its first word to the browser when the reader has done something else meanwhile, so callbacks (and what they
    call) say nothing themselves.
    """
    st.session_state.setdefault("going", {}).update(params)


def say(text: str) -> None:
    """A message that comes with the next ``settle`` and passes by."""
    st.session_state.setdefault("saying", []).append(text)


def fail(problem: VitDomainsError) -> None:
    """A problem for the page to show where it shows its own, until something else is done."""
    st.session_state["problem"] = problem
    go()


def settle() -> None:
    """Do what callbacks asked for by ``go`` and ``say``: call it first in a page."""
    # Kept until it is done: this can be cut short like everything that speaks to the browser, and the next run does it then.
    going, saying = st.session_state.get("going"), st.session_state.get("saying")
    if going is not None:
        wanted = {key: value for key, value in ({**_address(), **going}).items() if value}
        if wanted != _address():
            st.query_params.from_dict(wanted)
        del st.session_state["going"]
    while saying:
        st.toast(saying[0])
        del saying[0]


def settle_part() -> None:
    """Call it first in a fragment: draw the whole page instead where a callback asked for something.

    The browser puts what happens at once into one request. A key that comes with a mark on the film is in the request of the
    viewer, for which Streamlit draws the viewer's fragment alone.
    """
    if "going" in st.session_state or st.session_state.get("saying"):
        st.rerun()


def _address() -> dict[str, str | list[str]]:
    return {
        key: values if len(values) > 1 else values[0]
        for key in st.query_params
        if (values := st.query_params.get_all(key))
    }
