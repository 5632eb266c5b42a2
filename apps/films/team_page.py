"""Page of the chest film app: agreement of readers, export, and for admins roles, assignments and the check of the store."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.films.filters import Filters, in_sight
from apps.films.session import Session
from apps.shared.address import go
from apps.shared.components import empty, problems, soft
from apps.shared.team import agreement_part, assignments_part, check_part, roles_part
from vitdomains.core.review.export import export_table, to_csv, training_manifest


def team_page(session: Session) -> None:
    """What is done is open to all with a role; what others said and who may do what, to adjudicators and admins."""
    st.button("Worklist", on_click=go, kwargs={"show": ""}, key="to-list", shortcut="Esc")
    if session.reviewer.roles & {"adjudicator", "admin"}:
        agreement_part(session, "Finding", "films")
        _export(session)
    else:
        soft("How far readers agree is shown to adjudicators and admins: readers stay independent.")
    if "admin" in session.reviewer.roles:
        sight = in_sight(session, Filters.from_address(session))["item"].tolist()
        assignments_part(session, sight, "films", most=len(sight))
        roles_part(session)
        check_part(session)


def _export(session: Session) -> None:
    st.subheader("Export", anchor=False)
    if session.blinded:
        soft(
            "Blinded: what is exported says what the model says. It is here for who decides as adjudicator, or not blinded."
        )
        return
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
    from vitdomains.core.data.manifest import make_manifest, write_manifest

    rows = session.worklist.table.drop_duplicates("item")
    unknown = pd.DataFrame(index=rows.index, columns=list(session.facts.classes), dtype="float32")
    base = make_manifest(
        rows["item"].tolist(), rows["path"].tolist(), rows["patient"].tolist(), session.facts.classes, unknown, name="reviewed",
        extra=rows[["sex", "age_band", "view"]],
    )  # fmt: skip
    made = training_manifest(session.store, base, {item: item for item in rows["item"]})
    with tempfile.TemporaryDirectory(prefix="vitdomains-manifest-") as folder:
        return write_manifest(made, Path(folder) / "reviewed.csv").read_bytes()
