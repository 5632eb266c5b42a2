"""What the numbers of a raster are, beyond its grid: band names, scale and offset, processing baseline, time of acquisition.

One value, filled from every place that may say it; for each field the first of these that does decides:

1. what the user says (``--bands``, ``--baseline``, ``--units``, ``--datetime``),
2. the STAC item that names the file (band names only where the file has none),
3. the tags of the file,
4. the names of the file and of the folders above it, the nearest first (a SAFE folder, a Landsat product).

``tags`` is the way back: what is written into a file that is cut from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pystac

from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.read.http import shown
from vitdomains.core.geo.read.info import RasterInfo

Units = Literal["", "stored", "physical"]
"""stored: numbers that the sensor's scale and offset turn into its unit; physical: in that unit already."""

HARMONIZED = "harmonized"
_BASELINE_NAME = re.compile(r"_N(?!9999)(\d{2})(\d{2})_")  # N9999: processed anew by its users
_TIME_NAMES = (
    re.compile(r"(?:^S2[A-D]_MSIL\w\w|^T\d\d[A-Z]{3})_(\d{8}T\d{6})_"),
    re.compile(r"^L[A-Z]\d\d_L\w{3}_\d{6}_(\d{8})_"),
)
_TIME_TAGS = ("ACQUISITION_DATETIME", "ACQUISITIONDATETIME", "DATATAKE_1_DATATAKE_SENSING_START", "PRODUCT_START_TIME",
              "DATE_ACQUIRED")  # fmt: skip


@dataclass(frozen=True)
class PixelMetadata:
    """What is known of a file's numbers; an empty field is not.

    Attributes:
        bands: Names, in the order of the file's bands without alpha.
        scales, offsets: A band: its quantity = number x scale + offset.
        units: Whether the numbers are in the sensor's unit already.
        baseline: Sentinel-2's processing baseline, such as ``05.09``, or ``harmonized``.
        add_offset: To be added to Sentinel-2's numbers before they are scaled, where a file says that itself.
        acquired: When the scene was taken.
    """

    bands: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    units: Units = ""
    baseline: str = ""
    add_offset: float | None = None
    acquired: datetime | None = None

    def over(self, other: PixelMetadata) -> PixelMetadata:
        """This, with what it does not say from ``other``.

        Baseline and ``add_offset`` say the same thing, and a declared offset says it again: where this says it in one way,
        what the other says in another way does not count.
        """
        says = bool(self.baseline) or self.add_offset is not None
        offset_of = self if says or any(self.offsets) else other
        scale_of = self if says or self.scales else other
        return PixelMetadata(
            self.bands or other.bands, scale_of.scales, scale_of.offsets, self.units or other.units,
            offset_of.baseline, offset_of.add_offset, self.acquired or other.acquired,
        )  # fmt: skip

    def tags(self) -> dict[str, str]:
        """Tags of a file from which ``from_file`` reads the same; scale, offset and band names have places of their own."""
        found = {"PIXEL_UNITS": self.units, "PROCESSING_BASELINE": self.baseline}
        if self.add_offset is not None:
            found["BOA_ADD_OFFSET"] = f"{self.add_offset:g}"
        if self.acquired is not None:
            found["ACQUISITION_DATETIME"] = self.acquired.isoformat()
        return {key: value for key, value in found.items() if value}

    def to_dict(self) -> dict[str, Any]:
        """What is known, in JSON types."""
        made = asdict(self) | {"acquired": self.acquired.isoformat() if self.acquired else None}
        return {key: value for key, value in made.items() if value not in ("", (), None)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PixelMetadata:
        """The inverse of ``to_dict``; keys of later versions are left out."""
        known: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in _FIELDS
        }
        return cls(**(known | {"acquired": _time(str(values["acquired"])) if values.get("acquired") else None}))


NOTHING_KNOWN = PixelMetadata()
_FIELDS = {field.name for field in fields(PixelMetadata)}


def parse_bands(text: str) -> tuple[str, ...]:
    """``red=3,green=2,blue=1`` or ``B04,B03,B02`` as one entry a band; the grammar of ``--bands`` in every command.

    Raises:
        ConfigError: A band without a name, a number that is none, or the same band twice.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    names = []
    for word in words:
        name, equals, number = (part.strip() for part in word.partition("="))
        if not name or (equals and not (number.isdigit() and int(number))):
            raise ConfigError(f"--bands {text}: {word!r} is no band.", hint="Write names, or red=3,green=2,blue=1.")
        names.append(name)
    if len({name.lower() for name in names}) < len(names):
        raise ConfigError(f"--bands {text} names a band twice.", hint="Name each once, in the order of the model.")
    return words


def from_options(*, bands: str = "", baseline: str = "", units: str = "", acquired: str = "") -> PixelMetadata:
    """What the options of a command say; ``bands`` counts where each has a number from 1 up to the last.

    Raises:
        ConfigError: No units, no time.
    """
    if units not in get_args(Units):
        raise ConfigError(f"--units {units} is not known.", hint="Use stored or physical.")
    when = _time(acquired)
    if acquired and when is None:
        raise ConfigError(f"--datetime {acquired} is no ISO 8601 time.", hint="Such as 2024-06-01T10:30:00Z.")
    parse_bands(bands)
    return PixelMetadata(units=units, baseline=baseline_of(baseline), acquired=when)  # type: ignore[arg-type]


def baseline_of(text: str) -> str:
    """A processing baseline as ``05.09``, from ``N0509`` and ``05.09``; ``harmonized`` and nothing as they are.

    Raises:
        ConfigError: It is none.
    """
    plain = text.strip().lower()
    if plain in ("", HARMONIZED):
        return plain
    found = re.fullmatch(r"n?(\d{1,2})\.?(\d{2})", plain)
    if found is None:
        raise ConfigError(f"Sentinel-2: {text!r} is no processing baseline.", hint="Give it as 04.00, or harmonized.")
    return f"{int(found[1]):02d}.{found[2]}"


def from_item(item: pystac.Item, asset: pystac.Asset) -> PixelMetadata:
    """What a STAC item says of an asset: bands, ``raster:scale`` and ``raster:offset``, ``s2:processing_baseline``, its time."""
    given = {**item.properties, **asset.extra_fields}
    listed = [given.get(key) or [] for key in ("bands", "eo:bands", "raster:bands")]
    names = [str(band.get("name") or band.get("eo:common_name") or band.get("common_name") or "")
             for band in listed[0] or listed[1]]  # fmt: skip
    scaled = listed[2] or listed[0] or [given]

    def of_each(*keys: str, default: float) -> tuple[float, ...]:
        return tuple(float(next((band[key] for key in keys if band.get(key) is not None), default)) for band in scaled)

    scales, offsets = of_each("raster:scale", "scale", default=1.0), of_each("raster:offset", "offset", default=0.0)
    product = _BASELINE_NAME.search(str(given.get("s2:product_uri", "")))
    baseline = str(given.get("s2:processing_baseline") or ("".join(product.groups()) if product else ""))
    applied = given.get("earthsearch:boa_offset_applied") is True
    if applied:  # items of Earth Search declare the offset nevertheless
        offsets = (0.0,) * len(scales)
    declared = any(scale != 1 for scale in scales) or any(offsets)
    when = item.datetime or item.common_metadata.start_datetime
    return PixelMetadata(
        tuple(names) if all(names) and len(set(names)) == len(names) else (),
        scales if declared else (),
        offsets if declared else (),
        baseline="" if applied else baseline_of(baseline),
        add_offset=0.0 if applied else None,
        acquired=when,
    )


def from_file(info: RasterInfo) -> PixelMetadata:
    """What tags and names of a file say.

    Raises:
        ConfigError: The tags give another offset of Sentinel-2 for each band, or a baseline that is none.
    """
    tags = {key.upper(): value for key, value in info.tags.items()}
    offsets = {float(value) for key, value in tags.items() if key.startswith(("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"))}
    if tags.get("EARTHSEARCH:BOA_OFFSET_APPLIED", "").lower() == "true":
        offsets = {0.0}
    if len(offsets) > 1:
        raise ConfigError(
            f"Sentinel-2: bands with different offsets {sorted(offsets)}.", hint="Write them out as reflectance."
        )
    declared = any(scale != 1 for scale in info.scales) or any(info.offsets)
    units = tags.get("PIXEL_UNITS", "").lower()
    product = _BASELINE_NAME.search(tags.get("PRODUCT_URI", ""))
    tagged = PixelMetadata(
        info.bands,
        info.scales if declared else (),
        info.offsets if declared else (),
        units if units in get_args(Units) else "",  # type: ignore[arg-type]
        ""
        if offsets
        else baseline_of(tags.get("PROCESSING_BASELINE", "") or ("".join(product.groups()) if product else "")),
        offsets.pop() if offsets else None,
        next((when for key in _TIME_TAGS if (when := _time(tags.get(key, "")))), None),
    )
    return tagged.over(from_name(info.path))


def from_name(path: str) -> PixelMetadata:
    """What the names of a file and of its folders say, the nearest first."""
    parts = re.split(r"[/\\]", shown(path))[::-1]
    baselines = (found for part in parts if (found := _BASELINE_NAME.search(part)))
    times = (found for part in parts for pattern in _TIME_NAMES if (found := pattern.search(part)))
    baseline, when = next(baselines, None), next(times, None)
    return PixelMetadata(
        baseline=".".join(baseline.groups()) if baseline else "", acquired=_time(when[1]) if when else None
    )


def known_of(info: RasterInfo, known: PixelMetadata = NOTHING_KNOWN) -> PixelMetadata:
    """All that is known of a file: what the user and a STAC item say (``known``) over tags and names.

    Raises:
        ConfigError: As for ``from_file``.
    """
    own = from_file(info)
    found = known.over(own)
    bands = own.bands or (known.bands if len(known.bands) == info.count else ())
    fits = len(found.scales) in (1, info.count)
    return PixelMetadata(
        bands, found.scales * (info.count // len(found.scales)) if fits else (),
        found.offsets * (info.count // len(found.offsets)) if fits else (), found.units, found.baseline,
        found.add_offset, found.acquired,
    )  # fmt: skip


def _time(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def same_scale(a: float, b: float) -> bool:
    """Are two scales the same but for rounding?"""
    return math.isclose(a, b, rel_tol=1e-6)
