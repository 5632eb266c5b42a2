"""Page of the chest film app: one film, its findings, and what the reviewer says of them."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import streamlit as st

from apps.films import actions
from apps.films.film_pane import film_pane, no_film
from apps.films.filters import Filters, visible
from apps.films.report_buttons import report_buttons
from apps.films.session import Session
from apps.shared.actions import leave, undo
from apps.shared.commands import command, note, register
from apps.shared.components import label, plain, problems, show_failure, soft, spoken
from apps.shared.drafts import Draft, options_of
from apps.shared.session import answered

PANEL_HEIGHT = 330
RULES = {
    "youden": "where sensitivity plus specificity is highest (Youden)",
    "f1": "where F1 is highest",
    "none": "not chosen",
}
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
        no_film(session, item)
        return
    if row["error"]:
        _header(session, row)
        st.error(
            plain(f"This film cannot be read: it {row['error']}. Copy or export it again, then start the app again.")
        )
        return
    draft = session.draft(item)
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
    items = visible(session, Filters.from_address(session))["item"].tolist()
    where = f"{items.index(item) + 1:,} of {len(items):,} in sight" if item in items else "not in sight of the filters"
    list_, back, title, forth = st.columns([1, 1, 5, 1], vertical_alignment="center")
    command(list_, "Worklist", "to-list", leave, item, key="Esc")
    command(back, "Previous", "previous", actions.step, item, -1, key="Left")
    command(forth, "Following", "following", actions.step, item, 1, key="Right")
    age = f"{row['age_band']} years" if row["age_band"] else ""
    known = [f"film {item[:8]}", where, row["view"], {"F": "female", "M": "male"}.get(row["sex"], row["sex"]), age]
    if session.shows_patients:
        known += [_patient(row)]
    remark = f" · :orange-background[{plain(row['quality'])}]" if row["quality"] else ""
    title.markdown(plain(" · ".join(str(k) for k in known if k)) + remark)


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
    calls = session.calls(item)
    with st.container(height=PANEL_HEIGHT, border=True, gap="small", key="findings"):
        for name in actions.finding_order(session, row):
            register(f"focus-{session.bundle.classes.index(name)}", actions.focus_on, name)
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
    note(session, item, draft)
    with st.container(key="decide"):
        _decide(session, item, revealed)
    show_failure()


def _decide(session: Session, item: str, revealed: bool) -> None:
    take_back, rest, all_, save = st.columns([0.7, 1, 1.4, 1.2], gap="small")
    command(
        take_back,
        "Undo",
        "undo",
        undo,
        item,
        key="Z",
        help="Take your last decision back: a new row, nothing is erased",
    )
    if revealed:
        command(rest, "Agree to rest", "rest", actions.agree_with_rest, item, key="Shift+R", decides=True,
                help="Agree with what the model says of all findings without an answer")  # fmt: skip
        command(all_, "Agree with all and next", "agree-next", actions.agree_and_next, item, key="Shift+A", decides=True,
                advances=True, help="Agree with all findings without an answer, save, and go on")  # fmt: skip
    command(save, "Save and next" if revealed else "Save, show the model", "finish", actions.finish, item, key="N",
            decides=True, advances=True, type="primary")  # fmt: skip


def _line(session: Session, name: str, probability: float, *, now: bool) -> str:
    """A finding with its probability, its threshold, and whether the model calls it."""
    number = session.bundle.classes.index(name)
    title = f'<div class="vd-finding{" now" if now else ""}" data-command="focus-{number}"'
    current = ' aria-current="true"' if now else ""
    if math.isnan(probability):
        return f"{title}{current}>{escape(label(name))}</div>"
    threshold = session.bundle.thresholds[number]
    called = "<b>called</b>" if probability >= threshold else "not called"
    bar = f'<div class="vd-bar"><i style="width:{100 * probability:.0f}%"></i><b style="left:{100 * threshold:.0f}%"></b></div>'
    return (
        f'{title}{current}>{escape(label(name))}<div class="vd-soft">{probability:.2f} {called} '
        f"(from {threshold:.2f})</div>{bar}</div>"
    )


def _focus_buttons(session: Session, item: str, finding: str, words: tuple[str, ...]) -> None:
    up, down, *three = st.columns([0.6, 0.6, 1, 1, 1], gap="small")
    command(up, "▲", "up", actions.move_focus, item, -1, key="Up", help="The finding above")
    command(down, "▼", "down", actions.move_focus, item, 1, key="Down", help="The finding below")
    # Before the model is shown no key is the initial of the opposite answer.
    for which, (place, word, key) in enumerate(
        zip(three, words, "PAU" if words[0] == "present" else "ADU", strict=True)
    ):
        command(place, WORDS[word], f"say-{which}", actions.answer_now, item, which, key=key, decides=True,
                help=f"{label(finding)}: {word}")  # fmt: skip


def _details(session: Session, finding: str, probability: float) -> None:
    """What such a probability was worth on films that the model had not seen."""
    with problems():
        known = session.engine.held_out()
        evidence = known.evidence(finding, probability)
        text = evidence.text() if evidence else "Too few held-out films to say what this probability is worth."
        chosen_by = RULES.get(session.bundle.threshold_rule, session.bundle.threshold_rule or "not given")
        rule = f"Threshold: {chosen_by}, on the validation split."
        soft(f"{label(finding)}: {text} {known.calibration(finding)} {rule}")


def _others(session: Session, item: str, finding: str) -> None:
    """What the readers said, to an adjudicator alone: readers stay independent."""
    if session.role != "adjudicator":
        return
    for reader in session.decisions.standing(item).readers:
        answers = session.decisions.values(reader, "reader").get(item, {})
        st.caption(plain(f"{reader}: {label(finding)} {answers.get(finding, 'not judged')}"))


def _history(session: Session, item: str) -> None:
    """This reviewer's own decisions on the film."""
    mine = [d for d in session.decisions.of_item(item) if d.reviewer == session.reviewer.name]
    if not mine:
        soft("You have not decided on this film yet.")
    for d in reversed(mine):
        how = "blinded" if d.blinded else "with the model in sight"
        soft(f"{d.role}, {how}, {d.seconds:.0f} s, {len(d.regions)} marks: {spoken(d)} {d.note}")


def _keys(revealed: bool) -> None:
    words = "a agree, d disagree, u unsure" if revealed else "p present, a absent, u unsure"
    rest = ", Shift+R agree with all the rest, Shift+A agree with all the rest, save and go on" if revealed else ""
    soft(
        f"Findings: up and down choose one, {words}{rest}; n saves and goes on, z takes the last decision back. "
        "Films: left and right, Esc to the worklist. "
        "Film: w window, c zoom, g pan, b box, k point, 1 to 9 presets, i invert, r and l rotate, h mirror, = fit, f one to one, "
        "+ and - zoom, Space as opened, [ and ] width, , and . centre, Shift and arrows move, m heat map, s layout; with the box "
        "or point tool, Enter on the film marks what lies under the cross, Delete removes the last mark."
    )
