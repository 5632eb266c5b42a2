"""How often ``cxr.quality`` remarks on an acceptable film, and how often it finds a defect made on purpose.

    python benchmarks/cxr_film_quality.py [--phantoms 200] [--limit 0] [--layout]

Real films: the 800 frontal ones of a NIH ChestX-ray14 subset in ``VITDOMAINS_SHARED``, where present; all 448 x 448
PNG files, so view, body part, exposure index and aspect ratio cannot be wrong in them. Phantoms are drawn for the occasion,
with another seed than those of the layout. ``--layout`` prints the table ``quality.LAYOUT`` from 200 phantoms instead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from harness import write_result
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vitdomains.cxr.film.film import Film, read_film
from vitdomains.cxr.phantoms.make import make_phantoms
from vitdomains.cxr.quality import film_quality

SEED, LAYOUT_SEED = 7, 1
Picture = NDArray[np.float32]


def part(pixels: Picture, top: float, left: float, share: float) -> Picture:
    """A rectangle of the film with ``share`` of its height and width, enlarged to the old size."""
    rows, columns = pixels.shape
    y, x = round(top * rows), round(left * columns)
    cut = pixels[y : y + round(share * rows), x : x + round(share * columns)]
    return np.asarray(cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def collimated(pixels: Picture, share: float) -> Picture:
    """All black but a centred rectangle with ``share`` of the height and width."""
    rows, columns = (round((1 - share) / 2 * side) for side in pixels.shape)
    out = np.zeros_like(pixels)
    inside = np.s_[rows : len(out) - rows, columns : out.shape[1] - columns]
    out[inside] = pixels[inside]
    return out


def noise(pixels: Picture) -> Picture:
    """A detector that saw nothing: noise over the whole grey scale."""
    return np.random.default_rng(0).uniform(0, 1, pixels.shape).astype(np.float32)


DEFECTS: dict[str, Callable[[Picture], Picture]] = {
    "inverted": lambda p: 1 - p,
    "blank": lambda p: np.full_like(p, 0.5),
    "noise alone": noise,
    "turned by 90 degrees": lambda p: np.ascontiguousarray(np.rot90(p)),
    "upside down": lambda p: np.ascontiguousarray(p[::-1]),
    "overexposed (twice the contrast, dark end)": lambda p: np.clip(2 * p - 1, 0, 1),
    "underexposed (twice the contrast, bright end)": lambda p: np.clip(2 * p, 0, 1),
    "collimated to a quarter": lambda p: collimated(p, 0.5),
    "cropped to the upper left quarter": lambda p: part(p, 0, 0, 0.5),
    "cropped to the lower half": lambda p: np.ascontiguousarray(p[len(p) // 2 :]),
    "cropped to a narrow strip": lambda p: np.ascontiguousarray(p[:, : p.shape[1] // 3]),
    "thumbnail of 128 pixels": lambda p: cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA),
}


def rates(films: Iterable[Film]) -> dict[str, Any]:
    """Share of the films that got a remark, in all and by check, as they are and with each defect."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("as they are", *DEFECTS)}
    n = 0
    for film in films:
        n += 1
        for name, count in counts.items():
            changed = film if name not in DEFECTS else replace(film, pixels=DEFECTS[name](film.pixels), valid=None)
            quality = film_quality(changed)
            count["any"] += not quality.acceptable
            count.update(check.name for check in quality.checks if check.reason)
    shares = {name: {check: c / max(1, n) for check, c in count.items()} for name, count in counts.items()}
    return {"films": n, "remarked": shares}


def phantoms(folder: Path, n: int, seed: int, size: int) -> Iterator[Film]:
    """Phantom films, drawn in one process."""
    root = make_phantoms(folder / f"phantoms{seed}", n, seed, size, workers=1)
    return (read_film(path) for path in sorted((root / "films").iterdir()))


def layout(films: Iterable[Film]) -> NDArray[np.int64]:
    """Mean brightness in 8 x 8 cells, each film normalised, made symmetric, in hundredths of its norm."""
    cells = [np.asarray(cv2.resize(film.pixels, (8, 8), interpolation=cv2.INTER_AREA), np.float64) for film in films]
    mean = np.mean([(c - c.mean()) / np.linalg.norm(c - c.mean()) for c in cells], axis=0)
    mean = mean + mean[:, ::-1]
    return np.rint(100 * (mean - mean.mean()) / np.linalg.norm(mean - mean.mean())).astype(np.int64)


def main() -> None:
    """Measure, print a table, write ``results/cxr_film_quality.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=200, help="phantoms to draw (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="real films to read; 0: all")
    parser.add_argument("--layout", action="store_true", help="print the table that quality.py holds")
    words, console = parser.parse_args(), Console()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if words.layout:
            console.print(layout(phantoms(folder, 200, LAYOUT_SEED, 192)).tolist())
            return
        found = {"phantoms": rates(phantoms(folder, words.phantoms, SEED, 448))}
    shared = Path(os.environ.get("VITDOMAINS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    real = sorted((shared / "data" / "nih_cxr14_subset" / "images").rglob("*.png"))
    if real:
        found["nih"] = rates(read_film(path) for path in real[: words.limit or None])
    table = Table(title="Share of films that got a remark")
    table.add_column("films")
    for name, result in found.items():
        table.add_column(f"{name}, {result['films']}")
    for row in ("as they are", *DEFECTS):
        shares = [dict(result["remarked"][row]) for result in found.values()]
        texts = [
            f"{one.pop('any', 0):.1%} ({', '.join(f'{k} {v:.1%}' for k, v in sorted(one.items()) if v)})"
            for one in shares
        ]
        table.add_row(row, *texts)
    console.print(table)
    console.print(f"written to {write_result('cxr_film_quality', found)}")


if __name__ == "__main__":
    main()
