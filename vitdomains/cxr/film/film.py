"""One film from whatever file it comes in: float32 ``[H, W]`` in 0..1, bone bright and upright, and what the file knows of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdomains.core.errors import ImageError
from vitdomains.cxr.data.columns import sex, view, years
from vitdomains.cxr.film.grayscale import (
    Grayscale,
    LookupTable,
    Range,
    Window,
    WindowChoice,
    apply,
    read_grayscale,
    with_fallback,
)
from vitdomains.cxr.film.header import Header, open_film, read_header
from vitdomains.cxr.film.orientation import AS_STORED, Turn, read_turn
from vitdomains.cxr.film.pixels import Pixels, Stored, read_layout, read_pixels
from vitdomains.cxr.film.png_jpeg import read_picture

MAX_PIXELS = 1 << 26  # 8192 x 8192: twice the side of the largest detectors
RADIOGRAPHS = ("CR", "DX", "RG", "OT", "")  # OT: films scanned or exported from elsewhere; "": anonymised away

# Objects that are no projection radiograph whatever their Modality says: the end of their SOP class UID (PS3.4, B.5).
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_FILMS = {
    "2": "CT", "2.1": "CT", "2.2": "CT", "4": "MR", "4.1": "MR", "6.1": "US", "3.1": "US", "20": "NM", "128": "PT", "130": "PT",
}  # fmt: skip
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing
_BORDER_TOLERANCE = 0.03
_BORDER_SHARE = 0.98
_MIN_KEPT = 0.5


@dataclass(frozen=True)
class Film:
    """A radiograph, ready to look at.

    Attributes:
        pixels: float32 ``[H, W]`` in 0..1, bone bright; padding is 0.
        valid: bool ``[H, W]``, False on padding; None where every pixel is valid.
        view: "PA", "AP", "LATERAL", another value of View Position in capitals, or "".
        laterality: "L", "R", "B", "U" or "".
        body_part: Body Part Examined in capitals, or "".
        deviation_index: Ten times the common logarithm of exposure over its target; None where unknown.
        spacing: Row and column spacing in mm, at the patient where calibrated, else at the detector; None where
            unknown.
        patient: Patient ID; "" in PNG and JPEG files.
        study: Study Instance UID.
        series: Series Instance UID.
        instance: SOP Instance UID.
        sop_class: SOP Class UID.
        modality: Modality.
        sex: "M", "F" or "".
        age: Age in years, None where unknown.
        burned_in: Burned In Annotation, whether the pixels hold text that may name the patient: "YES", "NO" or "".
        photometric: Photometric interpretation of the file ("MONOCHROME2" for PNG and JPEG).
        bits: Bits stored a pixel.
        window: How stored values were mapped, in words.
        turn: How the stored image was turned upright (Patient Orientation, EXIF).
        offset: Row and column of ``pixels[0, 0]`` in the upright image; not zero where a border was cropped.
        full_size: Rows and columns of the upright image.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None = None
    view: str = ""
    laterality: str = ""
    body_part: str = ""
    deviation_index: float | None = None
    spacing: tuple[float, float] | None = None
    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    sop_class: str = ""
    modality: str = ""
    sex: str = ""
    age: float | None = None
    burned_in: str = ""
    photometric: str = "MONOCHROME2"
    bits: int = 8
    window: str = "full range"
    turn: Turn = AS_STORED
    offset: tuple[int, int] = (0, 0)
    full_size: tuple[int, int] = (0, 0)


def read_image(path: str | Path) -> NDArray[np.float32]:
    """The pixels of ``read_film(path)``: float32 ``[H, W]`` in 0..1, bone bright."""
    return read_film(path).pixels


def read_film(
    path: str | Path,
    *,
    window: WindowChoice = None,
    crop_border: bool = False,
    max_pixels: int = MAX_PIXELS,
    modalities: tuple[str, ...] | None = RADIOGRAPHS,
) -> Film:
    """Read one film: DICOM, PNG or JPEG by content, not by name.

    Args:
        path: The file.
        window: For DICOM, which value-of-interest transformation: None for the film's default (VOI LUT Sequence, else
            the first window, else the full range of up to 8 stored bits, else the 0.5th to 99.5th percentile of
            deeper ones), an index among its alternatives, their explanation (as "BONE"), or (centre, width) in
            modality units. Without effect on PNG and JPEG.
        crop_border: Cut off uniform margins, as a collimator leaves them burned in; ``Film.offset`` keeps where the
            rest came from.
        max_pixels: Larger images are refused from their header alone. Reading takes at most about 16 bytes a pixel.
        modalities: DICOM modalities that are accepted; None for all.

    Returns:
        The film.

    Raises:
        ImageError: The file is not there, is no image of these kinds, is damaged, too large, or no single monochrome
            radiograph. The message names the path and the offending technical value, nothing about the patient.
    """
    path = Path(path)
    with open_film(path) as (file, start):
        if start is not None:
            header = read_header(path, file, start, 2 * max_pixels)
            film = _from_dicom(header, window, max_pixels, modalities)
        else:
            pixels, valid, bits, turn = read_picture(path, file, max_pixels)
            film = Film(pixels, valid, bits=bits, turn=turn, full_size=(pixels.shape[0], pixels.shape[1]))
    return _crop(film) if crop_border else film


def _from_dicom(header: Header, window: WindowChoice, max_pixels: int, modalities: tuple[str, ...] | None) -> Film:
    if modalities is not None:
        _check_modality(header, modalities)
    stored = read_pixels(header, read_layout(header, max_pixels))
    grayscale = read_grayscale(header, stored.layout, window)
    pixels, valid, grayscale = _shown(header, stored, grayscale)
    turn = read_turn(header)
    pixels, valid = turn.apply(pixels), None if valid is None else turn.apply(valid)
    return Film(
        pixels=pixels,
        valid=valid,
        view=view(header.text("ViewPosition")),
        laterality=(header.text("ImageLaterality") or header.text("Laterality")).upper(),
        body_part=header.text("BodyPartExamined").upper(),
        deviation_index=_deviation_index(header),
        spacing=_spacing(header, turn),
        patient=header.text("PatientID"),
        study=header.text("StudyInstanceUID"),
        series=header.text("SeriesInstanceUID"),
        instance=header.text("SOPInstanceUID"),
        sop_class=header.text("SOPClassUID"),
        modality=header.text("Modality"),
        sex=sex(header.text("PatientSex")),
        age=None if math.isnan(age := years(header.text("PatientAge"))) else age,
        burned_in=header.text("BurnedInAnnotation").upper(),
        photometric=header.text("PhotometricInterpretation"),
        bits=stored.layout.stored,
        window=_describe(grayscale),
        turn=turn,
        full_size=(pixels.shape[0], pixels.shape[1]),
    )


def _shown(
    header: Header, stored: Pixels, grayscale: Grayscale
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, Grayscale]:
    """The stored image as display values, which pixels are valid, and the pipeline with the window that was used."""
    size = stored.layout.rows, stored.layout.columns
    blocks: Iterable[Stored] = stored.blocks(whole=grayscale.voi is None)
    try:
        if grayscale.voi is None:
            blocks = list(blocks)
            grayscale = with_fallback(blocks[0], grayscale)
        pixels, valid = apply(blocks, size, grayscale)
    except ValueError as error:
        raise header.error(str(error), "PixelData", f"{size[0]} x {size[1]}") from None
    sample = pixels[:: max(1, size[0] // 64), :: max(1, size[1] // 64)]
    if not isinstance(grayscale.voi, Range) and sample.min() == sample.max():
        seen = pixels if valid is None else pixels[valid]
        if seen.min() == seen.max():
            tag = "VOILUTSequence" if isinstance(grayscale.voi, LookupTable) else "WindowCenter"
            raise header.error("is blank, or its window lies outside of its values", tag, _describe(grayscale))
    return pixels, valid, grayscale


def _check_modality(header: Header, modalities: tuple[str, ...]) -> None:
    modality = header.text("Modality")
    if modality not in modalities:
        accepted = ", ".join(name for name in modalities if name)
        raise header.error("is not a radiograph", "Modality", modality, f"Accepted are {accepted}.")
    sop_class = header.text("SOPClassUID")
    actual = _NO_FILMS.get(sop_class.removeprefix(_STORAGE)) if sop_class.startswith(_STORAGE) else None
    if actual is not None and actual not in modalities:
        raise header.error(f"is not a radiograph but {actual}", "SOPClassUID", sop_class)
    intent = header.text("PresentationIntentType").upper()
    if intent == "FOR PROCESSING" or sop_class == _FOR_PROCESSING:
        raise header.error(
            "holds raw detector values, which no window makes a film of",
            "PresentationIntentType",
            intent or "SOP class For Processing",
            "Take the image FOR PRESENTATION of the same study.",
        )


def _numbers(header: Header, keyword: str) -> tuple[float, ...]:
    """What is no number is as unknown as what is absent: the picture is unharmed."""
    try:
        return header.numbers(keyword)
    except ImageError:
        return ()


def _deviation_index(header: Header) -> float | None:
    """As given, else from the exposure index and its target: ten times the logarithm of their ratio (IEC 62494-1)."""
    given, reached, wanted = (
        next(iter(_numbers(header, keyword)), math.nan)
        for keyword in ("DeviationIndex", "ExposureIndex", "TargetExposureIndex")
    )
    if math.isfinite(given):
        return given
    ratio = reached / wanted if wanted else math.nan
    return 10.0 * math.log10(ratio) if math.isfinite(ratio) and ratio > 0.0 else None


def _spacing(header: Header, turn: Turn) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = _numbers(header, keyword)
        if len(values) == 2 and all(math.isfinite(value) and value > 0.0 for value in values):
            return (values[1], values[0]) if turn.transpose else (values[0], values[1])
    return None


def _describe(grayscale: Grayscale) -> str:
    voi = grayscale.voi
    if isinstance(voi, Window):
        return f"{voi.function} {voi.centre:g}/{voi.width:g} {voi.name}".strip()
    if isinstance(voi, LookupTable):
        return f"VOI LUT {voi.name}".strip()
    return voi.name if isinstance(voi, Range) else ""


def _crop(film: Film) -> Film:
    """Cut uniform margins off: lines of which 98 % lie within 0.03 of the median of the outermost one.

    Where less than half of either side would be left, nothing is cut.
    """
    top, left, bottom, right = 0, 0, *film.pixels.shape
    for _ in range(2):  # the second time without the corners that the first one took
        inner = film.pixels[top:bottom, left:right]
        if not inner.size:
            break
        above, below = _margins(inner)
        before, after = _margins(inner.T)
        top, bottom, left, right = top + above, bottom - below, left + before, right - after
    rows, columns = film.pixels.shape
    if bottom - top < _MIN_KEPT * rows or right - left < _MIN_KEPT * columns:
        return film
    return replace(
        film,
        pixels=np.ascontiguousarray(film.pixels[top:bottom, left:right]),
        valid=None if film.valid is None else np.ascontiguousarray(film.valid[top:bottom, left:right]),
        offset=(top, left),
    )


def _margins(lines: NDArray[np.float32]) -> tuple[int, int]:
    """How many lines at the start and at the end of ``[n, m]`` are uniform and like the outermost one."""
    found = []
    for ordered in (lines, lines[::-1]):
        level = float(np.median(ordered[0]))
        width = 0
        while (
            width < len(ordered)
            and float(np.mean(np.abs(ordered[width] - level) <= _BORDER_TOLERANCE)) >= _BORDER_SHARE
        ):
            width += 1
        found.append(width)
    return found[0], found[1]
