"""What the numbers of a file mean: its bands matched to a sensor's, the 2022 offset, physical units, published statistics.

A model sees reflectance or decibels, normalised by statistics of a whole data set. No tile is stretched by its own extremes:
that would make a dark lake and a bright roof look alike.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.raster import Extent, Window, describe_raster, read_window

# --------------------
# The sensors: their bands, scale and offset, and the statistics that were published, each with its source.


@dataclass(frozen=True)
class Band:
    """A band: ``aliases`` are other names in use, ``wavelength_nm`` its centre, ``resolution_m`` its pixel on the ground."""

    name: str
    aliases: tuple[str, ...]
    wavelength_nm: float | None
    resolution_m: float


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation by band, in the sensor's unit; ``source`` says where they were published."""

    mean: Mapping[str, float]
    std: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Sensor:
    """A sensor and processing level: ``unit`` = stored number x ``scale`` + ``offset``; bands in the order of its files."""

    name: str
    title: str
    bands: tuple[Band, ...]
    scale: float
    offset: float
    unit: str
    source: str
    statistics: Statistics | None = None


def _bands(*rows: tuple[str, str, float | None, float]) -> tuple[Band, ...]:
    return tuple(Band(name, tuple(aliases.split()), centre, size) for name, aliases, centre, size in rows)


# Centres of Sentinel-2A (ESA, Sentinel-2 MSI technical guide, spatial and spectral resolution); aliases are the common names
# of the STAC extension eo and of catalogues that follow it.
_S2 = _bands(
    ("B01", "B1 coastal", 442.7, 60),
    ("B02", "B2 blue", 492.4, 10),
    ("B03", "B3 green", 559.8, 10),
    ("B04", "B4 red", 664.6, 10),
    ("B05", "B5 rededge1 rededge071", 704.1, 20),
    ("B06", "B6 rededge2 rededge075", 740.5, 20),
    ("B07", "B7 rededge3 rededge078", 782.8, 20),
    ("B08", "B8 nir", 832.8, 10),
    ("B8A", "B08A nir08", 864.7, 20),
    ("B09", "B9 nir09", 945.1, 60),
    ("B10", "cirrus", 1373.5, 60),
    ("B11", "swir16 swir1", 1613.7, 20),
    ("B12", "swir22 swir2", 2202.4, 20),
)
# Middle of each band's range (USGS, "What are the band designations for the Landsat satellites?"); thermal bands are left out.
_TM = _bands(
    ("B1", "blue", 485, 30),
    ("B2", "green", 560, 30),
    ("B3", "red", 660, 30),
    ("B4", "nir nir08", 830, 30),
    ("B5", "swir16 swir1", 1650, 30),
    ("B7", "swir22 swir2", 2215, 30),
)
_ETM = (
    *_bands(("B1", "blue", 485, 30), ("B2", "green", 560, 30), ("B3", "red", 660, 30), ("B4", "nir nir08", 835, 30)),
    *_bands(("B5", "swir16 swir1", 1650, 30), ("B7", "swir22 swir2", 2220, 30)),
)
_OLI = _bands(
    ("B1", "coastal", 443, 30),
    ("B2", "blue", 482, 30),
    ("B3", "green", 561.5, 30),
    ("B4", "red", 654.5, 30),
    ("B5", "nir nir08", 865, 30),
    ("B6", "swir16 swir1", 1608.5, 30),
    ("B7", "swir22 swir2", 2200.5, 30),
)
_PAN, _CIRRUS = _bands(("B8", "pan panchromatic", 589.5, 15), ("B9", "cirrus", 1373.5, 30))
_VISIBLE = (("red", "r", None), ("green", "g", None), ("blue", "b", None))

_SSL4EO = "SSL4EO-S12 (Wang et al. 2023, arXiv:2211.07044), numbers without the 2022 offset: "
_SSL4EO += "zhu-xlab/SSL4EO-S12@1dc0c83, src/benchmark/pretrain_ssl/datasets/SSL4EO/ssl4eo_dataset.py, "
_EUROSAT = (
    "EuroSAT (Helber et al. 2019, doi:10.1109/JSTARS.2019.2918242): TorchGeo 0.8.1, torchgeo/datamodules/eurosat.py, "
)


def _published(
    bands: Sequence[Band], mean: Sequence[float], std: Sequence[float], scale: float, source: str
) -> Statistics:
    names = [band.name for band in bands]
    return Statistics(
        {name: value * scale for name, value in zip(names, mean, strict=True)},
        {name: value * scale for name, value in zip(names, std, strict=True)},
        source,
    )


_S2_L2A = tuple(band for band in _S2 if band.name != "B10")  # the correction of the atmosphere uses the cirrus band up
_S2_EUROSAT = (*(band for band in _S2 if band.name != "B8A"), _S2[8])  # its files hold B8A last
_S1 = _bands(("VV", "", 55_465_760, 10), ("VH", "", 55_465_760, 10))  # 5.405 GHz

_STATISTICS = {
    "sentinel2_l1c": _published(
        _S2,
        (1605.57504906, 1390.78157673, 1314.8729939, 1363.52445545, 1549.44374991, 2091.74883118, 2371.7172463,
         2299.90463006, 2560.29504086, 830.06605044, 22.10351321, 2177.07172323, 1524.06546312),
        (786.78685367, 850.34818441, 875.06484736, 1138.84957046, 1122.17775652, 1161.59187054, 1274.39184232,
         1248.42891965, 1345.52684884, 577.31607053, 51.15431158, 1336.09932639, 1136.53823676),
        1e-4, _SSL4EO + "S2C_MEAN, S2C_STD",
    ),
    "sentinel2_l2a": _published(
        _S2_L2A,
        (752.40087073, 884.29673756, 1144.16202635, 1297.47289228, 1624.90992062, 2194.6423161, 2422.21248945,
         2517.76053101, 2581.64687018, 2645.51888987, 2368.51236873, 1805.06846033),
        (1108.02887453, 1155.15170768, 1183.6292542, 1368.11351514, 1370.265037, 1355.55390699, 1416.51487101,
         1474.78900051, 1439.3086061, 1582.28010962, 1455.52084939, 1343.48379601),
        1e-4, _SSL4EO + "S2A_MEAN, S2A_STD",
    ),
    "eurosat": _published(
        _S2_EUROSAT,
        (1354.40546513, 1118.24399958, 1042.92983953, 947.62620298, 1199.47283961, 1999.79090914, 2369.22292565,
         2296.82608323, 732.08340178, 12.11327804, 1819.01027855, 1118.92391149, 2594.14080798),
        (245.71762908, 333.00778264, 395.09249139, 593.75055589, 566.4170017, 861.18399006, 1086.63139075,
         1117.98170791, 404.91978886, 4.77584468, 1002.58768311, 761.30323499, 1231.58581042),
        1e-4, _EUROSAT + "MEAN, STD",
    ),
    "sentinel1_grd": _published(
        _S1, (-12.54847273, -20.19237134), (5.25697717, 5.91150917), 1.0, _SSL4EO + "S1_MEAN, S1_STD"
    ),
    "rgb": Statistics(
        {"red": 0.485, "green": 0.456, "blue": 0.406},
        {"red": 0.229, "green": 0.224, "blue": 0.225},
        "ImageNet-1k, as torchvision's and timm's weights take it: timm.data.constants.IMAGENET_DEFAULT_MEAN and _STD",
    ),
}  # fmt: skip

_ESA = "ESA, Sentinel-2 products specification: reflectance = (DN + ADD_OFFSET) / 10000; see add_offset"
_USGS1 = "USGS, Landsat 8-9 Collection 2 Level 1 data format control book: REFLECTANCE_MULT and _ADD, before the sun's elevation"
_USGS0 = "USGS: the 8-bit level 1 rescaling differs between scenes (MTL file); stored numbers are taken as they are"
_USGS2 = "USGS, Landsat Collection 2 Level 2 science product guide: surface reflectance = DN x 0.0000275 - 0.2"


def _sensor(
    name: str, title: str, bands: tuple[Band, ...], scale: float, offset: float, unit: str, source: str
) -> Sensor:
    return Sensor(name, title, bands, scale, offset, unit, source, _STATISTICS.get(name))


SENSORS: dict[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        _sensor("sentinel2_l1c", "Sentinel-2 L1C", _S2, 1e-4, 0.0, "TOA reflectance", _ESA),
        _sensor("sentinel2_l2a", "Sentinel-2 L2A", _S2_L2A, 1e-4, 0.0, "surface reflectance", _ESA),
        _sensor("eurosat", "EuroSAT, 13 bands (Sentinel-2 L1C)", _S2_EUROSAT, 1e-4, 0.0, "TOA reflectance", _ESA),
        _sensor("sentinel1_grd", "Sentinel-1 GRD, sigma nought in dB", _S1, 1.0, 0.0, "dB", "as Earth Engine delivers it"),
        _sensor("landsat5_l1", "Landsat 5 TM level 1", _TM, 1.0, 0.0, "digital number", _USGS0),
        _sensor("landsat5_l2", "Landsat 5 TM level 2", _TM, 2.75e-5, -0.2, "surface reflectance", _USGS2),
        _sensor("landsat7_l1", "Landsat 7 ETM+ level 1", _ETM, 1.0, 0.0, "digital number", _USGS0),
        _sensor("landsat7_l2", "Landsat 7 ETM+ level 2", _ETM, 2.75e-5, -0.2, "surface reflectance", _USGS2),
        _sensor("landsat8_l1", "Landsat 8 OLI level 1", (*_OLI, _PAN, _CIRRUS), 2e-5, -0.1, "TOA reflectance", _USGS1),
        _sensor("landsat8_l2", "Landsat 8 OLI level 2", _OLI, 2.75e-5, -0.2, "surface reflectance", _USGS2),
        _sensor("landsat9_l1", "Landsat 9 OLI-2 level 1", (*_OLI, _PAN, _CIRRUS), 2e-5, -0.1, "TOA reflectance", _USGS1),
        _sensor("landsat9_l2", "Landsat 9 OLI-2 level 2", _OLI, 2.75e-5, -0.2, "surface reflectance", _USGS2),
        _sensor("naip", "NAIP, 4 bands of 8 bit", _bands(*((*band, 1.0) for band in (*_VISIBLE, ("nir", "n", None)))),
                1 / 255, 0.0, "fraction of full scale", "USDA NAIP: digital numbers without radiometric calibration"),
        _sensor("rgb", "Plain RGB of 8 bit", _bands(*((*band, 0.0) for band in _VISIBLE)),
                1 / 255, 0.0, "fraction of full scale", "0..255"),
    )
}  # fmt: skip


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
