"""The stored words of a film: read straight into their array, or decoded by pydicom's plugins.

Everything that the header claims is held against limits and against what the pixels say of themselves, so that no claim
alone makes us allocate, and none alone decides what a word means. ``tests/cxr/film/test_disagreements.py`` lists the pairs.
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from vitdomains.cxr.film.codestream import JPEG_2000, FrameHeader, read_frame_header
from vitdomains.cxr.film.header import UNDEFINED, Header

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
_COMPRESSED = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.RLELossless,
    *JPEG_2000,
)
_SAMPLED_ROWS = (
    8  # one row in so many is looked at for bits above the stored ones: such bits are never in a few pixels alone
)
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

    if header.pixel_keyword != "PixelData":
        if header.pixel_keyword:
            raise header.error("holds floating-point pixels, which no film has", "pixels", header.pixel_keyword)
        raise header.error("has no pixel data", "PixelData", None)
    photometric = header.text("PhotometricInterpretation")
    samples = header.required("SamplesPerPixel")
    if samples != 1:
        raise header.error("is a colour image", "SamplesPerPixel", samples, "Films are monochrome.")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise header.error(
            "is not monochrome",
            "PhotometricInterpretation",
            photometric or None,
            "Films are MONOCHROME1 or MONOCHROME2.",
        )
    frames = next(iter(header.numbers("NumberOfFrames")), 1.0) or 1.0
    if frames != 1.0:
        raise header.error("is not a single frame", "NumberOfFrames", frames, "Split it into one file a frame.")
    rows, columns = header.required("Rows"), header.required("Columns")
    for tag, value in (("Rows", rows), ("Columns", columns)):
        if value < 1:
            raise header.error("has no extent", tag, value)
    if rows * columns > max_pixels:
        raise header.error(
            f"has more than {max_pixels} pixels",
            "Rows x Columns",
            f"{rows} x {columns}",
            "Raise max_pixels if it is real.",
        )
    allocated, stored = header.required("BitsAllocated"), header.required("BitsStored")
    if allocated not in (8, 16):
        raise header.error("has words of unsupported size", "BitsAllocated", allocated, "Films have 8 or 16 bits.")
    if not 1 < stored <= allocated:
        raise header.error(f"stores an impossible number of bits in {allocated}", "BitsStored", stored)
    high = next(iter(header.integers("HighBit")), stored - 1)
    if high != stored - 1:
        raise header.error(f"does not put its {stored} stored bits lowest", "HighBit", high)
    representation = header.required("PixelRepresentation")
    if representation not in (0, 1):
        raise header.error("is neither unsigned nor signed", "PixelRepresentation", representation)
    return Layout(rows, columns, allocated, stored, representation == 1)


def read_pixels(header: Header, layout: Layout) -> Pixels:
    """The one frame of a film, and its layout as the pixels themselves have it.

    Raises:
        ImageError: The pixels are of another size than described or do not decode; ``Pixels.blocks`` raises it for
            uncompressed ones.
    """
    if header.syntax not in (*_NATIVE, *_COMPRESSED, ""):
        hint = "Convert it to JPEG 2000 or to an uncompressed transfer syntax."
        raise header.error(
            "is encoded in a way that this reader does not know", "TransferSyntaxUID", str(header.syntax), hint
        )
    if header.pixel_length != UNDEFINED:
        return Pixels(header, layout)
    frame = _frame(header, 4 * layout.rows * layout.columns + (1 << 20))
    found = read_frame_header(frame)
    if found is None:
        if header.syntax != uid.RLELossless:
            raise header.error(
                "has pixel data that are not what its transfer syntax says", "PixelData", frame[:4].hex()
            )
        return Pixels(header, layout, _decode(header, layout, frame, uid.RLELossless))
    if (found.rows, found.columns, found.components) != (layout.rows, layout.columns, 1):
        inside = f"{found.rows} x {found.columns} in {found.components} components in the frame"
        described = f"{layout.rows} x {layout.columns}, {inside}"
        raise header.error("has a frame of another size than its header says", "Rows x Columns", described)
    if not 1 < found.precision <= 16:
        described = f"{layout.stored}, {found.precision} in the frame"
        raise header.error("has a frame of an impossible number of bits", "BitsStored", described)
    coded = replace(layout, allocated=8 if found.precision <= 8 else 16, stored=found.precision)
    is_family = found.syntax in JPEG_2000 and header.syntax in JPEG_2000
    words = _decode(header, coded, frame, header.syntax if is_family else found.syntax)
    return Pixels(header, _coded_layout(header, layout, coded, found, words), words)


def _coded_layout(header: Header, layout: Layout, coded: Layout, found: FrameHeader, words: Stored) -> Layout:
    """The frame's precision is believed, except that encoders write the size of the container where all values fit less."""
    if found.signed and not layout.signed and (words >> (8 * words.itemsize - 1)).any():
        raise header.error("holds negative values in a frame that it calls unsigned", "PixelRepresentation", 0)
    fits = layout.stored < coded.stored and not _uses_more(words, replace(coded, stored=layout.stored))
    return replace(coded, stored=layout.stored) if fits else coded


def _uses_more(words: Stored, layout: Layout) -> bool:
    """Whether the bits above the stored ones are part of the picture.

    Where they change from one pixel to the next, the stored bits of a picture that needs them leap from one end of their
    range to the other. Under overlays, which old films keep there, and under a repeated sign they do not.
    """
    low = (words & ((1 << layout.stored) - 1)).astype(np.int32)
    high = words.astype(np.int32) >> layout.stored
    if layout.signed:
        negative = low >> (layout.stored - 1)
        high ^= -negative & ((1 << (layout.allocated - layout.stored)) - 1)
        low -= negative << layout.stored
    leaps = changes = 0
    for axis in (0, 1):
        changed = np.diff(high, axis=axis) != 0
        changes += int(changed.sum())
        leaps += int((np.abs(np.diff(low, axis=axis))[changed] > 1 << (layout.stored - 1)).sum())
    return 2 * leaps > changes


@dataclass(frozen=True)
class Pixels:
    """One frame: how it is stored, and its words, decoded already or still to be read."""

    header: Header
    layout: Layout
    decoded: Stored | None = None

    def blocks(self, *, whole: bool = False) -> Iterator[Stored]:
        """The stored words, top to bottom, in blocks of rows ``[n, columns]``; once.

        Words come unsigned whatever their sign bit means, and bits above ``layout.stored`` are as found: ``grayscale``
        accounts for both. Uncompressed films come in blocks that stay in the processor's cache while they are worked on,
        instead of going through main memory twice; a block is overwritten by the next one.

        Args:
            whole: Give the frame as one block.

        Raises:
            ImageError: The pixels are truncated, longer than described, or use more bits than described.
        """
        if self.decoded is not None:
            yield self.decoded
        else:
            doubtful: list[Stored] = []
            for block in _native(self.header, self.layout, whole):
                if self.layout.stored < self.layout.allocated and block[::_SAMPLED_ROWS].max() >> self.layout.stored:
                    doubtful.append(block.copy())
                yield block
            if doubtful and _uses_more(cast(Stored, np.concatenate(doubtful)), self.layout):
                described = f"{self.layout.stored}, values up to {max(block.max() for block in doubtful)}"
                raise self.header.error("has values of more bits than it says", "BitsStored", described)


def _native(header: Header, layout: Layout, whole: bool) -> Iterator[Stored]:
    word = layout.allocated // 8
    row_bytes = layout.columns * word
    expected = layout.rows * row_bytes
    length, stream = header.pixel_length, header.stream
    # A few bytes of padding are common. As much as a row or a column more means that Rows or Columns is wrong.
    if not expected <= length < expected + max(2, min(layout.rows, layout.columns) * word):
        described = f"{length} bytes, {expected} expected"
        raise header.error("has pixel data that do not fit Rows x Columns", "PixelData", described)
    if stream.size is not None and length > stream.size - stream.position:
        present = f"{length} bytes declared, {stream.size - stream.position} present"
        raise header.error("ends inside its pixel data", "PixelData", present, "Copy the file again.")
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

    fragments: list[bytes] = []
    offsets = total = 0
    for index in range(_MAX_FRAGMENTS):
        head = header.stream.read(8, "the pixel data", at_end_ok=bool(fragments))
        group, number, length = struct.unpack("<HHL", head) if head else (0xFFFE, 0xE0DD, 0)
        if (group, number) == (0xFFFE, 0xE0DD):
            break
        if (group, number) != (0xFFFE, 0xE000) or length == UNDEFINED:
            raise header.error(
                "has malformed encapsulated pixels", "PixelData", f"({group:04X},{number:04X}) at fragment {index}"
            )
        total += length
        if total > max_bytes:
            raise header.error(
                "has more compressed bytes than its pixels could need", "PixelData", f"over {max_bytes} bytes"
            )
        if index == 0:
            offsets = length // 4
            header.stream.skip(length, "the offset table")
        elif length:
            fragments.append(header.stream.read(length, "the pixel data"))
    if not fragments:
        raise header.error("has no pixel data", "PixelData", "no fragment")
    if offsets > 1 or (header.syntax == uid.RLELossless and len(fragments) > 1):
        raise header.error("is not a single frame", "PixelData", f"{max(offsets, len(fragments))} frames")
    return b"".join(fragments)


def _decode(header: Header, layout: Layout, frame: bytes, syntax: uid.UID) -> Stored:
    options: dict[str, Any] = {
        "transfer_syntax_uid": syntax,
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
        "apply_j2k_sign_correction": False,  # and it extends the sign
        "apply_jls_sign_correction": False,
    }
    decoded = _first_success(header, encapsulate([frame], has_bot=False), syntax, options)
    if decoded.shape != (layout.rows, layout.columns) or decoded.dtype.itemsize != layout.allocated // 8:
        described = f"{decoded.dtype} {decoded.shape}"
        raise header.error("decodes to something else than its header says", "PixelData", described)
    return cast(Stored, decoded.view(np.uint8 if layout.allocated == 8 else np.uint16))


def _first_success(header: Header, source: bytes, syntax: uid.UID, options: dict[str, Any]) -> NDArray[Any]:
    decoder = get_decoder(syntax)
    preferred = _BASELINE_PLUGINS if syntax == uid.JPEGBaseline8Bit else _PLUGINS
    plugins = [name for name in preferred if name in decoder.available_plugins]
    reasons = []
    for plugin in plugins:
        try:
            decoded, _ = decoder.as_array(source, raw=True, decoding_plugin=plugin, **options)
        except Exception as error:  # noqa: BLE001 - the codecs raise what they like, down to plain Exception
            reasons.append(f"{plugin}: {' '.join(str(error).split())[:150]}")
        else:
            return decoded
    reason = "; ".join(reasons) or "no decoder is installed"
    hint = "" if plugins else "Install the codec: pip install 'vitdomains[lossless-jpeg]'."
    raise header.error(f"does not decode ({reason})", "TransferSyntaxUID", syntax.name, hint)
