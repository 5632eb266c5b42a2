"""What a run of the satellite app works with: shared resources, made once a server, and the state of this reviewer's page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import streamlit as st

from apps.shared.bundle_info import BundleFacts, read_facts
from apps.shared.drafts import VERDICTS, Draft, words_of
from apps.shared.session import Reviewing
from apps.tiles.engine import TileEngine, scene_path
from apps.tiles.options import TileOptions
from apps.tiles.scene_image import SceneImage
from apps.tiles.tile_list import TileList, read_tiles
from vitdomains.core.review.agreement import readings
from vitdomains.core.review.export import SUBJECT

TITLE = "Satellite tile review"
NOTICE = "Research use only: labels of a model, not a survey. Check them before anyone relies on them."
DOMAINS = ("satellite", "zeroshot")


@dataclass(frozen=True)
class Ground:
    """The scene, its tiles and the model, shared by all who review them."""

    facts: BundleFacts
    scene: SceneImage
    tiles: TileList
    engine: TileEngine
    own_model: bool
    """Whether the tiles were labelled by this very bundle."""


@st.cache_resource(show_spinner="reading the table of tiles")
def open_ground(options: TileOptions) -> Ground:
    """Read tiles and scene once a server; the model is loaded in the background.

    Raises:
        VitDomainsError: Bundle, tiles or scene cannot be read, or do not fit each other.
    """
    facts = read_facts(options.bundle, DOMAINS, ("singlelabel", "multilabel"))
    words = tuple(word.strip() for word in options.bands.split(",") if word.strip()) or facts.bands
    sensor = options.sensor or facts.sensor
    path = scene_path(options.scene, options.asset, sensor, words)
    scene = SceneImage(path, options.resolution, options.crs, sensor, words)
    tiles = read_tiles(options.tiles, path, scene.info, facts, options.queue)
    engine = TileEngine(facts, options, path)
    engine.start()
    return Ground(facts, scene, tiles, engine, set(tiles.table["model_id"].dropna()) <= {facts.id})


@dataclass
class Said:
    """What one reviewer's latest decisions say, by item and subject; brought up to date by the rows added since."""

    seq: int = 0
    values: dict[str, dict[str, str]] = field(default_factory=dict)


@st.cache_resource(show_spinner=False)
def _said(url: str, reviewer: str, role: str) -> Said:
    return Said()


@dataclass(frozen=True)
class TileSession(Reviewing):
    """Everything that a page needs."""

    title: ClassVar = TITLE

    options: TileOptions
    ground: Ground
    drafts: dict[tuple[str, str, str], Draft]

    @property
    def facts(self) -> BundleFacts:
        """The bundle."""
        return self.ground.facts

    @property
    def tiles(self) -> TileList:
        """The tiles."""
        return self.ground.tiles

    @property
    def single(self) -> bool:
        """Whether a tile has one class, so that there is one subject to answer; else each class is one."""
        return self.tiles.kind == "singlelabel"

    def row(self, item: str) -> int | None:
        """Where a tile stands in the table; None where there is none."""
        return self.tiles.position.get(item)

    def calls(self, row: int) -> dict[str, str]:
        """Subject to what the model called; empty where it has said nothing of the tile, or not enough."""
        if not self.tiles.labelled[row]:
            return {}
        called = self.tiles.called[row]
        if self.single:
            return {SUBJECT: self.tiles.classes[int(called.argmax())]} if called.any() else {}
        return {c: "present" if yes else "absent" for c, yes in zip(self.tiles.classes, called, strict=True)}

    def seen_calls(self, row: int) -> dict[str, str]:
        """``calls``, as far as this reviewer may see them now."""
        return self.calls(row) if self.revealed(str(self.tiles.table["item"].iat[row])) else {}

    def said(self) -> dict[str, dict[str, str]]:
        """Item to what this reviewer's latest decision says: subject to class name, ``present``, ``not NAME`` and so on."""
        kept = _said(self.options.store, self.reviewer.name, self.role)
        table = self.ledger.table
        last = int(table["seq"].iloc[-1]) if len(table) else 0
        if last != kept.seq:
            fresh = table[table["seq"].to_numpy() > kept.seq]
            fresh = fresh[(fresh["reviewer"] == self.reviewer.name) & (fresh["role"] == self.role)]
            for item in fresh["item"]:
                kept.values.pop(item, None)  # where the row takes an earlier one back, nothing comes in its place
            said = readings(fresh)
            for item, subject, value in said[["item", "subject", "value"]].itertuples(index=False, name=None):
                kept.values.setdefault(item, {})[subject] = value
            kept.seq = last
        return kept.values

    def draft(self, item: str, row: int) -> Draft:
        """What this reviewer has begun to say of a tile, or else said last."""
        key = (self.reviewer.name, self.role, item)
        if key not in self.drafts:
            known = self.said().get(item, {})
            words = tile_words(known, self.calls(row), single=self.single)
            made = Draft(answers=words, revealed=self.revealed(item))
            if known:
                last = [d for d in self.ledger.decisions(item) if (d.reviewer, d.role) == key[:2]][-1]
                made.note = last.note
            self.drafts[key] = made
        draft = self.drafts[key]
        draft.shown(self.revealed(item), lambda said: tile_words(said, self.calls(row), single=self.single))
        return draft


def tile_words(values: dict[str, str], calls: dict[str, str], *, single: bool) -> dict[str, str]:
    """What was saved, in the words that the page offers: agree, disagree, unsure or the class that it is."""
    if not single:
        return words_of(values, calls, revealed=True)
    call = calls.get(SUBJECT, "")
    words: dict[str, str] = {}
    for subject, value in values.items():
        if value == call or value in VERDICTS:
            words[subject] = "agree" if value == call else value
        else:
            words[subject] = "disagree" if call and value == f"not {call}" else value
    return words


def row_facts(session: TileSession, row: int) -> dict[str, Any]:
    """The row of the table as a dictionary."""
    return {str(k): v for k, v in session.tiles.table.iloc[row].items()}
