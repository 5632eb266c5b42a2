"""cxr room: one film, what the model says of it and what its readers said, gathered for a report (HTML, PDF, DICOM SR).

No patient's data is copied unless it is asked for; a DICOM SR names the study by its UIDs, without which it would belong nowhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes

from vitdomains.core.domain import Domain
from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.explain import METHODS
from vitdomains.core.explain.attention import attention_blocks
from vitdomains.core.explain.overlay import overlay
from vitdomains.core.explain.render import Explained, explain_file, faithfulness_text, png
from vitdomains.core.files import file_sha256
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.review.agreement import resolved
from vitdomains.core.review.store import Decision, ReviewStore
from vitdomains.core.terminal import console
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


def report(domain: Domain, argv: list[str]) -> int:
    """Write the report of one film: HTML, PDF or DICOM SR."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} report", description=report.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("film", help="DICOM, PNG or JPEG file")
    parser.add_argument("--out", action="append", default=[],
                        help=".html, .pdf or .dcm (DICOM SR); may be repeated (default: report.html)")  # fmt: skip
    parser.add_argument("--store", default="", help="database URL of the reviews, to include the readers' decisions")
    parser.add_argument("--finding", action="append", default=[], help="draw the heat map of it; may be repeated")
    parser.add_argument(
        "--method", default="", choices=("", *sorted(METHODS)), help="of the heat maps (default: by model)"
    )
    parser.add_argument("--with_patient", action="store_true", help="copy name, identifiers and dates of the patient")
    args = parser.parse_args(argv)
    predictor = Predictor(args.bundle, domain.read_image)
    decisions: list[Decision] = []
    if not Path(args.film).is_file():
        raise ImageError(args.film, "is not there", tag="file", value="absent", hint="Check the path.")
    if args.store:
        with ReviewStore(args.store) as store:
            decisions = store.decisions(item=file_sha256(Path(args.film)))
    made = make_report(
        predictor, args.film, notice=domain.notice, decisions=decisions, findings=args.finding, method=args.method,
        with_patient=args.with_patient,
    )  # fmt: skip
    for out in args.out or ["report.html"]:
        console.print(f"report: {write_report(made, out)}")
    for line in sorted(made.findings, key=lambda f: -f.probability):
        mark = "called" if line.called else ""
        console.print(
            f"  {line.name:<22}{line.probability:6.3f}  threshold {line.threshold:.3f}  {mark}", highlight=False
        )
    console.print(domain.notice)
    return 0
