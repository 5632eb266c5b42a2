"""The left of the zero-shot page: labels with counts, the threshold, and the classes and prompts as the reviewer types them."""

from __future__ import annotations

from html import escape

import numpy as np
import streamlit as st

from apps.labels import actions
from apps.labels.filters import LabelFilters, undecided
from apps.labels.labelling import View
from apps.labels.prompts import MAX_CHARACTERS, as_text
from apps.labels.session import Session
from apps.shared.address import fail, go, say, settle_part
from apps.shared.commands import command
from apps.shared.components import hold, plain, show_problem, soft
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.zeroshot.labels.prompts import expand_templates, template_sets

LIST_HEIGHT = 240
PROMPTS_HEIGHT = 190
_OWN = "those of the labels"


def classes_panel(session: Session, view: View, filters: LabelFilters) -> None:
    """Labels, threshold, prompts."""
    _labels(session, view, filters)
    _threshold(session, view, filters)
    _prompts(session, view)


def _labels(session: Session, view: View, filters: LabelFilters) -> None:
    """A list to choose from, with how many tiles have each label now, and how many more or fewer than as labelled."""
    base, total = session.base, len(view.p)
    changed = view is not base

    def shown(name: str) -> str:
        count = view.counts.get(name, 0) if name else total
        delta = count - base.counts.get(name, 0) if changed and name else 0
        text = f"{plain(name) if name else 'all tiles'} · **{count:,}**"
        return text + (f" ({delta:+,})" if delta else "")

    with st.container(height=LIST_HEIGHT, border=True, key="labels"):
        # Other labels to choose from are another list: one list with other options would fall back to its first.
        key = f"label:{'|'.join(view.labels)}"
        hold(key, filters.label)
        st.radio("Labels", ["", *view.labels], format_func=shown, key=key, label_visibility="collapsed",
                 on_change=lambda: go(label=st.session_state[key], item=""))  # fmt: skip


def _threshold(session: Session, view: View, filters: LabelFilters) -> None:
    names = view.prompts.names
    one = filters.label if filters.label in names else ""
    value = view.thresholds[names.index(one)] if one else min(view.thresholds)
    title = f"Threshold of {plain(one)}" if one else "Threshold of all classes"
    hold("threshold", round(float(value), 3))
    st.slider(title, 0.0, 1.0, step=0.01, key="threshold", format="%.2f",
              on_change=lambda: actions.set_threshold(session, view, one, st.session_state["threshold"]))  # fmt: skip
    st.html(_bars(view, one, float(value)))
    if one:
        _bulk(session, view, one)


def _bars(view: View, name: str, threshold: float) -> str:
    """How the probability of a class is spread over the tiles, as a picture under the slider."""
    counts = view.histogram(name)
    high = 100 * np.sqrt(counts / max(1, counts.max()))  # the root: few tiles stay visible beside many
    bars = "".join(f'<i style="height:{h:.0f}%"></i>' for h in high)
    what = f"tiles by probability of {name}" if name else "tiles by largest probability"
    return f'<div class="zs-bars" role="img" aria-label="{escape(what)}">{bars}<b style="left:{100 * threshold:.1f}%"></b></div>'


def _bulk(session: Session, view: View, name: str) -> None:
    """Accept all that have a class at its threshold, after a second look."""
    open_ = undecided(session, view, np.flatnonzero(view.members(name)))
    if st.session_state.get("bulk") != name:
        st.button(f"Accept all {len(open_):,} undecided", key="bulk-ask", disabled=not len(open_), width="stretch",
                  on_click=lambda: st.session_state.__setitem__("bulk", name),
                  help="All tiles of this class at its threshold that you have not decided on")  # fmt: skip
        return
    threshold = view.thresholds[view.prompts.names.index(name)]
    note = f"accepted together: {name} from {threshold:.2f} on"
    if st.session_state.get("bulk-agreed"):
        # Not in a callback: where the reader does something else meanwhile, the next run goes on with the rest.
        try:
            say(f"Accepted: {actions.accept_many(session, view, open_, note):,}.")
        except VitDomainsError as error:
            fail(error)
        del st.session_state["bulk"], st.session_state["bulk-agreed"]
        st.rerun()
    soft(f"Accept {len(open_):,} tiles as {name}, from {threshold:.2f} on, without looking at each?")
    yes, no = st.columns(2)
    yes.button("Accept them", key="bulk-yes", type="primary", width="stretch",
               on_click=lambda: st.session_state.__setitem__("bulk-agreed", True))  # fmt: skip
    no.button("Cancel", key="bulk-no", width="stretch", on_click=lambda: st.session_state.pop("bulk", None))


def _prompts(session: Session, view: View) -> None:
    """The editor. Text that could not be taken stays, with the reason."""
    problem = session.model.problem
    off = session.model.loading or bool(problem)
    hold("classes", st.session_state.get("prompt_draft") or as_text(view.prompts))
    st.text_area("Classes: synonyms | sentences", key="classes", height=PROMPTS_HEIGHT, max_chars=MAX_CHARACTERS, disabled=off,
                 on_change=_asked, args=(session, view),
                 help="A line a class. After a colon synonyms, with commas between them; after a bar a whole sentence. "
                 "GROUP > before the name puts it into a group; a dash makes it background. Ctrl+Enter applies.")  # fmt: skip
    sets = list(template_sets())
    hold("templates", _named(view, session, sets))
    st.selectbox("Templates", [_OWN, *sets], key="templates", disabled=off, label_visibility="collapsed",
                 format_func=lambda name: f"templates: {name}", on_change=_asked, args=(session, view))  # fmt: skip
    back, out = st.columns(2, gap="small")
    command(out, "Output", "output", actions.to_output, key="E", help="Export, accepted labels, student")
    if problem:
        st.caption(plain(f"Prompts and search are off. {problem}"))
    elif session.model.loading:
        _waiting(session)
    else:
        same = view is session.base
        back.button("As labelled", key="as-labelled", disabled=same and "prompt_draft" not in st.session_state,
                  on_click=actions.as_labelled, width="stretch", help="Back to the classes and thresholds on disk")  # fmt: skip
    wrong = st.session_state.get("prompt_problem")
    if wrong is not None:
        show_problem(wrong)
    _stale(session)


def _named(view: View, session: Session, sets: list[str]) -> str:
    """The name of the view's templates."""
    if view.prompts.templates == session.labels.prompts.templates:
        return _OWN
    return next((name for name in sets if expand_templates([name]) == view.prompts.templates), _OWN)


def _asked(session: Session, view: View) -> None:
    chosen = st.session_state["templates"]
    templates = session.labels.prompts.templates if chosen == _OWN else (chosen,)
    actions.ask(session, st.session_state["classes"], templates)


@st.fragment(run_every=0.5)
def _waiting(session: Session) -> None:
    """Until the model is there, without drawing the rest of the page."""
    settle_part()
    if not session.model.loading:
        st.rerun()
    soft("Loading the text model; prompts and search come on in a moment. You can review meanwhile.")


def _stale(session: Session) -> None:
    """A link to classes that are not kept here."""
    try:
        _ = session.prompts
    except ConfigError as error:
        show_problem(error)
