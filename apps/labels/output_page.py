"""The zero-shot app's other page: decisions, accepted labels, the labels on disk, and a student's training file."""

from __future__ import annotations

import io
from pathlib import Path

import streamlit as st

from apps.labels.filters import LabelFilters, visible
from apps.labels.output import accepted, labels_of, make_student, student_words, write_view
from apps.labels.prompts import as_yaml
from apps.labels.session import Session
from apps.shared.actions import leave
from apps.shared.address import go
from apps.shared.commands import command
from apps.shared.components import empty, label, plain, problems, soft
from apps.shared.decisions import DecisionTable
from apps.shared.team import admin_parts, agreement_part
from vitdomains.core.review.export import export_table, to_csv
from vitdomains.core.review.store import ReviewStore


def output_page(session: Session) -> None:
    """What others said is shown to adjudicators and admins; what changes files on the server is done by admins."""
    command(st, "Review", "to-review", leave, key="Esc", width="content")
    left, right = st.columns(2, gap="medium")
    with left:
        if session.reviewer.roles & {"adjudicator", "admin"}:
            _decisions(session)
            _accepted(session)
            agreement_part(session, "Subject", "tiles", blinded_choice=False)
        else:
            soft("What others said is shown to adjudicators and admins: reviewers stay independent.")
    with right:
        _classes(session)
        if "admin" in session.reviewer.roles:
            _student(session)
            view = session.view
            rows = session.labels.rows[visible(session, view, LabelFilters.from_address(view))]
            admin_parts(session, session.labels.items[rows].tolist(), "tiles")


@st.cache_data(show_spinner="collecting the decisions", max_entries=4)
def _exported(_store: ReviewStore, url: str, last: int) -> tuple[str, bytes]:
    """All decisions up to one, as CSV and as Parquet."""
    table = export_table(_store)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return to_csv(table), buffer.getvalue()


@st.cache_data(show_spinner="collecting what is settled", max_entries=4)
def _settled(_ledger: DecisionTable, url: str, last: int) -> dict[str, str]:
    """Item to its accepted label after so many decisions."""
    return accepted(_ledger)


def _decisions(session: Session) -> None:
    st.subheader("Decisions", anchor=False)
    last = session.decisions.last
    if not last:
        empty("Nothing to export.", "The first decision will be here. Press Esc, and a to accept a tile.")
        return
    text, content = _exported(session.store, session.options.store, last)
    csv, parquet = st.columns(2)
    csv.download_button(f"Decisions as CSV ({last:,})", text, "reviews.csv", "text/csv", on_click="ignore", key="csv",
                        width="stretch")  # fmt: skip
    parquet.download_button("Decisions as Parquet", content, "reviews.parquet", "application/vnd.apache.parquet",
                            on_click="ignore", key="parquet", width="stretch")  # fmt: skip


def _accepted(session: Session) -> None:
    """What the reviewers settled, tile by tile."""
    st.subheader("Accepted labels", anchor=False)
    found = labels_of(session.labels, _settled(session.decisions, session.options.store, session.decisions.last))
    if not len(found):
        empty("No label is settled yet.", "A label holds once all who decided on a tile say the same.")
        return
    counts = found["label"].value_counts().rename_axis("label").rename("tiles").reset_index()
    st.dataframe(
        counts.assign(label=counts["label"].map(label)), hide_index=True, height=min(38 + 35 * len(counts), 215)
    )
    st.download_button(f"Accepted labels as CSV ({len(found):,} tiles)", found.to_csv(index=False), "accepted.csv", "text/csv",
                       on_click="ignore", key="accepted", help="For `refine --reviewed` and `student --reviewed`")  # fmt: skip
    strange = sorted(set(found["label"]) - set(session.labels.prompts.names))
    if strange:
        soft(f"Not among the classes of the labels on disk, and of no use to a student of these: {', '.join(strange)}.")


def _classes(session: Session) -> None:
    """The classes in sight, and how they become those of the labels."""
    st.subheader("Classes in sight", anchor=False)
    view, base = session.view, session.base
    st.download_button("Class file", as_yaml(view.prompts), "classes.yaml", "text/yaml", on_click="ignore", key="yaml",
                       help="For `label --classes`")  # fmt: skip
    if view is base:
        soft(f"{len(view.prompts.names)} classes, as the labels were written.")
        return
    soft("They differ from those of the labels on disk. Writing replaces tables, sheets and bundle; embeddings stay, no image "
         "is embedded again, and decisions stay as they are.")  # fmt: skip
    if st.button(
        "Write them as the labels", key="write-labels", type="primary", disabled="admin" not in session.reviewer.roles
    ):
        bar = st.progress(0.0, text="loading the text model")

        def on_progress(phase: str, done: int, total: int, text: str) -> None:
            bar.progress(min(1.0, done / max(1, total)), text=f"{phase}: {done:,} of {total:,} {text}")

        with problems():
            session.require("admin")
            write_view(session.labels, session.model, view, on_progress)
            go(asked="", t="", label="")
            st.rerun()
        bar.empty()


def _student(session: Session) -> None:
    st.subheader("Make a student", anchor=False)
    soft("A small model trained on what was accepted, with full weight, and on confident labels, with less. Tiles that are none "
         "of the classes, or on which reviewers disagree, are left out.")  # fmt: skip
    if session.view is not session.base:
        empty(
            "The classes in sight are not those of the labels.", "Write them as the labels first, or go back to those."
        )
        return
    with st.form("student"):
        left, right = st.columns(2)
        confident = left.slider(
            "Least probability of a label that nobody looked at", 0.0, 1.0, 0.9, 0.01, key="confident"
        )
        weight = right.slider("Weight of such a label", 0.0, 1.0, 0.5, 0.05, key="weight")
        run_dir = st.text_input("Folder of the run", "runs/student", key="run-dir")
        pressed = st.form_submit_button("Write the training file")
    if pressed:
        st.session_state.pop("student-file", None)
        with problems(), st.spinner("writing; tiles of scenes are cut out"):
            session.require("admin")
            st.session_state["student-file"] = str(
                make_student(
                    session.labels, accepted(session.decisions), confident, weight, run_dir.strip() or "runs/student"
                )
            )
    written = st.session_state.get("student-file")
    if written and Path(written).is_file():
        reviewed, others = student_words(session.labels)
        st.success(plain(f"Written: {reviewed:,} accepted and {others:,} confident tiles. Train it with:"))
        st.code(f"python -m vitdomains.satellite train --config {written}", language="bash", wrap_lines=True)
        st.download_button("Training file", Path(written).read_bytes(), "student.yaml", "text/yaml", on_click="ignore",
                           key="student-yaml")  # fmt: skip
