"""What the numbers of a file mean: its bands matched to a sensor's, the 2022 offset, physical units, published statistics.

A model sees reflectance or decibels, normalised by statistics of a whole data set. No tile is stretched by its own extremes:
that would make a dark lake and a bright roof look alike.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.raster import Extent, Window, describe_raster, read_window
from vitdomains.satellite.sensor_table import SENSORS, Band, Sensor, Statistics

__all__ = [
    "SENSORS", "Band", "Sensor", "Statistics", "add_offset", "band_named", "catalogue_names", "match_bands",
    "published_statistics", "read_bands", "sensor_named", "to_units",
]  # fmt: skip

logger = logging.getLogger(__name__)

_OFFSET_SINCE = (4, 0)  # processing baseline of Sentinel-2
_BASELINE_IN_NAME = re.compile(r"_N(\d{2})(\d{2})_")
_warned: set[str] = set()


def sensor_named(name: str) -> Sensor:
    """The sensor of this name.

    Raises:
        ConfigError: None has it; all are listed.
    """
    sensor = SENSORS.get(name.lower().replace("-", "_"))
    if sensor is None:
        raise ConfigError(f"sensor: {name!r} is not known.", hint=f"Known are {', '.join(SENSORS)}.")
    return sensor


def band_named(sensor: Sensor, name: str) -> Band:
    """The sensor's band of this name or alias; ``B04=3`` (see ``match_bands``) is B04.

    Raises:
        ConfigError: None has it; all are listed.
    """
    wanted = _plain(name.partition("=")[0])
    for band in sensor.bands:
        if wanted in _keys(band):
            return band
    raise ConfigError(f"bands: {sensor.title} has no band {name!r}.", hint=f"It has {_listed(sensor)}.")


def catalogue_names(sensor: str, bands: Sequence[str]) -> list[set[str]]:
    """The names that each band goes by in catalogues; ``sensor`` may be empty, a band ``name=number``."""
    plain = [name.partition("=")[0] for name in bands]
    if not sensor:
        return [{name} for name in plain]
    known = [band_named(sensor_named(sensor), name) for name in plain]
    return [{band.name, *band.aliases} for band in known]


def match_bands(
    found: Sequence[str] | int, sensor: Sensor, wanted: Sequence[str] = (), *, path: str | Path = "the raster"
) -> tuple[int, ...]:
    """Which of a file's bands are the wanted ones.

    Args:
        found: The names in the file, or how many bands it has where they have no names
            (``info.bands or info.count`` of ``describe_raster``). Without names the file must have exactly the
            sensor's bands, in its order.
        sensor: What took the image.
        wanted: Names or aliases, in the order of the model's channels; none: all of the sensor's. ``B04=3`` says that B04
            is the file's third band, for files without names.
        path: For the message.

    Returns:
        Numbers of bands, from 1, as ``read_window`` takes them.

    Raises:
        ConfigError: The sensor has no such band.
        ImageError: The file has it not, or twice; what it has is listed.
    """
    names = () if isinstance(found, int) else tuple(found)
    count = found if isinstance(found, int) else len(names)
    numbers = []
    for name in wanted or tuple(band.name for band in sensor.bands):
        band = band_named(sensor, name)
        number = name.partition("=")[2]
        if number:
            hits = [int(number)] if number.isdigit() and 1 <= int(number) <= count else []
        elif names:
            hits = [index for index, text in enumerate(names, start=1) if _is_band(text, band)]
        else:
            hits = [sensor.bands.index(band) + 1] if count == len(sensor.bands) else []
        if len(hits) != 1:
            raise ImageError(
                path,
                f"has {'no band' if not hits else f'{len(hits)} bands'} {name} of {sensor.title} ({_listed(sensor)})",
                tag="bands",
                value=list(names) if names else f"{count} without names",
                hint=f"Say which one it is by its number: {band.name}=1; or name the file's bands (`rio edit-info`).",
            )
        numbers += hits
    return tuple(numbers)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _keys(band: Band) -> set[str]:
    return {_plain(name) for name in (band.name, *band.aliases)}


def _is_band(text: str, band: Band) -> bool:
    """Is this description the band's: "B4", "SR_B4", "B4, central wavelength 665 nm", "red"?"""
    first = text.partition(",")[0]
    numbered = {_plain(word) for word in re.split(r"[\s_./-]+", first) if any(map(str.isdigit, word))}
    keys = _keys(band)
    return _plain(first) in keys or bool(numbered & keys)


def _listed(sensor: Sensor) -> str:
    return ", ".join(f"{band.name} {band.aliases[0]}".strip() if band.aliases else band.name for band in sensor.bands)


def add_offset(baseline: str = "", tags: Mapping[str, str] | None = None, name: str = "") -> float | None:
    """What is to be added to Sentinel-2's stored numbers before they are scaled: -1000 since processing baseline 04.00.

    From 25 January 2022 on reflectance = (DN + offset) / 10000, with BOA_ADD_OFFSET (L2A) or RADIO_ADD_OFFSET (L1C) of -1000
    (ESA, "Sentinel-2 products specification document", and the announcement of baseline 04.00). Archives that took it off
    again (Earth Engine's HARMONIZED collections, ``earthsearch:boa_offset_applied``) need 0. The first of these that says
    something decides:

    Args:
        baseline: The processing baseline, such as ``"04.00"`` or ``"N0400"``, or ``"harmonized"``.
        tags: Metadata of the file: ``earthsearch:boa_offset_applied``, ``BOA_ADD_OFFSET...`` or ``RADIO_ADD_OFFSET...``,
            ``PROCESSING_BASELINE``, ``PRODUCT_URI``.
        name: Name of the file or product, which holds ``_N0400_``.

    Returns:
        -1000.0, 0.0, or the tag's value; None where nothing says it.

    Raises:
        ConfigError: The baseline is none, or the tags give another offset for each band.
    """
    if baseline:
        return 0.0 if baseline.lower() == "harmonized" else _offset_of(baseline)
    tags = {key.upper(): value for key, value in (tags or {}).items()}
    if tags.get("EARTHSEARCH:BOA_OFFSET_APPLIED", "").lower() == "true":
        return 0.0
    given = {float(value) for key, value in tags.items() if key.startswith(("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"))}
    if len(given) > 1:
        raise ConfigError(
            f"Sentinel-2: bands with different offsets {sorted(given)}.", hint="Write them out as reflectance."
        )
    if given:
        return given.pop()
    if "PROCESSING_BASELINE" in tags:
        return _offset_of(tags["PROCESSING_BASELINE"])
    found = _BASELINE_IN_NAME.search(tags.get("PRODUCT_URI", "")) or _BASELINE_IN_NAME.search(name)
    return _offset_of(".".join(found.groups())) if found else None


def _offset_of(baseline: str) -> float:
    found = re.fullmatch(r"N?(\d{2})\.?(\d{2})", baseline.strip())
    if found is None:
        raise ConfigError(
            f"Sentinel-2: {baseline!r} is no processing baseline.", hint="Give it as 04.00, or harmonized."
        )
    return -1000.0 if (int(found[1]), int(found[2])) >= _OFFSET_SINCE else 0.0


def to_units(pixels: npt.NDArray[np.float32], sensor: Sensor, shift: float = 0.0) -> npt.NDArray[np.float32]:
    """Stored numbers in the sensor's unit: (number + ``shift``) x scale + offset, float32 of the same shape."""
    # One multiplication and one addition, in float32: the constants are worked out before.
    units = pixels * np.float32(sensor.scale)
    units += np.float32(shift * sensor.scale + sensor.offset)
    return units


def published_statistics(sensor: Sensor, bands: Sequence[str] = ()) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation of the bands (none: all), in the sensor's unit, and where they were published.

    Raises:
        ConfigError: None were published, or no such band.
    """
    if sensor.statistics is None:
        raise ConfigError(
            f"No mean and standard deviation were published for {sensor.title}.",
            hint="Measure those of your data: `python -m vitdomains.satellite statistics FILES --sensor "
            f"{sensor.name}`, and set data.mean and data.std.",
        )
    names = [band_named(sensor, name).name for name in bands] or [band.name for band in sensor.bands]
    found = sensor.statistics
    return tuple(found.mean[name] for name in names), tuple(found.std[name] for name in names), found.source


def read_bands(
    path: str | Path,
    sensor: Sensor,
    wanted: Sequence[str] = (),
    window: Extent | None = None,
    *,
    baseline: str = "",
    resolution: float | None = None,
    crs: str | None = None,
) -> Window:
    """A window of the wanted bands in the sensor's unit: as ``read_window``, 0 where not valid.

    Args:
        path: A local file or an http(s) address.
        sensor: What took the image.
        wanted: As for ``match_bands``.
        window: As for ``read_window``.
        baseline: Sentinel-2's, where neither tags nor name of the file say it (see ``add_offset``). Unknown counts as
            before 04.00, which is warned of once.
        resolution: As for ``read_window``.
        crs: As for ``read_window``.

    Raises:
        ImageError: As for ``read_window`` and ``match_bands``.
        ConfigError: As for ``band_named`` and ``add_offset``.
    """
    info = describe_raster(path)
    numbers = match_bands(info.bands or info.count, sensor, wanted, path=path)
    shift = _shift(sensor, baseline, info.tags, Path(path).name)
    found = read_window(path, window, bands=numbers, resolution=resolution, crs=crs)
    pixels = to_units(found.pixels, sensor, shift)
    if not found.valid.all():
        np.copyto(pixels, 0, where=~found.valid)
    names = tuple(band_named(sensor, name).name for name in wanted) or tuple(band.name for band in sensor.bands)
    return replace(found, pixels=pixels, bands=names)


def _shift(sensor: Sensor, baseline: str, tags: Mapping[str, str], name: str) -> float:
    if not sensor.name.startswith("sentinel2"):
        return 0.0
    shift = add_offset(baseline, tags, name)
    if shift is None and sensor.name not in _warned:
        _warned.add(sensor.name)
        logger.warning(
            "%s: neither tags nor name say the processing baseline of %s; taken as before 04.00, without the offset of "
            "-1000. Where that is wrong reflectances are 0.1 too high.",
            name,
            sensor.title,
        )
    return shift or 0.0
