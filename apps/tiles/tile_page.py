"""Page of the satellite app: one tile in its surroundings, what the model says of it, and what the reviewer says."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
import streamlit as st

from apps.shared.actions import leave, undo
from apps.shared.address import address, choose, go
from apps.shared.commands import ask, command, note
from apps.shared.components import hold, label, plain, problems, show_failure, soft, spoken
from apps.shared.drafts import Draft, options_of
from apps.shared.loading import METHOD_NAMES
from apps.shared.session import answered
from apps.tiles import actions
from apps.tiles.filters import TileFilters, colourings, visible, waiting
from apps.tiles.map_page import no_tile
from apps.tiles.map_pane import look_choices, map_pane
from apps.tiles.session import TileSession
from vitdomains.core.review.export import SUBJECT

PANEL_HEIGHT = 300
AHEAD, PICTURES_AHEAD = (
    12,
    3,
)  # tiles that the browser can go on to by itself, and those whose sharp picture it has by then
CAUTION = (
    "A heat map shows where the score is sensitive, not why, and not where a class ends. Such maps can stay the same when the "
    "model's weights are made random (Adebayo et al. 2018, arXiv:1810.03292)."
)
WORDS = {"agree": "Agree", "disagree": "Disagree", "unsure": "Unsure", "present": "Present", "absent": "Absent"}


def tile_page(session: TileSession, item: str) -> list[dict[str, Any]]:
    """The tile with its surroundings to the left, classes and answers to the right. Returns the tiles that follow."""
    row = session.row(item)
    if row is None:
        no_tile(session)
        return []
    draft = session.draft(item)
    draft.touch()
    name = actions.focus(session, row)
    rows = visible(session, TileFilters.from_address(session))
    ahead = _ahead(session, item) if actions.advances(session, item) else []
    _header(session, item, row, rows)
    left, right = st.columns([1.75, 1], gap="small")
    with left:
        method = _choices(session, item, name)
        with st.container():
            colouring = next(iter(colourings(session)))
            shown = name if session.tiles.labelled[row] else ""
            map_pane(session, rows, colouring, 248, item, shown, method, [x["item"] for x in ahead[:PICTURES_AHEAD]])
        soft(CAUTION)
    with right:
        _answers(session, item, row, draft, name)
    with st.expander("Earlier decisions, place, keys"):
        _history(session, item)
        _place(session, row)
        _keys(session)
    return ahead


def _ahead(session: TileSession, item: str) -> list[dict[str, Any]]:
    """The tiles that follow, as the browser shows them before the page does: keys in rhythm wait for no server."""
    found = []
    for following in waiting(session, item, AHEAD):
        row = session.tiles.position[following]
        call = session.seen_calls(row).get(SUBJECT, "")
        p = session.tiles.table["probability"].iat[row]
        text = f"{label(call)} {p:.2f}" if call else "no label"
        found.append({"item": following, "seen": session.draft(following).seen, "focus": session.tiles.extents[row].tolist(),
                      "text": f"tile {session.tiles.table['tile_id'].iat[row]}, model: {text}"})  # fmt: skip
    return found


def _header(session: TileSession, item: str, row: int, rows: Any) -> None:
    found = np.flatnonzero(rows == row)
    where = f"{found[0] + 1:,} of {len(rows):,} in sight" if len(found) else "not in sight of the filters"
    to_map, back, title, forth = st.columns([1, 1, 5.4, 1], vertical_alignment="center")
    command(to_map, "Map", "to-map", leave, item, key="Esc")
    command(back, "Previous", "previous", actions.step, item, -1, key="Left")
    command(forth, "Following", "following", actions.step, item, 1, key="Right")
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
        known = session.context.engine.methods()
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
    with st.container(height=min(PANEL_HEIGHT, 42 * shown + 34), border=True, gap="small", key="findings"):
        if session.single:
            _classes(session, item, row, draft, name)
        else:
            _findings(session, item, row, draft, name)
    _focus_buttons(session, item, row, draft, name)
    note(session, item, draft)
    with st.container(key="decide"):
        goes_on = actions.advances(session, item)
        take_back, agree, go_on = st.columns([0.7, 1.3, 1.3])
        command(
            take_back,
            "Undo",
            "undo",
            undo,
            item,
            key="Z",
            help="Take your last decision back: a new row, nothing is erased",
        )
        command(agree, "Agree and next", "agree-next", actions.agree_and_next, item, key="Shift+A", decides=True,
                advances=goes_on, disabled=not session.seen_calls(row))  # fmt: skip
        command(go_on, "Save and next" if revealed else "Save, show the model", "finish", actions.finish, item, key="N",
                decides=True, advances=goes_on, type="primary")  # fmt: skip
    if session.single and revealed:
        hold("advance", address().get("advance") != "0")
        st.toggle("Go on after one answer", key="advance",
                  on_change=lambda: go(advance="" if st.session_state["advance"] else "0"))  # fmt: skip
    show_failure()
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
        command(button, label(c), f"class-{number}", actions.choose_class, item, number, key=str(number), decides=True,
                advances=actions.advances(session, item), type="primary" if c == said else "secondary")  # fmt: skip
        bar.html(_bar(session, c, p[c], now=c == name, called=c == call))
    rest = order[actions.KEYED :]
    if rest:
        key = draft.widget(SUBJECT)
        st.selectbox("Another class", rest, index=rest.index(said) if said in rest else None, key=key,
                     label_visibility="collapsed", placeholder=f"Another of {len(session.tiles.classes)} classes",
                     format_func=lambda c: label(c) + (f"  {p[c]:.2f}" if p[c] == p[c] else ""),
                     on_change=_choose_other, args=(item, key))  # fmt: skip


def _choose_other(item: str, key: str) -> None:
    """A class without a key was chosen from the list."""
    if st.session_state[key]:
        ask("class-other", actions.choose_named, item, st.session_state[key])


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
    threshold = "" if session.single else f'<b style="left:{100 * session.bundle.thresholds[k]:.0f}%"></b>'
    current = ' aria-current="true"' if now else ""
    return (
        f'<div class="vd-finding{" now" if now else ""}"{current}>{escape(title)}<div class="vd-soft">{number}</div>'
        f'<div class="vd-bar"><i style="width:{width:.0f}%;background:rgb({r},{g},{b})"></i>{threshold}</div></div>'
    )


def _focus_buttons(session: TileSession, item: str, row: int, draft: Draft, name: str) -> None:
    subject = SUBJECT if session.single else name
    call, chosen = session.seen_calls(row).get(subject, ""), draft.answers.get(subject, "")
    words = options_of(call, revealed=True)
    up, down, *three = st.columns([0.55, 0.55, 1, 1.1, 1], gap="small")
    command(up, "▲", "up", actions.move_focus, item, -1, key="Up", help="Heat map of the class above")
    command(down, "▼", "down", actions.move_focus, item, 1, key="Down", help="Heat map of the class below")
    for which, (place, word, key) in enumerate(zip(three, words, "ADU", strict=True)):
        # Where nothing was called there is nothing to agree with.
        impossible = session.single and word in ("present", "absent")
        command(place, WORDS["agree" if impossible and which == 0 else "disagree" if impossible else word], f"say-{which}",
                actions.answer_now, item, which, key=key, decides=True, advances=actions.advances(session, item),
                disabled=impossible, type="primary" if word == chosen else "secondary")  # fmt: skip


def _others(session: TileSession, item: str) -> None:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    for reader in session.decisions.standing(item).readers:
        answers = session.decisions.values(reader, "reader").get(item, {})
        st.caption(
            plain(f"{reader}: " + ", ".join(f"{label(s)} {v}" if s != SUBJECT else v for s, v in answers.items()))
        )


def _history(session: TileSession, item: str) -> None:
    """This reviewer's own decisions on the tile."""
    mine = [d for d in session.decisions.of_item(item) if d.reviewer == session.reviewer.name]
    if not mine:
        soft("You have not decided on this tile yet.")
    for d in reversed(mine):
        soft(f"{d.role}, {d.seconds:.0f} s: {spoken(d)} {d.note}")


def _place(session: TileSession, row: int) -> None:
    col, top, width, height = (int(v) for v in session.tiles.extents[row])
    info = session.context.scene.info
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
