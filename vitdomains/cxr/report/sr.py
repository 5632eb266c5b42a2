"""The report of a film as a DICOM Structured Report that a PACS files beside the film.

Template TID 1500 (Measurement Report, PS3.16): one measurement group (TID 1501) for each finding with its probability and the
call, and one planar region (TID 1410) for each place that a reader marked.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import highdicom
import numpy as np
from highdicom import sr
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from vitdomains.core.errors import ImageError
from vitdomains.core.files import write_atomically
from vitdomains.core.review.store import Decision, Region
from vitdomains.cxr.film.film import Film
from vitdomains.cxr.report.content import CAUTION, FilmReport, FindingLine

SCHEME = "99VITDOMAINS"
"""Scheme of the codes that no standard dictionary has; private schemes begin with 99 (PS3.16, section 8.2)."""

FINDING_CODES = {
    "Cardiomegaly": codes.SCT.Cardiomegaly,
    "Effusion": codes.SCT.PleuralEffusion,
    "Infiltration": codes.DCM.Infiltrate,
    "Mass": codes.SCT.Mass,
    "Nodule": codes.SCT.Nodule,
    "Pneumothorax": codes.SCT.Pneumothorax,
    "Edema": codes.SCT.PulmonaryEdema,
    "Fibrosis": codes.SCT.Fibrosis,
    "Lung_Opacity": codes.DCM.Opacity,
}
"""Findings that the dictionary of DICOM's own context groups has a code for; all others get one of ``SCHEME``."""

Group = sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations

_PRESENCE = {"present": codes.SCT.Present, "absent": codes.SCT.Absent, "unsure": codes.DCM.PresenceUndetermined}


def write_sr(report: FilmReport, path: Path) -> Path:
    """Write the report as a Comprehensive SR.

    Raises:
        ImageError: The film is no DICOM file, of a class that SRs cannot refer to, or its identifiers are none.
    """
    try:
        document = structured_report(report)
    except (KeyError, ValueError, TypeError, AttributeError) as error:  # of highdicom and pydicom, by what they dislike
        reason = type(error).__name__ if report.patient else " ".join(str(error).split())[:150]  # which may quote it
        raise _refused(report, "SOPClassUID", report.references.get("SOPClassUID"), f" ({reason})") from error
    write_atomically(path, document.save_as)
    return path


def structured_report(report: FilmReport) -> sr.ComprehensiveSR:
    """The document; see ``write_sr``."""
    film = _evidence(report)
    source = sr.SourceImageForMeasurementGroup.from_source_image(film)
    algorithm = sr.AlgorithmIdentification(
        name=report.bundle.model.name,
        version=report.bundle.id,
        family=codes.DCM.ArtificialIntelligence,
        parameters=[f"thresholds: {report.bundle.threshold_rule or 'not given'}", report.notice, CAUTION],
    )
    groups: list[Group] = [_finding(line, source, algorithm) for line in report.findings]
    for decision in report.decisions:
        groups += [_region(decision, region, film, report.film) for region in decision.regions]
    observers = [_device(report)] + [
        sr.ObserverContext(codes.DCM.Person, sr.PersonObserverIdentifyingAttributes(name=_person(name)))
        for name in dict.fromkeys(d.reviewer for d in report.decisions)
    ]
    content = sr.MeasurementReport(
        observation_context=_context(observers),
        procedure_reported=codes.SCT.PlainRadiography,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.ComprehensiveSR(
        evidence=[film],
        content=content[0],
        series_instance_uid=highdicom.UID(),
        series_number=99,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="vitdomains",
        series_description="Research use only: model and reader findings",
        device_serial_number=report.bundle.id,
        software_versions=version("vitdomains"),
        manufacturer_model_name=report.bundle.model.name[:64],
    )


def _evidence(report: FilmReport) -> Dataset:
    """The film as the document refers to it: UIDs and size, and of the patient what the report was given."""
    missing = [key for key, value in report.references.items() if not UID(value, validation_mode=IGNORE).is_valid]
    if not report.references or missing:
        raise _refused(report, (missing or ["SOPInstanceUID"])[0], None)
    film = Dataset()
    for key, value in report.references.items():
        setattr(film, key, UID(value))
    film.Rows, film.Columns = report.film.turn.stored_size(report.film.full_size)
    film.Modality = report.film.modality
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(film, keyword, report.patient.get(keyword, ""))
    if "PatientAge" in report.patient:
        film.PatientAge = report.patient["PatientAge"]
    return film


def _refused(report: FilmReport, tag: str, value: object, reason: str = "") -> ImageError:
    return ImageError(
        f"sha256 {report.item[:12]}", f"cannot be referred to by a DICOM SR{reason}", tag=tag, value=value,
        hint="Write .html or .pdf of it.",
    )  # fmt: skip


def _private(meaning: str) -> sr.CodedConcept:
    value = re.sub(r"[^A-Z0-9]", "_", meaning.upper())[:16]
    return sr.CodedConcept(value, SCHEME, meaning[:64])


def _code(finding: str) -> sr.CodedConcept:
    known = FINDING_CODES.get(finding)
    if known is None:
        return _private(finding.replace("_", " "))
    return sr.CodedConcept(known.value, known.scheme_designator, known.meaning)


def _finding(
    line: FindingLine, source: sr.SourceImageForMeasurementGroup, algorithm: sr.AlgorithmIdentification
) -> sr.MeasurementsAndQualitativeEvaluations:
    evaluations = [
        sr.QualitativeEvaluation(_private("Model call"), _PRESENCE["present" if line.called else "absent"]),
        *(sr.QualitativeEvaluation(_private("Reader's word"), _PRESENCE.get(v, _private(v))) for _, v in line.readers),
    ]
    measurements = []
    if np.isfinite(line.probability):
        for name, value in ((codes.DCM.Probability, line.probability), (_private("Threshold"), line.threshold)):
            measurements.append(sr.Measurement(name=name, value=round(value, 4), unit=codes.UCUM.NoUnits))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=line.name),
        finding_type=_code(line.name),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=evaluations,
        source_images=[source],
    )


def _region(
    decision: Decision, region: Region, film: Dataset, shown: Film
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    # SCOORD counts from the corner of the first pixel (PS3.3, C.18.6.1.1); ours from its centre.
    x, y = region.x + 0.5, region.y + 0.5
    if region.kind == "point":
        points, shape = np.array([[x, y]]), sr.GraphicTypeValues.POINT
    else:
        right, bottom = x + region.width, y + region.height
        points = np.array([[x, y], [right, y], [right, bottom], [x, bottom], [x, y]])
        shape = sr.GraphicTypeValues.POLYLINE
    points = np.clip(shown.turn.stored_points(points, shown.full_size), 0, [film.Columns, film.Rows])
    image = sr.SourceImageForRegion(film.SOPClassUID, film.SOPInstanceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=highdicom.UID(), identifier=f"{decision.reviewer}: {region.subject}"[:64]
        ),
        referenced_region=sr.ImageRegion(graphic_type=shape, graphic_data=points, source_image=image),
        finding_type=_code(region.subject) if region.subject else None,
        qualitative_evaluations=[sr.QualitativeEvaluation(_private("Marked by"), _private("Reader"))],
    )


def _device(report: FilmReport) -> sr.ObserverContext:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=highdicom.UID(), name="vitdomains", manufacturer_name="vitdomains", model_name=report.bundle.model.name[:64]
    )
    return sr.ObserverContext(codes.DCM.Device, device)


def _context(observers: list[sr.ObserverContext]) -> sr.ObservationContext:
    device = observers[0]
    context = sr.ObservationContext(observer_device_context=device)
    for person in observers[1:]:
        context.extend(person)
    return context


def _person(name: str) -> str:
    """A reviewer's login as a person name: a family name alone, without the characters that structure one."""
    return re.sub(r"[\\^=]", " ", name)[:63] + "^"
