"""Bytes of a file whose lengths may be wrong, plain or deflated.

Reading is forward-only and exact: fewer bytes than declared is an error at once, and deflated data are inflated only
as far as they are asked for, up to a limit, so that a few hundred kilobytes cannot become a gigabyte in memory.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from numpy.typing import NDArray

from vitdomains.core.errors import ImageError


class Stream:
    """A forward-only reader that never returns fewer bytes than asked for.

    Args:
        path: Named in errors.
        source: Where the bytes come from.
        size: Bytes in ``source``; None where it is not known (inflated data), and skipping then means reading.
    """

    def __init__(self, path: Path, source: BinaryIO | io.BufferedReader, size: int | None) -> None:
        self.path = path
        self.source = source
        self.size = size
        self.position = source.tell() if size is not None else 0

    def read(self, count: int, within: str = "the data set", *, at_end_ok: bool = False) -> bytes:
        """Exactly ``count`` bytes; none at all at the end of the file where ``at_end_ok``."""
        if self.size is not None and count > self.size - self.position and not at_end_ok:
            self._truncated(within, count)
        try:
            data = self.source.read(count)
        except zlib.error:
            self._damaged()
        self.position += len(data)
        if len(data) < count and not (at_end_ok and not data):
            self._truncated(within, count)
        return data

    def peek(self, count: int) -> bytes:
        """The next bytes, which are read again later, as far as there are so many; at the start of inflated data."""
        try:
            if self.size is None:
                return cast(io.BufferedReader, self.source).peek(count)[:count]
            data = self.source.read(count)
            self.source.seek(-len(data), io.SEEK_CUR)
        except zlib.error:
            self._damaged()
        return data

    def read_into(self, array: NDArray[Any], within: str) -> None:
        """Fill a contiguous array with the next bytes."""
        try:
            count = cast(io.BufferedReader, self.source).readinto(array.data)
        except zlib.error:
            self._damaged()
        self.position += count
        if count < array.nbytes:
            self._truncated(within, array.nbytes)

    def skip(self, count: int, within: str = "the data set") -> None:
        """Step over ``count`` bytes."""
        if self.size is None:
            while count > 0:
                count -= len(self.read(min(count, 1 << 16), within))
            return
        if count > self.size - self.position:
            self._truncated(within, count)
        self.source.seek(count, io.SEEK_CUR)
        self.position += count

    def _damaged(self) -> NoReturn:
        raise ImageError(self.path, "has a damaged deflate stream", tag="TransferSyntaxUID", value="deflated") from None

    def _truncated(self, within: str, count: int) -> NoReturn:
        declared = f"{count} bytes declared"
        raise ImageError(self.path, f"ends inside {within}", tag="length", value=declared, hint="Copy the file again.")


class _Inflater(io.RawIOBase):
    """Raw deflate data as a file, inflated as far as it is read and never beyond ``limit`` bytes."""

    def __init__(self, path: Path, source: BinaryIO, limit: int) -> None:
        super().__init__()
        self._path, self._source, self._limit = path, source, limit
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflate.eof:
            piece = self._inflate.unconsumed_tail or self._source.read(1 << 16)
            data = self._inflate.decompress(piece, len(buffer))
            self._total += len(data)
            if self._total > self._limit:
                over = f"over {self._limit} bytes"
                raise ImageError(
                    self._path, "inflates to more than a film can hold", tag="TransferSyntaxUID", value=over
                )
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not piece:
                break
        return 0


def inflated(path: Path, file: BinaryIO, limit: int) -> Stream:
    """The raw deflate stream that follows in ``file`` (DICOM PS3.5, A.5), as a stream of at most ``limit`` bytes.

    Raises:
        ImageError: on reading, when the data are damaged, end too early or inflate beyond ``limit``.
    """
    return Stream(path, io.BufferedReader(_Inflater(path, file, limit), 1 << 16), None)
