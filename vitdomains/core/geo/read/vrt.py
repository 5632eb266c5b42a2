"""Virtual rasters: XML that names other files, parsed into an allow-list of elements and written anew for GDAL.

A VRT can name an address on the network or a file anywhere on the machine, so one from elsewhere could make a server read
what its sender may not; and GDAL takes element names in any case and namespace. So nothing of the file reaches GDAL but
what is listed here: plain mosaics and stacks (``gdalbuildvrt``) pass; warped, processed, raw and derived ones do not.

Environment:
    VITDOMAINS_VRT_FOLDERS: more folders, by the system's path separator, that VRTs and STAC items may point into.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from vitdomains.core.errors import ImageError

MAX_BYTES = 2**24
_CONVERT = "Write it out as a file: `gdal_translate -of COG IN.vrt OUT.tif`."
_NUMBERS = re.compile(r"[-+0-9.eE,\s]*|[-+]?(nan|inf)", re.IGNORECASE)
_CRS = re.compile(r"(EPSG|OGC|ESRI|IAU_\d+):\w+|[A-Z_]+\[.*\]", re.DOTALL)
_WORD = re.compile(r"[\w.+-]*")
_TYPES = re.compile(r"U?Int(8|16|32|64)|Byte|Float(16|32|64)")

_SOURCE = ("SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect")
_CHILDREN: dict[str, tuple[str, ...]] = {
    "VRTDataset": ("SRS", "GeoTransform", "GCPList", "Metadata", "VRTRasterBand", "MaskBand", "OverviewList"),
    "GCPList": ("GCP",),
    "Metadata": ("MDI",),
    "MaskBand": ("VRTRasterBand",),
    "VRTRasterBand": (
        "Description", "UnitType", "Offset", "Scale", "NoDataValue", "HideNoDataValue", "ColorInterp", "ColorTable",
        "CategoryNames", "Metadata", "Histograms", "SimpleSource", "ComplexSource", "AveragedSource", "MaskBand",
    ),
    "ColorTable": ("Entry",),
    "CategoryNames": ("Category",),
    "SimpleSource": _SOURCE,
    "AveragedSource": _SOURCE,
    "ComplexSource": (*_SOURCE, "NODATA", "ScaleOffset", "ScaleRatio", "UseMaskBand"),
}  # fmt: skip
"""By element, those that may stand in it."""

_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "VRTDataset": ("rasterXSize", "rasterYSize"),
    "SRS": ("dataAxisToSRSAxisMapping", "coordinateEpoch"),
    "GCPList": ("Projection", "dataAxisToSRSAxisMapping"),
    "GCP": ("Id", "Pixel", "Line", "X", "Y", "Z"),
    "Metadata": (),
    "MDI": ("key",),
    "VRTRasterBand": ("dataType", "band", "blockXSize", "blockYSize"),
    "Entry": ("c1", "c2", "c3", "c4"),
    "SourceFilename": ("relativeToVRT",),
    "SrcRect": ("xOff", "yOff", "xSize", "ySize"),
    "DstRect": ("xOff", "yOff", "xSize", "ySize"),
    "ComplexSource": ("resampling",),
    "SimpleSource": ("resampling",),
    "AveragedSource": ("resampling",),
}
_IGNORED = ("SourceProperties", "Histograms", "OverviewList")
"""Known and of no use: GDAL looks at the files themselves."""
_IGNORED_ATTRIBUTES = ("shared", "subclass")
_FREE = ("Description", "UnitType", "MDI", "Category")
_NAMES = {name.lower(): name for names in _CHILDREN.values() for name in names} | {"vrtdataset": "VRTDataset"}


def is_vrt(head: bytes) -> bool:
    """Do these first bytes begin a VRT, in any case and namespace?"""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"vrtdataset" in head.lower()


def clean_vrt(path: Path, check_source: Callable[[Path], bool]) -> str:
    """The VRT as GDAL gets it: its allowed parts, with absolute names of sources.

    Args:
        path: The VRT.
        check_source: Is this file a raster that may be opened? A VRT in a VRT is none.

    Raises:
        ImageError: Not a plain VRT, or it points where it may not.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(path, f"is a VRT of more than {MAX_BYTES} bytes")
        raw = path.read_bytes()
        if b"<!DOCTYPE" in raw.upper() or b"<!ENTITY" in raw.upper():
            raise _not_plain(path, "element", "DOCTYPE")
        root = ElementTree.fromstring(raw)
    except (OSError, ElementTree.ParseError, ValueError, RecursionError) as error:
        raise ImageError(path, f"is no well-formed VRT ({error})") from error
    if _local(root.tag) != "vrtdataset":
        raise _not_plain(path, "element", root.tag)
    folders = allowed_folders(path.parent)
    return ElementTree.tostring(_cleaned(root, "VRTDataset", path, folders, check_source, 0), encoding="unicode")


def allowed_folders(own: Path) -> list[Path]:
    """The folders that a file in ``own`` may point into: its own and those of VITDOMAINS_VRT_FOLDERS."""
    names = os.environ.get("VITDOMAINS_VRT_FOLDERS", "").split(os.pathsep)
    return [Path(os.path.realpath(name)) for name in (str(own), *names) if name]


def _local(tag: str) -> str:
    """The name of an element without its namespace, lower case, as GDAL compares it."""
    return str(tag).rpartition("}")[2].rpartition(":")[2].lower()


def _not_plain(path: Path, tag: str, value: object) -> ImageError:
    return ImageError(path, "is no plain VRT", tag=tag, value=value, hint=_CONVERT)


def _cleaned(
    element: ElementTree.Element, name: str, path: Path, folders: list[Path], check: Callable[[Path], bool], depth: int
) -> ElementTree.Element:
    made = ElementTree.Element(name)
    allowed = {key.lower(): key for key in _ATTRIBUTES.get(name, ())}
    for key, value in element.attrib.items():
        plain = _local(key)
        if plain == "subclass" and value not in ("", "VRTSourcedRasterBand"):
            raise _not_plain(path, "subClass", value)
        if plain in allowed:
            made.set(allowed[plain], _value(path, name, allowed[plain], value))
        elif plain not in _IGNORED_ATTRIBUTES and not key.startswith("{"):
            raise _not_plain(path, f"{name} attribute", key)
    text = (element.text or "").strip()
    if name == "SourceFilename":
        relative = made.get("relativeToVRT") == "1"
        made.text = str(_source(path, text, relative, folders, check))
        made.attrib.clear()
        made.set("relativeToVRT", "0")
    elif name not in _CHILDREN and name not in _IGNORED:
        made.text = _value(path, name, "", text)
    for child in element:
        plain = _local(child.tag)
        known = _NAMES.get(plain)
        if known is None or known not in _CHILDREN.get(name, ()) or depth > 8:
            raise _not_plain(path, "element", child.tag)
        domain = any(_local(key) == "domain" for key in child.attrib)  # of metadata: none that describes pixels
        if known not in _IGNORED and not domain:
            made.append(_cleaned(child, known, path, folders, check, depth + 1))
    return made


def _value(path: Path, name: str, attribute: str, text: str) -> str:
    """A text or attribute of the shape that its place has: numbers, a word, a CRS, or free text that GDAL does not act on."""
    if name in _FREE:
        return text
    if (name, attribute) in (("SRS", ""), ("GCPList", "Projection")):
        pattern = _CRS
    elif attribute == "dataType":
        pattern = _TYPES
    elif name == "SourceBand":
        pattern = re.compile(r"(mask,)?\d+|mask")
    elif attribute in ("resampling", "Id") or name in ("ColorInterp", "UseMaskBand"):
        pattern = _WORD
    else:
        pattern = _NUMBERS
    if not pattern.fullmatch(text.strip()):
        raise _not_plain(path, f"{name} {attribute}".strip(), text)
    return text.strip()


def _source(path: Path, name: str, relative: bool, folders: list[Path], check: Callable[[Path], bool]) -> Path:
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
        fits = check(target)
    except OSError as error:
        raise ImageError(path, f"is a VRT whose source cannot be opened ({error.strerror})", value=name) from error
    if not fits:
        raise ImageError(path, "is a VRT whose source is no raster file", tag="SourceFilename", value=name)
    return target
