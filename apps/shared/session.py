"""What a run of any review app works with, and the part of the side bar that is the same in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import streamlit as st

from apps.shared.access import Reviewer, identify, require
from apps.shared.address import address, go
from apps.shared.components import hold, soft
from apps.shared.decisions import Ledger
from apps.shared.drafts import Draft
from vitdomains.core.review.store import ReviewStore, Role

# --------------------
# What the review apps share once a server: the store, the view of it, drafts.


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


@dataclass(frozen=True)
class Reviewing:
    """Who reviews, and where decisions go; an app adds what is reviewed. What the reviewer chose stands in the address.

    ``title`` is the app's name, ``options`` those of its command line, with ``identity``, and ``blinded`` where it can be that.
    """

    title: ClassVar[str]

    options: Any
    reviewer: Reviewer
    store: ReviewStore
    ledger: Ledger

    @property
    def role(self) -> Role:
        """As what the reviewer decides: adjudicator where that was chosen and is held."""
        wanted = address().get("role") == "adjudicator"
        return "adjudicator" if wanted and "adjudicator" in self.reviewer.roles else "reader"

    @property
    def blinded(self) -> bool:
        """Whether this reviewer decides before the model is shown."""
        return self.role == "reader" and (self.options.blinded or address().get("blinded") == "1")

    def revealed(self, item: str) -> bool:
        """Whether the model's result may be shown: not blinded, or decided before, for who took that back has seen it."""
        return not self.blinded or item in self.ledger.ever_read_by(self.reviewer.name, self.role)

    def require(self, role: Role) -> None:
        """Refuse what the reviewer's roles do not allow now: a page may have been drawn before a role was taken back.

        Raises:
            ConfigError: The reviewer does not hold the role.
        """
        require(identify(self.store, self.options.identity, self.title), role)


def answered(draft: Draft, subject: str, key: str) -> None:
    """Callback of the widget of this key, by which a subject is answered."""
    draft.answer(subject, st.session_state[key])
    go()


def finish_then(item: str) -> None:
    """Callback of the key that saves and goes on: done by the page's ``finish``, when all callbacks of a request have run.

    Streamlit runs those of keys in quick succession in one run, and not in the order of the keys: an answer may come after it.
    """
    st.session_state["finishing"] = item
    go()


def finishing() -> str:
    """The item to save and to go on from; empty for none. Asked once."""
    return str(st.session_state.pop("finishing", ""))


def about(session: Reviewing, facts: Sequence[str]) -> None:
    """Head of the side bar: the app, the reviewer, and what is reviewed with what."""
    st.markdown(f"**{session.title}**")
    soft(f"Reviewer: {session.reviewer.name} ({', '.join(sorted(session.reviewer.roles)) or 'no role'})")
    for fact in facts:
        soft(fact)


def other_page(show: str, there: str, back: str) -> None:
    """The button to the page that the address calls ``show``, named ``there``; on that page, the one ``back``."""
    on_it = address().get("show") == show
    st.button(back if on_it else there, on_click=go, kwargs={"show": "" if on_it else show}, width="stretch",
              key="show-first" if on_it else f"show-{show}")  # fmt: skip


def role_switch(session: Reviewing) -> None:
    """For who holds the role: decide as adjudicator."""
    if "adjudicator" in session.reviewer.roles:
        hold("adjudicate", session.role == "adjudicator")
        st.toggle("Decide as adjudicator", key="adjudicate", help="You see what the readers said, and have the last word",
                  on_change=lambda: go(role="adjudicator" if st.session_state["adjudicate"] else ""))  # fmt: skip


def blinded_switch(session: Reviewing) -> None:
    """Decide before the model is shown: for all, where the app was started so, else by the reader's own choice."""
    if session.options.blinded:
        soft("Blinded: the model is shown once you have decided.")
    elif session.role == "reader":
        hold("blind", session.blinded)
        st.toggle("Blinded: decide first, then see the model", key="blind",
                  on_change=lambda: go(blinded="1" if st.session_state["blind"] else ""))  # fmt: skip


def log_out(session: Reviewing) -> None:
    """For who logged in here."""
    if not session.reviewer.local and not session.options.identity.user_header:
        st.button("Log out", on_click=st.logout, key="logout")
