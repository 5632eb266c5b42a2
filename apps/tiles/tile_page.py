"""Page of the satellite app: one tile in its surroundings, what the model says of it, and what the reviewer says."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

import numpy as np
import streamlit as st

from apps.shared.address import address, choose, go
from apps.shared.components import hold, label, plain, problems, show_problem, soft
from apps.shared.drafts import Draft, options_of
from apps.shared.heat_choices import METHOD_NAMES
from apps.shared.session import answered, finish_then
from apps.tiles import actions
from apps.tiles.filters import TileFilters, colourings, in_sight
from apps.tiles.map_page import no_tile
from apps.tiles.map_pane import look_choices, map_pane
from apps.tiles.session import TileSession
from vitdomains.core.review.export import SUBJECT

PANEL_HEIGHT = 300
CAUTION = (
    "A heat map shows where the score is sensitive, not why, and not where a class ends. Such maps can stay the same when the "
    "model's weights are made random (Adebayo et al. 2018, arXiv:1810.03292)."
)
WORDS = {"agree": "Agree", "disagree": "Disagree", "unsure": "Unsure", "present": "Present", "absent": "Absent"}


def tile_page(session: TileSession, item: str) -> None:
    """The tile with its surroundings to the left, classes and answers to the right."""
    row = session.row(item)
    if row is None:
        no_tile(session)
        return
    draft = session.draft(item, row)
    draft.touch()
    name = actions.focus(session, row)
    rows = in_sight(session, TileFilters.from_address(session))
    _header(session, item, row, rows)
    left, right = st.columns([1.75, 1], gap="small")
    with left:
        method = _choices(session, item, name)
        with st.container():
            colouring = next(iter(colourings(session)))
            map_pane(session, rows, colouring, 248, item, name if session.tiles.labelled[row] else "", method)
        soft(CAUTION)
    with right:
        _answers(session, item, row, draft, name)
    with st.expander("Earlier decisions, place, keys"):
        _history(session, item)
        _place(session, row)
        _keys(session)


def _header(session: TileSession, item: str, row: int, rows: Any) -> None:
    found = np.flatnonzero(rows == row)
    where = f"{found[0] + 1:,} of {len(rows):,} in sight" if len(found) else "not in sight of the filters"
    to_map, back, title, forth = st.columns([1, 1, 5.4, 1], vertical_alignment="center")
    to_map.button("Map", on_click=go, kwargs={"item": "", "heat": ""}, key="to-map", shortcut="Esc", width="stretch")
    back.button("Previous", on_click=actions.step, args=(session, item, -1), key="previous", shortcut="Left",
                width="stretch")  # fmt: skip
    forth.button("Following", on_click=actions.step, args=(session, item, 1), key="following", shortcut="Right",
                 width="stretch")  # fmt: skip
    tile = session.tiles.table.iloc[row]
    number = session.tiles.queued[row] + 1
    queued = f"number {number} of the queue" if number <= len(session.tiles) and not session.blinded else ""
    title.markdown(plain(" · ".join(filter(None, (f"tile {tile['tile_id']}", where, queued)))))


def _choices(session: TileSession, item: str, name: str) -> str:
    """Bands, stretch, and the method of the heat map; none where the model is not shown."""
    places = st.columns([1.3, 1, 1.7], vertical_alignment="bottom")
    look_choices(session, places[:2])
    if not session.revealed(item):
        with places[2]:
            soft("blinded: the model is shown when you have decided")
        return ""
    with problems():
        known = session.ground.engine.methods()
        named = address().get("method", known[0])
        hold("method", named if named in known else known[0])
        return str(
            places[2].selectbox(
                f"Heat map of {label(name)} by", known, format_func=METHOD_NAMES.__getitem__, key="method",
                on_change=choose, args=("method", "method", known[0]),
            )
        )  # fmt: skip
    return ""


def _answers(session: TileSession, item: str, row: int, draft: Draft, name: str) -> None:
    revealed = session.revealed(item)
    if revealed:
        _verdict_line(session, row)
    shown = min(len(session.tiles.classes), actions.KEYED + 1) if session.single else len(session.tiles.classes)
    with st.container(height=min(PANEL_HEIGHT, 42 * shown + 34), border=True, gap="small"):
        if session.single:
            _classes(session, item, row, draft, name)
        else:
            _findings(session, item, row, draft, name)
    _focus_buttons(session, item, row, draft)
    hold(f"note:{item[:16]}", draft.note)
    st.text_area("Note", key=f"note:{item[:16]}", height=68, max_chars=10_000, label_visibility="collapsed", placeholder="Note",
                 on_change=lambda: draft.write(st.session_state[f"note:{item[:16]}"]))  # fmt: skip
    take_back, agree, go_on = st.columns([0.7, 1.3, 1.3])
    take_back.button("Undo", key="undo", shortcut="Z", width="stretch", on_click=actions.undo, args=(session,),
                     help="Take your last decision back: a new row, nothing is erased")  # fmt: skip
    agree.button("Agree and next", key="agree-next", shortcut="Shift+A", width="stretch", disabled=not session.seen_calls(row),
                 on_click=actions.agree_and_next, args=(session, item))  # fmt: skip
    go_on.button("Save and next" if revealed else "Save, show the model", key="finish", type="primary", shortcut="N",
                 width="stretch", on_click=finish_then, args=(item,))  # fmt: skip
    problem = st.session_state.pop("problem", None)
    if problem is not None:
        show_problem(problem)
    if session.role == "adjudicator":
        _others(session, item)


def _verdict_line(session: TileSession, row: int) -> None:
    tile = session.tiles.table.iloc[row]
    if not session.tiles.labelled[row]:
        why = str(tile["error"]) or "it holds too little data"
        st.warning(plain(f"The model has said nothing of this tile: {why}. You can still say what it is."))
        return
    words = [f"{label(str(tile['label'])) or 'nothing called'} {tile['probability']:.2f}", f"margin {tile['margin']:.2f}",
             f"entropy {tile['entropy']:.2f} nats"]  # fmt: skip
    if "valid_fraction" in tile.index and tile["valid_fraction"] < 1:
        words.append(f"{tile['valid_fraction']:.0%} holds data")
    st.markdown(f"Model: **{plain(words[0])}** · {plain(' · '.join(words[1:]))}")


def _classes(session: TileSession, item: str, row: int, draft: Draft, name: str) -> None:
    """Single-label: a class a row; its key or button says that the tile is this."""
    order, p = actions.class_order(session, row), _probabilities(session, item, row)
    call = session.seen_calls(row).get(SUBJECT, "")
    word = draft.answers.get(SUBJECT, "")
    said = call if word == "agree" else word
    for number, c in enumerate(order[: actions.KEYED], start=1):
        button, bar = st.columns([1, 1], vertical_alignment="center")
        button.button(label(c), key=f"class-{number}", shortcut=str(number), width="stretch",
                      type="primary" if c == said else "secondary",
                      on_click=actions.choose_class, args=(session, item, c))  # fmt: skip
        bar.html(_bar(session, c, p[c], now=c == name, called=c == call))
    rest = order[actions.KEYED :]
    if rest:
        key = draft.widget(SUBJECT)
        st.selectbox("Another class", rest, index=rest.index(said) if said in rest else None, key=key,
                     label_visibility="collapsed", placeholder=f"Another of {len(session.tiles.classes)} classes",
                     format_func=lambda c: label(c) + (f"  {p[c]:.2f}" if p[c] == p[c] else ""),
                     on_change=actions.choose_other, args=(session, item, key))  # fmt: skip


def _findings(session: TileSession, item: str, row: int, draft: Draft, name: str) -> None:
    """Multi-label: each class is answered by itself; the one in focus has the keys and the heat map."""
    calls, p = session.seen_calls(row), _probabilities(session, item, row)
    for c in actions.class_order(session, row):
        text, choice = st.columns([0.8, 1], vertical_alignment="center")
        with text:
            st.html(_bar(session, c, p[c], now=c == name, called=calls.get(c) == "present", title=label(c)))
        key = draft.widget(c)
        choice.segmented_control(
            label(c), options_of(calls.get(c, ""), revealed=True), format_func=WORDS.__getitem__, key=key,
            default=draft.answers.get(c), label_visibility="collapsed",
            on_change=answered, args=(draft, c, key),
        )  # fmt: skip


def _probabilities(session: TileSession, item: str, row: int) -> dict[str, float]:
    """Class to probability; NaN where the model is not shown."""
    return session.tiles.shown(row) if session.revealed(item) else dict.fromkeys(session.tiles.classes, math.nan)


def _bar(session: TileSession, name: str, probability: float, *, now: bool, called: bool, title: str = "") -> str:
    k = session.tiles.classes.index(name)
    r, g, b = (int(v) for v in session.tiles.palette[k])
    if probability != probability:
        number, width = "", 0.0
    else:
        number, width = f"{probability:.2f}" + (" <b>called</b>" if called else ""), 100 * probability
    threshold = "" if session.single else f'<b style="left:{100 * session.facts.thresholds[k]:.0f}%"></b>'
    current = ' aria-current="true"' if now else ""
    return (
        f'<div class="vd-finding{" now" if now else ""}"{current}>{escape(title)}<div class="vd-soft">{number}</div>'
        f'<div class="vd-bar"><i style="width:{width:.0f}%;background:rgb({r},{g},{b})"></i>{threshold}</div></div>'
    )


def _focus_buttons(session: TileSession, item: str, row: int, draft: Draft) -> None:
    subject = actions.subject_in_focus(session, row)
    call, chosen = session.seen_calls(row).get(subject, ""), draft.answers.get(subject, "")
    words = options_of(call, revealed=True)
    up, down, *three = st.columns([0.55, 0.55, 1, 1.1, 1], gap="small")
    up.button("▲", key="up", shortcut="Up", on_click=actions.move_focus, args=(session, row, -1), width="stretch",
              help="Heat map of the class above")  # fmt: skip
    down.button("▼", key="down", shortcut="Down", on_click=actions.move_focus, args=(session, row, 1), width="stretch",
                help="Heat map of the class below")  # fmt: skip
    for which, (place, word, key) in enumerate(zip(three, words, "ADU", strict=True)):
        impossible = session.single and word in (
            "present",
            "absent",
        )  # nothing was called: there is nothing to agree with
        place.button(WORDS["agree" if impossible and which == 0 else "disagree" if impossible else word], key=f"say-{which}",
                     shortcut=key, disabled=impossible, type="primary" if word == chosen else "secondary", width="stretch",
                     on_click=actions.answer_now, args=(session, item, which))  # fmt: skip


def _others(session: TileSession, item: str) -> None:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    for reader in session.ledger.standing(item).readers:
        said = session.ledger.values(item, reader, "reader") or {}
        st.caption(plain(f"{reader}: " + ", ".join(f"{label(s)} {v}" if s != SUBJECT else v for s, v in said.items())))


def _history(session: TileSession, item: str) -> None:
    """This reviewer's own decisions on the tile."""
    mine = [d for d in session.ledger.decisions(item) if d.reviewer == session.reviewer.name]
    if not mine:
        soft("You have not decided on this tile yet.")
    for d in reversed(mine):
        said = {name: a.label or a.verdict for name, a in d.answers.items()}
        soft(f"{d.role}, {d.seconds:.0f} s: {json.dumps(said) if said else 'taken back'} {d.note}")


def _place(session: TileSession, row: int) -> None:
    col, top, width, height = (int(v) for v in session.tiles.extents[row])
    info = session.ground.scene.info
    x, y = info.transform @ (col + width / 2, top + height / 2)
    ground = f", centre at {x:,.6g}, {y:,.7g} in {info.crs}" if info.crs else ""
    soft(f"Pixels {col} to {col + width} across, {top} to {top + height} down, {width} x {height}{ground}.")


def _keys(session: TileSession) -> None:
    keyed = min(actions.KEYED, len(session.tiles.classes))
    classes = f"1 to {keyed} say which class it is; " if session.single else ""
    soft(
        f"{classes}a agree, d disagree, u unsure; n saves and goes on, Shift+A agrees, saves and goes on, z takes the last "
        "decision back; up and down choose the class of the heat map. Tiles: left and right, Esc to the map. Map: + and - "
        "closer and farther, = fit, f one to one, t tiles around, m heat map, Shift and arrows move."
    )
