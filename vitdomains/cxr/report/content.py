"""What a film report says, before it is drawn as HTML, PDF or DICOM SR."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitdomains.core.bundle import Bundle
from vitdomains.core.review.store import Decision
from vitdomains.cxr.film.film import Film

CAUTION = (
    "A heat map shows where the score is sensitive, not why, and not where a finding ends. Such maps can stay the same when "
    "the model's weights are made random (Adebayo et al. 2018, arXiv:1810.03292); on chest films they find findings less well "
    "than detectors (Arun et al. 2021, Radiology: Artificial Intelligence 3, e200267) and readers (Saporta et al. 2022, "
    "Nature Machine Intelligence 4, 867-878) do."
)
"""What a heat map cannot tell; stands beside every one of them."""


@dataclass(frozen=True)
class FindingLine:
    """One finding: probability, threshold, what held-out films say of such a score, and each reader's word."""

    name: str
    probability: float
    threshold: float
    called: bool
    evidence: str = ""
    calibration: str = ""
    readers: tuple[tuple[str, str], ...] = ()
    """(reviewer, ``present`` | ``absent`` | ``unsure``)."""


@dataclass(frozen=True)
class FilmReport:
    """All that a report says; its writers add nothing."""

    item: str
    created: str
    film: Film
    bundle: Bundle
    findings: tuple[FindingLine, ...]
    pictures: tuple[tuple[str, bytes], ...]
    """(caption, PNG)."""
    decisions: tuple[Decision, ...]
    patient: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    notice: str = ""
