"""The report of one film: what the model and its readers say of it, gathered and written as HTML, PDF or DICOM SR.

No patient's data is copied unless it is asked for; a DICOM SR names the study by its UIDs, without which it would belong nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes

from vitdomains.core.errors import VitDomainsError
from vitdomains.core.explain.attention import attention_blocks
from vitdomains.core.explain.overlay import overlay
from vitdomains.core.explain.render import Explained, explain_file, faithfulness_text, png
from vitdomains.core.files import file_sha256
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.review.agreement import resolved
from vitdomains.core.review.store import Decision
from vitdomains.cxr.film.display import read_facts
from vitdomains.cxr.film.film import read_film
from vitdomains.cxr.film.header import Header
from vitdomains.cxr.report.content import FilmReport, FindingLine
from vitdomains.cxr.report.neighbours import HeldOut, read_held_out

PATIENT_KEYWORDS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
)
"""What is copied of the patient and the visit where that is asked for."""

REFERENCES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def make_report(
    predictor: Predictor,
    path: str | Path,
    *,
    notice: str,
    decisions: Sequence[Decision] = (),
    held_out: HeldOut | None = None,
    findings: Sequence[str] = (),
    method: str = "",
    with_patient: bool = False,
) -> FilmReport:
    """Gather the report of one film.

    Args:
        predictor: A loaded bundle.
        path: The film.
        notice: Stands before everything else.
        decisions: Of the readers, on this film; the latest of each reader and role counts.
        held_out: Of the bundle; None: read from it.
        findings: To draw heat maps of; empty: those that the model calls, or the most probable one.
        method: Of the heat maps; empty: relevance, or gradcam where the model has no attention.
        with_patient: Copy name, identifiers and dates of the patient.

    Raises:
        ImageError: The film cannot be read.
    """
    bundle = predictor.bundle
    film = read_film(path)
    method = method or ("relevance" if attention_blocks(predictor.model) else "gradcam")
    explained = explain_file(predictor, path, method, findings)
    known = read_held_out(bundle.path, bundle.classes) if held_out is None else held_out
    calls = predictor.labels(explained.scores)
    latest = {(d.reviewer, d.role): d for d in decisions}
    lines = []
    for k, name in enumerate(bundle.classes):
        probability = float(explained.scores[k])
        evidence = known.evidence(name, probability)
        lines.append(
            FindingLine(
                name,
                probability,
                bundle.thresholds[k],
                name in calls,
                evidence.text() if evidence else "",
                known.calibration(name),
                tuple(
                    (d.reviewer, resolved(d.answers[name], d.calls.get(name, "")))
                    for d in latest.values()
                    if name in d.answers
                ),
            )
        )
    facts = read_facts(path)
    return FilmReport(
        item=file_sha256(Path(path)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        film=film,
        bundle=bundle,
        findings=tuple(lines),
        pictures=_pictures(explained, bundle.classes, method),
        decisions=tuple(latest.values()),
        patient=_patient(facts) if with_patient and facts is not None else {},
        references={key: facts.text(key) for key in REFERENCES} if facts is not None else {},
        notice=notice,
    )


def _pictures(explained: Explained, classes: Sequence[str], method: str) -> tuple[tuple[str, bytes], ...]:
    made = []
    for heatmap, heat, name in zip(explained.maps, explained.heats, explained.findings, strict=True):
        probability = float(explained.scores[list(classes).index(name)])
        drawn = overlay(explained.image, heat, finding=name, probability=probability, method=method)
        made.append((f"{name.replace('_', ' ')}, by {method}: {faithfulness_text(heatmap)}", png(drawn)))
    return tuple(made)


def _patient(facts: Header) -> dict[str, str]:
    """Name, identifiers and dates, decoded in the file's own character set; what the file leaves empty is left out."""
    found = {}
    encodings = convert_encodings([*facts.texts("SpecificCharacterSet")] or [""])
    for keyword in PATIENT_KEYWORDS:
        element = facts.elements.get(keyword)
        text = decode_bytes(element.data, encodings, {0x5C, 0x5E, 0x3D}) if element is not None else ""
        if text.strip(" \0"):
            found[keyword] = text.strip(" \0")
    return found


def write_report(report: FilmReport, path: str | Path) -> Path:
    """Write ``.html``, ``.pdf`` or ``.dcm`` (DICOM SR), atomically.

    Raises:
        VitDomainsError: Another ending.
        ImageError: A DICOM SR of a film that is no DICOM file.
    """
    target = Path(path)
    if target.suffix == ".dcm":
        from vitdomains.cxr.report.sr import write_sr  # highdicom takes its time to import

        return write_sr(report, target)
    from vitdomains.cxr.report import pages

    writers = {".html": pages.write_html, ".pdf": pages.write_pdf}
    if target.suffix not in writers:
        raise VitDomainsError(f"{target} is neither .html, .pdf nor .dcm.", hint="Change the ending of --out.")
    return writers[target.suffix](report, target)
