"""What a run of the chest film app works with: shared resources, made once a server, and the state of this reader's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import streamlit as st

from apps.films.engine import Engine
from apps.films.options import Options
from apps.films.worklist import Worklist
from apps.shared.bundle_info import BundleFacts, read_facts
from apps.shared.drafts import Draft, words_of
from apps.shared.session import Reviewing

NOTICE = "Research use only. Not a medical device: it must not be used for diagnosis or treatment."
DOMAIN = "cxr"


@st.cache_resource(show_spinner=False)
def open_worklist(bundle: Path, studies: Path, cache: Path, threads: int) -> Worklist:
    """The worklist with its engine; both begin to work in the background."""
    engine = Engine(read_facts(bundle, DOMAIN), threads)
    made = Worklist(studies, cache, engine)
    engine.start()
    made.start()
    return made


@dataclass(frozen=True)
class Session(Reviewing):
    """Everything that a page needs."""

    title: ClassVar = "Chest film review"

    options: Options
    worklist: Worklist
    drafts: dict[tuple[str, str, str], Draft]

    @property
    def engine(self) -> Engine:
        """The model at work."""
        return self.worklist.engine

    @property
    def facts(self) -> BundleFacts:
        """The bundle."""
        return self.worklist.engine.facts

    @property
    def shows_patients(self) -> bool:
        """Whether patients' data is on the screen: allowed at the start, and switched on by the reader."""
        return self.options.phi and bool(st.session_state.get("phi"))

    def film(self, item: str) -> dict[str, Any] | None:
        """The worklist's row of an item, or of an uploaded film; None where there is none."""
        uploads: Mapping[str, dict[str, Any]] = st.session_state.get("uploads", {})
        if item in uploads:
            return uploads[item]
        table = self.worklist.table
        found = table[table["item"] == item]
        return {str(k): v for k, v in found.iloc[0].items()} if len(found) else None

    def probabilities(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Class to probability of a row."""
        return {c: float(row[f"prob:{c}"]) for c in self.facts.classes}

    def draft(self, item: str, row: Mapping[str, Any]) -> Draft:
        """What this reviewer has begun to say of an item, or else said last."""
        key = (self.reviewer.name, self.role, item)
        if key not in self.drafts:
            said = self.ledger.values(item, self.reviewer.name, self.role) or {}
            calls = self.facts.calls(self.probabilities(row))
            known = {name: value for name, value in said.items() if name in self.facts.classes}
            made = Draft(answers=words_of(known, calls, self.revealed(item)), revealed=self.revealed(item))
            if said:
                last = [d for d in self.ledger.decisions(item) if (d.reviewer, d.role) == key[:2]][-1]
                made.note, made.regions = last.note, [vars(region).copy() for region in last.regions]
            self.drafts[key] = made
        draft = self.drafts[key]
        draft.shown(
            self.revealed(item), lambda said: words_of(said, self.facts.calls(self.probabilities(row)), revealed=True)
        )
        return draft
