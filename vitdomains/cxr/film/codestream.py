"""What a compressed frame says of itself: coding, size, precision and sign, from its first bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom import uid

JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_LOSSLESS, _LS = 0xC3, 0xF7
_FRAME_MARKERS = {_LS, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class FrameHeader:
    """Rows, columns, components, bits a sample and sign of a frame, and a transfer syntax that decodes it."""

    syntax: uid.UID
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 frame; None of anything else."""
    return _jpeg(frame) or _jpeg_2000(frame)


def _jpeg(frame: bytes) -> FrameHeader | None:
    """ITU-T T.81, B.2.2; JPEG-LS: T.87, C.2.2."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            precision, rows, columns, components = struct.unpack(">BHHB", frame[at + 4 : at + 10])
            if marker == _LS:
                syntax = uid.JPEGLSLossless
            elif marker == _LOSSLESS:
                syntax = uid.JPEGLosslessSV1
            else:
                syntax = uid.JPEGBaseline8Bit if precision == 8 else uid.JPEGExtended12Bit
            return FrameHeader(syntax, rows, columns, components, precision)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _jpeg_2000(frame: bytes) -> FrameHeader | None:
    """A codestream, bare or in JP2 boxes (ITU-T T.800, A.5.1)."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 1 << 16) if frame[4:8] == b"jP  " else 0
    if frame[max(at, 0) : at + 4] != b"\xff\x4f\xff\x51" or at + 43 > len(frame):
        return None
    width, height, left, top = struct.unpack(">4L", frame[at + 8 : at + 24])
    components, depth = struct.unpack(">HB", frame[at + 40 : at + 43])
    return FrameHeader(
        uid.JPEG2000Lossless, height - top, width - left, components, (depth & 0x7F) + 1, signed=depth > 0x7F
    )
