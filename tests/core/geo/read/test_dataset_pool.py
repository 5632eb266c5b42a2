"""Handles: kept, few, one a thread, none across a fork."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.core.geo import rasters
from tests.core.geo.rasters import ramp, write
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read import dataset_pool
from vitdomains.core.geo.read.raster import close_all, open_raster, read_window


def open_files(path: Path) -> int:
    """How often this process has the file open."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link) == str(path) for link in links)


def test_handle_is_kept_and_reused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    with open_raster(path) as first, open_raster(path) as second:
        assert first is second
    with open_raster(path) as third:
        assert third is first and not third.closed
    assert open_files(path) == 1
    close_all()
    assert first.closed and open_files(path) == 0


def test_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 20, 20))
    assert (read_window(path).pixels == ramp(1, 20, 20)).all()
    os.replace(write(tmp_path / "b.tif", ramp(1, 20, 20) + 5), path)
    assert (read_window(path).pixels == ramp(1, 20, 20) + 5).all()


def test_few_handles_stay_open(tmp_path: Path) -> None:
    close_all()
    paths = [
        write(tmp_path / f"{index}.tif", ramp(1, 20, 20) + index)
        for index in range(dataset_pool.HANDLES_PER_THREAD + 6)
    ]
    for path in paths:
        assert read_window(path).pixels[0, 0, 0] == 2 + int(path.stem)
    assert sum(map(open_files, paths)) == dataset_pool.HANDLES_PER_THREAD
    # One that is in use is not closed under its user.
    with open_raster(paths[0]) as used:
        for path in paths:
            read_window(path)
        assert not used.closed
    close_all()


def test_views_are_few_and_closed_with_their_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 64, 64))
    for resolution in range(20, 30):
        read_window(path, resolution=resolution)
    with dataset_pool.borrow(path) as handle:
        assert len(handle.views) <= dataset_pool.VIEWS_PER_HANDLE
    close_all()
    assert not handle.views and open_files(path) == 0


def test_each_thread_has_its_own_and_they_end_with_it(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 60_000, (3, 512, 512)).astype(np.uint16)
    path = write(tmp_path / "a.tif", pixels, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    seen = []
    both = threading.Barrier(4)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        with open_raster(path) as dataset:
            seen.append(id(dataset))
            both.wait()  # all hold one at the same time
        equal = True
        for _ in range(50):
            column, row = (int(value) for value in rng.integers(0, 400, 2))
            window = read_window(path, (column, row, 100, 100))
            equal &= bool((window.pixels == pixels[:, row : row + 100, column : column + 100]).all())
            coarse = read_window(path, (column // 2, row // 2, 50, 50), resolution=20, resampling="nearest")
            equal &= bool(coarse.valid.all())
        return equal

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert len(set(seen)) == 4
    assert open_files(path) <= 1  # the threads are gone, and so are their files


def read_in_child(path: Path, expected: float, queue: multiprocessing.Queue[object]) -> None:
    try:
        before = dataset_pool._of_this_thread()
        window = read_window(path, (3, 4, 10, 10))
        queue.put((len(before), float(window.pixels.sum()) == expected, open_files(path)))
    except ImageError as error:
        queue.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_no_handle_crosses_a_process(tmp_path: Path, method: str) -> None:
    path = write(tmp_path / "a.tif", ramp(1, 64, 64))
    expected = float(read_window(path, (3, 4, 10, 10)).pixels.sum())
    with open_raster(path) as dataset:
        context = multiprocessing.get_context(method)
        queue: multiprocessing.Queue[object] = context.Queue()
        children = [context.Process(target=read_in_child, args=(path, expected, queue)) for _ in range(2)]
        for child in children:
            child.start()
        answers = [queue.get(timeout=60) for _ in children]
        for child in children:
            child.join()
        assert not dataset.closed and float(read_window(path, (3, 4, 10, 10)).pixels.sum()) == expected
    # In a forked child the file is open twice: the parent's handle, which is left alone, and its own.
    for kept, equal, opened in answers:  # type: ignore[misc]
        assert equal and opened == (2 if method == "fork" else 1) and kept <= 1
    assert rasters.UTM and dataset_pool._of_parent == []
