"""What a path names: a local file of a known raster format, a checked VRT, or an http(s) address; nothing else opens.

GDAL takes far more than file names (``/vsicurl/``, ``NETCDF:``, XML that fetches from a server), and looks at the content
rather than at the extension. Here the first bytes decide on the one driver that is used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.http import RemoteFile, RemoteView, is_remote, shown
from vitdomains.core.geo.vrt import check_vrt, is_vrt

# The first bytes of what is read here, and GDAL's driver for it.
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\0\0\0\x0cjP  ", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"EHFA_HEADER_TAG", "HFA"),
    (b"RIFF", "WEBP"),
)
HEAD_BYTES = 1024


@dataclass(eq=False)
class Source:
    """What is read: ``name`` for messages, ``signature`` to notice that a local file was replaced."""

    name: str
    address: str
    signature: tuple[int, ...]
    remote: RemoteFile | None = None

    @property
    def failure(self) -> ImageError | None:
        """Why a remote read failed since the file was opened."""
        return self.remote.failure if self.remote else None

    def close(self) -> None:
        """Close the connection of a remote file."""
        if self.remote:
            self.remote.close()

    def opener(self) -> Callable[[str, str], RemoteView] | None:
        """What GDAL reads a remote file through; it finds that file and none beside it."""
        remote = self.remote
        if remote is None:
            return None

        def open_view(path: str, mode: str = "rb") -> RemoteView:
            if path != self.address or "w" in mode:
                raise FileNotFoundError(path)
            return RemoteView(remote)

        return open_view


def identify(path: str | Path) -> Source:
    """Name the source without opening it.

    Raises:
        ImageError: Not a regular file, nor an http(s) address.
    """
    if isinstance(path, str) and is_remote(path):
        return Source(shown(path), path, ())
    name = os.fspath(path)
    if name.startswith("/vsi") or "://" in name:
        raise ImageError(
            name, "is neither a file nor an http(s) address", hint="Give the path of a file, or an https:// address."
        )
    try:
        found = os.stat(name)
    except (OSError, ValueError) as error:
        raise ImageError(name, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(name, "is not a regular file", hint="Give the path of one raster file.")
    # Absolute, for GDAL and rasterio take a relative name with a colon for a driver's or a scheme's prefix.
    absolute = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
    return Source(name, absolute, (found.st_mtime_ns, found.st_size, found.st_ino))


def driver_of(source: Source) -> str:
    """The GDAL driver for what stands in the first bytes; a remote source is connected here.

    Raises:
        ImageError: Empty, no format that is read here, or a VRT that points elsewhere.
    """
    if is_remote(source.address):
        source.remote = RemoteFile(source.address)
        head = source.remote.read_at(0, HEAD_BYTES)
    else:
        try:
            with open(source.address, "rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError as error:
            raise ImageError(source.name, f"cannot be opened ({error.strerror or error})") from error
    if not head:
        raise ImageError(source.name, "is empty", hint="Is the download complete?")
    driver = next((driver for magic, driver in MAGIC if head.startswith(magic)), None)
    if driver:
        return driver
    if is_vrt(head) and source.remote is None:
        check_vrt(Path(source.address), [magic for magic, _ in MAGIC])
        return "VRT"
    raise ImageError(
        source.name,
        "is no raster format that is read here",
        tag="first bytes",
        value=head[:16],
        hint="Readable: GeoTIFF/COG, JPEG 2000, PNG, JPEG, WebP, Erdas Imagine, local VRT. Convert others: "
        "`gdal_translate -of COG IN OUT.tif`.",
    )
