"""cxr room: the stored values of a film, as the file holds them.

Uncompressed pixels are read straight into their array; compressed frames go through pydicom's decoders. Before
either, everything that the header claims is held against limits and against what the frame says of itself, so that no
claim alone makes us allocate.
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.header import UNDEFINED, Header

# --------------------
# cxr room: memory for films that is handed on from one to the next.
#
# A film fills tens of megabytes. Fresh from the system, these must be mapped and zeroed page by page, which takes longer than
# computing what goes into them; and the allocator gives large blocks back as soon as they are free. A reader that works
# through a folder therefore keeps the memory of a film that nobody uses any more for the next one.

MAX_KEPT_BYTES = 64 << 20

_kept: list[bytearray] = []
_lock = threading.Lock()


def display_array(rows: int, columns: int) -> NDArray[np.float32]:
    """An uninitialised float32 array ``[rows, columns]``, in kept memory where some of about that size is free.

    The memory is free again when the array and every view of it are gone. At most 64 MiB are kept.
    """
    needed = 4 * rows * columns
    memory = _take(needed)
    if memory is None:
        memory = bytearray(needed)
    # The base of an array over a bytearray is that bytearray, and numpy lets views of such an array keep the array itself
    # alive, so that its end is the end of all of them.
    flat = np.frombuffer(memory, np.float32, rows * columns)
    weakref.finalize(flat, _give_back, memory).atexit = False
    return flat.reshape(rows, columns)


def _take(needed: int) -> bytearray | None:
    with _lock:
        for index, memory in enumerate(_kept):
            if needed <= len(memory) <= 2 * needed:
                return _kept.pop(index)
    return None


def _give_back(memory: bytearray) -> None:
    # Runs wherever the last reference dies, even inside _take when the collector strikes there: it must not wait.
    if _lock.acquire(blocking=False):
        try:
            if len(memory) <= MAX_KEPT_BYTES:
                _kept.append(memory)
                while sum(map(len, _kept)) > MAX_KEPT_BYTES:
                    _kept.pop(0)
        finally:
            _lock.release()


Stored = NDArray[np.uint8] | NDArray[np.uint16]

_MAX_FRAGMENTS = 65_536
_BLOCK_BYTES = 1 << 18  # with four times as many of display values, half of a second-level cache
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_JPEG = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
# Pillow's libjpeg-turbo decodes baseline JPEG several times as fast as pydicom's first choice, at most one grey level
# apart. GDCM is left out on purpose: given bad data it may abort the whole process, which nothing can catch.
_PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom")
_BASELINE_PLUGINS = ("pillow", "pylibjpeg")


@dataclass(frozen=True)
class Layout:
    """How one monochrome frame is stored: its size, bits of a word, bits of it in use, whether signed."""

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool


def read_layout(header: Header, max_pixels: int) -> Layout:
    """The checked image pixel description of a header (DICOM PS3.3, C.7.6.3).

    Raises:
        ImageError: An element is missing, impossible, or describes something else than one monochrome frame of at
            most ``max_pixels``.
    """

    def refuse(problem: str, tag: str, value: object, hint: str = "") -> ImageError:
        return ImageError(header.path, problem, tag=tag, value=value, hint=hint)

    if header.pixel_keyword != "PixelData":
        if header.pixel_keyword:
            raise refuse("holds floating-point pixels, which no film has", "pixels", header.pixel_keyword)
        raise refuse("has no pixel data", "PixelData", None)
    photometric = header.text("PhotometricInterpretation")
    samples = header.required("SamplesPerPixel")
    if samples != 1:
        raise refuse("is a colour image", "SamplesPerPixel", samples, "Films are monochrome.")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise refuse(
            "is not monochrome",
            "PhotometricInterpretation",
            photometric or None,
            "Films are MONOCHROME1 or MONOCHROME2.",
        )
    frames = next(iter(header.numbers("NumberOfFrames")), 1.0) or 1.0
    if frames != 1.0:
        raise refuse("is not a single frame", "NumberOfFrames", frames, "Split it into one file a frame.")
    rows, columns = header.required("Rows"), header.required("Columns")
    for tag, value in (("Rows", rows), ("Columns", columns)):
        if value < 1:
            raise refuse("has no extent", tag, value)
    if rows * columns > max_pixels:
        raise refuse(
            f"has more than {max_pixels} pixels",
            "Rows x Columns",
            f"{rows} x {columns}",
            "Raise max_pixels if it is real.",
        )
    allocated, stored = header.required("BitsAllocated"), header.required("BitsStored")
    if allocated not in (8, 16):
        raise refuse("has words of unsupported size", "BitsAllocated", allocated, "Films have 8 or 16 bits.")
    if not 1 < stored <= allocated:
        raise refuse(f"stores an impossible number of bits in {allocated}", "BitsStored", stored)
    high = next(iter(header.integers("HighBit")), stored - 1)
    if high != stored - 1:
        raise refuse(f"does not put its {stored} stored bits lowest", "HighBit", high)
    representation = header.required("PixelRepresentation")
    if representation not in (0, 1):
        raise refuse("is neither unsigned nor signed", "PixelRepresentation", representation)
    return Layout(rows, columns, allocated, stored, representation == 1)


def read_blocks(header: Header, layout: Layout, *, whole: bool = False) -> Iterator[Stored]:
    """The stored words of the one frame, top to bottom, in blocks of rows ``[n, columns]``.

    Words come unsigned whatever their sign bit means, and bits above ``layout.stored`` are as found (old films keep
    overlays there): ``voi`` accounts for both. Uncompressed films come in blocks that stay in the processor's cache
    while they are worked on, instead of going through main memory twice; a block is overwritten by the next one.

    Args:
        header: The film's header, its stream at the pixels.
        layout: Its checked layout.
        whole: Give the frame as one block.

    Raises:
        ImageError: The pixels are truncated, longer than described, of another size than described, or do not decode.
    """
    if header.syntax in _NATIVE:
        yield from _native(header, layout, whole)
    elif header.syntax in _JPEG or header.syntax in _JPEG_2000 or header.syntax == uid.RLELossless:
        yield _decode(header, layout, _frame(header, 4 * layout.rows * layout.columns + (1 << 20)))
    else:
        raise ImageError(
            header.path,
            "is encoded in a way that this reader does not know",
            tag="TransferSyntaxUID",
            value=str(header.syntax),
            hint="Convert it to JPEG 2000 or to an uncompressed transfer syntax.",
        )


def _native(header: Header, layout: Layout, whole: bool) -> Iterator[Stored]:
    word = layout.allocated // 8
    row_bytes = layout.columns * word
    expected = layout.rows * row_bytes
    length, stream = header.pixel_length, header.stream
    if length == UNDEFINED:
        raise ImageError(
            header.path, "declares uncompressed pixels without a length", tag="PixelData", value="undefined length"
        )
    # A few bytes of padding are common. As much as a row or a column more means that Rows or Columns is wrong.
    if not expected <= length < expected + max(2, min(layout.rows, layout.columns) * word):
        described = f"{length} bytes, {expected} expected"
        raise ImageError(header.path, "has pixel data that do not fit Rows x Columns", tag="PixelData", value=described)
    if stream.size is not None and length > stream.size - stream.position:
        present = f"{length} bytes declared, {stream.size - stream.position} present"
        raise ImageError(
            header.path, "ends inside its pixel data", tag="PixelData", value=present, hint="Copy the file again."
        )
    if header.pixel_vr == "OW" and word == 1 and not header.little_endian:  # two pixels a word, the second one first
        data = np.frombuffer(stream.read(length - length % 2, "the pixel data"), np.uint16).byteswap().view(np.uint8)
        yield data[:expected].reshape(layout.rows, layout.columns)
        return
    count = layout.rows if whole else max(1, _BLOCK_BYTES // row_bytes)
    buffer = np.empty((min(count, layout.rows), layout.columns), f"{'<' if header.little_endian else '>'}u{word}")
    for row in range(0, layout.rows, count):
        block = buffer[: layout.rows - row]
        stream.read_into(block, "the pixel data")
        yield block if block.dtype.isnative else block.astype(np.uint16)


def _frame(header: Header, max_bytes: int) -> bytes:
    """The one encapsulated frame: the fragments after the offset table, joined (DICOM PS3.5, A.4)."""

    def refuse(problem: str, value: object) -> ImageError:
        return ImageError(header.path, problem, tag="PixelData", value=value)

    if header.pixel_length != UNDEFINED:
        raise refuse("declares compressed pixels, but does not encapsulate them", f"{header.pixel_length} bytes")
    fragments: list[bytes] = []
    offsets = total = 0
    for index in range(_MAX_FRAGMENTS):
        head = header.stream.read(8, "the pixel data", at_end_ok=bool(fragments))
        group, number, length = struct.unpack("<HHL", head) if head else (0xFFFE, 0xE0DD, 0)
        if (group, number) == (0xFFFE, 0xE0DD):
            break
        if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED:
            raise refuse("has malformed encapsulated pixels", f"({group:04X},{number:04X}) at fragment {index}")
        total += length
        if total > max_bytes:
            raise refuse("has more compressed bytes than its pixels could need", f"over {max_bytes} bytes")
        if index == 0:
            offsets = length // 4
            header.stream.skip(length, "the offset table")
        elif length:
            fragments.append(header.stream.read(length, "the pixel data"))
    if not fragments:
        raise refuse("has no pixel data", "no fragment")
    if offsets > 1 or (header.syntax == uid.RLELossless and len(fragments) > 1):
        raise refuse("is not a single frame", f"{max(offsets, len(fragments))} frames")
    return b"".join(fragments)


def _decode(header: Header, layout: Layout, frame: bytes) -> Stored:
    if header.syntax != uid.RLELossless:
        found = _jpeg_2000_size(frame) if header.syntax in _JPEG_2000 else jpeg_size(frame)
        if found is None:
            raise ImageError(
                header.path,
                "has pixel data that are not what its transfer syntax says",
                tag="PixelData",
                value=frame[:4].hex(),
            )
        if found != (layout.rows, layout.columns, 1):
            described = (
                f"{layout.rows} x {layout.columns}, {found[0]} x {found[1]} in {found[2]} components in the frame"
            )
            raise ImageError(
                header.path, "has a frame of another size than its header says", tag="Rows x Columns", value=described
            )
    options = {
        "transfer_syntax_uid": header.syntax,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "rows": layout.rows,
        "columns": layout.columns,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "correct_unused_bits": False,  # the lookup table ignores them; two passes over the pixels are saved
    }
    decoded = _first_success(header, encapsulate([frame], has_bot=False), options)
    if decoded.shape != (layout.rows, layout.columns) or decoded.dtype.itemsize != layout.allocated // 8:
        described = f"{decoded.dtype} {decoded.shape}"
        raise ImageError(
            header.path, "decodes to something else than its header says", tag="PixelData", value=described
        )
    return cast(Stored, decoded.view(np.uint8 if layout.allocated == 8 else np.uint16))


def _first_success(header: Header, source: bytes, options: dict[str, object]) -> NDArray[Any]:
    decoder = get_decoder(header.syntax)
    preferred = _BASELINE_PLUGINS if header.syntax == uid.JPEGBaseline8Bit else _PLUGINS
    plugins = [name for name in preferred if name in decoder.available_plugins]
    reasons = []
    for plugin in plugins:
        try:
            decoded, _ = decoder.as_array(source, raw=True, decoding_plugin=plugin, **cast(Any, options))
        except Exception as error:  # noqa: BLE001 - the codecs raise what they like, down to plain Exception
            reasons.append(f"{plugin}: {' '.join(str(error).split())[:150]}")
        else:
            return decoded
    reason = "; ".join(reasons) or "no decoder is installed"
    raise ImageError(
        header.path,
        f"does not decode ({reason})",
        tag="TransferSyntaxUID",
        value=header.syntax.name,
        hint="" if plugins else "Install the codec: pip install 'vitdomains[lossless-jpeg]'.",
    )


def jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG or JPEG-LS frame header (ITU-T T.81, B.2.2; T.87, C.2.2), if any."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return rows, columns, components
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG 2000 codestream, bare or in JP2 boxes (ITU-T T.800, A.5.1)."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if at < 0 or at + 42 > len(frame):
        return None
    width, height, left, top = struct.unpack(">4L", frame[at + 8 : at + 24])
    components = int.from_bytes(frame[at + 40 : at + 42], "big")
    return height - top, width - left, components
