"""What a run of the zero-shot app works with: resources made once a server, and the state of this reviewer's page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.labels.labelling import View, make_view, similarity_to
from apps.labels.model import TextModel
from apps.labels.options import TITLE
from apps.labels.pictures import Pictures
from apps.labels.prompts import read_asked
from apps.labels.store import Labels, read_labels
from apps.shared.address import address
from apps.shared.session import Reviewing
from vitdomains.core.errors import ConfigError
from vitdomains.zeroshot.labels.prompts import PromptSet


@st.cache_resource(show_spinner="reading the labels", max_entries=2)
def open_labels(folder: Path, changed: str) -> Labels:
    """Labels as they were at a moment."""
    return read_labels(folder)


@st.cache_resource(show_spinner=False, max_entries=2)
def open_model(folder: Path, changed: str, source: str, threads: int) -> TextModel:
    """The model behind them; it is loaded in the background."""
    made = TextModel(open_labels(folder, changed), source, threads)
    made.start()
    return made


@st.cache_resource(show_spinner=False, max_entries=2)
def open_pictures(folder: Path, changed: str) -> Pictures:
    """Their tiles."""
    return Pictures(open_labels(folder, changed).spec)


@st.cache_resource(show_spinner=False, max_entries=8)
def _probabilities(_labels: Labels, _model: TextModel, _prompts: PromptSet, *key: str) -> NDArray[np.float64]:
    own = _prompts.id == _labels.prompts.id
    return _labels.probabilities if own else _model.probabilities(_prompts)


@st.cache_resource(show_spinner=False, max_entries=24)
def _view(
    _labels: Labels, _prompts: PromptSet, _p: NDArray[np.float64], thresholds: tuple[float, ...], *key: str
) -> View:
    return make_view(_prompts, _labels.kind, thresholds, _p, _labels.shown)


@st.cache_resource(show_spinner=False, max_entries=16)
def _similarity(_model: TextModel, text: str, like: int, *key: str) -> NDArray[np.float64]:
    vectors = _model.vectors
    return similarity_to(vectors, _model.query(text) if like < 0 else vectors[like])


@dataclass(frozen=True)
class Session(Reviewing):
    """Everything that a page needs. What the reviewer chose stands in the address."""

    title: ClassVar = TITLE

    changed: str
    labels: Labels
    model: TextModel
    pictures: Pictures

    @property
    def prompts(self) -> PromptSet:
        """The classes in the address.

        Raises:
            ConfigError: They are not kept here.
        """
        asked = address().get("asked", "")
        return read_asked(self.labels.folder, asked) if asked else self.labels.prompts

    def thresholds(self, prompts: PromptSet) -> tuple[float, ...]:
        """Those in the address, else those of the labels, for classes that are new 0 or 0.5."""
        try:
            given = tuple(min(1.0, max(0.0, float(word))) for word in address().get("t", "").split(",") if word)
        except ValueError:
            given = ()
        return given if len(given) == len(prompts.names) else self.usual_thresholds(prompts)

    def usual_thresholds(self, prompts: PromptSet) -> tuple[float, ...]:
        """Those of the labels; for classes that they do not have 0 with a softmax and 0.5 with a sigmoid."""
        known = dict(zip(self.labels.prompts.names, self.labels.thresholds, strict=True))
        return tuple(known.get(name, 0.0 if self.labels.kind == "softmax" else 0.5) for name in prompts.names)

    @property
    def base(self) -> View:
        """The tiles as they were labelled."""
        return self._look(self.labels.prompts, self.labels.thresholds)

    @property
    def view(self) -> View:
        """The tiles under the classes and thresholds in the address; as labelled while the model is not there.

        Raises:
            VitDomainsError: Prompts cannot be embedded.
        """
        try:
            prompts = self.prompts
        except ConfigError:
            return self.base
        if prompts.id != self.labels.prompts.id and (self.model.loading or self.model.problem):
            return self.base
        return self._look(prompts, self.thresholds(prompts))

    def _look(self, prompts: PromptSet, thresholds: tuple[float, ...]) -> View:
        key = (str(self.labels.folder), self.changed, prompts.id)
        p = _probabilities(self.labels, self.model, prompts, *key)
        return _view(self.labels, prompts, p, thresholds, *key)

    def similarity(self) -> NDArray[np.float64] | None:
        """[M] to the search text or the tile in the address; None without one, or while the model is not there.

        Raises:
            VitDomainsError: The text cannot be embedded.
        """
        text, like = address().get("q", "").strip(), self.number(address().get("like", ""))
        if like < 0 and (not text or self.model.loading or self.model.problem):
            return None
        return _similarity(self.model, "" if like >= 0 else text, like, str(self.labels.folder), self.changed)

    def number(self, item: str) -> int:
        """Place of an item among the shown tiles, -1 where it is none."""
        found = np.flatnonzero(self.labels.items[self.labels.rows] == item) if item else ()
        return int(found[0]) if len(found) else -1

    @property
    def bundle_id(self) -> str:
        """What stands behind the labels in sight: the bundle, or the bundle's tower with other prompts."""
        asked = self.view.prompts
        own = asked.id == self.labels.prompts.id
        return self.labels.bundle_id if own else f"{self.labels.bundle_id} with prompts {asked.id}"

    @property
    def blinded(self) -> bool:
        """Never: what is reviewed is what the model says."""
        return False

    def known(self, item: str) -> bool:
        """Whether there is such a tile among those that are shown."""
        return self.number(item) >= 0
