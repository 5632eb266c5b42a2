"""What a reviewer does by key, click or note: done in its order, on the item that was on the screen.

A Streamlit button knows the item of the server's last run, which can be the next one already, and two keys in quick succession
come in one request without an order. So a component of this folder takes keys and clicks of the buttons that ``command`` draws:
each goes out with its number, the item and the draft that were on the screen, until the server says that it is done. What was
meant for another draft is set aside with a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.shared.address import address, fail, go, say
from apps.shared.components import web_component
from apps.shared.drafts import IDLE_SECONDS, Draft
from vitdomains.core.errors import VitDomainsError

if TYPE_CHECKING:
    from apps.shared.session import Reviewing

Do = Callable[..., None]
"""Takes the session, an item, and what more was given to ``command``."""

_HERE = Path(__file__).parent
_commands = web_component("commands", _HERE, "commands.html", "commands.css", "commands.js")
_note = web_component("note", _HERE, "note.html", "note.css", "note.js")
_KEYS = {"Left": "ArrowLeft", "Right": "ArrowRight", "Up": "ArrowUp", "Down": "ArrowDown", "Esc": "Escape"}
MESSAGES_KEPT = 5
NOTE_LENGTH = 10_000


@dataclass(frozen=True)
class Command:
    """What a button does; ``decides``: it speaks of the draft, so it holds for that draft alone; ``advances``: and goes on."""

    do: Do
    more: tuple[Any, ...]
    decides: bool
    advances: bool


def command(
    place: Any,
    text: str,
    name: str,
    do: Do,
    item: str = "",
    *more: Any,
    key: str = "",
    decides: bool = False,
    advances: bool = False,
    disabled: bool = False,
    **look: Any,
) -> None:
    """Draw a button with its key.

    Args:
        place: Where, such as a column.
        text: What stands on it.
        name: Its name among the commands, and its key as a widget.
        do: What it does; called before the next drawing of the page.
        item: What it speaks of.
        more: What ``do`` takes after session and item; the same for every item.
        key: Of the keyboard, such as ``N`` or ``Shift+A``.
        decides: Set it aside where the draft was saved or changed elsewhere since the page was drawn.
        advances: It ends with the next item that waits, which the browser may show at once.
        disabled: Draw it, and let nothing come of it.
        look: What ``st.button`` takes more.
    """
    st.session_state.setdefault("commands", {})[name] = Command(do, more, decides, advances)
    if not disabled:
        st.session_state.setdefault("command-keys", {})[name] = _KEYS.get(key, key)
    hint = key.replace("Shift+", "⇧")
    place.button(
        f"{text} :small[{hint}]" if re.fullmatch("⇧?.", hint) else text,
        key=name,
        on_click=_clicked,
        args=(name, item),
        disabled=disabled,
        **({"width": "stretch"} | look),
    )


def _clicked(name: str, item: str) -> None:
    """Callback of a button that was pressed past the component."""
    _queue().append({"do": name, "item": item})
    go()


def register(name: str, do: Do, *more: Any) -> None:
    """A command without a button: the browser gives it where something with ``data-command="name"`` is clicked."""
    st.session_state.setdefault("commands", {})[name] = Command(do, more, decides=False, advances=False)
    st.session_state.setdefault("command-keys", {})[name] = ""


def ask(name: str, do: Do, item: str, *more: Any) -> None:
    """From the callback of a widget: carry this out as ``command`` would, in its turn."""
    st.session_state.setdefault("commands", {})[name] = Command(do, more, decides=True, advances=False)
    _clicked(name, item)


def _queue() -> list[dict[str, Any]]:
    queue: list[dict[str, Any]] = st.session_state.setdefault("queue", [])
    return queue


def _sent() -> None:
    """Callback of the component."""
    sent = (st.session_state["keys"].get("act") or {}).get("queue") or []
    _queue().extend(c for c in sent if isinstance(c, dict))
    go()


def note(session: Reviewing, item: str, draft: Draft, height: int = 54) -> None:
    """The reviewer's note on an item: sent while it is typed."""
    place = f"{session.reviewer.name}/{session.role}/{item}"
    _note(
        key=f"note:{item[:16]}",
        data={"item": item, "seen": draft.seen, "text": draft.note, "place": place, "height": height},
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Streamlit ends a run at its next look into the session's state when the reader has done something else meanwhile: not here,
    where half of an act would be lost."""
    state: Any = getattr(get_script_run_ctx(), "session_state", None)
    before = getattr(state, "_yield_callback", None)
    if before is None:
        yield
        return
    object.__setattr__(state, "_yield_callback", lambda: None)  # its own __setattr__ writes into the session
    try:
        yield
    finally:
        object.__setattr__(state, "_yield_callback", before)


def perform(session: Reviewing) -> None:
    """Carry out what was sent since the last drawing; call it first in a page, when all callbacks have run."""
    with _uninterrupted():
        done: dict[str, int] = st.session_state.setdefault("commands-done", {})
        known: dict[str, Command] = st.session_state.get("commands", {})
        queue = _queue()
        # Buttons that were pressed past the component come without an order: what goes on comes last.
        queue.sort(key=lambda c: not c.get("page") and (at := known.get(str(c.get("do")))) is not None and at.advances)
        while queue:
            sent = queue.pop(0)
            page, number = str(sent.get("page", "")), int(sent.get("n", 0))
            if page and number <= done.get(page, 0):
                continue
            if page:
                done[page] = number
            try:
                _perform(session, known.get(str(sent.get("do"))), sent)
            except VitDomainsError as error:
                session.store.close()  # a file that could not be written may be writable again at the next try
                fail(error)


def _perform(session: Reviewing, command: Command | None, sent: dict[str, Any]) -> None:
    item, seen = str(sent.get("item", "")), sent.get("seen")
    noted = sent.get("do") == "note"
    if not noted and command is None:
        say("That was pressed before the page was there: press it again.")
    elif not noted and command is not None and not command.decides:
        command.do(session, address().get("item", "") or item, *command.more)
    elif not session.known(item):
        say("Set aside: what it was meant for is no longer here.")
    else:
        draft = session.draft(item)
        if isinstance(seen, list) and len(seen) == 2 and draft.outdated([int(n) for n in seen]):
            go()
            say("Set aside: you decided on this already, or changed it in another window. Look again.")
        elif noted:
            draft.write(str(sent.get("text", ""))[:NOTE_LENGTH])
            go()
        elif command is not None:
            if draft.touched is not None:
                draft.touch()
            else:  # it was shown by the browser before it was drawn
                draft.seconds += min(IDLE_SECONDS, max(0.0, float(sent.get("seconds", 0.0))))
            command.do(session, item, *command.more)


def begin() -> None:
    """Forget the keys of the page before; call it before the first button of a page."""
    st.session_state["command-keys"] = {}


def listen(session: Reviewing, item: str = "", ahead: Sequence[dict[str, Any]] = ()) -> None:
    """The component; call it last in a page.

    Args:
        session: Of the page.
        item: What is on the screen.
        ahead: What follows it, in order: ``item``, ``seen``, and what else a viewer needs to show it before the page does.
    """
    names: dict[str, str] = st.session_state.get("command-keys", {})
    known: dict[str, Command] = st.session_state.get("commands", {})
    data = {
        "item": item,
        "seen": session.draft(item).seen if item and session.known(item) else None,
        "ahead": list(ahead),
        "done": st.session_state.get("commands-done", {}),
        "keys": {key: name for name, key in names.items() if key},
        "names": {name: {"advances": known[name].advances} for name in names},
        "buttons": {re.sub(r"[^a-zA-Z0-9_-]", "-", name): name for name in names},
        "messages": st.session_state.get("messages", [])[-MESSAGES_KEPT:],
    }
    _commands(key="keys", data=data, on_act_change=_sent)
