"""What the review apps share on screen: the notice that is always there, errors and empty states that say what to do, style."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import streamlit as st

from vitdomains.core.errors import VitDomainsError
from vitdomains.core.review.store import Decision

logger = logging.getLogger(__name__)

LUNGS = "".join(f'<ellipse cx="{x}" cy="16" rx="5" ry="12" fill="#555"/>' for x in (9, 23))
TILES = "".join(
    f'<rect x="{1 + 10 * (i % 3)}" y="{1 + 10 * (i // 3)}" width="10" height="10" fill="#{colour}"/>'
    for i, colour in enumerate(
        ["2e6e3c", "78a050", "3c6eaa", "beaa6e", "6e6e6e", "2e6e3c", "3c6eaa", "beaa6e", "96503c"]
    )
)

# Colours of AA contrast (4.5 to 1 at least) on light and on dark: light-dark() follows the theme that Streamlit sets.
_STYLE = """
<style>
.stApp { --vd-note: light-dark(#fff4d6, #3a3013); --vd-note-ink: light-dark(#5b4300, #ffe3a0);
  --vd-soft: light-dark(#4d535b, #b3b9c1); --vd-line: light-dark(#c9cdd3, #454a52); --vd-mark: light-dark(#0b57d0, #8ab4f8);
  --vd-ground: light-dark(#fff, #0e1117); }
/* A reading screen of 1366 x 768 has no room for margins: the notice takes the place of Streamlit's empty header. */
[data-testid="stHeader"] { height: 2rem; min-height: 0; background: transparent; pointer-events: none; }
[data-testid="stHeader"] button { pointer-events: auto; }
.stMainBlockContainer { padding: 2.3rem 1rem .6rem; }
.stMainBlockContainer [data-testid="stVerticalBlock"] { gap: .5rem; }
.stMainBlockContainer [data-testid="stHorizontalBlock"] { gap: .5rem; }
.stButton button { min-height: 2.1rem; padding: .1rem .5rem; }
[data-testid="stButtonGroup"] button { min-height: 1.8rem; padding: 0 .45rem; }
[data-testid="stButtonGroup"] button p { font-size: .8rem; }
.vd-notice { position: fixed; top: 3px; left: 3.2rem; right: 1rem; z-index: 999990; background: var(--vd-note);
  color: var(--vd-note-ink); padding: 3px 10px; border-radius: 4px; font-size: .82rem; line-height: 1.35; }
.stApp:has([data-testid="stSidebar"][aria-expanded="true"]) .vd-notice { left: 21rem; }
[data-testid="stSidebar"][aria-expanded="false"] { visibility: hidden; }
.st-key-decide { position: sticky; bottom: 0; z-index: 5; background: var(--vd-ground); padding-bottom: .3rem; }
@media (max-width: 1150px) {
  .st-key-findings [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-findings [data-testid="stColumn"] { min-width: 100%; }
  .st-key-decide [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
  .st-key-decide [data-testid="stColumn"] { min-width: 45%; }
}
[data-command] { cursor: pointer; }
[data-testid="stElementContainer"]:has(.vd-notice, .stHtml > style) { position: absolute; }
.vd-soft { color: var(--vd-soft); font-size: .8rem; line-height: 1.35; }
.vd-finding { font-size: .86rem; line-height: 1.25; border-left: 3px solid transparent; padding-left: 6px; }
.vd-finding.now { border-left-color: var(--vd-mark); font-weight: 600; }
.vd-bar { position: relative; height: 6px; margin-top: 3px; background: var(--vd-line); border-radius: 3px; }
.vd-bar i { position: absolute; left: 0; top: 0; bottom: 0; background: var(--vd-mark); border-radius: 3px; }
.vd-bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--vd-note-ink); }
.vd-legend { max-height: 190px; overflow-y: auto; font-size: .82rem; line-height: 1.5; }
.vd-key-row { display: flex; gap: 6px; align-items: center; }
.vd-key-row i { width: 14px; height: 12px; border-radius: 2px; border: 1px solid light-dark(#0006, #fff6); }
.vd-key-row span { flex: 1; }
.vd-key-row b { font-weight: 600; font-variant-numeric: tabular-nums; }
.vd-key-row em { width: 4.2em; text-align: right; font-style: normal; color: var(--vd-soft); font-variant-numeric: tabular-nums; }
.vd-ramp { height: 12px; border-radius: 2px; }
.st-key-keys { position: absolute; }
[data-vd-early] [data-testid="stHtml"], [data-vd-early] [data-testid="stButton"] { opacity: .55; }
[data-testid="stConnectionStatus"], [data-testid="stDialog"]:has([data-testid="stConnectionStatus"]) { visibility: hidden; }
@media print { [data-testid="stSidebar"], [data-testid="stHeader"], .stButton, .stDownloadButton { display: none; } }
.vd-key { font-family: monospace; border: 1px solid var(--vd-line); border-radius: 3px; padding: 0 4px; }
</style>
"""


def web_component(name: str, folder: Path, html: str, css: str, *js: str) -> Any:
    """A Streamlit component of files in a folder of ours: HTML, CSS, and JavaScript in one piece; it needs no network."""

    def text(*files: str) -> str:
        return "\n".join((folder / file).read_text(encoding="utf-8") for file in files)

    return st.components.v2.component(f"vitdomains_{name}", html=text(html), css=text(css), js=text(*js))


def style() -> None:
    """Once a run, before anything else is drawn."""
    st.html(_STYLE)


def icon(shapes: str) -> str:
    """A page's icon of 32 by 32 units, as SVG that travels inside the page: Streamlit's named icons come from a server of others,
    and the file of a run is forgotten when the next key press ends that run."""
    ground = '<rect width="32" height="32" fill="#bebebe"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{ground}{shapes}</svg>'


def notice(text: str) -> None:
    """The sentence that every page shows first."""
    st.html(f'<div class="vd-notice" role="note">{escape(text)}</div>')


def soft(text: str) -> None:
    """Small print; plain text."""
    st.html(f'<div class="vd-soft">{escape(text)}</div>')


def show_problem(error: VitDomainsError) -> None:
    """What is wrong and what to do, in two sentences."""
    st.error(plain(f"{error.message} {error.hint}"), icon=":material/error:")


def empty(title: str, what_to_do: str) -> None:
    """A place where nothing is yet, and how it gets filled."""
    st.info(f"**{plain(title)}**  \n{plain(what_to_do)}", icon=":material/inbox:")


@contextmanager
def problems() -> Iterator[None]:
    """The boundary of a page or fragment: what a user can cause is shown in place, anything else in our words; the rest
    of the page stays."""
    try:
        yield
    except VitDomainsError as error:
        show_problem(error)
    except Exception:
        logger.exception("a part of the page could not be drawn")
        st.error(
            "This part of the page could not be drawn. What you saved is safe, and what you have begun is kept. Reload the page; "
            "if it comes again, the server's log says what happened.",
            icon=":material/error:",
        )


def show_failure() -> None:
    """What the last act could not do, once."""
    problem = st.session_state.pop("problem", None)
    if problem is not None:
        show_problem(problem)


def hold(key: str, value: Any) -> None:
    """Let the widget of a key show a value that stands elsewhere (in the address, say); call it before the widget.

    What the widget shows already is not sent to it again: that would undo what the user has typed or moved meanwhile.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def plain(text: str) -> str:
    """Text that Streamlit shows as it is: nothing in it counts as Markdown."""
    # Options of a command line are code: a dash that becomes a line of print cannot be copied into a terminal.
    parts = re.split(r"(streamlit run (?!.*streamlit run ).*$|(?<!\S)--\w*)", text)
    return "".join(
        f"`{part}`" if n % 2 else re.sub(r"([\\`*_{}\[\]()#+!|~<>$:])", r"\\\1", part) for n, part in enumerate(parts)
    )


def label(name: str) -> str:
    """A class name as a reader would write it."""
    return name.replace("_", " ")


def spoken(decision: Decision) -> str:
    """What a decision says, in words."""
    words = [f"{label(subject)} {label(a.label) or a.verdict}" for subject, a in decision.answers.items()]
    return ", ".join(word.removeprefix("label ") for word in words) or "taken back"
