"""What a path names: a local file of a known raster format, a checked VRT, or an http(s) address; nothing else opens.

GDAL takes far more than file names (``/vsicurl/``, ``NETCDF:``, XML that fetches from a server), and looks at the content
rather than at the extension. Here the first bytes decide on the one driver that is used.
"""

from __future__ import annotations

import os
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.http import RemoteFile, RemoteView, is_remote, shown

# --------------------
# Virtual rasters: XML that names other files, taken only where those stand in its own folder or in one that is listed.
#
# A VRT can name an address on the network or a file anywhere on the machine, so one from elsewhere could make a server read
# what its sender may not. Plain mosaics and stacks (``gdalbuildvrt``) pass; warped, processed and raw ones do not.
#
# Environment:
#     VITDOMAINS_VRT_FOLDERS: more folders, by the system's path separator, that VRTs may point into.

MAX_BYTES = 2**24
_BANDS = (None, "VRTSourcedRasterBand", "VRTDerivedRasterBand")


def is_vrt(head: bytes) -> bool:
    """Do these first bytes begin a VRT?"""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"<VRTDataset" in head


def check_vrt(path: Path, magic: list[bytes]) -> None:
    """Refuse a VRT that points elsewhere, or whose sources are anything but raster files.

    Args:
        path: The VRT.
        magic: The first bytes that a source may have; a VRT in a VRT has none of them.

    Raises:
        ImageError: Not a plain VRT, or it points where it may not.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(path, f"is a VRT of more than {MAX_BYTES} bytes")
        root = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ImageError(path, f"is no well-formed VRT ({error})") from error
    if root.get("subClass") is not None:
        raise ImageError(path, "is no plain VRT", tag="subClass", value=root.get("subClass"), hint=_CONVERT)
    for band in root.iter("VRTRasterBand"):
        if band.get("subClass") not in _BANDS:
            raise ImageError(path, "is no plain VRT", tag="subClass", value=band.get("subClass"), hint=_CONVERT)
    for element in root.iter():
        if element.tag in ("PixelFunctionCode", "SourceDataset", "OpenOptions", "Overview", "MetadataItem"):
            raise ImageError(path, "is no plain VRT", tag="element", value=element.tag, hint=_CONVERT)
    folders = [Path(os.path.realpath(path.parent)), *map(Path, _listed())]
    for element in root.iter("SourceFilename"):
        _check_source(path, element.text or "", element.get("relativeToVRT") == "1", folders, magic)


_CONVERT = "Write it out as a file: `gdal_translate -of COG IN.vrt OUT.tif`."


def _listed() -> list[str]:
    names = os.environ.get("VITDOMAINS_VRT_FOLDERS", "").split(os.pathsep)
    return [os.path.realpath(name) for name in names if name]


def _check_source(path: Path, name: str, relative: bool, folders: list[Path], magic: list[bytes]) -> None:
    target = Path(os.path.realpath(path.parent / name if relative else name))
    if not any(target.is_relative_to(folder) for folder in folders):
        raise ImageError(
            path,
            "is a VRT that points outside its folder",
            tag="SourceFilename",
            value=name,
            hint="If that is meant, list the folder in VITDOMAINS_VRT_FOLDERS.",
        )
    try:
        with target.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ImageError(path, f"is a VRT whose source cannot be opened ({error.strerror})", value=name) from error
    if not head.startswith(tuple(magic)):
        raise ImageError(path, "is a VRT whose source is no raster file", tag="SourceFilename", value=name)


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
