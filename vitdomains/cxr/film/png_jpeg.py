"""cxr room: films that were exported as PNG or JPEG.

Such a file is display-ready: bone is bright already, and grey is a fraction of full scale. Colour channels become
luma (ITU-R BT.601), a palette is resolved, transparent pixels count as padding. Deep PNGs that use only part of their
16 bits (12-bit exports are common) are scaled by the smallest number of bits that holds their largest value.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.pixels import jpeg_size

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def read_picture(
    path: Path, file: BinaryIO, max_pixels: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, int]:
    """Read a PNG or JPEG as a film.

    Args:
        path: Named in errors.
        file: The open file, at its first byte.
        max_pixels: The largest size that is decoded; larger ones are refused from their header alone.

    Returns:
        Pixels ``[H, W]`` float32 in 0..1; which of them are opaque (None: all); the number of bits that hold the
        largest grey value.

    Raises:
        ImageError: The file is truncated, damaged, animated or too large.
    """
    head = file.read(1 << 16)
    file.seek(0)
    size = struct.unpack(">LL", head[16:24])[::-1] if head.startswith(PNG) and len(head) >= 24 else jpeg_size(head)
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageError(
            path,
            f"has more than {max_pixels} pixels",
            tag="Rows x Columns",
            value=f"{size[0]} x {size[1]}",
            hint="Raise max_pixels if it is real.",
        )
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > max_pixels:  # a JPEG that hides its size behind 64 KiB of other segments
                raise ImageError(
                    path, f"has more than {max_pixels} pixels", tag="Rows x Columns", value=image.size[::-1]
                )
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise ImageError(
                    path, "is not a single frame", tag="frames", value=frames, hint="Split it into one file a frame."
                )
            return _grey(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            path, "is not a readable PNG or JPEG", tag="header", value="damaged", hint="Export it again."
        ) from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and its own, by format
        reason = type(error).__name__ if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise ImageError(
            path, f"does not decode: {reason}", tag="pixels", value="damaged", hint="Copy or export it again."
        ) from error


def _grey(image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, int]:
    if image.mode.startswith("I"):  # 16-bit grey
        deep = np.asarray(image).astype(np.uint16)
        bits = max(8, int(deep.max()).bit_length())
        return deep.astype(np.float32) / np.float32(2**bits - 1), None, bits
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        luma, alpha = image.convert("RGBA").convert("LA").split()
        opaque = np.asarray(alpha, dtype=np.float32) / np.float32(255.0)
        pixels = np.asarray(luma, dtype=np.float32) * (opaque / np.float32(255.0))
        return pixels, None if opaque.all() else opaque > 0, 8
    grey = np.asarray(image.convert("L"))
    return np.divide(grey, np.float32(255.0), dtype=np.float32), None, 8
