"""Files that are not what they seem: a typed error that says what is wrong, never blank pixels."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.core.geo.rasters import NORTH_UP, UTM, ramp, write
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.raster import describe_raster, read_window


def noise(bands: int = 1, side: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60_000, (bands, side, side)).astype(np.uint16)


def block_places(path: Path) -> list[tuple[int, int]]:
    """Offset and size of each tile of a little-endian classic TIFF."""
    raw = path.read_bytes()
    (start,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, start)
    found = {}
    for entry in range(count):
        tag, kind, number, value = struct.unpack_from("<HHII", raw, start + 2 + 12 * entry)
        if tag in (324, 325):
            width = {3: "H", 4: "I"}[kind]
            inside = number * struct.calcsize(width) <= 4
            at = start + 2 + 12 * entry + 8 if inside else value
            found[tag] = struct.unpack_from(f"<{number}{width}", raw, at)
    return list(zip(found[324], found[325], strict=True))


@pytest.mark.parametrize("compress", ["deflate", "lzw", "zstd"])
def test_corrupt_block_is_an_error_and_its_neighbours_are_not(tmp_path: Path, compress: str) -> None:
    pixels = noise()
    path = write(tmp_path / "a.tif", pixels, tiled=True, blockxsize=128, blockysize=128, compress=compress)
    offset, size = block_places(path)[3]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + size] = b"\xff" * size
    path.write_bytes(raw)
    assert (read_window(path, (0, 0, 128, 128)).pixels == pixels[:, :128, :128]).all()
    for _ in range(2):  # the failure is not remembered as blank pixels
        with pytest.raises(
            ImageError, match=r"cannot be read.*X offset 1, Y offset 1.*damaged or incomplete"
        ) as caught:
            read_window(path, (120, 120, 64, 64))
        assert str(path) in str(caught.value)
        with pytest.raises(ImageError):
            read_window(path, resolution=20)
    assert (read_window(path, (0, 0, 128, 128)).pixels == pixels[:, :128, :128]).all()


def test_truncated_file(tmp_path: Path) -> None:
    pixels = noise()
    plain = write(tmp_path / "header_last.tif", pixels, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    with rasterio.open(plain) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "cog.tif", driver="COG", blocksize=128)
    for path in (plain, tmp_path / "cog.tif"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageError, match="cannot be read|cannot be opened"):
        read_window(plain)
    with pytest.raises(ImageError, match="cannot be read"):
        read_window(tmp_path / "cog.tif")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"<html>404 not found</html>", "no raster format.*first bytes.*<html>"),
        (b"II*\0\x08\0\0\0", "cannot be read"),
        (b"II*\0" + b"\xff" * 400, "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot be read"),
        (b"\xff\xd8\xff" + b"\0" * 50, "cannot be read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 50, "cannot be read"),
        (b"EHFA_HEADER_TAG\0" + b"\0" * 50, "cannot be read"),
        (b"CDF\x01" + b"\0" * 50, "no raster format.*gdal_translate"),
    ],
)
def test_files_that_are_no_raster(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for use in (describe_raster, read_window):
        with pytest.raises(ImageError, match=problem):
            use(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_window(tmp_path / "missing.tif")
    with pytest.raises(ImageError, match="not a regular file"):
        read_window(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_window("a\0b.tif")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.ones((1, 20, 20), np.complex64))
    with pytest.raises(ImageError, match="no band of real numbers"):
        read_window(path)


def test_missing_block_of_a_sparse_file_is_nodata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=256, height=128, count=1, dtype="uint16", tiled=True, blockxsize=128,
        blockysize=128, sparse_ok=True, crs=UTM, transform=NORTH_UP, nodata=7,
    ) as dataset:  # fmt: skip
        dataset.write(ramp(1, 128, 128) + 10, window=rasterio.windows.Window(0, 0, 128, 128))
    window = read_window(path)
    assert window.valid[:, :128].all() and not window.valid[:, 128:].any()


def test_errors_travel_between_processes(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_window(tmp_path / "missing.tif")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
