"""The report of the film in sight: made when it is asked for, then offered for download."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from apps.films.session import NOTICE, Session
from apps.shared.address import go
from apps.shared.components import problems, soft

KINDS = {
    ".pdf": ("PDF", "application/pdf"),
    ".html": ("HTML", "text/html"),
    ".dcm": ("DICOM SR", "application/dicom"),
}


def report_buttons(session: Session, row: dict[str, Any]) -> None:
    """One button a kind; in a blinded reading none before the decision, for the report says what the model says."""
    item = str(row["item"])
    if not session.revealed(item):
        soft("The report can be made when you have decided.")
        return
    places = st.columns(len(KINDS) + 1, vertical_alignment="center")
    with_patient = session.shows_patients and places[-1].checkbox("with the patient's data", key="report-patient")
    for place, (ending, (name, mime)) in zip(places, KINDS.items(), strict=False):
        place.button(f"Make the {name}", key=f"make{ending}", width="stretch", on_click=_wanted, args=(item, ending))
        if st.session_state.get("report-wanted") == (item, ending):
            del st.session_state["report-wanted"]
            with problems(), st.spinner("writing the report"):
                st.session_state["report"] = (item, ending, make(session, row, ending, with_patient=with_patient))
        made = st.session_state.get("report")
        if made and made[:2] == (item, ending):
            place.download_button(f"Download the {name}", made[2], f"film-{item[:8]}{ending}", mime, key=f"get{ending}",
                                  on_click="ignore", type="primary", width="stretch")  # fmt: skip


def _wanted(item: str, ending: str) -> None:
    st.session_state["report-wanted"] = (item, ending)
    go()


def make(session: Session, row: dict[str, Any], ending: str, *, with_patient: bool = False) -> bytes:
    """The report as the file's bytes. Readers get their own decisions in it, adjudicators everybody's.

    Raises:
        ImageError: A DICOM SR of a film that is no DICOM file.
    """
    from vitdomains.cxr.report.report import write_report

    decisions = session.decisions.of_item(str(row["item"]))
    if session.role != "adjudicator":
        decisions = [d for d in decisions if d.reviewer == session.reviewer.name]
    made = session.engine.report(str(row["path"]), NOTICE, decisions=decisions, with_patient=with_patient)
    with tempfile.TemporaryDirectory(prefix="vitdomains-report-") as folder:
        return write_report(made, Path(folder) / f"report{ending}").read_bytes()
