"""Page of the chest film app: one film, its findings, and what the reviewer says of them."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

import streamlit as st

from apps.films import actions
from apps.films.film_pane import film_pane, no_film
from apps.films.filters import Filters, in_sight
from apps.films.report_buttons import report_buttons
from apps.films.session import Session
from apps.shared.address import go
from apps.shared.components import hold, label, plain, problems, show_problem, soft
from apps.shared.drafts import Draft, options_of
from apps.shared.session import answered, finish_then

PANEL_HEIGHT = 330
WORDS = {
    "agree": "Agree",
    "disagree": "Disagree",
    "unsure": "Unsure",
    "present": "Present",
    "absent": "Absent",
}


def reading_page(session: Session, item: str) -> None:
    """The film to the left, findings and answers to the right."""
    row = session.film(item)
    if row is None:
        no_film(session)
        return
    if row["error"]:
        st.error(
            plain(f"This film cannot be read: it {row['error']}. Copy or export it again, then start the app again.")
        )
        st.button("Worklist", on_click=go, kwargs={"item": ""}, key="to-list")
        return
    draft = session.draft(item, row)
    draft.touch()
    finding = actions.focus(session, row)
    _header(session, row)
    left, right = st.columns([1.95, 1], gap="small")
    with right:
        _answers(session, row, draft, finding)
    with left:
        film_pane(session, row, finding)
    with st.expander("Report, earlier decisions, keys"):
        report_buttons(session, row)
        _history(session, item)
        _keys(session.revealed(item))


def _header(session: Session, row: dict[str, Any]) -> None:
    item = str(row["item"])
    items = in_sight(session, Filters.from_address(session))["item"].tolist()
    where = f"{items.index(item) + 1:,} of {len(items):,} in sight" if item in items else "not in sight of the filters"
    list_, back, title, forth = st.columns([1, 1, 5, 1], vertical_alignment="center")
    list_.button(
        "Worklist", on_click=go, kwargs={"item": "", "heat": ""}, key="to-list", shortcut="Esc", width="stretch"
    )
    back.button(
        "Previous", on_click=actions.step, args=(session, item, -1), key="previous", shortcut="Left", width="stretch"
    )
    forth.button(
        "Following", on_click=actions.step, args=(session, item, 1), key="following", shortcut="Right", width="stretch"
    )
    age = f"{row['age_band']} years" if row["age_band"] else ""
    known = [f"film {item[:8]}", where, row["view"], {"F": "female", "M": "male"}.get(row["sex"], row["sex"]), age]
    if session.shows_patients:
        known += [_patient(row)]
    title.markdown(plain(" · ".join(str(k) for k in known if k)))


def _patient(row: dict[str, Any]) -> str:
    from vitdomains.cxr.film.display import read_facts

    facts = read_facts(row["path"])
    if facts is None:
        return str(row["name"])
    return ", ".join(
        filter(None, (facts.text(k) for k in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate")))
    )


def _answers(session: Session, row: dict[str, Any], draft: Draft, finding: str) -> None:
    """Findings with their answers; the one in focus has the keys, the heat map and the details."""
    item = str(row["item"])
    revealed, probabilities = session.revealed(item), session.probabilities(row)
    calls = session.facts.calls(probabilities)
    order = actions.finding_order(session, row)
    with st.container(height=PANEL_HEIGHT, border=True, gap="small"):
        for name in order:
            text, choice = st.columns([0.82, 1], vertical_alignment="center")
            with text:
                st.html(_line(session, name, probabilities[name] if revealed else math.nan, now=name == finding))
            key = draft.widget(name)
            choice.segmented_control(
                label(name),
                options_of(calls.get(name, ""), revealed),
                format_func=WORDS.__getitem__,
                default=draft.answers.get(name),
                key=key,
                label_visibility="collapsed",
                on_change=answered,
                args=(draft, name, key),
            )
    _focus_buttons(session, item, finding, options_of(calls.get(finding, ""), revealed))
    if revealed:
        _details(session, finding, probabilities[finding])
        _others(session, item, finding)
    hold(f"note:{item[:16]}", draft.note)
    st.text_area("Note", key=f"note:{item[:16]}", height=68, max_chars=10_000, label_visibility="collapsed", placeholder="Note",
                 on_change=lambda: draft.write(st.session_state[f"note:{item[:16]}"]))  # fmt: skip
    rest, save = st.columns([1, 1.3])
    if revealed:
        rest.button("Agree to rest", key="rest", shortcut="Shift+A", width="stretch", on_click=actions.agree_with_rest,
                    args=(session, item), help="Agree with what the model says of all findings without an answer")  # fmt: skip
    go_on = "Save and next" if revealed else "Save, show the model"
    save.button(
        go_on,
        key="finish",
        type="primary",
        shortcut="N",
        width="stretch",
        on_click=finish_then,
        args=(item,),
    )
    problem = st.session_state.pop("problem", None)
    if problem is not None:
        show_problem(problem)


def _line(session: Session, name: str, probability: float, *, now: bool) -> str:
    """A finding with its probability, its threshold, and whether the model calls it."""
    title = f'<div class="vd-finding{" now" if now else ""}"'
    current = ' aria-current="true"' if now else ""
    if math.isnan(probability):
        return f"{title}{current}>{escape(label(name))}</div>"
    threshold = session.facts.thresholds[session.facts.classes.index(name)]
    called = "<b>called</b>" if probability >= threshold else "not called"
    bar = f'<div class="vd-bar"><i style="width:{100 * probability:.0f}%"></i><b style="left:{100 * threshold:.0f}%"></b></div>'
    return (
        f'{title}{current}>{escape(label(name))}<div class="vd-soft">{probability:.2f} {called} '
        f"(from {threshold:.2f})</div>{bar}</div>"
    )


def _focus_buttons(session: Session, item: str, finding: str, words: tuple[str, ...]) -> None:
    up, down, *three = st.columns([0.6, 0.6, 1, 1, 1], gap="small")
    up.button("▲", key="up", shortcut="Up", on_click=actions.move_focus, args=(session, item, -1), width="stretch",
              help="The finding above")  # fmt: skip
    down.button("▼", key="down", shortcut="Down", on_click=actions.move_focus, args=(session, item, 1), width="stretch",
                help="The finding below")  # fmt: skip
    for which, (place, word, key) in enumerate(zip(three, words, "ADU", strict=True)):
        place.button(WORDS[word], key=f"say-{which}", shortcut=key, on_click=actions.answer_now,
                     args=(session, item, finding, which), width="stretch", help=f"{label(finding)}: {word}")  # fmt: skip


def _details(session: Session, finding: str, probability: float) -> None:
    """What such a probability was worth on films that the model had not seen."""
    with problems():
        known = session.engine.held_out()
        evidence = known.evidence(finding, probability)
        text = evidence.text() if evidence else "Too few held-out films to say what this probability is worth."
        rule = f"Threshold: {session.facts.threshold_rule or 'not given'}, on the validation split."
        soft(f"{label(finding)}: {text} {known.calibration(finding)} {rule}")


def _others(session: Session, item: str, finding: str) -> None:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    if session.role != "adjudicator":
        return
    for reader in session.ledger.standing(item).readers:
        said = session.ledger.values(item, reader, "reader") or {}
        st.caption(plain(f"{reader}: {label(finding)} {said.get(finding, 'not judged')}"))


def _history(session: Session, item: str) -> None:
    """This reviewer's own decisions on the film."""
    mine = [d for d in session.ledger.decisions(item) if d.reviewer == session.reviewer.name]
    if not mine:
        soft("You have not decided on this film yet.")
    for d in reversed(mine):
        said = {name: a.label or a.verdict for name, a in d.answers.items()}
        how = "blinded" if d.blinded else "with the model in sight"
        soft(f"{d.role}, {how}, {d.seconds:.0f} s, {len(d.regions)} marks: {json.dumps(said)} {d.note}")


def _keys(revealed: bool) -> None:
    words = "a agree, d disagree, u unsure" if revealed else "a present, d absent, u unsure"
    rest = ", Shift+A agree with all the rest" if revealed else ""
    soft(
        f"Findings: up and down choose one, {words}{rest}; n saves and goes on. Films: left and right, Esc to the worklist. "
        "Film: w window, z zoom, p pan, b box, k point, 1 to 9 presets, i invert, r and l rotate, h mirror, = fit, f one to one, "
        "+ and - zoom, Space as opened, [ and ] width, , and . centre, Shift and arrows move, m heat map, s layout; with the box "
        "or point tool, Enter on the film marks what lies under the cross, Delete removes the last mark."
    )
