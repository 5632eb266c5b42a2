"""cxr room: which grayscale pipeline a header asks for, checked before it is computed (``voi.py`` computes it).

Modality transformation and windows: DICOM PS3.3, C.11.1 and C.11.2; padding: C.7.5.1.1.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

import numpy as np

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.header import Element, Header
from vitdomains.cxr.film.pixels import Layout
from vitdomains.cxr.voi import Grayscale, LookupTable, Window

WindowChoice = int | str | tuple[float, float] | None
_HUGE = 1e30  # what is larger is no unit of any detector, and would lose its meaning in the arithmetic


def read_grayscale(header: Header, layout: Layout, window: WindowChoice = None) -> Grayscale:
    """The pipeline that a header describes.

    Args:
        header: The film's header.
        layout: Its checked layout.
        window: None for the film's own default (first VOI LUT, else first window); an index into its alternatives;
            the explanation of one of them; or a (centre, width) in modality units.

    Returns:
        The pipeline; ``voi`` is None where the film has neither table nor window.

    Raises:
        ImageError: A slope, width or table is impossible (zero, non-finite, of no entries), or the film has no such
            window.
    """
    slope, intercept = _rescale(header)
    tables = [
        _table(header, item, "ModalityLUTSequence", layout.signed) for item in _items(header, "ModalityLUTSequence")
    ]
    pad = header.integers("PixelPaddingValue", signed=layout.signed)
    limit = header.integers("PixelPaddingRangeLimit", signed=layout.signed)
    ends = (pad[0], limit[0] if limit else pad[0]) if pad else None
    return Grayscale(
        layout_bits=(layout.allocated, layout.stored, layout.signed),
        slope=slope,
        intercept=intercept,
        modality=tables[0] if tables else None,
        voi=_choose(header, layout, window),
        # Presentation LUT Shape INVERSE restates MONOCHROME1 (PS3.3, C.8.11.3): the photometric interpretation alone
        # decides, once.
        inverted=header.text("PhotometricInterpretation") == "MONOCHROME1",
        padding=(min(ends), max(ends)) if ends else None,
    )


def _rescale(header: Header) -> tuple[float, float]:
    slope = next(iter(header.numbers("RescaleSlope")), 1.0)
    intercept = next(iter(header.numbers("RescaleIntercept")), 0.0)
    if slope == 0.0 or not math.isfinite(slope) or abs(slope) > _HUGE:
        raise ImageError(header.path, "has an impossible slope", tag="RescaleSlope", value=slope)
    if not math.isfinite(intercept) or abs(intercept) > _HUGE:
        raise ImageError(header.path, "has an impossible intercept", tag="RescaleIntercept", value=intercept)
    return slope, intercept


def _items(header: Header, keyword: str) -> tuple[Mapping[str, Element], ...]:
    element = header.elements.get(keyword)
    return element.items if element else ()


def _table(header: Header, item: Mapping[str, Element], sequence: str, signed: bool) -> LookupTable:
    def refuse(tag: str, value: object) -> ImageError:
        return ImageError(header.path, f"has an impossible lookup table in {sequence}", tag=tag, value=value)

    if "LUTDescriptor" not in item or "LUTData" not in item:
        raise refuse("LUTDescriptor" if "LUTData" in item else "LUTData", None)
    descriptor = header.unpack(item["LUTDescriptor"], "LUTDescriptor")
    if len(descriptor) != 3 or descriptor[2] not in (8, *range(10, 17)):
        raise refuse("LUTDescriptor", descriptor)
    count = descriptor[0] % 65536 or 65536
    first = header.unpack(item["LUTDescriptor"], "LUTDescriptor", signed=signed)[1]
    data, bits = item["LUTData"].data, descriptor[2]
    order = "<" if header.little_endian else ">"
    if bits == 8 and count <= len(data) <= count + 1:  # one byte an entry
        entries = np.frombuffer(data[:count], np.uint8)
    elif len(data) >= 2 * count:
        entries = np.frombuffer(data[: 2 * count], order + "u2")
    else:
        raise refuse("LUTData", f"{len(data)} bytes for {count} entries")
    explanation = item["LUTExplanation"].data.decode("latin-1").strip(" \0") if "LUTExplanation" in item else ""
    return LookupTable(first, bits, np.minimum(entries, 2**bits - 1).astype(np.uint16).tobytes(), explanation)


def _choose(header: Header, layout: Layout, window: WindowChoice) -> LookupTable | Window | None:
    function = header.text("VOILUTFunction") or "LINEAR"
    if isinstance(window, tuple):
        return _window(header, window[0], window[1], function, "given")
    tables = [_table(header, item, "VOILUTSequence", layout.signed) for item in _items(header, "VOILUTSequence")]
    pairs = list(zip(header.numbers("WindowCenter"), header.numbers("WindowWidth"), strict=False))
    names = header.texts("WindowCenterWidthExplanation")
    names += [""] * (len(pairs) - len(names))
    if isinstance(window, str):
        known = [table.name.casefold() for table in tables] + [name.casefold() for name in names[: len(pairs)]]
        if window.casefold() not in known:
            raise ImageError(
                header.path, "has no window of that name", tag="WindowCenterWidthExplanation", value=window
            )
        index = known.index(window.casefold())
    else:
        index = window or 0
        alternatives = len(tables) + len(pairs)
        if not alternatives and window is None:
            return None
        if not 0 <= index < alternatives:
            raise ImageError(header.path, f"has {alternatives} windows, not that one", tag="window", value=index)
    if index < len(tables):
        return tables[index]
    centre, width = pairs[index - len(tables)]
    return _window(header, centre, width, function, names[index - len(tables)])


def _window(header: Header, centre: float, width: float, function: str, name: str) -> Window:
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(header.path, "has an unknown window function", tag="VOILUTFunction", value=function)
    if not math.isfinite(centre) or abs(centre) > _HUGE:
        raise ImageError(header.path, "has an impossible window", tag="WindowCenter", value=centre)
    if not math.isfinite(width) or width <= 0.0 or abs(width) > _HUGE or (function == "LINEAR" and width < 1.0):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise ImageError(
            header.path, f"has an impossible window, whose width must be {least}", tag="WindowWidth", value=width
        )
    return Window(centre, width, cast(Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"], function), name)
