"""Decisions of reviewers, checked, and the tables of the store.

The same schema serves SQLite and PostgreSQL: text, integers, doubles, no type that only one of them has.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sqlalchemy import Column, Float, Index, Integer, MetaData, String, Table, Text

from vitdomains.core.errors import VitDomainsError

SCHEMA_VERSION = 1
MAX_TEXT = 10_000  # characters of a note
MAX_NAME = 200  # characters of an item, reviewer or class
MAX_REGIONS = 200

Verdict = Literal["agree", "disagree", "unsure", "label"]
Role = Literal["reader", "adjudicator", "admin"]


class ReviewError(VitDomainsError):
    """A decision, an assignment or the store itself is not what it should be."""


@dataclass(frozen=True)
class Answer:
    """What a reviewer says of one subject: a finding of a multi-label model, or ``label`` of a single-label one.

    ``agree``, ``disagree`` and ``unsure`` speak of what the model called. ``label`` gives the reviewer's own word, in a
    blinded reading or as a correction: a class name; of a finding ``present`` or ``absent``.
    """

    verdict: Verdict
    label: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict) or bool(self.label) != (self.verdict == "label"):
            raise ReviewError(
                f"An answer of verdict {self.verdict!r} with label {self.label!r}.",
                hint="Use agree, disagree or unsure without a label, or label with one.",
            )
        _name("label", self.label, empty=True)


@dataclass(frozen=True)
class Region:
    """A place that a reviewer marked, in pixels of the original image: ``x`` and ``y`` of the centre of the first pixel."""

    kind: Literal["point", "box"]
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    subject: str = ""
    """The finding that it belongs to; empty: none in particular."""

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height)
        sized = self.width > 0 and self.height > 0 if self.kind == "box" else self.width == self.height == 0
        if self.kind not in ("point", "box") or not all(math.isfinite(n) for n in numbers) or not sized:
            raise ReviewError(f"A region {self} is neither a point nor a box.", hint="A box has a width and a height.")
        _name("subject", self.subject, empty=True)


@dataclass(frozen=True)
class Decision:
    """One reading of one item by one reviewer. A correction is another decision; nothing is ever changed.

    Args:
        item: Hash of what was looked at (sha256 of the file), so that it is found again wherever the file lies.
        bundle_id: The model whose prediction was at hand.
        reviewer: Who decided.
        answers: Subject to answer; subjects that were not judged are absent.
        probabilities: Class to probability, as shown; NaN where the model had none.
        calls: Subject to what the model called: of a finding ``present`` or ``absent``; else a class name.
        role: In which the reviewer decided; an adjudicator has the last word.
        regions: Places marked.
        note: Free text.
        seconds: Time spent on the item.
        blinded: The prediction was hidden until the decision.
        token: Of this one act; writing it again (after a lost connection, say) changes nothing.
    """

    item: str
    bundle_id: str
    reviewer: str
    answers: Mapping[str, Answer]
    probabilities: Mapping[str, float] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)
    role: Role = "reader"
    regions: tuple[Region, ...] = ()
    note: str = ""
    seconds: float = 0.0
    blinded: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for key in ("item", "reviewer", "token"):
            _name(key, getattr(self, key))
        _name("bundle_id", self.bundle_id, empty=True)
        for subject in (*self.answers, *self.calls, *self.probabilities, *self.calls.values()):
            _name("class", subject)
        if self.role not in ("reader", "adjudicator"):
            raise ReviewError(f"A decision in the role {self.role!r}.", hint="Decide as reader or adjudicator.")
        needless = [s for s, a in self.answers.items() if a.verdict in ("agree", "disagree") and s not in self.calls]
        if needless:
            raise ReviewError(
                f"{', '.join(needless)}: agreed or disagreed with a model that called nothing.",
                hint="Give `calls` for every subject, or a label of your own.",
            )
        if not math.isfinite(self.seconds) or self.seconds < 0:
            raise ReviewError(f"seconds is {self.seconds}.", hint="Give the time spent, zero or more.")
        if len(self.note) > MAX_TEXT or len(self.regions) > MAX_REGIONS:
            raise ReviewError(
                f"A note of {len(self.note)} characters with {len(self.regions)} regions.",
                hint=f"At most {MAX_TEXT} characters and {MAX_REGIONS} regions.",
            )


@dataclass(frozen=True)
class Assignment:
    """Who is to read an item, and as what; ``active`` false takes it back."""

    item: str
    reviewer: str
    role: Role = "reader"
    active: bool = True

    def __post_init__(self) -> None:
        _name("item", self.item)
        _name("reviewer", self.reviewer)
        if self.role not in ("reader", "adjudicator"):
            raise ReviewError(f"An assignment in the role {self.role!r}.", hint="Assign a reader or an adjudicator.")


def clean_text(text: str) -> str:
    """A note as both databases can keep it: control characters and lone surrogates go, line breaks and tabs stay."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _name(key: str, value: str, *, empty: bool = False) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable() or not (value.strip() or empty):
        raise ReviewError(f"{key} is {value!r:.60}.", hint=f"Give printable text of at most {MAX_NAME} characters.")


metadata = MetaData()


def _chained(name: str, *columns: Column[Any], indices: tuple[tuple[str, ...], ...] = ()) -> Table:
    """A table whose rows form a chain: ``seq`` counts from one without a gap, ``hash`` covers the row and the one before."""
    return Table(
        name,
        metadata,
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("token", String(MAX_NAME), nullable=False, unique=True),
        Column("time", String(32), nullable=False),  # UTC, ISO 8601 to the microsecond: the same text in every database
        *columns,
        Column("previous", String(64), nullable=False),
        Column("hash", String(64), nullable=False),
        *(Index(f"ix_{name}_{'_'.join(keys)}", *keys) for keys in indices),
    )


DECISIONS = _chained(
    "review_decisions",
    Column("item", String(MAX_NAME), nullable=False),
    Column("bundle_id", String(MAX_NAME), nullable=False),
    Column("reviewer", String(MAX_NAME), nullable=False),
    Column("role", String(16), nullable=False),
    Column("answers", Text, nullable=False),  # the next four are canonical JSON
    Column("probabilities", Text, nullable=False),
    Column("calls", Text, nullable=False),
    Column("regions", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("blinded", Integer, nullable=False),
    indices=(("item",), ("reviewer",)),
)

ASSIGNMENTS = _chained(
    "review_assignments",
    Column("item", String(MAX_NAME), nullable=False),
    Column("reviewer", String(MAX_NAME), nullable=False),
    Column("role", String(16), nullable=False),
    Column("active", Integer, nullable=False),
    Column("assigned_by", String(MAX_NAME), nullable=False),
    indices=(("item",), ("reviewer",)),
)

GRANTS = _chained(
    "review_grants",
    Column("reviewer", String(MAX_NAME), nullable=False),
    Column("role", String(16), nullable=False),
    Column("active", Integer, nullable=False),
    Column("granted_by", String(MAX_NAME), nullable=False),
    indices=(("reviewer",),),
)

CHAINS = (DECISIONS, ASSIGNMENTS, GRANTS)

HEADS = Table(
    "review_heads",
    metadata,
    Column("chain", String(64), primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("version", Integer, nullable=False),
)
"""The last row of each chain. Who appends locks its row first, so that writers of all machines stand in one line."""
