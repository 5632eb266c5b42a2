"""Sensors: bands matched to those of a file, physical units, Sentinel-2's offset of 2022, published statistics.

A model sees reflectance or decibels, normalised by statistics of a whole data set. No tile is stretched by its own extremes:
that would make a dark lake and a bright roof look alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.geo.read.metadata import HARMONIZED, NOTHING_KNOWN, PixelMetadata, Units, known_of, same_scale
from vitdomains.core.geo.read.pixels import refuse_palette
from vitdomains.core.geo.read.raster import Extent, RasterInfo, Window, describe_raster, read_window, value_range


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


BASELINE_HELP = "Sentinel-2's processing baseline, such as 05.09, or harmonized; default: as the files say"
UNITS_HELP = "numbers are the sensor's stored ones, or in its unit already; default: as the files say"
_OFFSET_SINCE = "04.00"  # processing baseline of Sentinel-2
_REFLECTANCE_UP_TO, _NUMBERS_FROM = (
    2.0,
    200.0,
)  # no reflectance is above the one, no scene of stored numbers below the other
_SETTLE = (
    "Say which: --units or data.units, stored or physical; or write it into the file: "
    "`gdal_edit.py -mo PIXEL_UNITS=stored FILE`."
)


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
    found: Sequence[str] | int,
    sensor: Sensor,
    wanted: Sequence[str] = (),
    *,
    path: str | Path = "the raster",
    indexes: Sequence[int] = (),
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
        indexes: GDAL's numbers of the bands in ``found`` (``info.indexes``), which leave out an alpha band; none: 1, 2, ...

    Returns:
        GDAL's numbers of the bands, as ``read_window`` takes them.

    Raises:
        ConfigError: The sensor has no such band.
        ImageError: The file has it not, or twice; what it has is listed.
    """
    names = () if isinstance(found, int) else tuple(found)
    numbered = tuple(indexes) or tuple(range(1, (found if isinstance(found, int) else len(names)) + 1))
    chosen = []
    for name in wanted or tuple(band.name for band in sensor.bands):
        band = band_named(sensor, name)
        number = name.partition("=")[2].strip()
        if number:
            hits = [int(number)] if number.isdigit() and int(number) in numbered else []
        elif names:
            hits = [index for index, text in zip(numbered, names, strict=True) if _is_band(text, band)]
        else:
            hits = [numbered[sensor.bands.index(band)]] if len(numbered) == len(sensor.bands) else []
        if len(hits) != 1:
            raise ImageError(
                path,
                f"has {'no band' if not hits else f'{len(hits)} bands'} {name} of {sensor.title} ({_listed(sensor)})",
                tag="bands",
                value=list(names) if names else f"{len(numbered)} without names",
                hint=f"Say which one it is by its number, {band.name}=1 in --bands or data.bands; or name the file's bands.",
            )
        chosen += hits
    return tuple(chosen)


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


def add_offset(known: PixelMetadata) -> float | None:
    """What is to be added to Sentinel-2's stored numbers before they are scaled: -1000 since processing baseline 04.00.

    From 25 January 2022 on reflectance = (DN + offset) / 10000, with BOA_ADD_OFFSET (L2A) or RADIO_ADD_OFFSET (L1C) of -1000
    (ESA, "Sentinel-2 products specification document", and the announcement of baseline 04.00). Archives that took it off
    again (Earth Engine's HARMONIZED collections, ``earthsearch:boa_offset_applied``) need 0.

    Returns:
        -1000.0, 0.0, or what the file says itself; None where nothing says it.
    """
    if known.add_offset is not None or not known.baseline:
        return known.add_offset
    return -1000.0 if known.baseline != HARMONIZED and known.baseline >= _OFFSET_SINCE else 0.0


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
    known: PixelMetadata = NOTHING_KNOWN,
    otherwise: PixelMetadata = NOTHING_KNOWN,
    resolution: float | None = None,
    crs: str | None = None,
) -> Window:
    """A window of the wanted bands in the sensor's unit: as ``read_window``, 0 where not valid.

    Args:
        path: A local file or an http(s) address.
        sensor: What took the image.
        wanted: As for ``match_bands``.
        window: As for ``read_window``.
        known: What is said of the file's numbers; goes before what the file says (``core/geo/read/metadata.py``).
        otherwise: What to go by where neither says it.
        resolution: As for ``read_window``.
        crs: As for ``read_window``.

    Raises:
        ImageError: As for ``read_window`` and ``match_bands``; or it is in doubt what the numbers mean (``scaling``).
        ConfigError: As for ``band_named`` and ``from_file``.
    """
    info = describe_raster(path)
    numbers, scales, offsets = plan_bands(info, sensor, wanted, known=known, otherwise=otherwise)
    found = read_window(path, window, bands=numbers, resolution=resolution, crs=crs)
    pixels = found.pixels
    if (scales != 1).any() or offsets.any():
        pixels = pixels * scales[:, None, None] + offsets[:, None, None]
    if not found.valid.all():
        np.copyto(pixels, 0, where=~found.valid)
    names = tuple(band_named(sensor, name).name for name in wanted) or tuple(band.name for band in sensor.bands)
    return replace(found, pixels=pixels, bands=names)


def plan_bands(
    info: RasterInfo,
    sensor: Sensor,
    wanted: Sequence[str] = (),
    *,
    known: PixelMetadata = NOTHING_KNOWN,
    otherwise: PixelMetadata = NOTHING_KNOWN,
) -> tuple[tuple[int, ...], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """GDAL's numbers [C] of the wanted bands, and scale and offset [C] into the sensor's unit: as ``read_bands``."""
    refuse_palette(info)
    found = known_of(info, known)
    numbers = match_bands(found.bands or info.count, sensor, wanted, path=info.path, indexes=info.indexes)
    places = [info.indexes.index(number) for number in numbers]
    pairs = [scaling(info, sensor, found, otherwise, place) for place in places]
    return (
        numbers,
        np.array([scale for scale, _ in pairs], np.float32),
        np.array([shift for _, shift in pairs], np.float32),
    )


def scaling(
    info: RasterInfo, sensor: Sensor, known: PixelMetadata, otherwise: PixelMetadata, place: int
) -> tuple[float, float]:
    """Scale and offset that bring the band at ``place`` (from 0, without alpha) into the sensor's unit.

    Of what can disagree this is believed, in this order:

    1. ``units``, where the user or the file says them: physical numbers stay as they are.
    2. The file's own scale and offset, where it declares an offset or another scale than the sensor's.
    3. Floating point: the range of the values; up to 2 they are physical, from 200 on stored numbers, between is doubt.
    4. The sensor's scale and offset, with Sentinel-2's of 2022 by processing baseline.

    Raises:
        ImageError: In doubt: floating point of neither range, 8 bits where the sensor has more, decibels that are none,
            an unknown baseline of Sentinel-2.
    """
    own = (sensor.scale, sensor.offset)
    units: str = known.units
    if not units and known.scales:
        declared = (known.scales[place], known.offsets[place])
        if declared[1] or not (same_scale(declared[0], sensor.scale) or declared[0] == 1):
            return declared
    if not units:
        units = _units_by_range(info, sensor) or otherwise.units
        if not units:
            low, high = value_range(info.path) or (0.0, 0.0)
            raise ImageError(
                info.path,
                f"holds {info.dtype} from {low:g} to {high:g}: {sensor.unit} of {sensor.title}, or stored numbers of it?",
                tag="units",
                hint=_SETTLE,
            )
    if units == "physical":
        return 1.0, 0.0
    if not sensor.name.startswith("sentinel2"):
        return own
    shift = add_offset(known)
    shift = add_offset(otherwise) if shift is None else shift
    if shift is None:
        raise ImageError(
            info.path,
            f"does not say its processing baseline, by which {sensor.title} is or is not 1000 higher",
            tag="PROCESSING_BASELINE",
            hint="Say it: --baseline or data.baseline, such as 05.09, or harmonized where the offset is off; or write it into "
            "the file: `gdal_edit.py -mo PROCESSING_BASELINE=05.09 FILE`.",
        )
    return own[0], shift * own[0] + own[1]


def _units_by_range(info: RasterInfo, sensor: Sensor) -> Units:
    """Stored or physical, by type and range of the values; empty: in doubt."""
    floating = info.dtype.startswith("float")
    if sensor.unit == "dB":
        low, _ = (value_range(info.path) or (-1.0, 0.0)) if floating else (0.0, 0.0)
        return "physical" if low < 0 else ""
    if not floating:
        return "" if info.dtype in ("uint8", "int8") and sensor.scale < 1 / 255 else "stored"
    if sensor.scale == 1:
        return "stored"
    found = value_range(info.path)
    if found is None:
        return "stored"  # no pixel holds data
    if found[1] <= (_REFLECTANCE_UP_TO if sensor.scale < 1 / 255 else 1.0):
        return "physical"
    if sensor.scale >= 1 / 255:
        return "stored"
    # Stored numbers of a reflectance: not all of them below its zero, as 8-bit numbers under a 16-bit scale would be.
    return "stored" if found[1] >= _NUMBERS_FROM and found[1] * sensor.scale + sensor.offset > 0 else ""
