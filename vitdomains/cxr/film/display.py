"""A film for a screen: all its grey levels and the windows that it brings, before any window is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.film import MAX_PIXELS, read_film
from vitdomains.cxr.film.grayscale import (
    Grayscale,
    LookupTable,
    Range,
    Window,
    modality_values,
    read_grayscale,
    stored_values,
    usable_words,
    voi_values,
    with_fallback,
)
from vitdomains.cxr.film.header import Header, open_film, read_header
from vitdomains.cxr.film.orientation import read_turn
from vitdomains.cxr.film.pixels import Layout, read_layout, read_pixels

MAX_PRESETS = 9  # as many as there are digit keys

Levels = NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True)
class Preset:
    """A window in modality units; or a table, as grey 0..255 for every level, with the window that comes nearest to it."""

    name: str
    centre: float
    width: float
    function: str = "LINEAR_EXACT"
    table: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Display:
    """A film as a viewer takes it.

    Attributes:
        levels: uint8 or uint16 ``[H, W]``, 0 for the lowest value that the file can store.
        units: float32 ``[N]``: level to modality value.
        presets: The first is the film's default; at most ``MAX_PRESETS``.
        inverted: Grey is turned over after the window (MONOCHROME1).
        padding: First and last level that are padding, shown black whatever the window; None where there is none.
    """

    levels: Levels
    units: NDArray[np.float32]
    presets: tuple[Preset, ...]
    inverted: bool = False
    padding: tuple[int, int] | None = None


def read_display(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Display:
    """Read a film for display: DICOM, PNG or JPEG by content.

    Raises:
        ImageError: As ``read_film``.
    """
    path = Path(path)
    with open_film(path) as (file, start):
        if start is not None:
            return _from_dicom(read_header(path, file, start, 2 * max_pixels), max_pixels)
    film = read_film(path, max_pixels=max_pixels)
    top = 2**film.bits - 1
    levels = np.rint(film.pixels * np.float32(top)).astype(np.uint8 if film.bits <= 8 else np.uint16)
    full = Preset("full range", top / 2, float(top))
    return Display(levels, np.arange(top + 1, dtype=np.float32), (full, *_stretched(levels, np.arange(top + 1.0))))


def read_facts(path: str | Path) -> Header | None:
    """The header of a DICOM film, without its pixels; None for PNG and JPEG.

    Raises:
        ImageError: The file cannot be read as DICOM although it says that it is.
    """
    path = Path(path)
    with open_film(path) as (file, start):
        return None if start is None else read_header(path, file, start, 2 * MAX_PIXELS)


def _from_dicom(header: Header, max_pixels: int) -> Display:
    stored_pixels = read_pixels(header, read_layout(header, max_pixels))
    layout = stored_pixels.layout
    grayscales = _alternatives(header, layout)
    (words,) = stored_pixels.blocks(whole=True)
    grayscale = grayscales[0]
    try:
        if grayscale.voi is None:
            grayscales = [with_fallback(words, grayscale)]
    except ValueError as error:
        raise header.error(str(error), "PixelData", f"{layout.rows} x {layout.columns}") from None
    stored = stored_values(grayscale)
    low = int(stored.min())
    count = int(stored.max()) - low + 1
    level_of_word = (stored - low).astype(np.uint8 if count <= 256 else np.uint16)
    units = modality_values(grayscale, np.arange(low, low + count, dtype=np.int64))
    usable, padding = usable_words(grayscale, stored), None
    if usable is not None:
        padded = np.unique(level_of_word[~usable])
        if np.isin(level_of_word[usable], padded).any():  # told by bits above the stored ones: a level of their own
            level_of_word = np.where(usable, level_of_word, count).astype(np.uint16)
            units, padded = np.append(units, units[0]), np.array([count])
        padding = (int(padded[0]), int(padded[-1])) if padded.size else None
    levels = cast(Levels, read_turn(header).apply(level_of_word[words]))
    presets = [_preset(g, units, i) for i, g in enumerate(grayscales)]
    return Display(
        levels,
        units.astype(np.float32),
        (*presets, *_stretched(levels, units, padding))[:MAX_PRESETS],
        grayscales[0].inverted,
        padding,
    )


def _alternatives(header: Header, layout: Layout) -> list[Grayscale]:
    """The pipeline with each table and window of the file; what is impossible among the later ones is left out."""
    found = [read_grayscale(header, layout)]
    for index in range(1, MAX_PRESETS if found[0].voi is not None else 1):
        try:
            found.append(read_grayscale(header, layout, index))
        except ImageError:  # no such window, or none that means anything: the film has its default all the same
            break
    return found


def _preset(grayscale: Grayscale, units: NDArray[np.float64], index: int) -> Preset:
    voi = grayscale.voi
    if isinstance(voi, Window):
        return Preset(voi.name or f"window {index + 1}", voi.centre, voi.width, voi.function)
    if isinstance(voi, LookupTable):
        grey = voi_values(voi, units)
        inner = units[(grey > 0.02) & (grey < 0.98)]
        low, high = (float(inner.min()), float(inner.max())) if inner.size else (float(units.min()), float(units.max()))
        table = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
        return Preset(voi.name or f"table {index + 1}", (low + high) / 2, max(high - low, 1.0), table=table)
    if isinstance(voi, Range):
        return Preset(voi.name, (voi.low + voi.high) / 2, voi.high - voi.low)
    raise TypeError(f"a pipeline without a window has no preset: {grayscale}")


def _stretched(
    levels: Levels, units: NDArray[np.float64], padding: tuple[int, int] | None = None
) -> tuple[Preset, ...]:
    """Two windows for any film: all that it holds, and the middle of it (5th to 95th percentile)."""
    counts = np.bincount(levels.ravel(), minlength=len(units)).astype(np.float64)
    if padding is not None:
        counts[padding[0] : padding[1] + 1] = 0
    present = np.flatnonzero(counts)
    if not len(present):
        return ()
    order = present[np.argsort(units[present], kind="stable")]
    ranks = np.cumsum(counts[order]) / counts.sum()
    low, high, inner_low, inner_high = (
        float(units[order[np.searchsorted(ranks, q)]]) for q in (0.0, ranks[-1], 0.05, 0.95)
    )
    made = []
    for name, start, end in (("all values", low, high), ("5th to 95th percentile", inner_low, inner_high)):
        if end > start:
            made.append(Preset(name, (start + end) / 2, end - start))
    return tuple(made)
