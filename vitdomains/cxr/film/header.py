"""A film's file by its first bytes, and the elements of a DICOM header within limits.

Only the elements that a film needs are kept; everything else is stepped over, element by element and without
recursion, so that a file can neither exhaust the stack (sequences nested a thousand deep) nor the memory (a deflate
bomb, a gigabyte in a private element, millions of empty items) before its pixels are asked for.

Layout of data elements: DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences), A.5 (deflate), 10.1 (file meta
information: PS3.10, 7.1). Files without preamble or without file meta information, as old archives hold them, and files
whose data set begins behind other bytes are read too: the first element says how the data set is encoded, and is believed
over the transfer syntax.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_has_tag, tag_for_keyword
from pydicom.valuerep import VR

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.stream import Stream, inflated

UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 64  # the deepest sequence of a standard object is below ten
MAX_ELEMENTS = 50_000
MAX_VALUE_BYTES = 4096
MAX_TABLE_BYTES = 2 * 65536 + 2
MAX_ITEMS = 64
MAX_INFLATED_HEADER = 64 << 20
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_HEAD = 4096  # bytes that are searched for the beginning of a DICOM file behind others
_PREAMBLE = 128
_OTHERS = {  # what films come in, or are taken for, by mistake: name -> (offset, bytes)
    "a gzip archive": ((0, b"\x1f\x8b"),),
    "a ZIP archive": ((0, b"PK\x03\x04"),),
    "a tar archive": ((257, b"ustar"),),
    "a bzip2 archive": ((0, b"BZh"),),
    "an xz archive": ((0, b"\xfd7zXZ\x00"),),
    "a Zstandard archive": ((0, b"\x28\xb5\x2f\xfd"),),
    "a 7-Zip archive": ((0, b"7z\xbc\xaf"),),
    "a TIFF picture": ((0, b"II*\x00"), (0, b"MM\x00*")),
    "a GIF picture": ((0, b"GIF8"),),
    "a BMP picture": ((0, b"BM"),),
    "a WebP picture": ((8, b"WEBP"),),
    "a HEIF or AVIF picture or a video": ((4, b"ftyp"),),
    "a JPEG 2000 picture": ((4, b"jP  "), (0, b"\xff\x4f\xff\x51")),
    "a NIfTI volume": ((0, b"\x5c\x01\x00\x00"), (344, b"n+1\x00")),
    "an NRRD volume": ((0, b"NRRD"),),
    "a NumPy array": ((0, b"\x93NUMPY"),),
    "an HDF5 file": ((0, b"\x89HDF"),),
    "a PDF document": ((0, b"%PDF"),),
    "a text in XML or HTML": ((0, b"<"),),
    "a text in JSON": ((0, b"{"),),
}
_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
_VRS = frozenset(vr.value for vr in VR)
_INTEGER_FORMATS = {"US": "H", "SS": "h", "UL": "L", "SL": "l"}


def _tags(keywords: str) -> dict[int, str]:
    pairs = ((tag_for_keyword(keyword), keyword) for keyword in keywords.split())
    return {tag: keyword for tag, keyword in pairs if tag is not None}


_WANTED = _tags(
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality PatientID PatientSex PatientAge "
    "SpecificCharacterSet PatientName PatientBirthDate StudyDate StudyTime StudyID AccessionNumber "
    "ViewPosition BodyPartExamined Laterality ImageLaterality ExposureIndex TargetExposureIndex DeviationIndex "
    "ImagerPixelSpacing NominalScannedPixelSpacing PixelSpacing PatientOrientation FieldOfViewHorizontalFlip "
    "FieldOfViewRotation PresentationIntentType BurnedInAnnotation "
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit WindowCenter WindowWidth "
    "WindowCenterWidthExplanation VOILUTFunction RescaleIntercept RescaleSlope ModalityLUTSequence VOILUTSequence"
)
_WANTED_IN_ITEMS = _tags("LUTDescriptor LUTExplanation LUTData")
_READ = frozenset((*_WANTED.values(), *_WANTED_IN_ITEMS.values()))
_TRANSFER_SYNTAX = 0x00020010


@dataclass(frozen=True)
class Element:
    """One data element: its value representation ("" in implicit files), its bytes, or the items of a sequence."""

    vr: str
    data: bytes = b""
    items: tuple[Mapping[str, Element], ...] = ()


@dataclass(frozen=True)
class Header:
    """What a film's file says about itself, still in bytes; the accessors convert and check.

    ``stream`` stands at the first byte of the value of the pixel data, ``pixel_length`` is that value's length in
    bytes as declared (``UNDEFINED`` for encapsulated frames), ``pixel_keyword`` is "" where the file has no pixels.
    """

    path: Path
    syntax: uid.UID
    little_endian: bool
    elements: Mapping[str, Element]
    pixel_keyword: str
    pixel_vr: str
    pixel_length: int
    stream: Stream = field(repr=False)

    def error(self, problem: str, tag: str, value: object = None, hint: str = "") -> ImageError:
        """An error that names this file."""
        return ImageError(self.path, problem, tag=tag, value=value, hint=hint)

    def texts(self, keyword: str) -> list[str]:
        """The values of a text element without padding; empty where it is absent or empty."""
        if keyword not in _READ:
            raise KeyError(f"{keyword} is not read from headers: add it to _WANTED")
        raw = self.elements[keyword].data if keyword in self.elements else b""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")  # one character a byte: identifiers stay distinct whatever the character set
        return [part.strip(" \0") for part in text.split("\\")] if text.strip(" \0") else []

    def text(self, keyword: str) -> str:
        """The first value of a text element, "" where there is none."""
        return next(iter(self.texts(keyword)), "")

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """The values of a decimal string, non-finite ones included; empty where it is absent."""
        values = self.texts(keyword)
        try:
            return tuple(float(value) for value in values if value)
        except ValueError:
            raise self.error("is not a number", keyword, "\\".join(values)) from None

    def integers(self, keyword: str, *, signed: bool = False) -> tuple[int, ...]:
        """The values of a binary integer element; empty where it is absent or empty."""
        element = self.elements.get(keyword)
        if element is None or not element.data:
            return ()
        return self.unpack(element, keyword, signed=signed)

    def unpack(self, element: Element, keyword: str, *, signed: bool = False) -> tuple[int, ...]:
        """The integers of one element; without a binary VR they are 16 bits wide, signed as asked."""
        code = _INTEGER_FORMATS.get(element.vr, "h" if signed else "H")
        count, rest = divmod(len(element.data), struct.calcsize("<" + code))
        if rest or not count:
            raise self.error("has a value of impossible length", keyword, f"{len(element.data)} bytes")
        return struct.unpack(("<" if self.little_endian else ">") + str(count) + code, element.data)

    def required(self, keyword: str) -> int:
        """The first integer of an element that no film can do without."""
        values = self.integers(keyword)
        if not values:
            raise self.error("lacks a required element", keyword)
        return values[0]


@dataclass
class _Walk:
    """The state of one pass over a data set: where, in which encoding, and how many elements were seen."""

    stream: Stream
    implicit: bool = False
    endian: str = "<"
    seen: int = 0

    def error(self, problem: str, tag: str, value: object, hint: str = "") -> ImageError:
        return ImageError(self.stream.path, problem, tag=tag, value=value, hint=hint)

    def next(self, implicit: bool) -> tuple[int, str, int] | None:
        """Tag, VR and length of the next element, its value still to be read; None at the end of the file."""
        self.seen += 1
        if self.seen > MAX_ELEMENTS:
            raise self.error("has more data elements than a film needs", "elements", self.seen)
        head = self.stream.read(8, at_end_ok=True)
        if not head:
            return None
        group, number = struct.unpack(self.endian + "HH", head[:4])
        tag = group << 16 | number
        if implicit or group == 0xFFFE:
            return tag, "", int(struct.unpack(self.endian + "L", head[4:])[0])
        vr = head[4:6].decode("latin-1")
        if not (vr.isascii() and vr.isalpha() and vr.isupper()):
            raise self.error("has an element without a value representation", _name(tag), head[4:6].hex())
        if vr in _LONG_VRS:
            return tag, vr, int(struct.unpack(self.endian + "L", self.stream.read(4))[0])
        return tag, vr, int(struct.unpack(self.endian + "H", head[6:])[0])

    def inside(self, implicit: bool) -> tuple[int, str, int]:
        """As ``next``, where the file must not end."""
        found = self.next(implicit)
        if found is None:
            raise self.error("ends inside a sequence", "length", "undefined", "Copy the file again.")
        return found

    def skip_undefined(self, implicit: bool) -> None:
        """Step over the content of an element of undefined length, however deep, with one flag a level."""
        levels = [(True, implicit)]  # (a sequence, where items follow; or an item, where elements follow; its encoding)
        while levels:
            in_sequence, implicit = levels[-1]
            tag, vr, length = self.inside(implicit)
            if in_sequence != (tag in (_ITEM, _SEQUENCE_END)):
                raise self.error("has a malformed sequence", _name(tag), f"level {len(levels)}")
            if tag in (_ITEM_END, _SEQUENCE_END):
                levels.pop()
            elif length != UNDEFINED:
                self.stream.skip(length, _name(tag))
            elif len(levels) >= 2 * MAX_DEPTH:
                raise self.error(f"nests sequences more than {MAX_DEPTH} deep", _name(tag), "undefined length")
            else:
                levels.append((tag != _ITEM, implicit or vr == "UN"))

    def dataset(
        self, wanted: Mapping[int, str], implicit: bool, end: int | None = None
    ) -> tuple[dict[str, Element], tuple[int, str, int]]:
        """The wanted elements up to ``end``, an item's end, the pixels or the file's end; and what it stopped at."""
        kept: dict[str, Element] = {}
        while end is None or self.stream.position < end:
            found = self.next(implicit)
            if found is None or found[0] == _ITEM_END or found[0] in _PIXEL_TAGS:
                return kept, found or (0, "", 0)
            tag, vr, length = found
            keyword = wanted.get(tag, "")
            if keyword in _SEQUENCES:
                kept[keyword] = Element("SQ", items=tuple(self.items(keyword, length, implicit or vr == "UN")))
            elif length == UNDEFINED:
                self.skip_undefined(implicit or vr == "UN")
            elif keyword:
                limit = MAX_TABLE_BYTES if keyword == "LUTData" else MAX_VALUE_BYTES
                if length > limit:
                    raise self.error("has a value of impossible length", keyword, f"{length} bytes")
                kept[keyword] = Element(vr, self.stream.read(length, keyword))
            else:
                self.stream.skip(length, _name(tag))
        return kept, (0, "", 0)

    def items(self, keyword: str, length: int, implicit: bool) -> list[Mapping[str, Element]]:
        """The items of a sequence of lookup tables."""
        found: list[Mapping[str, Element]] = []
        end = None if length == UNDEFINED else self.stream.position + length
        while end is None or self.stream.position < end:
            tag, _, size = self.inside(implicit)
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM or len(found) >= MAX_ITEMS:
                raise self.error("has a malformed sequence", keyword, f"item {len(found) + 1}")
            item_end = None if size == UNDEFINED else self.stream.position + size
            found.append(self.dataset(_WANTED_IN_ITEMS, implicit, item_end)[0])
        return found


@contextmanager
def open_film(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """The open file of a film at its first byte, and where its DICOM data begin, behind any preamble; None: PNG or JPEG.

    Raises:
        ImageError: There is no such regular file, or it is no film: the message says what it is where its first bytes
            tell. Also for an OSError inside the block.
    """
    try:
        try:
            mode = os.stat(path).st_mode
        except ValueError:  # a null character
            raise ImageError(path, "is no usable path", tag="file", value="ValueError") from None
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            kind = "directory" if stat.S_ISDIR(mode) else "special file"
            raise ImageError(
                path, f"is a {kind}, not a film", tag="file type", value=kind, hint="Name the files in it."
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0)
            yield file, _dicom_start(path, head)
    except OSError as error:
        reason = error.strerror or "input error"
        raise ImageError(path, f"cannot be read: {reason}", tag="file", value=type(error).__name__) from error


def _dicom_start(path: Path, head: bytes) -> int | None:
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return _PREAMBLE + 4
    if head.startswith((PNG, JPEG)):
        return None
    if not head:
        raise ImageError(path, "is empty", tag="size", value=0, hint="Copy the file again.")
    for start in (0, _PREAMBLE):  # without "DICM", or without the preamble too
        at = start + 4 * head.startswith(b"DICM", start)
        if _encoding(head[at : at + 8]) is not None:
            return at
    for name, signatures in _OTHERS.items():
        if any(head.startswith(signature, offset) for offset, signature in signatures):
            hint = "Unpack it and name the files in it." if "archive" in name else "Export it as DICOM, PNG or JPEG."
            raise ImageError(path, f"is {name}, not a film", tag="signature", value=name, hint=hint)
    behind = head.find(b"DICM") + 4  # other bytes stand before it, as a download leaves them
    if behind > 4 and _encoding(head[behind : behind + 8]) is not None:
        return behind
    # The bytes themselves are not shown: they may be anything, a patient's name included.
    raise ImageError(path, "is neither DICOM nor PNG nor JPEG", tag="signature", hint="Convert it to one of these.")


def _encoding(head: bytes) -> tuple[bool, bool] | None:
    """(implicit, little endian) of a data set by its first eight bytes; None where no data set begins so."""
    for order in "<>" if len(head) == 8 else "":
        group, number, length = struct.unpack(order + "HHL", head)
        if group not in (0x0002, 0x0004, 0x0008, 0x0010) or not (
            number == 0 or dictionary_has_tag(group << 16 | number)
        ):
            continue
        if head[4:6].decode("latin-1") in _VRS:
            return False, order == "<"
        if length < MAX_VALUE_BYTES and length % 2 == 0:
            return True, order == "<"
    return None


def read_header(path: Path, file: BinaryIO, start: int, max_pixel_bytes: int) -> Header:
    """Read a DICOM file up to its pixels.

    Args:
        path: Named in errors.
        file: The open file; the header's stream goes on reading from it.
        start: Where its file meta information or, without one, its data set begins.
        max_pixel_bytes: What a deflated file may inflate to, beyond 64 MiB for its header.

    Returns:
        The header, its stream at the first byte of the pixel data; ``syntax`` is "" where nothing says it.

    Raises:
        ImageError: The file is truncated, malformed, nested deeper than 64 sequences or larger than the limits.
    """
    stream = Stream(path, file, os.fstat(file.fileno()).st_size)
    stream.skip(start, "the preamble")
    declared = ""
    walk = _Walk(stream)
    while stream.peek(2) == b"\x02\x00":  # the file meta information is always explicit, little endian
        tag, _, length = walk.inside(implicit=False)
        if length > MAX_VALUE_BYTES or tag != _TRANSFER_SYNTAX:
            stream.skip(length, _name(tag))
        else:
            declared = stream.read(length, _name(tag)).decode("latin-1").strip(" \0")
    # Not validated: pydicom would warn of an odd one with its text, and an unknown one is refused anyway.
    syntax = uid.UID(declared, validation_mode=IGNORE)
    if syntax == uid.DeflatedExplicitVRLittleEndian and _encoding(stream.peek(8)) is None:
        stream = inflated(path, file, MAX_INFLATED_HEADER + max_pixel_bytes)
    found = _encoding(stream.peek(8))
    if found is None and not declared:
        raise ImageError(path, "does not say how it is encoded", tag="TransferSyntaxUID")
    implicit, little = found or (syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian)
    walk = _Walk(stream, endian="<" if little else ">")
    elements, (tag, vr, length) = walk.dataset(_WANTED, implicit)
    return Header(path, syntax, little, elements, _PIXEL_TAGS.get(tag, ""), vr, length, stream)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
