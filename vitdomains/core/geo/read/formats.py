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
from vitdomains.core.geo.read.vrt import MAX_BYTES, clean_vrt, is_vrt

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
    """What is read: ``name`` for messages, ``signature`` to notice that a local file was replaced, ``xml`` of a VRT."""

    name: str
    address: str
    signature: tuple[int, ...]
    remote: RemoteFile | None = None
    xml: str = ""

    @property
    def opened(self) -> str:
        """What GDAL is given to open: the address, or a virtual raster as it was written anew."""
        return self.xml or self.address

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
        if source.remote is None:
            check_sidecars(Path(source.address))
        return driver
    if is_vrt(head) and source.remote is None:
        source.xml = clean_vrt(Path(source.address), _is_raster)
        return "VRT"
    raise ImageError(
        source.name,
        "is no raster format that is read here",
        tag="first bytes",
        value=head[:16],
        hint="Readable: GeoTIFF/COG, JPEG 2000, PNG, JPEG, WebP, Erdas Imagine, local VRT. Convert others: "
        "`gdal_translate -of COG IN OUT.tif`.",
    )


def _is_raster(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(tuple(magic for magic, _ in MAGIC)):
        return False
    check_sidecars(path)
    return True


_SIDE_RASTERS = (".ovr", ".msk", ".ovr.msk", ".msk.ovr", ".ovr.ovr", ".aux")
_SIDE_XML = (".aux.xml", *(f"{ending}.aux.xml" for ending in _SIDE_RASTERS[:2]))
_PAM = frozenset({
    "pamdataset", "pamrasterband", "srs", "geotransform", "gcplist", "gcp", "metadata", "mdi", "description", "unittype",
    "offset", "scale", "nodatavalue", "colorinterp", "colortable", "entry", "categorynames", "category", "histograms",
    "histitem", "histmin", "histmax", "bucketcount", "includeoutofrange", "approximate", "histcounts", "minimum", "maximum",
    "mean", "stddev", "gdalrasterattributetable", "fielddefn", "name", "type", "usage", "row", "f",
})  # fmt: skip
_PAM_DOMAINS = ("", "image_structure", "rpc", "imagery", "color_profile")


def check_sidecars(path: Path) -> None:
    """Refuse a file beside which lies something that GDAL would open with it as a format that nobody chose.

    GDAL opens ``FILE.ovr`` and ``FILE.msk`` as whatever they hold: here they have to be GeoTIFF (or ``FILE.aux`` Erdas).
    ``FILE.aux.xml`` may hold what describes pixels and where they lie, but name no other file.

    Raises:
        ImageError: As above; the file beside is named.
    """
    hint = "Remove it, or write the raster out as one file: `rio cogeo create IN OUT.tif`."
    tiffs = tuple(magic for magic, driver in MAGIC if driver in ("GTiff", "HFA"))
    for ending in (*_SIDE_RASTERS, *(ending.upper() for ending in _SIDE_RASTERS[:2])):
        for side in (Path(f"{path}{ending}"), path.with_suffix(ending)):
            if side != path and side.is_file() and not _head_of(side).startswith(tiffs):
                raise ImageError(path, f"has {side.name} beside it, which is no GeoTIFF", hint=hint)
    for ending in _SIDE_XML:
        side = Path(f"{path}{ending}")
        if side.is_file() and (word := _strange_in_pam(side)):
            raise ImageError(path, f"points to another file, or may: {side.name}", tag="holds", value=word, hint=hint)


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _strange_in_pam(path: Path) -> str:
    """What a ``.aux.xml`` holds beyond the description of pixels and place; empty where nothing."""
    try:
        raw = path.read_bytes()[: MAX_BYTES + 1]
        if len(raw) > MAX_BYTES or b"<!DOCTYPE" in raw.upper():
            return "more than a description"
        elements = list(ElementTree.fromstring(raw).iter())
    except (OSError, ElementTree.ParseError, ValueError, RecursionError):
        return "XML that is not well formed"
    for element in elements:
        name = str(element.tag).rpartition("}")[2].rpartition(":")[2].lower()
        if name not in _PAM:
            return str(element.tag)
        domain = next(
            (value for key, value in element.attrib.items() if key.rpartition("}")[2].lower() == "domain"), ""
        )
        if domain.lower() not in _PAM_DOMAINS:
            inner = element.find("*")
            return f"{domain} {inner.get('key', '') if inner is not None else ''}".strip()
    return ""
