"""DICOM films without their patients, for research: dicognito by patient, and what it leaves in place removed.

Names, identifiers and UIDs become others, the same ones for the same value of a patient; dates move by the same number of
days, 62 to 730 back, for all films of a patient. Private elements, overlays, comments and other free text go. Pixels stay as they
are: where a header says that text is burned in, or does not say that none is, the table of the result flags it. This is not
the whole basic profile of PS3.15: elements that neither dicognito nor the list here names stay.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset

from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.files import as_file_name, write_atomically
from vitdomains.cxr.film.display import read_facts

_FREE_TEXT = (
    "AcquisitionComments AdditionalPatientHistory AdmittingDiagnosesDescription ContentDescription DerivationDescription "
    "DetectorID DeviceSerialNumber FrameComments GantryID ImageComments InterpretationText MedicalAlerts Allergies "
    "PatientComments PatientState PerformedProcedureStepDescription PlateID PregnancyStatus ProtocolName "
    "ReasonForTheRequestedProcedure RequestedProcedureComments RequestedProcedureDescription SeriesDescription SmokingStatus "
    "SourceApplicationEntityTitle SpecialNeeds StudyComments StudyDescription TextComments VisitComments"
)
FREE_TEXT = frozenset(_FREE_TEXT.split())
"""Keywords that are removed besides every element of a text VR (LT, ST, UC, UT)."""
_TEXT_VRS = ("LT", "ST", "UC", "UT")


@dataclass(frozen=True)
class Result:
    """One film: the file written, relative to the folder, "" where ``error`` says why there is none; what is burned in."""

    file: str
    burned_in: str = ""
    error: str = ""


def deidentify(
    paths: Iterable[Path], out: Path, key: bytes = b"", progress: Callable[[int], None] | None = None
) -> list[Result]:
    """Write each film into ``out/PATIENT/INSTANCE.dcm`` without what names the patient.

    Args:
        paths: DICOM films; what is none has an error in its row.
        out: Folder to write into.
        key: The same key gives the same patients the same new identity another time; empty: a random one, then forgotten.
        progress: Called with the number of films done.

    Raises:
        VitDomainsError: dicognito is not installed.
    """
    try:
        from dicognito.anonymizer import Anonymizer
    except ImportError as error:
        hint = "Run: pip install 'vitdomains[deidentify]'."
        raise VitDomainsError("The package dicognito is not installed.", hint=hint) from error
    secret = key or secrets.token_bytes(32)
    results: list[Result] = []
    written: set[str] = set()
    for number, path in enumerate(paths, 1):
        try:
            film, patient = _read(path)
            seed = hmac.new(secret, patient.encode(), "sha256").hexdigest()
            Anonymizer(seed=seed).anonymize(film)
            _strip(film)
            name = f"{as_file_name(str(film.PatientID))}/{as_file_name(str(film.SOPInstanceUID))}.dcm"
            if name in written:
                raise ImageError(path, "is another file of an instance that was written already")
            write_atomically(out / name, film.save_as)
            written.add(name)
            burned = {"YES": "yes", "NO": "no"}.get(str(film.get("BurnedInAnnotation", "")).upper(), "not said")
            results.append(Result(name, burned))
        except ImageError as error:
            results.append(Result("", error=error.problem))
        except Exception as error:  # noqa: BLE001 - pydicom and dicognito raise what a damaged element makes them raise
            results.append(
                Result("", error=f"cannot be de-identified ({type(error).__name__})")
            )  # its text may name the patient
        if progress is not None:
            progress(number)
    return results


def read_key(path: Path) -> bytes:
    """The secret in a file, which only its owner may read; where there is no such file, it is made.

    Raises:
        VitDomainsError: The file is empty or cannot be read.
    """
    try:
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_hex(32).encode())
        key = path.read_bytes().strip()
    except OSError as error:
        raise VitDomainsError(
            f"{path} cannot be read: {error.strerror}.", hint="Name another file with --key."
        ) from error
    if len(key) < 16:
        raise VitDomainsError(f"{path} holds fewer than 16 bytes.", hint="Name a new file with --key: it is made.")
    return key


def _read(path: Path) -> tuple[FileDataset, str]:
    header = read_facts(path)  # refuses what would exhaust memory or stack before pydicom reads it
    if header is None:
        raise ImageError(path, "is PNG or JPEG: it has no header, and what is burned in is all that it says")
    patient = header.text("PatientID") or header.text("StudyInstanceUID")
    if not patient or not header.text("SOPInstanceUID"):
        raise ImageError(path, "names neither patient nor instance", tag="SOPInstanceUID")
    film = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in getattr(film, "file_meta", {}):
        raise ImageError(path, "has no file meta information", tag="TransferSyntaxUID")
    return film, patient


def _strip(film: FileDataset) -> None:
    def without(dataset: Dataset, element: pydicom.DataElement) -> None:
        curve_or_overlay = element.tag.group >> 8 in (0x50, 0x60)
        if element.VR in _TEXT_VRS or element.keyword in FREE_TEXT or curve_or_overlay:
            del dataset[element.tag]

    film.remove_private_tags()
    film.walk(without)
    film.preamble = b"\0" * 128
    film.file_meta.walk(without)
    film.file_meta.remove_private_tags()
