"""cxr room: the way into a DICOM file, without trusting it.

Only the elements that a film needs are kept; everything else is stepped over, element by element and without
recursion, so that a file can neither exhaust the stack (sequences nested a thousand deep) nor the memory (a deflate
bomb, a gigabyte in a private element, millions of empty items) before its pixels are asked for. Pixels are not
decoded here: see ``pixels.py``.

Layout of data elements: DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences), A.5 (deflate), 10.1 (file meta
information: PS3.10, 7.1).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom import uid
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.stream import Stream, inflated

UNDEFINED = 0xFFFFFFFF
MAX_DEPTH = 64  # the deepest sequence of a standard object is below ten
MAX_ELEMENTS = 50_000
MAX_VALUE_BYTES = 4096
MAX_TABLE_BYTES = 2 * 65536 + 2
MAX_ITEMS = 64
MAX_INFLATED_HEADER = 64 << 20

_LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
_INTEGER_FORMATS = {"US": "H", "SS": "h", "UL": "L", "SL": "l"}


def _tags(keywords: str) -> dict[int, str]:
    pairs = ((tag_for_keyword(keyword), keyword) for keyword in keywords.split())
    return {tag: keyword for tag, keyword in pairs if tag is not None}


_WANTED = _tags(
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality PatientID PatientSex PatientAge "
    "SpecificCharacterSet PatientName PatientBirthDate StudyDate StudyTime StudyID AccessionNumber "
    "ViewPosition BodyPartExamined Laterality ImageLaterality ExposureIndex TargetExposureIndex DeviationIndex "
    "ImagerPixelSpacing NominalScannedPixelSpacing PixelSpacing "
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit WindowCenter WindowWidth "
    "WindowCenterWidthExplanation VOILUTFunction RescaleIntercept RescaleSlope ModalityLUTSequence VOILUTSequence"
)
_WANTED_IN_ITEMS = _tags("LUTDescriptor LUTExplanation LUTData")
_WANTED_IN_META = _tags("TransferSyntaxUID")


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

    def texts(self, keyword: str) -> list[str]:
        """The values of a text element without padding; empty where it is absent or empty."""
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
            raise ImageError(self.path, "is not a number", tag=keyword, value="\\".join(values)) from None

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
            raise ImageError(
                self.path, "has a value of impossible length", tag=keyword, value=f"{len(element.data)} bytes"
            )
        return struct.unpack(("<" if self.little_endian else ">") + str(count) + code, element.data)

    def required(self, keyword: str) -> int:
        """The first integer of an element that no film can do without."""
        values = self.integers(keyword)
        if not values:
            raise ImageError(self.path, "lacks a required element", tag=keyword, value=None)
        return values[0]


@dataclass
class _Walk:
    """The state of one pass over a data set: where, in which encoding, and how many elements were seen."""

    stream: Stream
    implicit: bool = False
    endian: str = "<"
    seen: int = 0

    def next(self, implicit: bool) -> tuple[int, str, int] | None:
        """Tag, VR and length of the next element, its value still to be read; None at the end of the file."""
        self.seen += 1
        if self.seen > MAX_ELEMENTS:
            raise ImageError(
                self.stream.path, "has more data elements than a film needs", tag="elements", value=self.seen
            )
        head = self.stream.read(8, at_end_ok=True)
        if not head:
            return None
        group, number = struct.unpack(self.endian + "HH", head[:4])
        tag = group << 16 | number
        if implicit or group == 0xFFFE:
            return tag, "", int(struct.unpack(self.endian + "L", head[4:])[0])
        vr = head[4:6].decode("latin-1")
        if not (vr.isascii() and vr.isalpha() and vr.isupper()):
            raise ImageError(
                self.stream.path, "has an element without a value representation", tag=_name(tag), value=head[4:6].hex()
            )
        if vr in _LONG_VRS:
            return tag, vr, int(struct.unpack(self.endian + "L", self.stream.read(4))[0])
        return tag, vr, int(struct.unpack(self.endian + "H", head[6:])[0])

    def inside(self, implicit: bool) -> tuple[int, str, int]:
        """As ``next``, where the file must not end."""
        found = self.next(implicit)
        if found is None:
            raise ImageError(
                self.stream.path, "ends inside a sequence", tag="length", value="undefined", hint="Copy the file again."
            )
        return found

    def skip_undefined(self, implicit: bool) -> None:
        """Step over the content of an element of undefined length, however deep, with one flag a level."""
        levels = [(True, implicit)]  # (a sequence, where items follow; or an item, where elements follow; its encoding)
        while levels:
            in_sequence, implicit = levels[-1]
            tag, vr, length = self.inside(implicit)
            if in_sequence != (tag in (_ITEM, _SEQUENCE_END)):
                raise ImageError(
                    self.stream.path, "has a malformed sequence", tag=_name(tag), value=f"level {len(levels)}"
                )
            if tag in (_ITEM_END, _SEQUENCE_END):
                levels.pop()
            elif length != UNDEFINED:
                self.stream.skip(length, _name(tag))
            elif len(levels) >= 2 * MAX_DEPTH:
                raise ImageError(
                    self.stream.path,
                    f"nests sequences more than {MAX_DEPTH} deep",
                    tag=_name(tag),
                    value="undefined length",
                )
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
                    raise ImageError(
                        self.stream.path, "has a value of impossible length", tag=keyword, value=f"{length} bytes"
                    )
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
                raise ImageError(
                    self.stream.path, "has a malformed sequence", tag=keyword, value=f"item {len(found) + 1}"
                )
            item_end = None if size == UNDEFINED else self.stream.position + size
            found.append(self.dataset(_WANTED_IN_ITEMS, implicit, item_end)[0])
        return found


def read_header(path: Path, file: BinaryIO, size: int, max_pixel_bytes: int) -> Header:
    """Read a DICOM file up to its pixels.

    Args:
        path: Named in errors.
        file: The open file, at its first byte; the header's stream goes on reading from it.
        size: Bytes in the file.
        max_pixel_bytes: What a deflated file may inflate to, beyond 64 MiB for its header.

    Returns:
        The header, its stream at the first byte of the pixel data.

    Raises:
        ImageError: The file is truncated, malformed, nested deeper than 64 sequences or larger than the limits.
    """
    stream = Stream(path, file, size)
    stream.skip(132, "the preamble")
    meta: dict[str, Element] = {}
    walk = _Walk(stream)
    while stream.size is not None and stream.position < stream.size:
        group = file.read(2)
        file.seek(-len(group), io.SEEK_CUR)
        if group != b"\x02\x00":  # the file meta information is always explicit, little endian
            break
        tag, vr, length = walk.inside(implicit=False)
        if length > MAX_VALUE_BYTES or tag not in _WANTED_IN_META:
            stream.skip(length, _name(tag))
        else:
            meta[_WANTED_IN_META[tag]] = Element(vr, stream.read(length, _name(tag)))
    if "TransferSyntaxUID" not in meta:
        raise ImageError(path, "does not say how it is encoded", tag="TransferSyntaxUID", value=None)
    # Not validated: pydicom would warn of an odd one with its text, and an unknown one is refused anyway.
    syntax = uid.UID(meta["TransferSyntaxUID"].data.decode("latin-1").strip(" \0"), validation_mode=IGNORE)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = inflated(path, file, MAX_INFLATED_HEADER + max_pixel_bytes)
    little_endian = syntax != uid.ExplicitVRBigEndian
    walk = _Walk(stream, endian="<" if little_endian else ">")
    elements, (tag, vr, length) = walk.dataset(_WANTED, implicit=syntax == uid.ImplicitVRLittleEndian)
    return Header(path, syntax, little_endian, elements, _PIXEL_TAGS.get(tag, ""), vr, length, stream)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
