"""Page of the satellite app: agreement, export, and for admins assignments, roles and the check of the store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from apps.shared.components import problems, soft
from apps.shared.team import team_page
from apps.tiles import export
from apps.tiles.filters import TileFilters, visible
from apps.tiles.session import TileSession
from vitdomains.core.review.agreement import Rule
from vitdomains.core.review.export import export_table, to_csv

RULES = {"unanimous": "all reviewers agree", "majority": "most reviewers agree"}


def tiles_team_page(session: TileSession) -> None:
    """Agreement, export, assignments, roles."""
    team_page(session, "Map", "Subject" if session.single else "Class", "tiles", lambda: _export(session),
              lambda: session.tiles.items[visible(session, TileFilters.from_address(session))].tolist())  # fmt: skip


def _export(session: TileSession) -> None:
    count = session.decisions.last
    kind, rule, which, make, get = st.columns([1.2, 1.4, 1.4, 1, 1.2], vertical_alignment="bottom")
    kinds = {ending: name for ending, (name, _) in export.FORMATS.items()}
    kinds |= {"decisions": "every decision, CSV", ".zip": "training set: tiles and manifest, ZIP"}
    ending = str(kind.selectbox("As", list(kinds), format_func=kinds.__getitem__, key="export-kind"))
    chosen = rule.selectbox("A label holds where", list(RULES), format_func=RULES.__getitem__, key="export-rule")
    only = which.toggle("reviewed tiles alone", key="export-only", disabled=ending in ("decisions", ".zip"))
    name = {"decisions": "decisions.csv", ".zip": "training_set.zip"}.get(ending, f"reviewed{ending}")
    if make.button("Make the file", key="export-make", width="stretch"):
        with problems(), st.spinner("writing"):
            folder = tempfile.TemporaryDirectory(
                prefix="vitdomains-export-"
            )  # removed with this session, or by the next export
            _write(session, ending, chosen, Path(folder.name) / name, only=only)
            st.session_state["export"] = (ending, chosen, only, count, folder)
    made = st.session_state.get("export")
    if made and made[:4] == (ending, chosen, only, count):
        mime = {"decisions": "text/csv", ".zip": "application/zip"}.get(ending) or export.FORMATS[ending][1]
        file = Path(made[4].name) / name
        # Read when it is asked for: a training set is as large as its tiles.
        get.download_button(f"Download {name}", file.read_bytes, name, mime, key="export-get", on_click="ignore", type="primary",
                            width="stretch")  # fmt: skip
    soft(
        "An adjudicator's word goes before the rule. The training set holds what was settled, in a form that train takes: "
        "data.sources: [{name: tiles}], data.root: the unpacked folder."
    )


def _write(session: TileSession, ending: str, rule: str, target: Path, *, only: bool) -> None:
    holds: Rule = "majority" if rule == "majority" else "unanimous"
    if ending == "decisions":
        target.write_text(to_csv(export_table(session.store)), encoding="utf-8")
    elif ending == ".zip":
        export.training_set(session, target, holds)
    else:
        export.write_table(session, export.reviewed_tiles(session, holds, only_reviewed=only), target)
