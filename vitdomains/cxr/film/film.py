"""cxr room: one film, whatever file it comes in.

``read_film`` decides by content whether a file is DICOM, PNG or JPEG, refuses what is no single radiograph, and
always yields the same
thing: float32 ``[H, W]`` in 0..1 with bone bright, and what the file knows about it.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitdomains.core.errors import ImageError
from vitdomains.cxr.data.columns import years
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
from vitdomains.cxr.film.header import Header, read_header
from vitdomains.cxr.film.pixels import Stored, read_blocks, read_layout
from vitdomains.cxr.film.png_jpeg import JPEG, PNG, read_picture

MAX_PIXELS = 1 << 26  # 8192 x 8192: twice the side of the largest detectors
RADIOGRAPHS = ("CR", "DX", "RG", "OT", "")  # OT: films scanned or exported from elsewhere; "": anonymised away

# Objects that are no projection radiograph whatever their Modality says: the end of their SOP class UID (PS3.4, B.5).
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_FILMS = {
    "2": "CT",
    "2.1": "CT",
    "2.2": "CT",
    "4": "MR",
    "4.1": "MR",
    "6.1": "US",
    "3.1": "US",
    "20": "NM",
    "128": "PT",
    "130": "PT",
}
_LATERAL = frozenset(("LL", "RL", "LATERAL", "LAT", "L", "R", "LLAT", "RLAT"))
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
        sex: "M", "F", "O" or "".
        age: Age in years, None where unknown.
        photometric: Photometric interpretation of the file ("MONOCHROME2" for PNG and JPEG).
        bits: Bits stored a pixel.
        window: How stored values were mapped, in words.
        offset: Row and column of ``pixels[0, 0]`` in the stored image; not zero where a border was cropped.
        full_size: Rows and columns of the stored image.
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
    photometric: str = "MONOCHROME2"
    bits: int = 8
    window: str = "full range"
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
    try:
        with _open(path) as file:
            film = _read_by_content(path, file, window, max_pixels, modalities)
    except OSError as error:
        reason = error.strerror or "input error"
        raise ImageError(path, f"cannot be read: {reason}", tag="file", value=type(error).__name__) from error
    return _crop(film) if crop_border else film


def _open(path: Path) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a null character
        raise ImageError(path, "is no usable path", tag="file", value="ValueError") from None
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        kind = "directory" if stat.S_ISDIR(mode) else "special file"
        raise ImageError(path, f"is a {kind}, not a film", tag="file type", value=kind, hint="Name the files in it.")
    return path.open("rb")


def _read_by_content(
    path: Path, file: BinaryIO, window: WindowChoice, max_pixels: int, modalities: tuple[str, ...] | None
) -> Film:
    head = file.read(132)
    file.seek(0)
    if head[128:] == b"DICM":
        header = read_header(path, file, os.fstat(file.fileno()).st_size, 2 * max_pixels)
        return _from_dicom(header, window, max_pixels, modalities)
    if head.startswith((PNG, JPEG)):
        pixels, valid, bits = read_picture(path, file, max_pixels)
        return Film(pixels, valid, bits=bits, full_size=(pixels.shape[0], pixels.shape[1]))
    if not head:
        raise ImageError(path, "is empty", tag="size", value=0, hint="Copy the file again.")
    # The bytes themselves are not shown: they may be anything, a patient's name included.
    raise ImageError(
        path, "is neither DICOM nor PNG nor JPEG", tag="signature", value=None, hint="Convert it to one of these."
    )


def _from_dicom(header: Header, window: WindowChoice, max_pixels: int, modalities: tuple[str, ...] | None) -> Film:
    if modalities is not None:
        _check_modality(header, modalities)
    layout = read_layout(header, max_pixels)
    grayscale = read_grayscale(header, layout, window)
    blocks: Iterable[Stored] = read_blocks(header, layout, whole=grayscale.voi is None)
    try:
        if grayscale.voi is None:
            blocks = list(blocks)
            grayscale = with_fallback(blocks[0], grayscale)
        pixels, valid = apply(blocks, (layout.rows, layout.columns), grayscale)
    except ValueError as error:
        raise ImageError(header.path, str(error), tag="PixelData", value=f"{layout.rows} x {layout.columns}") from None
    view = header.text("ViewPosition").upper()
    return Film(
        pixels=pixels,
        valid=valid,
        view="LATERAL" if view in _LATERAL else view,
        laterality=(header.text("ImageLaterality") or header.text("Laterality")).upper(),
        body_part=header.text("BodyPartExamined").upper(),
        deviation_index=_deviation_index(header),
        spacing=_spacing(header),
        patient=header.text("PatientID"),
        study=header.text("StudyInstanceUID"),
        series=header.text("SeriesInstanceUID"),
        instance=header.text("SOPInstanceUID"),
        sop_class=header.text("SOPClassUID"),
        modality=header.text("Modality"),
        sex=header.text("PatientSex").upper(),
        age=None if math.isnan(age := years(header.text("PatientAge"))) else age,
        photometric=header.text("PhotometricInterpretation"),
        bits=layout.stored,
        window=_describe(grayscale),
        full_size=(layout.rows, layout.columns),
    )


def _check_modality(header: Header, modalities: tuple[str, ...]) -> None:
    modality = header.text("Modality")
    if modality not in modalities:
        accepted = ", ".join(name for name in modalities if name)
        raise ImageError(
            header.path, "is not a radiograph", tag="Modality", value=modality, hint=f"Accepted are {accepted}."
        )
    sop_class = header.text("SOPClassUID")
    actual = _NO_FILMS.get(sop_class.removeprefix(_STORAGE)) if sop_class.startswith(_STORAGE) else None
    if actual is not None and actual not in modalities:
        raise ImageError(header.path, f"is not a radiograph but {actual}", tag="SOPClassUID", value=sop_class)


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


def _spacing(header: Header) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = _numbers(header, keyword)
        if len(values) == 2 and all(math.isfinite(value) and value > 0.0 for value in values):
            return values[0], values[1]
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
