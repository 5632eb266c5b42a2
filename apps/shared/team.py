"""The team page that the review apps share: agreement of readers, export, assignments, roles, the check of the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from apps.shared.actions import leave
from apps.shared.address import say
from apps.shared.commands import command
from apps.shared.components import empty, label, plain, problems, soft
from apps.shared.session import Reviewing
from vitdomains.core.review.agreement import agreement, disagreements, readings
from vitdomains.core.review.store import Assignment, Role, deal

OFFERED = 100
"""How many items the form offers to deal out."""
ROLES: tuple[Role, ...] = ("reader", "adjudicator", "admin")


def team_page(
    session: Reviewing,
    home: str,
    subject: str,
    things: str,
    export: Callable[[], None],
    visible: Callable[[], Sequence[str]],
) -> None:
    """What is done is open to all with a role; what others said and who may do what, to adjudicators and admins.

    Args:
        session: Of the page.
        home: Name of the first page.
        subject: Heading of what is judged, such as ``Finding``.
        things: What is read, in the plural, such as ``films``.
        export: Draws what can be exported, for who is not blinded.
        visible: Items in sight of the filters, in order.
    """
    command(st, home, "to-list", leave, key="Esc", width="content")
    if session.reviewer.roles & {"adjudicator", "admin"}:
        agreement_part(session, subject, things)
        st.subheader("Export", anchor=False)
        if session.blinded:
            soft(
                "Blinded: what is exported says what the model says. It is here for who decides as adjudicator, or not blinded."
            )
        elif not session.decisions.last:
            empty("Nothing to export.", "The first saved decision will be here.")
        else:
            export()
    else:
        soft(
            "What others said, and how far readers agree, is shown to adjudicators and admins: readers stay independent."
        )
    if "admin" in session.reviewer.roles:
        admin_parts(session, visible(), things)


def admin_parts(session: Reviewing, items: Sequence[str], things: str) -> None:
    """What admins do: deal out work, grant roles, check the store."""
    assignments_part(session, items, things)
    roles_part(session)
    check_part(session)


def agreement_part(session: Reviewing, subject: str, things: str, *, blinded_choice: bool = True) -> None:
    """How far readers agree.

    Args:
        session: Of the page.
        subject: Heading of what is judged, such as ``Finding``.
        things: What is read, in the plural, such as ``films``.
        blinded_choice: Offer to leave out what was decided with the prediction in sight.
    """
    st.subheader("Agreement", anchor=False)
    blinded = st.toggle("blinded decisions alone", key="agreement-blinded") if blinded_choice else False
    read = readings(session.decisions.table, blinded_only=blinded)
    found = agreement(read)
    if not found:
        empty("No decision yet.", f"Agreement is shown once two readers have read the same {things}.")
        return
    table = pd.DataFrame(
        {
            subject: [label(a.subject) for a in found],
            f"{things.capitalize()} read twice": [a.items for a in found],
            "Readers": [a.readers for a in found],
            "Same": [a.percent for a in found],
            "Fleiss' kappa": [a.fleiss for a in found],
            "95 % from": [a.low for a in found],
            "to": [a.high for a in found],
            "Cohen's kappa, by pair": [
                ", ".join(f"{x} and {y} {k:.2f}" for (x, y), k in a.cohen.items()) for a in found
            ],
            "With the model": [a.with_model for a in found],
        }
    )
    numbers = ("Same", "Fleiss' kappa", "95 % from", "to", "With the model")
    st.dataframe(
        table, hide_index=True, column_config={n: st.column_config.NumberColumn(format="%.2f") for n in numbers}
    )
    soft(
        "Kappa: agreement beyond chance (Cohen 1960; Fleiss 1971), 'unsure' a category of its own; intervals from 500 bootstrap "
        f"replicates over {things}. {things.capitalize()} that wait for an adjudicator: {len(disagreements(read))}."
    )


def assignments_part(session: Reviewing, items: Sequence[str], things: str) -> None:
    """Who reads what, and the forms that deal it out: to readers, and to an adjudicator what readers disagree on.

    Args:
        session: Of the page.
        items: Items in sight of the filters, in order; the first of them are dealt out.
        things: What is read, in the plural, such as ``films``.
    """
    st.subheader("Assignments", anchor=False)
    roles, name = session.store.roles(), session.reviewer.name
    known = sorted({who for who, held in roles.items() if "reader" in held} | {name})
    with st.form("assign"):
        readers = st.multiselect("Readers", known, key="assign-readers", accept_new_options=session.reviewer.local)
        left, middle, right = st.columns(3)
        each = left.number_input(f"Readers for each of the {things}", 1, 5, 2, key="assign-each")
        count = middle.number_input(f"How many {things}, the first in sight", 1, max(1, len(items)),
                                    max(1, min(OFFERED, len(items))), key="assign-count")  # fmt: skip
        seed = right.number_input("Seed of the draw", 0, 10**6, 0, key="assign-seed")
        if st.form_submit_button("Deal out"):
            with problems():
                session.require("admin")
                dealt = deal(items[: int(count)], readers, int(each), int(seed))
                session.store.assign(dealt, name)
                st.success(plain(f"{len(dealt)} readings dealt out to {', '.join(readers)}."))
    waiting = sorted(session.decisions.in_disagreement())
    judges = sorted({who for who, held in roles.items() if "adjudicator" in held} | {name})
    place, button = st.columns([2, 1], vertical_alignment="bottom")
    judge = place.selectbox("Adjudicator", judges, key="assign-judge")
    if button.button(
        f"Assign the {things} on which readers disagree ({len(waiting)})", disabled=not waiting, key="assign-open"
    ):
        with problems():
            session.require("admin")
            session.store.assign([Assignment(i, str(judge), "adjudicator") for i in waiting], name)
            st.success(plain(f"Assigned to {judge}: {len(waiting)} {things}."))
    held = session.store.assignments()
    if len(held):
        counts = held.groupby(["reviewer", "role"]).size().rename(things).reset_index()
        pairs = zip(counts["reviewer"], counts["role"], strict=True)
        done = [len(session.decisions.read_by(*pair) & session.decisions.assigned_to(*pair)) for pair in pairs]
        st.dataframe(counts.assign(done=done), hide_index=True)


def roles_part(session: Reviewing) -> None:
    """Who may do what, and the form that changes it."""
    st.subheader("Roles", anchor=False)
    with st.form("grant"):
        name, role, action = st.columns(3)
        who = name.text_input("Reviewer", key="grant-name", help="As the login or the proxy names them")
        what = role.selectbox("Role", ROLES, key="grant-role")
        give = action.segmented_control("Do", ("grant", "take back"), default="grant", key="grant-do")
        if st.form_submit_button("Write"):
            with problems():
                session.require("admin")
                session.store.grant(who.strip(), what, session.reviewer.name, active=give != "take back")
                say(f"{who.strip()}: {what} {'taken back' if give == 'take back' else 'granted'}.")
                st.rerun()  # the forms above know it at once
    granted = session.store.roles()
    if granted:
        rows = [(name, ", ".join(sorted(held))) for name, held in sorted(granted.items())]
        st.dataframe(pd.DataFrame(rows, columns=["Reviewer", "Roles"]), hide_index=True)


def check_part(session: Reviewing) -> None:
    """The store, and the button that walks its chain."""
    st.subheader("Store", anchor=False)
    soft(
        f"{session.store.name}: {session.store.count():,} decisions. Rows are only ever added; each carries the hash of the "
        "one before."
    )
    if st.button("Check that no row was changed", key="verify"):
        with problems(), st.spinner("walking the chain"):
            heads = session.store.verify()
            st.success("Intact. Keep these heads elsewhere: a later check can be held against them.")
            st.code("\n".join(f"{name}={head}" for name, head in heads.items()))
