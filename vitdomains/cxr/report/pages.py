"""The report of a film as self-contained HTML and as PDF."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

from vitdomains.core.evaluation.html import document, pictures_grid, row, table
from vitdomains.core.files import write_atomically, write_text
from vitdomains.core.review.store import Decision, Region
from vitdomains.cxr.report.content import CAUTION, FilmReport, FindingLine

_BURNED_IN = {"YES": "yes: the pictures may name the patient", "NO": "none"}
_TITLE = "Chest film: what the model and the readers say"


def facts(report: FilmReport) -> list[tuple[str, str]]:
    """What was looked at with what: (name, value)."""
    film, bundle = report.film, report.bundle
    size = f"{film.full_size[1]} x {film.full_size[0]} pixels, {film.bits} bits"
    rows = [(keyword, value) for keyword, value in report.patient.items()]
    rows += [("Film", f"sha256 {report.item}"), ("Image", size)]
    rows += [("View", " ".join(part for part in (film.view, film.laterality) if part) or "not given")]
    rows += [("Orientation", film.turn.text), ("Burned-in text", _BURNED_IN.get(film.burned_in, "not said"))]
    rows += [("Model", f"{bundle.model.name}, bundle {bundle.id}"), ("Trained on", bundle.data_card or "not given")]
    rows += [("Thresholds", f"{bundle.threshold_rule or 'not given'}, on the validation split")]
    return [*rows, ("Written", report.created)]


def verdicts(line: FindingLine) -> str:
    """The readers' words on one finding."""
    return "; ".join(f"{reader}: {value}" for reader, value in line.readers)


def statement(decision: Decision) -> str:
    """One reader's reading, in a line."""
    how = "before the model's result was shown" if decision.blinded else "with the model's result in sight"
    marked = f" Marked: {', '.join(map(_place, decision.regions))}." if decision.regions else ""
    note = f" Note: {decision.note}" if decision.note else ""
    return f"{decision.reviewer} ({decision.role}), {how}, {decision.seconds:.0f} s.{marked}{note}"


def _place(region: Region) -> str:
    subject = f"{region.subject.replace('_', ' ')} " if region.subject else ""
    at = f"{region.x:.0f}, {region.y:.0f}"
    return f"{subject}{region.kind} at {at}" + (
        f" of {region.width:.0f} x {region.height:.0f}" if region.kind == "box" else ""
    )


def _cells(line: FindingLine) -> tuple[str, str, str, str, str]:
    call = "called" if line.called else ""
    known = " ".join(part for part in (line.evidence, line.calibration) if part)
    return (
        line.name.replace("_", " "),
        f"{line.probability:.2f}",
        f"{line.threshold:.2f} {call}".strip(),
        known,
        verdicts(line),
    )


_HEADS = ("Finding", "Probability", "Threshold", "On held-out films", "Readers")


def write_html(report: FilmReport, path: Path) -> Path:
    """One page without any other file; every text is escaped."""
    lines = sorted(report.findings, key=lambda line: -line.probability)
    rows = [
        row(name, [f'<td class="text">{escape(cell)}</td>' for cell in cells]) for name, *cells in map(_cells, lines)
    ]
    readings = (
        "".join(f"<p>{escape(statement(d))}</p>" for d in report.decisions) or "<p>No reader has decided yet.</p>"
    )
    body = (
        f"<h2>Findings</h2>{table(_HEADS, rows)}<h2>Readers</h2>{readings}<p class='soft'>{escape(CAUTION)}</p>"
        f"{pictures_grid(report.pictures, 'Heat maps')}"
    )
    write_text(path, document(_TITLE, body, notice=report.notice, facts=dict(facts(report))))
    return path


def write_pdf(report: FilmReport, path: Path) -> Path:
    """A4, text that can be searched."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

    styles = getSampleStyleSheet()
    small = ParagraphStyle("small", parent=styles["BodyText"], fontSize=8, leading=10)

    def paragraph(text: str, style: ParagraphStyle = small) -> Paragraph:
        return Paragraph(escape(text), style)

    grid = TableStyle(
        [
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LINEBELOW", (0, 0), (-1, -1), 0.3, colors.lightgrey),
            ("TOPPADDING", (0, 0), (-1, -1), 1),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
        ]
    )
    body = [
        Paragraph(f"<b>{escape(report.notice)}</b>", styles["BodyText"]),
        paragraph(_TITLE, styles["Title"]),
        Table([[paragraph(n), paragraph(v)] for n, v in facts(report)], colWidths=[34 * mm, 140 * mm], style=grid),
        paragraph("Findings", styles["Heading2"]),
        Table(
            [
                [Paragraph(f"<b>{h}</b>", small) for h in _HEADS],
                *(
                    [paragraph(cell) for cell in _cells(line)]
                    for line in sorted(report.findings, key=lambda f: -f.probability)
                ),
            ],
            colWidths=[30 * mm, 19 * mm, 22 * mm, 68 * mm, 35 * mm],
            style=grid,
            repeatRows=1,
        ),
        paragraph("Readers", styles["Heading2"]),
        *([paragraph(statement(d)) for d in report.decisions] or [paragraph("No reader has decided yet.")]),
        paragraph("Heat maps", styles["Heading2"]),
        paragraph(CAUTION),
    ]
    for caption, image in report.pictures:
        picture = Image(io.BytesIO(image))
        scale = min(174 * mm / picture.imageWidth, 110 * mm / picture.imageHeight)
        picture.drawWidth, picture.drawHeight = picture.imageWidth * scale, picture.imageHeight * scale
        body += [Spacer(1, 4 * mm), KeepTogether([picture, paragraph(caption)])]
    title, author = "Chest film report", "vitdomains"
    margins = {"leftMargin": 18 * mm, "rightMargin": 18 * mm, "topMargin": 16 * mm, "bottomMargin": 16 * mm}

    def write(part: Path) -> None:
        SimpleDocTemplate(str(part), pagesize=A4, title=title, author=author, **margins).build(body)

    write_atomically(path, write)
    return path
