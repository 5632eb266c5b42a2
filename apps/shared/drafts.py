"""What a reviewer has begun to say of an item and not yet saved: on disk, so that nothing ends it but a save."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamlit.runtime.scriptrunner import get_script_run_ctx

from vitdomains.core.files import write_text
from vitdomains.core.review.store import Answer, Decision, Region, ReviewError, Role

logger = logging.getLogger(__name__)

IDLE_SECONDS = 300.0
"""A pause longer than this is no time spent on the film."""

VERDICTS = ("agree", "disagree", "unsure")
_STORED = ("answers", "note", "regions", "puts", "revealed", "seconds", "token", "generation", "number", "pages")

Word = str
"""``agree`` | ``disagree`` | ``unsure`` | a label: of a finding ``present`` or ``absent``, of a tile or picture a class name."""
Key = tuple[str, str, str]
"""Reviewer, role, item."""


def page_id() -> str:
    """The page (a browser's tab) for which this runs; empty outside of one."""
    context = get_script_run_ctx()
    return context.session_id if context is not None else ""


@dataclass
class Draft:
    """The one object of the apps that changes: answers by subject (a finding, a class), note, marks, the time spent so far.

    ``generation`` counts the saves, ``number`` the changes, ``pages`` has the number of the last change by each page.
    """

    answers: dict[str, Word] = field(default_factory=dict)
    note: str = ""
    regions: list[dict[str, Any]] = field(default_factory=list)
    puts: Counter[str] = field(default_factory=Counter)
    changed: bool = False
    revealed: bool = True
    """Whether the answers were given with the model in sight, and so may speak of its calls."""
    seconds: float = 0.0
    touched: float | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    generation: int = 0
    number: int = 0
    pages: dict[str, int] = field(default_factory=dict)
    store: Callable[[Draft], None] = field(default=lambda draft: None, repr=False, compare=False)
    """Called after every change."""

    @property
    def seen(self) -> list[int]:
        """What a page says it has seen, for ``outdated``."""
        return [self.generation, self.number]

    def outdated(self, seen: list[int]) -> bool:
        """Whether an earlier draft was on the screen: it was saved since, or changed by another page."""
        elsewhere = max((n for page, n in self.pages.items() if page != page_id()), default=0)
        return seen[0] != self.generation or elsewhere > seen[1]

    def touch(self, now: float | None = None) -> None:
        """Count the time since the last sign of life, unless it was a pause."""
        now = time.monotonic() if now is None else now
        if self.touched is not None and now - self.touched < IDLE_SECONDS:
            self.seconds += now - self.touched
        self.touched = now

    def put(self, subject: str, word: Word) -> None:
        """A subject was answered by a key or a button."""
        self.puts[subject] += 1
        self.answer(subject, word)

    def widget(self, subject: str) -> str:
        """Key of the widget that answers a subject: a new one where the answer was put from elsewhere.

        What the browser sends holds all widgets as they stood when it was sent, which can be before it heard of the answer.
        """
        return f"answer:{self.token}:{subject}:{self.puts[subject]}"

    # The viewer and a note report once more what they were given when they are drawn: what stands already is no change.

    def answer(self, subject: str, word: Word | None) -> None:
        """A subject was answered by its widget; None: its answer was taken back."""
        if word is not None:
            self.answers[subject] = word
        elif self.answers.pop(subject, None) is None:
            return
        self._change()

    def write(self, note: str) -> None:
        """The note was written."""
        if note != self.note:
            self.note = note
            self._change()

    def mark(self, regions: list[dict[str, Any]]) -> None:
        """Marks were set or removed; these are all of them."""
        if regions != self.regions:
            self.regions = regions
            self._change()

    def _change(self) -> None:
        self.changed = True
        self.number += 1
        self.pages[page_id()] = self.number
        self.store(self)

    def shown(self, revealed: bool, words: Callable[[dict[str, Word]], dict[str, Word]]) -> None:
        """The page shows the model now, or does not: what was answered blinded is put into the page's ``words``, and what was
        answered with the model in sight is no blinded answer."""
        if revealed != self.revealed:
            self.answers = words(self.answers) if revealed else {}
            self.revealed = revealed
            self.puts.update(self.answers.keys() | self.puts.keys())  # widgets with other words are other widgets

    def saved(self) -> None:
        """What follows is another act."""
        self.changed, self.seconds, self.token = False, 0.0, uuid.uuid4().hex
        self.generation += 1
        self.store(self)


class Drafts:
    """Drafts by reviewer, role and item. Safe to share among threads.

    Args:
        folder: Where those are that were changed and not saved, a file each; None: in memory alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._drafts: dict[Key, Draft] = {}

    def get(self, key: Key, make: Callable[[], Draft]) -> Draft:
        """The draft of a key: what was begun, here or before a restart of the server, else what ``make`` gives."""
        with self._lock:
            if key not in self._drafts:
                found = make()
                begun = self._read(key)
                # A save counts for the draft: what was saved before the server ended is not begun any more.
                if begun is not None and begun["generation"] == found.generation:
                    for name, value in begun.items():
                        setattr(found, name, Counter(value) if name == "puts" else value)
                    found.changed = True
                found.store = lambda draft: self._write(key, draft)
                self._drafts[key] = found
            return self._drafts[key]

    def pop(self, key: Key) -> None:
        """Forget a draft: it was saved, or what it speaks of was taken back."""
        with self._lock:
            self._drafts.pop(key, None)
            if self._folder is not None:
                self._file(key).unlink(missing_ok=True)

    def _file(self, key: Key) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"

    def _read(self, key: Key) -> dict[str, Any] | None:
        if self._folder is None or not self._file(key).is_file():
            return None
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
            return {name: found[name] for name in _STORED} if tuple(found["key"]) == key else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the draft %s cannot be read: %s", self._file(key), error)
            return None

    def _write(self, key: Key, draft: Draft) -> None:
        if self._folder is None:
            return
        if not draft.changed:
            self._file(key).unlink(missing_ok=True)
            return
        with self._lock:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # notes may speak of patients
                write_text(
                    self._file(key), json.dumps({"key": key, **{name: getattr(draft, name) for name in _STORED}})
                )
            except OSError as error:  # the store says more when it comes to saving
                logger.warning("the draft %s cannot be written: %s", self._file(key), error)


def words_of(values: Mapping[str, str], calls: Mapping[str, str], revealed: bool) -> dict[str, Word]:
    """What was saved (finding to ``present``, ``absent`` or ``unsure``) in the words that the page offers now."""
    words = {}
    for name, value in values.items():
        call = calls.get(name, "")
        judged = value != "unsure" and revealed and call
        words[name] = ("agree" if value == call else "disagree") if judged else value
    return words


def options_of(call: str, revealed: bool) -> tuple[Word, Word, Word]:
    """The words that a finding can be answered with."""
    return ("agree", "disagree", "unsure") if revealed and call else ("present", "absent", "unsure")


def decision_of(
    draft: Draft,
    *,
    item: str,
    bundle_id: str,
    reviewer: str,
    role: Role,
    probabilities: Mapping[str, float],
    calls: Mapping[str, str],
    blinded: bool,
) -> Decision:
    """The draft as the store takes it.

    Raises:
        ReviewError: Nothing was judged, or a mark is impossible.
    """
    if not draft.answers:
        raise ReviewError("No finding was judged.", hint="Answer one at least, then save.")
    answers = {
        name: Answer(word) if word in VERDICTS else Answer("label", word)  # type: ignore[arg-type]
        for name, word in draft.answers.items()
    }
    try:
        regions = tuple(Region(**region) for region in draft.regions)
    except TypeError as error:
        raise ReviewError("A mark on the film is malformed.", hint="Remove the mark and set it again.") from error
    return Decision(
        item=item,
        bundle_id=bundle_id,
        reviewer=reviewer,
        answers=answers,
        probabilities=dict(probabilities),
        calls=dict(calls),
        role=role,
        regions=regions,
        note=draft.note,
        seconds=round(draft.seconds, 1),
        blinded=blinded,
        token=draft.token,
    )
