"""Cache of preprocessed images between epochs, in memory or in one memory-mapped file.

The file only grows. Pixels are written first, then one record in the index beside it; only the record makes an entry
count, so a process that is killed in between leaves a gap, never a wrong picture. A checksum, looked at when an image
is first used, catches what a power cut or a bad disk does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitdomains.core.data.preprocess import Array, PreprocessSpec
from vitdomains.core.errors import ImageError

logger = logging.getLogger(__name__)

_RECORD = struct.Struct("<16sQII")  # key, offset in bytes, channels (0: grey, no channel axis), CRC-32 of the pixels
_ALIGN = 64  # bytes; keeps float32 images aligned


@dataclass(frozen=True)
class _Entry:
    offset: int
    channels: int
    crc: int


@dataclass
class _File:
    """The open pair of pixel file and index, and what is known of it."""

    pixels: int
    index: int
    entries: dict[bytes, _Entry] = field(default_factory=dict)
    sound: set[bytes] = field(default_factory=set)
    scanned: int = 0  # records of the index that were read
    end: int = 0  # first byte after the last counted image
    view: mmap.mmap | None = None


class ImageCache:
    """Prepared images by key; safe under several threads, several processes and ``kill -9``.

    A key holds the path, time of change and size of the file and the part of the preprocessing that shapes pixels, so a
    file that changed is decoded again. Files of another preprocessing lie beside each other in the same folder.

    Args:
        spec: The preprocessing of the images.
        folder: Where the file lies, made if absent; None keeps the images in the memory of this process.
        variant: Anything else that the pixels depend on, such as the settings of the reader.
    """

    def __init__(self, spec: PreprocessSpec, folder: str | Path | None = None, *, variant: str = "") -> None:
        self.spec = spec
        self.folder = None if folder is None else Path(folder)
        self.variant = variant
        shaping = (
            spec.height,
            spec.width,
            spec.resize,
            spec.storage,
            spec.fill,
            spec.bands,
            spec.sensor,
            spec.baseline,
            spec.units,
            spec.resample,
            variant,
        )
        self._digest = hashlib.sha256(json.dumps(shaping).encode()).hexdigest()
        self._lock = threading.Lock()
        self._memory: dict[bytes, Array] = {}
        self._file: _File | None = None
        self._writable = True
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stem = self.folder / f"images-{self._digest[:16]}"
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            pixels, index = (os.open(f"{stem}.{kind}", flags, 0o644) for kind in ("pixels", "index"))
            self._file = _File(pixels, index)
            _scan(self._file, self._entry_bytes)

    def __reduce__(self) -> tuple[object, ...]:
        # Another process opens the file itself; what is in memory stays where it is.
        return (_reopen, (self.spec, self.folder, self.variant))

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            os.close(file.pixels)
            os.close(file.index)

    def __len__(self) -> int:
        return len(self._memory) if self._file is None else len(self._file.entries)

    def __contains__(self, key: bytes) -> bool:
        return key in (self._memory if self._file is None else self._file.entries)

    def key(self, path: str | Path) -> bytes:
        """Key of a file as it is now, 16 bytes.

        Raises:
            ImageError: The file is not there.
        """
        return file_key(path, self._digest)

    def get(self, key: bytes) -> Array | None:
        """The prepared image, read-only, [h, w] or [h, w, C]; None where it is not kept."""
        file = self._file
        if file is None:
            return self._memory.get(key)
        with self._lock:
            if key not in file.entries:
                _scan(file, self._entry_bytes)
            entry = file.entries.get(key)
            image = None if entry is None else self._map(file, entry)
            if image is None or entry is None:
                return None
            if key not in file.sound:
                if zlib.crc32(image.data) != entry.crc:
                    logger.warning("A damaged image in the cache %s is decoded again.", self.folder)
                    del file.entries[key]
                    return None
                file.sound.add(key)
            return image

    def put(self, key: bytes, image: Array) -> None:
        """Keep a prepared image, which becomes read-only. A full disk is logged once, and no more images are kept."""
        image = np.ascontiguousarray(image)
        if image.shape[:2] != (self.spec.height, self.spec.width) or image.dtype != self.spec.storage:
            raise ValueError(f"{image.shape} {image.dtype} is not an image of {self.spec}")
        if self._file is None:
            image.setflags(write=False)
            self._memory[key] = image
            return
        with self._lock:
            if not self._writable:
                return
            try:
                with _exclusive(self._file.index):
                    self._append(self._file, key, image)
            except OSError as error:
                self._writable = False
                logger.warning(
                    "The cache %s takes no more images (%s); they are decoded each time.", self.folder, error
                )

    def _entry_bytes(self, channels: int) -> int:
        return self.spec.height * self.spec.width * max(channels, 1) * np.dtype(self.spec.storage).itemsize

    def _append(self, file: _File, key: bytes, image: Array) -> None:
        _scan(file, self._entry_bytes)
        if key in file.entries:
            return
        offset = -(-file.end // _ALIGN) * _ALIGN
        entry = _Entry(offset, image.shape[2] if image.ndim == 3 else 0, zlib.crc32(image.data))
        _write(file.pixels, image.data.cast("B"), entry.offset)
        record = _RECORD.pack(key, entry.offset, entry.channels, entry.crc)
        # A record that was cut short by a kill is overwritten: only whole ones were counted.
        _write(file.index, memoryview(record), file.scanned * _RECORD.size)
        _scan(file, self._entry_bytes)

    def _map(self, file: _File, entry: _Entry) -> Array | None:
        size = self._entry_bytes(entry.channels)
        if file.view is None or len(file.view) < entry.offset + size:
            if os.fstat(file.pixels).st_size < entry.offset + size:
                return None
            file.view = mmap.mmap(file.pixels, 0, access=mmap.ACCESS_READ)
        dtype = np.dtype(self.spec.storage)
        flat = np.frombuffer(file.view, dtype, size // dtype.itemsize, entry.offset)
        shape = (self.spec.height, self.spec.width)
        return flat.reshape(shape if entry.channels == 0 else (*shape, entry.channels))


def file_key(path: str | Path, context: str) -> bytes:
    """16 bytes that stand for a file as it is now (path, time of change, size) in a context.

    Raises:
        ImageError: The file is not there.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ImageError(path, f"cannot be opened: {error.strerror}") from error
    facts = f"{context}\0{os.fspath(path)}\0{status.st_mtime_ns}\0{status.st_size}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).digest()[:16]


def _reopen(spec: PreprocessSpec, folder: Path | None, variant: str) -> ImageCache:
    return ImageCache(spec, folder, variant=variant)


def _scan(file: _File, entry_bytes: Callable[[int], int]) -> None:
    """Take note of the whole records that were added to the index since the last look, by whomever."""
    count = os.fstat(file.index).st_size // _RECORD.size
    if count <= file.scanned:
        return
    data = os.pread(file.index, (count - file.scanned) * _RECORD.size, file.scanned * _RECORD.size)
    written = os.fstat(file.pixels).st_size
    for key, offset, channels, crc in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        file.scanned += 1
        end = offset + entry_bytes(channels)
        if end <= written:  # else the record is damaged: pixels are written before it
            file.entries[key] = _Entry(offset, channels, crc)
            file.end = max(file.end, end)
            file.sound.discard(key)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def _exclusive(descriptor: int) -> Iterator[None]:
    """Keep other processes from writing; the kernel lets go of the lock when a process dies."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
