"""Virtual rasters: XML that names other files, taken only where those stand in its own folder or in one that is listed.

A VRT can name an address on the network or a file anywhere on the machine, so one from elsewhere could make a server read
what its sender may not. Plain mosaics and stacks (``gdalbuildvrt``) pass; warped, processed and raw ones do not.

Environment:
    VITDOMAINS_VRT_FOLDERS: more folders, by the system's path separator, that VRTs may point into.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from vitdomains.core.errors import ImageError

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
