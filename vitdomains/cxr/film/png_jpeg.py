"""Films that were exported as PNG or JPEG.

Such a file is display-ready: bone is bright already, and grey is a fraction of full scale. It is turned upright as its EXIF
orientation says. Colour channels become luma (ITU-R BT.601), a palette is resolved, transparent pixels count as padding.
Deep PNGs that use only part of their 16 bits (12-bit exports are common) are scaled by the number of bits that their sBIT
chunk names where it holds their largest value, else by the smallest that does.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.codestream import read_frame_header
from vitdomains.cxr.film.header import PNG
from vitdomains.cxr.film.orientation import Turn

Grey = tuple[NDArray[np.float32], NDArray[np.bool_] | None, int]
_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4
_TURNS = {
    2: Turn(flip_columns=True, text="turned from EXIF 2"),
    3: Turn(flip_rows=True, flip_columns=True, text="turned from EXIF 3"),
    4: Turn(flip_rows=True, text="turned from EXIF 4"),
    5: Turn(transpose=True, text="turned from EXIF 5"),
    6: Turn(transpose=True, flip_columns=True, text="turned from EXIF 6"),
    7: Turn(transpose=True, flip_rows=True, flip_columns=True, text="turned from EXIF 7"),
    8: Turn(transpose=True, flip_rows=True, text="turned from EXIF 8"),
}


def read_picture(
    path: Path, file: BinaryIO, max_pixels: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, int, Turn]:
    """Read a PNG or JPEG as a film.

    Args:
        path: Named in errors.
        file: The open file, at its first byte.
        max_pixels: The largest size that is decoded; larger ones are refused from their header alone.

    Returns:
        Pixels ``[H, W]`` float32 in 0..1; which of them are opaque (None: all); the number of bits that make full scale; how
        the picture was turned upright.

    Raises:
        ImageError: The file is truncated, damaged, animated, too large or coded in another way than its name.
    """

    def refuse(problem: str, tag: str, value: object, hint: str = "") -> ImageError:
        return ImageError(path, problem, tag=tag, value=value, hint=hint)

    head = file.read(1 << 16)
    file.seek(0)
    is_png = head.startswith(PNG)
    coded = None if is_png else read_frame_header(head)
    if is_png and len(head) >= 24:
        size = struct.unpack(">LL", head[16:24])[::-1]
    else:
        size = (coded.rows, coded.columns) if coded else (0, 0)
    if coded and coded.precision != 8:
        raise refuse("is a JPEG that only DICOM viewers read", "precision", coded.precision, "Export it as 16-bit PNG.")
    too_large = f"has more than {max_pixels} pixels"
    if size[0] * size[1] > max_pixels:
        raise refuse(too_large, "Rows x Columns", f"{size[0]} x {size[1]}", "Raise max_pixels if it is real.")
    try:
        with Image.open(file, formats=("PNG", "JPEG", "MPO")) as image:
            if image.width * image.height > max_pixels:  # a JPEG that hides its size behind 64 KiB of other segments
                raise refuse(too_large, "Rows x Columns", image.size[::-1])
            frames = getattr(image, "n_frames", 1)
            if frames != 1 and image.format != "MPO":  # a camera's further pictures are previews and depth
                raise refuse("is not a single frame", "frames", frames, "Split it into one file a frame.")
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1), Turn())
            if is_png and head[24:25] == b"\x10":
                transparent = image.info.get("transparency")
                file.seek(0)
                pixels, valid, bits = _deep(np.frombuffer(file.read(), np.uint8), _significant_bits(head), transparent)
            else:
                pixels, valid, bits = _shallow(image)
            return turn.apply(pixels), None if valid is None else turn.apply(valid), bits, turn
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise refuse("is not a readable PNG or JPEG", "header", "damaged", "Export it again.") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and its own, by format
        reason = type(error).__name__ if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise refuse(f"does not decode: {reason}", "pixels", "damaged", "Copy or export it again.") from error


def _shallow(image: Image.Image) -> Grey:
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        luma, alpha = image.convert("RGBA").convert("LA").split()
        opaque = np.asarray(alpha, dtype=np.float32) / np.float32(255.0)
        pixels = np.asarray(luma, dtype=np.float32) * (opaque / np.float32(255.0))
        return pixels, None if opaque.all() else opaque > 0, 8
    return np.divide(np.asarray(image.convert("L")), np.float32(255.0), dtype=np.float32), None, 8


def _deep(content: NDArray[np.uint8], significant: int, transparent: object) -> Grey:
    """A PNG of 16 bits; Pillow would cut colour down to 8."""
    found = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError("its 16-bit samples are damaged")
    decoded = cast(NDArray[np.uint16], found)
    if decoded.ndim == 2:
        bits = _bits(decoded, significant)
        valid = decoded != transparent if isinstance(transparent, int) else None
        return decoded.astype(np.float32) / np.float32(2**bits - 1), valid, bits
    bits = _bits(decoded[..., :3], significant)
    pixels = cv2.cvtColor(decoded[..., :3].astype(np.float32) / np.float32(2**bits - 1), cv2.COLOR_BGR2GRAY)
    if decoded.shape[2] == 3:
        return np.asarray(pixels, np.float32), None, bits
    full = np.float32(2 ** _bits(decoded[..., 3], significant) - 1)
    opaque: NDArray[np.float32] = decoded[..., 3].astype(np.float32) / full
    return np.asarray(pixels * opaque, np.float32), None if opaque.all() else opaque > 0, bits


def _bits(samples: NDArray[np.uint16], significant: int) -> int:
    used = max(8, int(samples.max()).bit_length())
    return significant if used <= significant else used


def _significant_bits(head: bytes) -> int:
    """What the sBIT chunk says of the first channel (PNG, third edition, 11.3.2.3); 0 without one."""
    at = 8
    while at + 9 <= len(head) and (name := head[at + 4 : at + 8]) != b"IDAT":
        if name == b"sBIT":
            return head[at + 8]
        at += 12 + int.from_bytes(head[at : at + 4], "big")
    return 0
