"""A phantom film as a DICOM file of a CR or DX unit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)

from vitdomains.cxr.phantoms.cohort import FilmSpec


def phantom_uid(*parts: str) -> UID:
    """A UID under 2.25 (UUID-derived, DICOM PS3.5 annex B.2) that depends on ``parts`` alone."""
    digest = hashlib.sha256("/".join(("vitdomains phantom", *parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def write_dicom(
    path: Path, pixels: NDArray[np.float32], spec: FilmSpec, spacing: float, rng: np.random.Generator
) -> None:
    """Writes one film, in a pixel format drawn from ``rng``.

    Stored values fill most of 12 to 15 bits; about a third of the films is MONOCHROME1, one in thirty RLE-compressed.
    The window brings the film back to what ``pixels`` shows, give or take a little contrast.

    Args:
        path: Where to write.
        pixels: float32 [H, W], 0..1, bone bright.
        spec: The film.
        spacing: Pixel spacing on the detector, mm.
        rng: Of this film.
    """
    bits = int(rng.choice([12, 13, 14, 15]))
    inverted = rng.random() < 0.35
    compressed = rng.random() < 1 / 30
    computed = rng.random() < 0.4
    top = 2**bits - 1
    low, high = float(rng.uniform(0.0, 0.12)), float(rng.uniform(0.85, 1.0))
    stored = np.round((low + (high - low) * pixels) * top).astype(np.uint16)
    width = (high - low) * top * float(rng.uniform(0.94, 1.06))
    centre = (low + high) / 2 * top
    if inverted:
        stored, centre = (top - stored).astype(np.uint16), top - centre

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = (
        ComputedRadiographyImageStorage if computed else DigitalXRayImageStorageForPresentation
    )
    meta.MediaStorageSOPInstanceUID = phantom_uid("film", spec.id, str(spec.patient.seed))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    _describe(ds, spec, computed, spacing)
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.WindowCenter, ds.WindowWidth = f"{centre:.1f}", f"{width:.1f}"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    if compressed:
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OW"
        ds.compress(RLELossless, generate_instance_uid=False)
    else:
        ds.PixelData = stored.astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def _describe(ds: FileDataset, spec: FilmSpec, computed: bool, spacing: float) -> None:
    patient = spec.patient
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = phantom_uid("study", spec.id, str(patient.seed))
    ds.SeriesInstanceUID = phantom_uid("series", spec.id, str(patient.seed))
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.Modality = "CR" if computed else "DX"
    ds.PatientName = f"PHANTOM^{patient.id}"
    ds.PatientID = patient.id
    ds.PatientBirthDate = ""
    ds.PatientSex = patient.sex
    ds.PatientAge = f"{patient.age:03d}Y"
    # A day of a calendar that no patient has: the films of a patient are in order of their number.
    ds.StudyDate = ds.ContentDate = f"19000{1 + spec.number // 28 % 9}{1 + spec.number % 28:02d}"
    ds.StudyTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.StudyID = f"{spec.number:03d}"
    ds.SeriesNumber, ds.InstanceNumber = "1", "1"
    ds.Manufacturer = "vitdomains"
    ds.ManufacturerModelName = "synthetic phantom"
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = spec.view
    ds.PatientOrientation = ["L", "F"]
    ds.Laterality = ""
    ds.PixelSpacing = ds.ImagerPixelSpacing = [f"{spacing:.5f}", f"{spacing:.5f}"]
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    ds.ImageComments = "Synthetic film drawn by a program; not a patient."
