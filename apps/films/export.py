"""Team page of the chest film app, and what of the decisions goes out: tables, a manifest for training."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.films.filters import Filters, visible
from apps.films.session import Session
from apps.shared.components import problems
from apps.shared.team import team_page
from vitdomains.core.review.export import export_table, to_csv, training_manifest


def films_team_page(session: Session) -> None:
    """Agreement, export, assignments, roles."""
    team_page(session, "Worklist", "Finding", "films", lambda: _export(session),
              lambda: visible(session, Filters.from_address(session))["item"].tolist())  # fmt: skip


def _export(session: Session) -> None:
    table = export_table(session.store)
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
                           help="For training: what all who were assigned read and agree on, or an adjudicator said")  # fmt: skip


def _manifest(session: Session) -> bytes:
    from vitdomains.core.data.manifest import make_manifest, write_manifest

    rows = session.worklist.table.drop_duplicates("item")
    rows = rows[~rows["item"].isin(session.decisions.unfinished())]
    unknown = pd.DataFrame(index=rows.index, columns=list(session.bundle.classes), dtype="float32")
    base = make_manifest(
        rows["item"].tolist(), rows["path"].tolist(), rows["patient"].tolist(), session.bundle.classes, unknown, name="reviewed",
        extra=rows[["sex", "age_band", "view"]],
    )  # fmt: skip
    made = training_manifest(session.store, base, {item: item for item in rows["item"]})
    with tempfile.TemporaryDirectory(prefix="vitdomains-manifest-") as folder:
        return write_manifest(made, Path(folder) / "reviewed.csv").read_bytes()
