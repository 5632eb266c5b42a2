"""What a reviewer has begun to say of a film and not yet saved; it survives a reload of the page, not of the server."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitdomains.core.review.store import Answer, Decision, Region, ReviewError, Role

IDLE_SECONDS = 300.0
"""A pause longer than this is no time spent on the film."""

VERDICTS = ("agree", "disagree", "unsure")

Word = str
"""``agree`` | ``disagree`` | ``unsure`` | a label: of a finding ``present`` or ``absent``, of a tile or picture a class name."""


@dataclass
class Draft:
    """The one object of the apps that changes: answers by subject (a finding, a class), note, marks, the time spent so far."""

    answers: dict[str, Word] = field(default_factory=dict)
    note: str = ""
    regions: list[dict[str, Any]] = field(default_factory=list)
    puts: Counter[str] = field(default_factory=Counter)
    changed: bool = False
    revealed: bool = True
    """Whether the answers were given with the model in sight, and so may speak of its calls."""
    seconds: float = 0.0
    touched: float = field(default_factory=time.monotonic)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def touch(self, now: float | None = None) -> None:
        """Count the time since the last sign of life, unless it was a pause."""
        now = time.monotonic() if now is None else now
        if now - self.touched < IDLE_SECONDS:
            self.seconds += now - self.touched
        self.touched = now

    def put(self, subject: str, word: Word) -> None:
        """A subject was answered by a key or a button."""
        self.answers[subject], self.changed = word, True
        self.puts[subject] += 1

    def widget(self, subject: str) -> str:
        """Key of the widget that answers a subject: a new one where the answer was put from elsewhere.

        What the browser sends holds all widgets as they stood when it was sent, which can be before it heard of the answer.
        """
        return f"answer:{self.token}:{subject}:{self.puts[subject]}"

    # The viewer and a note report once more what they were given when they are drawn: what stands already is no change.

    def answer(self, subject: str, word: Word | None) -> None:
        """A subject was answered by its widget; None: its answer was taken back."""
        if word is not None:
            self.answers[subject], self.changed = word, True
        elif self.answers.pop(subject, None) is not None:
            self.changed = True

    def write(self, note: str) -> None:
        """The note was written."""
        self.note, self.changed = note, self.changed or note != self.note

    def mark(self, regions: list[dict[str, Any]]) -> None:
        """Marks were set or removed; these are all of them."""
        self.regions, self.changed = regions, self.changed or regions != self.regions

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
