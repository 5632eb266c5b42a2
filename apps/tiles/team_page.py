"""Page of the satellite app: agreement, export, and for admins assignments, roles and the check of the store."""

from __future__ import annotations

import streamlit as st

from apps.shared.address import go
from apps.shared.components import empty, problems, soft
from apps.shared.team import agreement_part, assignments_part, check_part, roles_part
from apps.tiles import export
from apps.tiles.filters import TileFilters, in_sight
from apps.tiles.session import TileSession
from vitdomains.core.review.export import export_table, to_csv

RULES = {"unanimous": "all reviewers agree", "majority": "most reviewers agree"}


def tiles_team_page(session: TileSession) -> None:
    """What is done is open to all with a role; what others said and who may do what, to adjudicators and admins."""
    st.button("Map", on_click=go, kwargs={"show": ""}, key="to-map", shortcut="Esc")
    if session.reviewer.roles & {"adjudicator", "admin"}:
        _export(session)
        agreement_part(session, "Class" if not session.single else "Subject", "tiles")
    else:
        soft(
            "What others said, and how far reviewers agree, is shown to adjudicators and admins: readers stay independent."
        )
    if "admin" in session.reviewer.roles:
        sight = session.tiles.table["item"].iloc[in_sight(session, TileFilters.from_address(session))].tolist()
        assignments_part(session, sight, "tiles", most=100)
        roles_part(session)
        check_part(session)


def _export(session: TileSession) -> None:
    st.subheader("Export", anchor=False)
    if session.blinded:
        soft(
            "Blinded: what is exported says what the model says. It is here for who decides as adjudicator, or not blinded."
        )
        return
    count = session.store.count()
    if not count:
        empty("Nothing to export.", "The first saved decision will be here.")
        return
    kind, rule, which, make, get = st.columns([1.2, 1.4, 1.4, 1, 1.2], vertical_alignment="bottom")
    kinds = {ending: name for ending, (name, _) in export.FORMATS.items()}
    kinds |= {"decisions": "every decision, CSV", ".zip": "training set: tiles and manifest, ZIP"}
    ending = str(kind.selectbox("As", list(kinds), format_func=kinds.__getitem__, key="export-kind"))
    chosen = rule.selectbox("A label holds where", list(RULES), format_func=RULES.__getitem__, key="export-rule")
    only = which.toggle("reviewed tiles alone", key="export-only", disabled=ending in ("decisions", ".zip"))
    if make.button("Make the file", key="export-make", width="stretch"):
        with problems(), st.spinner("writing"):
            st.session_state["export"] = (ending, chosen, only, count, _made(session, ending, chosen, only=only))
    made = st.session_state.get("export")
    if made and made[:4] == (ending, chosen, only, count):
        name = {"decisions": "decisions.csv", ".zip": "training_set.zip"}.get(ending, f"reviewed{ending}")
        mime = {"decisions": "text/csv", ".zip": "application/zip"}.get(ending) or export.FORMATS[ending][1]
        get.download_button(f"Download {name}", made[4], name, mime, key="export-get", on_click="ignore", type="primary",
                            width="stretch")  # fmt: skip
    soft(
        "An adjudicator's word goes before the rule. The training set holds what was settled, in a form that train takes: "
        "data.sources: [{name: tiles}], data.root: the unpacked folder."
    )


def _made(session: TileSession, ending: str, rule: str, *, only: bool) -> bytes:
    held = "majority" if rule == "majority" else "unanimous"
    if ending == "decisions":
        return to_csv(export_table(session.store)).encode()
    if ending == ".zip":
        return export.training_set(session, held)  # type: ignore[arg-type]
    table = export.reviewed_tiles(session, held, only_reviewed=only)  # type: ignore[arg-type]
    return export.as_file(session, table, ending)
