"""Page of the chest film app: agreement of readers, export, and for admins roles, assignments and the check of the store."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.components import empty, label, plain, problems, soft
from apps.review_session import Session
from apps.worklist_view import Filters, in_sight
from vitdomains.core.review import Assignment, Role, deal
from vitdomains.core.review_agreement import agreement, disagreements, readings
from vitdomains.core.review_export import export_table, to_csv, training_manifest

ROLES: tuple[Role, ...] = ("reader", "adjudicator", "admin")


def team_page(session: Session) -> None:
    """What is done is open to all with a role; what others said and who may do what, to adjudicators and admins."""
    if session.reviewer.roles & {"adjudicator", "admin"}:
        _agreement(session)
        _export(session)
    else:
        soft("How far readers agree is shown to adjudicators and admins: readers stay independent.")
    if "admin" in session.reviewer.roles:
        _assignments(session)
        _roles(session)
        _check(session)


def _agreement(session: Session) -> None:
    st.subheader("Agreement", anchor=False)
    blinded = st.toggle("blinded decisions alone", key="agreement-blinded")
    read = readings(session.ledger.table, blinded_only=blinded)
    found = agreement(read)
    if not found:
        empty("No decision yet.", "Agreement is shown once two readers have read the same films.")
        return
    table = pd.DataFrame(
        {
            "Finding": [label(a.subject) for a in found],
            "Films read twice": [a.items for a in found],
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
        f"replicates over films. Films that wait for an adjudicator: {len(disagreements(read))}."
    )


def _export(session: Session) -> None:
    st.subheader("Export", anchor=False)
    table = export_table(session.store)
    if not len(table):
        empty("Nothing to export.", "The first saved decision will be here.")
        return
    csv, parquet, labels = st.columns(3)
    csv.download_button(f"{len(table):,} decisions as CSV", to_csv(table), "reviews.csv", "text/csv", on_click="ignore",
                        key="csv", width="stretch")  # fmt: skip
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    parquet.download_button("as Parquet", buffer.getvalue(), "reviews.parquet", "application/vnd.apache.parquet",
                            on_click="ignore", key="parquet", width="stretch")  # fmt: skip
    with labels, problems():
        st.download_button("Settled labels as a manifest", _manifest(session), "reviewed.csv", "text/csv", key="manifest",
                           on_click="ignore", width="stretch",
                           help="For training: what all readers agree on, or an adjudicator said")  # fmt: skip


def _manifest(session: Session) -> bytes:
    from vitdomains.core.manifest import make_manifest, write_manifest

    rows = session.worklist.table.drop_duplicates("item")
    unknown = pd.DataFrame(index=rows.index, columns=list(session.facts.classes), dtype="float32")
    base = make_manifest(
        rows["item"].tolist(), rows["path"].tolist(), rows["patient"].tolist(), session.facts.classes, unknown, name="reviewed",
        extra=rows[["sex", "age_band", "view"]],
    )  # fmt: skip
    made = training_manifest(session.store, base, {item: item for item in rows["item"]})
    with tempfile.TemporaryDirectory(prefix="vitdomains-manifest-") as folder:
        return write_manifest(made, Path(folder) / "reviewed.csv").read_bytes()


def _assignments(session: Session) -> None:
    st.subheader("Assignments", anchor=False)
    roles = session.store.roles()
    known = sorted({name for name, held in roles.items() if "reader" in held} | {session.reviewer.name})
    sight = in_sight(session, Filters.from_address(session))["item"].tolist()
    with st.form("assign"):
        readers = st.multiselect("Readers", known, key="assign-readers", accept_new_options=session.reviewer.local)
        left, middle, right = st.columns(3)
        each = left.number_input("Readers a film", 1, 5, 2, key="assign-each")
        count = middle.number_input(
            "Films, from the top of the worklist", 1, max(1, len(sight)), max(1, len(sight)), key="assign-count"
        )
        seed = right.number_input("Seed of the draw", 0, 10**6, 0, key="assign-seed")
        if st.form_submit_button("Deal out"):
            with problems():
                session.require("admin")
                dealt = deal(sight[: int(count)], readers, int(each), int(seed))
                session.store.assign(dealt, session.reviewer.name)
                st.success(plain(f"{len(dealt)} readings dealt out to {', '.join(readers)}."))
    waiting = disagreements(readings(session.ledger.table))
    judges = sorted({name for name, held in roles.items() if "adjudicator" in held} | {session.reviewer.name})
    place, button = st.columns([2, 1], vertical_alignment="bottom")
    judge = place.selectbox("Adjudicator", judges, key="assign-judge")
    if button.button(
        f"Assign the films on which readers disagree ({len(waiting)})", disabled=not waiting, key="assign-open"
    ):
        with problems():
            session.require("admin")
            session.store.assign([Assignment(i, str(judge), "adjudicator") for i in waiting], session.reviewer.name)
            st.success(plain(f"Films assigned to {judge}: {len(waiting)}."))
    held = session.store.assignments()
    if len(held):
        counts = held.groupby(["reviewer", "role"]).size().rename("films").reset_index()
        pairs = zip(counts["reviewer"], counts["role"], strict=True)
        done = [len(session.ledger.read_by(*pair) & session.ledger.assigned_to(*pair)) for pair in pairs]
        st.dataframe(counts.assign(done=done), hide_index=True)


def _roles(session: Session) -> None:
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


def _check(session: Session) -> None:
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
