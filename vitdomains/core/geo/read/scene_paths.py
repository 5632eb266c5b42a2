"""What a user names as scenes: raster files, http(s) addresses, and STAC items, whose assets are looked up."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pystac

from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.http import is_remote, read_remote, resolve_href, shown
from vitdomains.core.geo.read.metadata import PixelMetadata, from_item

_RASTERS = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2")
_ENDINGS = (".tif", ".tiff", ".jp2", ".vrt")
_MAX_ITEM_BYTES = 2**24
BESIDE = "|"
"""Stands in the column ``path`` of a table between the files of a scene whose bands have one each."""


@dataclass(frozen=True)
class Input:
    """A scene to read: one file, or one for each band.

    ``item`` is the address of the STAC item that named them, ``known`` what that says of each file's numbers.
    """

    files: tuple[str, ...]
    item: str = ""
    known: tuple[PixelMetadata, ...] = ()


def join_files(files: Sequence[str]) -> str:
    """Files as one text for a table; ``files_of`` is the inverse.

    Raises:
        ImageError: A local name holds the mark that parts them.
    """
    found = [file.replace(BESIDE, quote(BESIDE)) if is_remote(file) else file for file in files]
    for file in found:
        if BESIDE in file:
            raise ImageError(file, f"has {BESIDE!r} in its name, which parts the files of a scene", hint="Rename it.")
    return BESIDE.join(found)


def files_of(path: str) -> list[str]:
    """The files that a path names: one, or one for each band."""
    return path.split(BESIDE)


def shown_path(path: str) -> str:
    """A path for tables and messages: without what signs an address."""
    return BESIDE.join(shown(file) for file in files_of(path))


def find_input(word: str, *, asset: str = "", bands: Sequence[Collection[str]] = ()) -> Input:
    """The raster behind a path, an address or a STAC item.

    Args:
        word: As the user typed it; what ends in ``.json`` or ``.geojson`` is a STAC item.
        asset: Key of the item's asset; empty: its only raster, the only one that has all ``bands``, or one for each of them.
        bands: For each band that is wanted, in order, the names that it goes by.

    Raises:
        ImageError: No STAC item, it is not clear which of its assets are meant, or one is where the item may not point.
    """
    if Path(shown(word)).suffix.lower() not in (".json", ".geojson"):
        return Input(tuple(files_of(word)))
    try:
        raw = read_remote(word, limit=_MAX_ITEM_BYTES) if is_remote(word) else Path(word).read_bytes()[:_MAX_ITEM_BYTES]
        item = pystac.Item.from_dict(json.loads(raw), preserve_dict=False, migrate=True)
    except OSError as error:
        raise ImageError(word, f"cannot be opened ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, pystac.STACError) as error:
        raise ImageError(shown(word), f"is no STAC item ({type(error).__name__}: {str(error)[:120]})") from error
    keys = [asset] if asset else _fitting(item, word, [{name.lower() for name in names} for names in bands])
    if not set(keys) <= set(item.assets):
        raise ImageError(
            shown(word), f"has no asset {asset!r}", hint=f"It has {', '.join(item.assets)}: name one with --asset."
        )
    chosen = [item.assets[key] for key in keys]
    try:
        known = tuple(from_item(item, one) for one in chosen)
    except (ValueError, TypeError, AttributeError) as error:
        raise ImageError(shown(word), f"describes its bands in no way of STAC ({str(error)[:120]})") from error
    return Input(tuple(resolve_href(one.href, word) for one in chosen), word, known)


def _fitting(item: pystac.Item, word: str, bands: Sequence[set[str]]) -> list[str]:
    """Keys of the assets to read: the one that has all bands, or the one of each band."""
    rasters = {key: _names(key, asset) for key, asset in item.assets.items() if _is_raster(asset)}
    whole = [key for key, names in rasters.items() if bands and all(band & names for band in bands)]
    single = [[key for key, names in rasters.items() if band & names] for band in bands]
    if len(whole) == 1 or len(rasters) == 1:
        return whole or list(rasters)
    if not whole and single and all(len(keys) == 1 for keys in single):
        return [keys[0] for keys in single]
    raise ImageError(
        shown(word),
        f"has {len(rasters)} rasters, and which are meant is not clear" if rasters else "has no raster asset",
        tag="assets",
        value=sorted(rasters or item.assets),
        hint="Name one with --asset.",
    )


def _is_raster(asset: pystac.Asset) -> bool:
    kind = (asset.media_type or "").partition(";")[0].strip().lower()
    named = shown(asset.href).lower().endswith(_ENDINGS)
    return (kind in _RASTERS or (not kind and named)) and not {"thumbnail", "overview"} & set(asset.roles or ())


def _names(key: str, asset: pystac.Asset) -> set[str]:
    """What the bands of an asset are called; a file without a list of them goes by its key."""
    fields: dict[str, Any] = asset.extra_fields
    bands = [*fields.get("bands", ()), *fields.get("eo:bands", ())]
    keys = ("name", "common_name", "eo:common_name")
    return {str(band[name]).lower() for band in bands for name in keys if name in band} or {key.lower()}
