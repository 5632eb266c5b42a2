"""A scene through a model: tiles are read ahead in strips, go through in batches, and leave a row each.

The worker of a job in shards (``core/jobs/shards.py``). A tile with too little data is skipped; one that cannot be read becomes a
row with an error. Where only a part of a tile holds data, the row carries which cells do, so that the map can be drawn
without reading the scene again.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from vitdomains.core.data.preprocess import PreprocessSpec, prepare, resized_spec
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.map.tiles_table import tile_table
from vitdomains.core.inference.predictor import Predictor, batched
from vitdomains.core.jobs.pool import Work

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

Extent = tuple[int, int, int, int]
ReadPixels = Callable[[str, Extent], tuple[Array, Bools]]
"""(path, (column, row, width, height)) to pixels [H, W, C] as ``prepare`` takes them, and which hold data [H, W].

What a pixel without data is to the model is the reader's to say, as it was in training."""

STRIP_TILES, STRIP_PIXELS = 8, 2**20
"""Neighbours in a row that are read in one go, which reads their overlap once: at most so many tiles, about so many pixels."""


@dataclass(frozen=True)
class LabelTiles:
    """Makes the worker that labels tiles of scenes.

    Args:
        make_predictor: Loads the bundle; takes ``threads`` and ``batch_size``.
        read: Reads a window; travels to worker processes.
        cell: Side of a cell of the map, pixels of the scene.
        batch_size: Most tiles of a forward pass (``Predictor.stream_batch``).
        symmetries: Average the probabilities over the rotations and reflections of a tile, which look alike from above.
        readers: Threads that read ahead; more than one pays where reading waits (remote files).
        min_valid: Share of a tile that has to hold data, else it is skipped, 0..1.
        min_probability: Below it a single-label tile is ``unknown``.
    """

    make_predictor: Callable[..., Predictor]
    read: ReadPixels
    cell: int
    batch_size: int = 16
    symmetries: bool = False
    readers: int = 1
    min_valid: float = 0.25
    min_probability: float = 0.0

    def __call__(self) -> Work:
        predictor = self.make_predictor(threads=torch.get_num_threads(), batch_size=self.batch_size)
        pool = ThreadPoolExecutor(
            self.readers, thread_name_prefix="read"
        )  # kept, as are its open files, between shards
        return lambda rows: label_tiles(rows, predictor, self, pool)


@dataclass(frozen=True)
class _Tile:
    """A tile as it was read: ``image`` [C, H, W] for the model, None where skipped or in error."""

    at: int
    image: Array | None = None
    valid: float = 0.0
    cells: bytes = b""
    error: str = ""


def label_tiles(rows: pd.DataFrame, predictor: Predictor, job: LabelTiles, pool: ThreadPoolExecutor) -> pd.DataFrame:
    """The tile table of planned rows, with a column ``cells``: which cells hold data, empty where all do (see ``pack``)."""
    bundle = predictor.bundle
    scores = np.full((len(rows), len(bundle.classes)), np.nan, np.float32)
    valid = np.full(len(rows), np.nan, np.float32)
    cells, errors = [b""] * len(rows), [""] * len(rows)

    def read() -> Iterator[tuple[int, Array]]:
        """Where each tile with an image stands, and the image; what is known of the others is written down."""
        for tile in _tiles(rows, bundle.preprocess, job, pool):
            valid[tile.at], cells[tile.at], errors[tile.at] = tile.valid, tile.cells, tile.error
            if tile.image is not None:
                yield tile.at, tile.image

    def forward(batch: Sequence[tuple[int, Array]]) -> tuple[list[int], npt.NDArray[np.floating]]:
        images = torch.from_numpy(np.stack([image for _, image in batch]))
        return [at for at, _ in batch], probabilities(predictor, images, symmetries=job.symmetries)

    for places, found in predictor.in_streams(forward, batched(read(), predictor.stream_batch)):
        scores[places] = found
    table = tile_table(
        rows, scores, bundle.classes, model_id=bundle.id, kind=bundle.task_kind, thresholds=bundle.thresholds,
        valid_fraction=valid, errors=errors, min_probability=job.min_probability,
    )  # fmt: skip
    return table.assign(cells=pd.Series(cells, dtype=object))


def probabilities(predictor: Predictor, images: Tensor, *, symmetries: bool = False) -> npt.NDArray[np.floating]:
    """Calibrated probabilities [B, K] of prepared images [B, C, H, W]; called by as many threads at once as the predictor has
    streams.

    With ``symmetries`` their mean over the dihedral group D4: four rotations, each as it is and mirrored (for images that are
    not square the four that keep the shape).
    """
    if not symmetries:
        return predictor.scores(predictor.logits(images, streams=predictor.streams))
    turns = range(4) if images.shape[2] == images.shape[3] else (0, 2)
    turned = [torch.rot90(images, k, (2, 3)) for k in turns]
    views = turned + [view.flip(3) for view in turned]
    return np.asarray(np.mean([probabilities(predictor, view.contiguous()) for view in views], axis=0))


def _tiles(rows: pd.DataFrame, spec: PreprocessSpec, job: LabelTiles, pool: ThreadPoolExecutor) -> Iterator[_Tile]:
    """Tiles in the order of the plan; strips are read ahead of the consumer, one more than there are readers."""
    waiting: deque[Future[list[_Tile]]] = deque()
    for strip in strips(rows):
        waiting.append(pool.submit(_read_strip, strip, spec, job))
        if len(waiting) > job.readers + 1:
            yield from waiting.popleft().result()
    for future in waiting:
        yield from future.result()


@dataclass(frozen=True)
class Strip:
    """Neighbouring tiles of one row of the grid: ``at`` is where the first stands in the shard, ``cols`` their left edges."""

    path: str
    at: int
    cols: tuple[int, ...]
    row: int
    width: int
    height: int


def strips(rows: pd.DataFrame) -> list[Strip]:
    """Planned tiles in groups that are read in one go: same file, same row, each beginning within its left neighbour."""
    found: list[Strip] = []
    values = zip(rows["path"], rows["col"], rows["row"], rows["width"], rows["height"], strict=True)
    for at, (path, col, row, width, height) in enumerate(values):
        last = found[-1] if found else None
        if (
            last is not None
            and (last.path, last.row, last.width, last.height) == (path, row, width, height)
            and last.cols[-1] < col <= last.cols[-1] + width
            and len(last.cols) < STRIP_TILES
            and (col + width - last.cols[0]) * height <= max(STRIP_PIXELS, width * height)
        ):
            found[-1] = Strip(path, last.at, (*last.cols, int(col)), row, width, height)
        else:
            found.append(Strip(path, at, (int(col),), int(row), int(width), int(height)))
    return found


def read_strip(
    strip: Strip, read: Callable[[Extent], tuple[Array, Bools]]
) -> list[tuple[Strip, Array, Bools] | tuple[int, ImageError]]:
    """A strip with its pixels [H, W, C] and which hold data [H, W]; where it cannot be read its tiles by themselves.

    One bad block does not take the neighbours with it: of a tile that cannot be read comes where it stands, and the error.
    """
    try:
        pixels, valid = read((strip.cols[0], strip.row, strip.cols[-1] + strip.width - strip.cols[0], strip.height))
        return [(strip, pixels, valid)]
    except ImageError as error:
        if len(strip.cols) == 1:
            return [(strip.at, error)]
    alone = [replace(strip, at=strip.at + i, cols=(col,)) for i, col in enumerate(strip.cols)]
    return [part for one in alone for part in read_strip(one, read)]


def _read_strip(strip: Strip, spec: PreprocessSpec, job: LabelTiles) -> list[_Tile]:
    found: list[_Tile] = []
    for part in read_strip(strip, partial(job.read, strip.path)):
        if len(part) == 2:
            found.append(_Tile(part[0], valid=np.nan, error=str(part[1])))
        else:
            found += _cut(*part, spec, job)
    return found


def _cut(strip: Strip, pixels: Array, valid: Bools, spec: PreprocessSpec, job: LabelTiles) -> list[_Tile]:
    left = strip.cols[0]
    stored = _stored(pixels, spec) if (strip.height, strip.width) == (spec.height, spec.width) else None
    whole = bool(valid.all())
    found = []
    for i, col in enumerate(strip.cols):
        part = slice(col - left, col - left + strip.width)
        share = 1.0 if whole else float(valid[:, part].mean())
        cells = b"" if share == 1.0 else pack(cells_with_data(valid[:, part], job.cell))
        image = None
        if share > 0 and share >= job.min_valid:
            image = stored[:, :, part] if stored is not None else _planes(prepare(pixels[:, part], spec))
        found.append(_Tile(strip.at + i, image, share, cells))
    return found


def _stored(pixels: Array, spec: PreprocessSpec) -> Array | None:
    """A whole strip [H, W, C] as ``prepare`` stores it, [C, H, W]: where tiles are not resized, their overlap is converted once.

    The planes go through as one tall grey image, so that the rounding is that of ``prepare`` and no byte changes its place.
    """
    height, width, channels = pixels.shape
    if channels not in (1, spec.channels):
        return None
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).reshape(channels * height, width)
    return prepare(planes, resized_spec(spec, (channels * height, width))).reshape(channels, height, width)


def _planes(prepared: Array) -> Array:
    """[H, W] or [H, W, C] to [C, H, W]."""
    return prepared[None] if prepared.ndim == 2 else np.ascontiguousarray(prepared.transpose(2, 0, 1))


def cells_with_data(valid: Bools, cell: int) -> Bools:
    """Which cells of a tile [H, W] hold data in at least half of their pixels; the last ones may be cut off by its edge."""
    counts = valid.astype(np.int32)
    sizes = []
    for axis, length in enumerate(valid.shape):
        starts = np.arange(0, length, cell)
        counts = np.add.reduceat(counts, starts, axis=axis)
        sizes.append(np.diff(np.append(starts, length)))
    return np.asarray(2 * counts >= np.multiply.outer(*sizes))


def pack(cells: Bools) -> bytes:
    """Cells [Y, X] as few bytes; ``unpack`` is the inverse."""
    return zlib.compress(np.packbits(cells).tobytes(), 1)


def unpack(packed: bytes, side: int) -> Bools:
    """Cells [side, side] of a tile; all where ``packed`` is empty."""
    if not packed:
        return np.ones((side, side), dtype=bool)
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.unpackbits(bits, count=side * side).reshape(side, side).astype(bool)
