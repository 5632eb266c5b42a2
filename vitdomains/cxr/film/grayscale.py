"""The grayscale pipeline of a film: what its header asks for, checked, and applied as one lookup table.

The pipeline of DICOM (PS3.4, N.2; PS3.3, C.11.1 and C.11.2; padding: C.7.5.1.1.2) is modality transformation,
value-of-interest transformation, inversion for MONOCHROME1, in this order. For words of up to 16 bits all of it is a
function of at most 65,536 stored values: it is computed once on those, in float64, kept for the next film of the same kind,
and applied to the pixels as a single gather.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Literal, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.header import Element, Header
from vitdomains.cxr.film.pixels import Layout, Stored, display_array

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T", np.float32, np.uint8)
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class LookupTable:
    """An explicit table: ``entries`` (native uint16, ``bits`` of them significant) for the inputs from ``first`` on."""

    first: int
    bits: int
    entries: bytes
    name: str = ""


@dataclass(frozen=True)
class Window:
    """A window in modality units, with the function that maps it to 0..1."""

    centre: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"
    name: str = ""


@dataclass(frozen=True)
class Range:
    """Modality values that become 0 and 1, linear in between: what is left where a film brings no window."""

    low: float
    high: float
    name: str


@dataclass(frozen=True)
class Grayscale:
    """Everything between a stored word and its display value; hashable, so that its table is made once."""

    layout_bits: tuple[int, int, bool]  # (allocated, stored, signed)
    slope: float = 1.0
    intercept: float = 0.0
    modality: LookupTable | None = None
    voi: LookupTable | Window | Range | None = None
    inverted: bool = False
    padding: tuple[int, int] | None = None  # stored values, both ends included


def apply(
    blocks: Iterable[Stored], size: tuple[int, int], grayscale: Grayscale
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Display values of a film.

    Args:
        blocks: Its words as read, top to bottom, ``[n, W]`` each.
        size: ``(H, W)``.
        grayscale: The pipeline, with a ``voi``.

    Returns:
        Pixels ``[H, W]`` in 0..1 with bone bright and padding 0; which pixels are no padding (None: all).

    Raises:
        ValueError: There is no valid pixel.
    """
    table, usable = _display_table(grayscale)
    remaining = iter(blocks)
    first = next(remaining)  # before any memory is taken: the reader checks here what the header claimed
    pixels = display_array(*size)
    valid = None if usable is None else np.empty(size, np.uint8)
    row = 0
    for block in chain((first,), remaining):
        _gather(block, table, pixels[row : row + len(block)])
        if usable is not None and valid is not None:
            _gather(block, usable, valid[row : row + len(block)])
        row += len(block)
    if valid is None or valid.all():
        return pixels, None
    if not valid.any():
        raise ValueError("holds padding only")
    return pixels, valid.astype(bool)


def with_fallback(stored: Stored, grayscale: Grayscale) -> Grayscale:
    """The pipeline with a range where the film brings neither table nor window.

    A film of up to 8 stored bits is shown over its full range: it was windowed before it was stored so. A deeper one is
    shown between the 0.5th and 99.5th percentile of its valid pixels (between its extremes where these coincide).

    Raises:
        ValueError: There is no valid pixel, or no contrast to find a range in.
    """
    return grayscale if grayscale.voi is not None else replace(grayscale, voi=_fallback(stored, grayscale))


def stored_values(grayscale: Grayscale) -> NDArray[np.int64]:
    """What each of the ``2**allocated`` words means: bits above the stored ones ignored, the sign extended."""
    allocated, stored, signed = grayscale.layout_bits
    values = np.arange(1 << allocated, dtype=np.int64) & ((1 << stored) - 1)
    if signed:
        values -= (values >> (stored - 1)) << stored
    return values


def modality_values(grayscale: Grayscale, stored: NDArray[np.int64]) -> NDArray[np.float64]:
    """Modality values of stored values (PS3.3, C.11.1): the table where there is one, slope and intercept otherwise."""
    if grayscale.modality is not None:
        return _look_up(grayscale.modality, stored.astype(np.float64))
    return stored.astype(np.float64) * grayscale.slope + grayscale.intercept


def voi_values(voi: LookupTable | Window | Range, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0..1 of modality values (PS3.3, C.11.2.1.2.1: LINEAR, C.11.2.1.3.1: SIGMOID, C.11.2.1.3.2: LINEAR_EXACT)."""
    if isinstance(voi, LookupTable):
        return _look_up(voi, values) / (2.0**voi.bits - 1.0)
    if isinstance(voi, Range):
        return np.clip((values - voi.low) / (voi.high - voi.low), 0.0, 1.0)
    if voi.function == "SIGMOID":
        return 0.5 * (
            1.0 + np.tanh(2.0 * (values - voi.centre) / voi.width)
        )  # = 1 / (1 + exp(-4 (x - c) / w)), without overflow
    centre, width = (voi.centre - 0.5, voi.width - 1.0) if voi.function == "LINEAR" else (voi.centre, voi.width)
    if width == 0.0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


@lru_cache(maxsize=32)
def _display_table(grayscale: Grayscale) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Display value and usability of every word; 256 KiB and 64 KiB at 16 bits."""
    stored = stored_values(grayscale)
    if grayscale.voi is None:
        raise ValueError("a pipeline without a window has no table")
    with np.errstate(over="ignore"):  # a width near zero is a threshold, rightly
        shown = voi_values(grayscale.voi, modality_values(grayscale, stored))
    table = (1.0 - shown if grayscale.inverted else shown).astype(np.float32)
    usable = usable_words(grayscale, stored)
    if usable is None:
        return table, None
    table[~usable] = 0.0
    return table, usable.astype(np.uint8)


def usable_words(grayscale: Grayscale, stored: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which words are no padding: neither a value in its range nor, where no value can be so, its very word."""
    if grayscale.padding is None:
        return None
    low, high = grayscale.padding
    padded = (stored >= low) & (stored <= high)
    if not padded.any():  # of the other sign than the pixels, or in bits above the stored ones
        ends = [end % len(stored) for end in (low, high)]
        padded[min(ends) : max(ends) + 1] = True
    return ~padded


def _fallback(stored: Stored, grayscale: Grayscale) -> Range:
    words = stored_values(grayscale)
    values = modality_values(grayscale, words)
    if grayscale.layout_bits[1] <= 8:
        top = 2.0**grayscale.modality.bits - 1.0 if grayscale.modality is not None else float(values.max())
        return _range(0.0 if grayscale.modality is not None else float(values.min()), top)
    counts = cv2.calcHist([stored], [0], None, [len(words)], [0, len(words)]).ravel()
    usable = usable_words(grayscale, words)
    present = np.flatnonzero(counts if usable is None else counts * usable)
    if not present.size:
        raise ValueError("holds padding only")
    present = present[np.argsort(values[present], kind="stable")]
    ranks = np.cumsum(counts[present], dtype=np.float64)
    low, high = (float(values[present[np.searchsorted(ranks, ranks[-1] * percent / 100.0)]]) for percent in PERCENTILES)
    if low == high:
        low, high = float(values[present[0]]), float(values[present[-1]])
    return _range(low, high, f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}")


def _range(low: float, high: float, name: str = "full range") -> Range:
    if low == high:
        raise ValueError("has the same value in every pixel and no window")
    return Range(low, high, name)


def _gather(stored: Stored, table: NDArray[_T], out: NDArray[_T]) -> None:
    if stored.dtype == np.uint8 or _CV2_GATHERS_16_BITS:
        found = cv2.LUT(stored, table, out)
        if not np.may_share_memory(found, out):  # OpenCV may decline an array to write into
            out[...] = found.reshape(out.shape)
    else:
        np.take(table, stored, out=out, mode="clip")  # "clip" writes into out directly; every word has an entry


def _cv2_gathers_16_bits() -> bool:
    """Whether this OpenCV takes tables of 65,536 entries: several times as fast as ``numpy.take``, but new in 4.12."""
    try:
        cv2.LUT(np.zeros((1, 1), np.uint16), np.zeros(65536, np.float32))
    except cv2.error:
        _LOG.debug("OpenCV %s has no 16-bit lookup tables: films are read more slowly", cv2.__version__)
        return False
    return True


_CV2_GATHERS_16_BITS = _cv2_gathers_16_bits()


def _look_up(table: LookupTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    entries = np.frombuffer(table.entries, np.uint16)
    return entries[np.clip(values - table.first, 0, len(entries) - 1).astype(np.int64)].astype(np.float64)


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
    half = 1 << (layout.stored - 1)
    low, high = (-half, half - 1) if layout.signed else (0, 2 * half - 1)
    tables = _tables(header, "ModalityLUTSequence", (low, high))
    if tables:
        span = 0.0, 2.0 ** tables[0].bits - 1.0
    else:
        ends = low * slope + intercept, high * slope + intercept
        span = min(ends), max(ends)
    pad = header.integers("PixelPaddingValue", signed=layout.signed)
    limit = header.integers("PixelPaddingRangeLimit", signed=layout.signed)
    padding = (pad[0], limit[0] if limit else pad[0]) if pad else None
    return Grayscale(
        layout_bits=(layout.allocated, layout.stored, layout.signed),
        slope=slope,
        intercept=intercept,
        modality=tables[0] if tables else None,
        voi=_choose(header, span, window),
        # Presentation LUT Shape INVERSE restates MONOCHROME1 (PS3.3, C.8.11.3): the photometric interpretation alone
        # decides, once.
        inverted=header.text("PhotometricInterpretation") == "MONOCHROME1",
        padding=(min(padding), max(padding)) if padding else None,
    )


def _rescale(header: Header) -> tuple[float, float]:
    slope = next(iter(header.numbers("RescaleSlope")), 1.0)
    intercept = next(iter(header.numbers("RescaleIntercept")), 0.0)
    if slope == 0.0 or not math.isfinite(slope) or abs(slope) > _HUGE:
        raise header.error("has an impossible slope", "RescaleSlope", slope)
    if not math.isfinite(intercept) or abs(intercept) > _HUGE:
        raise header.error("has an impossible intercept", "RescaleIntercept", intercept)
    return slope, intercept


def _tables(header: Header, sequence: str, span: tuple[float, float]) -> list[LookupTable]:
    """The tables of a sequence for inputs in ``span``."""
    element = header.elements.get(sequence)
    return [_table(header, sequence, item, span) for item in element.items] if element else []


def _table(header: Header, sequence: str, item: Mapping[str, Element], span: tuple[float, float]) -> LookupTable:
    """A checked table. Its entries say how many bits they use: writers put the size of the container there."""

    def refuse(tag: str, value: object) -> ImageError:
        return header.error(f"has an impossible lookup table in {sequence}", tag, value)

    if "LUTDescriptor" not in item or "LUTData" not in item:
        raise refuse("LUTDescriptor" if "LUTData" in item else "LUTData", None)
    descriptor = header.unpack(item["LUTDescriptor"], "LUTDescriptor")
    if len(descriptor) != 3 or descriptor[2] not in (8, *range(10, 17)):
        raise refuse("LUTDescriptor", descriptor)
    count = descriptor[0] % 65536 or 65536
    # The value representation may have the wrong sign: the first input is where the film has values.
    firsts = (descriptor[1] + turn for turn in (0, -65536, 65536))
    first = next((first for first in firsts if first <= span[1] and first + count > span[0]), descriptor[1])
    data = item["LUTData"].data
    if 2 * count <= len(data) <= 2 * count + 2:
        entries = np.frombuffer(data[: 2 * count], "<u2" if header.little_endian else ">u2").astype(np.uint16)
    elif count <= len(data) <= count + 1:  # one byte an entry
        entries = np.frombuffer(data[:count], np.uint8).astype(np.uint16)
    else:
        raise refuse("LUTData", f"{len(data)} bytes for {count} entries")
    bits = int(entries.max()).bit_length() or descriptor[2]
    explanation = item["LUTExplanation"].data.decode("latin-1").strip(" \0") if "LUTExplanation" in item else ""
    return LookupTable(first, bits, entries.tobytes(), explanation)


def _choose(header: Header, span: tuple[float, float], window: WindowChoice) -> LookupTable | Window | None:
    function = header.text("VOILUTFunction") or "LINEAR"
    if isinstance(window, tuple):
        return _window(header, window[0], window[1], function, "given")
    tables = _tables(header, "VOILUTSequence", span)
    pairs = list(zip(header.numbers("WindowCenter"), header.numbers("WindowWidth"), strict=False))
    names = header.texts("WindowCenterWidthExplanation")
    names += [""] * (len(pairs) - len(names))
    if isinstance(window, str):
        known = [table.name.casefold() for table in tables] + [name.casefold() for name in names[: len(pairs)]]
        if window.casefold() not in known:
            raise header.error("has no window of that name", "WindowCenterWidthExplanation", window)
        index = known.index(window.casefold())
    else:
        index = window or 0
        alternatives = len(tables) + len(pairs)
        if not alternatives and window is None:
            return None
        if not 0 <= index < alternatives:
            raise header.error(f"has {alternatives} windows, not that one", "window", index)
    if index < len(tables):
        return tables[index]
    centre, width = pairs[index - len(tables)]
    return _window(header, centre, width, function, names[index - len(tables)])


def _window(header: Header, centre: float, width: float, function: str, name: str) -> Window:
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise header.error("has an unknown window function", "VOILUTFunction", function)
    if not math.isfinite(centre) or abs(centre) > _HUGE:
        raise header.error("has an impossible window", "WindowCenter", centre)
    if not math.isfinite(width) or width <= 0.0 or abs(width) > _HUGE or (function == "LINEAR" and width < 1.0):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise header.error(f"has an impossible window, whose width must be {least}", "WindowWidth", width)
    return Window(centre, width, cast(Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"], function), name)
