"""Page of the chest film app: agreement of readers, export, and for admins roles, assignments and the check of the store."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.components import empty, plain, problems, soft
from apps.resources import go
from apps.review_session import Session
from apps.team_parts import agreement_part, check_part, roles_part
from apps.worklist_view import Filters, in_sight
from vitdomains.core.review import Assignment, deal
from vitdomains.core.review_agreement import disagreements, readings
from vitdomains.core.review_export import export_table, to_csv, training_manifest


def team_page(session: Session) -> None:
    """What is done is open to all with a role; what others said and who may do what, to adjudicators and admins."""
    st.button("Worklist", on_click=go, kwargs={"show": ""}, key="to-list", shortcut="Esc")
    if session.reviewer.roles & {"adjudicator", "admin"}:
        agreement_part(session, "Finding", "films")
        _export(session)
    else:
        soft("How far readers agree is shown to adjudicators and admins: readers stay independent.")
    if "admin" in session.reviewer.roles:
        _assignments(session)
        roles_part(session)
        check_part(session)


def _export(session: Session) -> None:
    st.subheader("Export", anchor=False)
    table = export_table(session.store)
    if not len(table):
        empty("Nothing to export.", "The first saved decision will be here.")
        return
    csv, parquet, labels = st.columns(3)
    csv.download_button(f"Decisions as CSV ({len(table):,})", to_csv(table), "reviews.csv", "text/csv", on_click="ignore",
                        key="csv", width="stretch")  # fmt: skip
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    parquet.download_button("Decisions as Parquet", buffer.getvalue(), "reviews.parquet", "application/vnd.apache.parquet",
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
