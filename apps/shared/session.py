"""What a run of any review app works with, and the frame of its pages: one boundary for errors, the side bar, commands."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from sqlalchemy.engine import make_url

from apps.shared.access import Reviewer, identify, require
from apps.shared.address import address, go, settle
from apps.shared.commands import begin, listen, perform
from apps.shared.components import hold, icon, notice, problems, soft, style
from apps.shared.decisions import DecisionTable
from apps.shared.drafts import Draft, Drafts
from vitdomains.core.review.store import ReviewStore, Role

Screen = tuple[str, list[dict[str, Any]]]
"""The item on the screen (empty: none), and what follows it, as ``listen`` takes them."""


@st.cache_resource(show_spinner=False)
def open_store(url: str) -> ReviewStore:
    """One store a server."""
    return ReviewStore(url)


@st.cache_resource(show_spinner=False)
def open_decisions(url: str) -> DecisionTable:
    """One view of the store a server."""
    return DecisionTable(open_store(url))


@st.cache_resource(show_spinner=False)
def open_drafts(url: str) -> Drafts:
    """What was begun and not saved: beside a store that is a file, else in the cache folder of the server's user."""
    found = make_url(url)
    if found.get_backend_name() == "sqlite" and found.database and found.database != ":memory:":
        return Drafts(Path(f"{found.database}.drafts").absolute())
    name = hashlib.sha256(found.render_as_string(hide_password=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Drafts(cache / "vitdomains" / f"drafts-{name}")


@dataclass(frozen=True)
class Reviewing(ABC):
    """Who reviews, and where decisions go; an app adds what is reviewed. What the reviewer chose stands in the address.

    ``title`` is the app's name, ``options`` those of its command line (``ReviewOptions``).
    """

    title: ClassVar[str]

    options: Any
    reviewer: Reviewer
    store: ReviewStore
    decisions: DecisionTable
    drafts: Drafts

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
        return not self.blinded or item in self.decisions.ever_read_by(self.reviewer.name, self.role)

    def require(self, role: Role) -> None:
        """Refuse what the reviewer's roles do not allow now: a page may have been drawn before a role was taken back.

        Raises:
            ConfigError: The reviewer does not hold the role.
        """
        require(identify(self.store, self.options.identity, self.title), role)

    @property
    def answers(self) -> Mapping[str, dict[str, str]]:
        """Item to what this reviewer's latest decision says: subject to class name, ``present``, ``not NAME`` and so on."""
        return self.decisions.values(self.reviewer.name, self.role)

    @abstractmethod
    def known(self, item: str) -> bool:
        """Whether there is such an item here."""

    def words(self, item: str, values: Mapping[str, str]) -> dict[str, str]:
        """What was saved of an item, in the words that its page offers now."""
        return dict(values)

    def draft(self, item: str) -> Draft:
        """What this reviewer has begun to say of an item, or else said last."""
        key = (self.reviewer.name, self.role, item)
        draft = self.drafts.get(key, lambda: self._new_draft(item))
        draft.shown(self.revealed(item), lambda values: self.words(item, values))
        return draft

    def _new_draft(self, item: str) -> Draft:
        name, role = self.reviewer.name, self.role
        made = Draft(revealed=self.revealed(item), generation=self.decisions.times(name, role, item))
        values = self.answers.get(item)
        if values:
            made.answers = self.words(item, values)
            last = [d for d in self.decisions.of_item(item) if (d.reviewer, d.role) == (name, role)][-1]
            made.note, made.regions = last.note, [vars(region).copy() for region in last.regions]
        return made

    def forget(self, *items: str) -> None:
        """Drop the drafts of items that were decided or taken back, and read the store again."""
        self.decisions.refresh()
        for item in items:
            self.drafts.pop((self.reviewer.name, self.role, item))

    def unread(
        self, items: NDArray[np.object_], after: str = "", most: int = 1, but: Callable[[int], bool] = lambda n: False
    ) -> list[str]:
        """The next of some items that this reviewer has not decided on, from one on and around; empty where all are.

        Who has assignments goes through those; other readers go through all, adjudicators through what readers disagree on.

        Args:
            items: In order.
            after: Where to begin, behind it.
            most: How many.
            but: Which are left out, by place.
        """
        read = self.decisions.read_by(self.reviewer.name, self.role)
        mine = self.decisions.assigned_to(self.reviewer.name, self.role)
        wanted = mine or (self.decisions.in_disagreement() if self.role == "adjudicator" else None)
        at = next((n + 1 for n in np.flatnonzero(items == after).tolist()), 0)
        next_: list[str] = []
        # One by one from here: the next is nearly always the first that is looked at, however long the list.
        for n in (*range(at, len(items)), *range(at)):
            item = str(items[n])
            if (
                item in read
                or item == after
                or (wanted is not None and item not in wanted)
                or (but is not None and but(n))
            ):
                continue
            next_.append(item)
            if len(next_) == most:
                break
        return next_


def connect(options: Any, title: str) -> tuple[Any, Reviewer, ReviewStore, DecisionTable, Drafts]:
    """What the first five fields of a session hold.

    Raises:
        VitDomainsError: The store cannot be opened, or nobody knows who is at the other end.
    """
    store = open_store(options.store)
    reviewer = identify(store, options.identity, title)
    decisions = open_decisions(options.store)
    decisions.refresh()
    return options, reviewer, store, decisions, open_drafts(options.store)


def run_page(
    title: str,
    shapes: str,
    sentence: str,
    open_session: Callable[[], Any],
    draw: Callable[[Any], Screen],
    side: Callable[[Any], None],
) -> None:
    """One run of an app's page.

    Args:
        title: Of the app.
        shapes: Of its icon.
        sentence: The notice that every page shows.
        open_session: Gives the session.
        draw: Draws the page that the address names, for who holds a role; returns what ``listen`` takes.
        side: Draws the side bar.
    """
    address()  # before anything is drawn: a run that is cut short must have heard of the way back
    st.set_page_config(title, page_icon=icon(shapes), layout="wide", initial_sidebar_state="collapsed")
    style()
    notice(sentence)
    with problems():
        session = open_session()
        if session.reviewer.roles:
            perform(session)
        settle()
        begin()
        with st.sidebar:
            side(session)
        if not session.reviewer.roles:
            st.warning("You are known and hold no role yet. Ask an admin to grant you one (page Team).")
            return
        screen: Screen = "", []
        with problems():
            screen = draw(session)
        listen(session, *screen)


def answered(draft: Draft, subject: str, key: str) -> None:
    """Callback of the widget of this key, by which a subject is answered; what was answered is in focus."""
    draft.answer(subject, st.session_state[key])
    go(heat=subject)
    go()


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
