"""Open raster handles: one a thread, none across a fork, few at a time, and every failure of GDAL a typed error.

GDAL's handles are not thread-safe (https://gdal.org/en/stable/user/multithreading.html), and a handle that a fork
shares moves the file position of its parent. Each thread therefore keeps its own handles, least recently used first out,
and a child of a fork starts with none; those of the parent are kept unclosed there, for closing them would wait for locks
that another thread of the parent may have held. A fork while another thread reads remains a risk in GDAL itself: prefer
``spawn``.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.formats import Source, driver_of, identify
from vitdomains.core.geo.read.http import is_remote
from vitdomains.core.geo.read.info import RasterInfo, describe_dataset
from vitdomains.core.geo.read.nodata import undeclared_collar

# Plain pictures have no georeference; ``RasterInfo.georeference`` says so without a warning a file.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

HANDLES_PER_THREAD = 16
VIEWS_PER_HANDLE = 4
MAX_BLOCK_BYTES = 2**30


class Closes(Protocol):
    """What hangs on a handle and is closed before it."""

    def close(self) -> None: ...


@dataclass(eq=False)
class Handle:
    """An open file and what is known of it; ``views`` are the grids that it is warped to, ``value_range`` the lowest and highest
    value of a sample, () where that holds no data and None before it was taken."""

    source: Source
    dataset: DatasetReader
    users: int = 0
    views: OrderedDict[Hashable, Closes | None] = field(default_factory=OrderedDict)
    value_range: tuple[float, float] | tuple[()] | None = None

    @cached_property
    def info(self) -> RasterInfo:
        """The header, read once."""
        return describe_dataset(self.dataset, self.source.name)

    @cached_property
    def collar(self) -> float | None:
        """The value of a border that the file does not declare."""
        if self.info.mask != "none" or self.info.crs is None:
            return None
        return undeclared_collar(self.dataset, self.info.indexes)

    def keep_view(self, key: Hashable, view: Closes | None) -> None:
        """Keep a view, and close the oldest where there are too many."""
        self.views[key] = view
        while len(self.views) > VIEWS_PER_HANDLE:
            _, spare = self.views.popitem(last=False)
            if spare is not None:
                spare.close()

    def close(self) -> None:
        """Close the dataset and what hangs on it."""
        while self.views:
            _, view = self.views.popitem()
            if view is not None:
                view.close()
        self.dataset.close()
        self.source.close()


class _Handles:
    """The handles of one thread, least recently used first."""

    def __init__(self) -> None:
        self.open: OrderedDict[tuple[object, ...], Handle] = OrderedDict()


_local = threading.local()
_all: weakref.WeakSet[_Handles] = weakref.WeakSet()
_lock = threading.Lock()  # over _all
_of_parent: list[_Handles] = []  # alive across a fork


def _of_this_thread() -> OrderedDict[tuple[object, ...], Handle]:
    handles: _Handles | None = getattr(_local, "handles", None)
    if handles is None:
        handles = _local.handles = _Handles()
        with _lock:
            _all.add(handles)
    return handles.open


def _before_fork() -> None:
    _lock.acquire()
    _of_parent.extend(_all)


def _after_fork_in_parent() -> None:
    _of_parent.clear()
    _lock.release()


def _after_fork_in_child() -> None:
    global _local, _all, _lock
    _local, _all, _lock = threading.local(), weakref.WeakSet(), threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """This thread's handle of a raster, open for reading; it stays open for the next call.

    Do not close it, pass it to another thread, or keep it after the block.

    Args:
        path: A local file or an http(s) address.

    Raises:
        ImageError: Not there, no raster format that is read here, damaged, or an address that may not be read.
    """
    with borrow(path) as handle:
        yield handle.dataset


@contextmanager
def borrow(path: str | Path) -> Iterator[Handle]:
    """As ``open_raster``, with what was worked out about the file.

    A file that was replaced on disk is opened anew. A handle on which a remote read failed is closed: its blocks may be blank.
    """
    source = identify(path)
    key = (source.address, source.signature)
    handles = _of_this_thread()
    handle = handles.get(key)
    if handle is None:
        handle = handles[key] = _open(source)
    else:
        handles.move_to_end(key)
    handle.users += 1
    try:
        with typed_errors(handle.source):
            yield handle
    except ImageError:
        if handle.source.failure is not None and handles.pop(key, None) is not None:
            handle.close()
        raise
    finally:
        handle.users -= 1
        _close_spare(handles)


def _close_spare(handles: OrderedDict[tuple[object, ...], Handle]) -> None:
    while len(handles) > HANDLES_PER_THREAD:
        key = next((key for key, handle in handles.items() if not handle.users), None)
        if key is None:
            return
        handles.pop(key).close()


def close_all() -> None:
    """Close the handles of this thread, for example before a file is replaced on a system that locks open files."""
    handles = _of_this_thread()
    while handles:
        handles.popitem()[1].close()


@contextmanager
def typed_errors(source: Source) -> Iterator[None]:
    """GDAL's errors as ``ImageError``; a remote read that failed is one even where GDAL made blank pixels of it."""
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        _raise_remote(source, error)
        raise ImageError(
            source.name,
            f"cannot be read ({_reason(error)})",
            hint="The file is damaged or incomplete: fetch it again, and see what `gdalinfo -checksum` says of it.",
        ) from error
    _raise_remote(source, None)


def _raise_remote(source: Source, error: Exception | None) -> None:
    if source.failure is not None:
        raise source.failure from error


def _reason(error: BaseException) -> str:
    """What GDAL said: which block, from the outer error, and why, from the innermost."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    texts = dict.fromkeys(str(given).replace("\n", " ").rstrip(".") for given in chain[1:2] + chain[-1:])
    return ": ".join(texts)


def open_overview(handle: Handle, level: int) -> DatasetReader:
    """A dataset of one overview (0 is the finest) beside an open handle; whoever asked for it closes it."""
    return _dataset(handle.source, handle.dataset.driver, overview_level=level)


def _dataset(source: Source, driver: str, **options: object) -> DatasetReader:
    # A remote server is not asked for files beside the one that was named; for local files they count (.ovr, .msk, .aux.xml).
    listing = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if is_remote(source.address) else {}
    with typed_errors(source), rasterio.Env(GTIFF_IGNORE_READ_ERRORS=False, **listing):
        return rasterio.open(source.opened, driver=driver, opener=source.opener(), **options)


def _open(source: Source) -> Handle:
    try:
        dataset = _dataset(source, driver_of(source))
    except ImageError:
        source.close()
        raise
    try:
        with typed_errors(source):
            _check(source, dataset)
    except ImageError:
        dataset.close()
        source.close()
        raise
    return Handle(source, dataset)


def _check(source: Source, dataset: DatasetReader) -> None:
    """Refuse what cannot be read as bands of real numbers, or would read from places that nobody named.

    A file may keep its overviews or its geolocation arrays under another name, also under an address.
    """
    if not dataset.count or any("complex" in str(dtype) for dtype in dataset.dtypes):
        raise ImageError(
            source.name,
            "holds no band of real numbers",
            tag="dtypes",
            value=dataset.dtypes,
            hint="Take the amplitude of complex data first; write one subdataset of a container out as a file.",
        )
    for domain, key in (("OVERVIEWS", "OVERVIEW_FILE"), ("GEOLOCATION", "X_DATASET")):
        if elsewhere := dataset.tags(ns=domain).get(key):
            raise ImageError(source.name, "points to another file", tag=key, value=elsewhere, hint=_REWRITE)
    height, width = dataset.block_shapes[0]
    bands = dataset.count if dataset.interleaving is not None and dataset.interleaving.name == "pixel" else 1
    size = height * width * bands * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        raise ImageError(
            source.name,
            f"stores blocks of {size / 2**30:.1f} GiB, each of which is decoded as a whole",
            tag="block shape",
            value=(height, width),
            hint=_REWRITE,
        )


_REWRITE = "Write it out as one tiled file: `rio cogeo create IN OUT.tif`."
