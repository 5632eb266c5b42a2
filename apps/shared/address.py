"""Where the reader is: the page's address. It leads: callbacks change it, pages and widgets show what stands there.

The truth is kept with the session. What the browser says of its address is as old as its request, which may have left before it
heard of the last change; only at the start and on its way back and forth does it know better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from vitdomains.core.errors import VitDomainsError


class Address(Mapping[str, str]):
    """Parameters of the address: the first value of each as a mapping, all by ``get_all``."""

    def __init__(self, params: Mapping[str, list[str]]) -> None:
        self.params = dict(params)

    def __getitem__(self, name: str) -> str:
        return self.params[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def get_all(self, name: str) -> list[str]:
        """All values of a parameter."""
        return self.params.get(name, [])


def address() -> Address:
    """Where the reader is."""
    state, context = st.session_state, get_script_run_ctx()
    came_by = context.query_string if context is not None and context.is_history_navigation else None
    if "address" not in state or came_by not in (None, state.get("came_by")):
        state["address"] = _browsers()
    state["came_by"] = came_by
    found: Address = state["address"]
    return found


def go(**params: str | list[str]) -> None:
    """Change the address: what stands in it survives a reload and can be passed on. Empty values are taken out.

    Without params: draw the whole page. Streamlit ends a callback at its first word to the browser when the reader has done
    something else meanwhile, so callbacks (and what they call) say nothing themselves: the browser hears it by ``settle``.
    """
    given = {name: [value] if isinstance(value, str) else list(value) for name, value in params.items()}
    now = address().params
    wanted = {name: values for name, values in (now | given).items() if any(values)}
    if wanted != now or not params:
        st.session_state["address"], st.session_state["asked"] = Address(wanted), True


def choose(name: str, key: str, usual: str) -> None:
    """Callback of a choice: write what the widget of this key shows into the address, where its default needs no place."""
    chosen = st.session_state[key]
    go(**{name: "" if chosen == usual else chosen})


def say(text: str) -> None:
    """A message that the page shows at its foot, for a while."""
    state = st.session_state
    state["said"] = state.get("said", 0) + 1
    state["messages"] = [*state.get("messages", []), {"number": state["said"], "text": text}][-5:]
    state["asked"] = True


def fail(problem: VitDomainsError) -> None:
    """A problem for the page to show where it shows its own, until something else is done."""
    st.session_state["problem"] = problem
    go()


def settle() -> None:
    """Tell the browser what callbacks asked for by ``go``: call it first in a page."""
    # Kept until it is done: this can be cut short like everything that speaks to the browser, and the next run does it then.
    wanted = address()
    if wanted.params != _browsers().params:
        given: dict[str, Any] = {n: values if len(values) > 1 else values[0] for n, values in wanted.params.items()}
        st.query_params.from_dict(given)
    st.session_state.pop("asked", None)


def settle_part() -> None:
    """Call it first in a fragment: draw the whole page instead where a callback asked for something.

    The browser puts what happens at once into one request. A key that comes with a mark on the film is in the request of the
    viewer, for which Streamlit draws the viewer's fragment alone.
    """
    if "asked" in st.session_state:
        st.rerun()


def _browsers() -> Address:
    return Address({name: st.query_params.get_all(name) for name in st.query_params})
