"""Parts of the team pages that all review apps share: agreement of readers, roles, the check of the store."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps.components import empty, label, problems, soft
from apps.reviewing import Reviewing
from vitdomains.core.review import Role
from vitdomains.core.review_agreement import agreement, disagreements, readings

ROLES: tuple[Role, ...] = ("reader", "adjudicator", "admin")


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
    read = readings(session.ledger.table, blinded_only=blinded)
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
