"""Mean and standard deviation of the user's own rasters: one pass, a block at a time, over valid pixels only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitdomains.core.data.folders import folder_manifest
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError, ImageError
from vitdomains.core.files import write_text
from vitdomains.core.geo.read.metadata import NOTHING_KNOWN, PixelMetadata, from_options, parse_bands
from vitdomains.core.geo.read.pixels import band_numbers
from vitdomains.core.geo.read.raster import Extent, Window, describe_raster, read_window
from vitdomains.core.terminal import OnProgress, console, shown_progress
from vitdomains.satellite.sensors import BASELINE_HELP, UNITS_HELP, Sensor, read_bands, sensor_named

BLOCK = 1024  # pixels a side that are read at a time


@dataclass(frozen=True)
class BandStatistics:
    """Mean and standard deviation a band, in the unit of ``read_bands``; ``pixels`` were valid, ``invalid`` were not."""

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: str
    files: int
    pixels: int
    invalid: int


def band_statistics(
    paths: Sequence[str | Path],
    sensor: Sensor | None = None,
    bands: Sequence[str] = (),
    *,
    known: PixelMetadata = NOTHING_KNOWN,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> BandStatistics:
    """Measure the bands of many rasters.

    Blocks are merged by the pairwise update of Chan, Golub & LeVeque (1983, "Algorithms for computing the sample variance",
    The American Statistician 37), in float64, so that neither size nor level of the data costs accuracy.

    Args:
        paths: Local files or http(s) addresses.
        sensor: What took them; None: stored numbers, all files with the same number of bands.
        bands: As for ``match_bands``; without a sensor as for ``read_window``.
        known: As for ``read_bands``, of all files.
        on_progress: Called with ("read", done, total, text) after each file.

    Raises:
        ImageError: A file cannot be read, or has other bands.
        ConfigError: No file, no valid pixel, or a band without any variation.
    """
    count, invalid = 0, 0
    names: tuple[str, ...] = ()
    mean = square = np.zeros(0)
    for done, path in enumerate(paths, start=1):
        for window in _windows(path, sensor, bands, known):
            if len(window.bands) != len(mean) and len(mean):
                raise ImageError(path, f"has {len(window.bands)} bands, and the files before it {len(mean)}")
            if not len(mean):
                names, mean, square = window.bands, np.zeros(len(window.bands)), np.zeros(len(window.bands))
            values = window.pixels[:, window.valid].astype(np.float64)
            invalid += window.valid.size - values.shape[1]
            count, mean, square = _merged(count, mean, square, values)
        on_progress("read", done, len(paths), f"{count} pixels")
    if not count:
        raise ConfigError(f"There is no valid pixel in {len(paths)} files.", hint="Give rasters with data.")
    std = np.sqrt(square / count)
    constant = [name for name, value in zip(names, std, strict=True) if not value > 0]
    if constant:
        raise ConfigError(f"Bands without any variation: {', '.join(constant)}.", hint="Leave them out: --bands.")
    unit = sensor.unit if sensor else "as stored"
    return BandStatistics(names, tuple(mean.tolist()), tuple(std.tolist()), unit, len(paths), count, invalid)


def _merged(
    count: int, mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Count, mean [C] and sum of squared deviations [C] with ``values`` [C, n] taken in."""
    added = values.shape[1]
    if not added:
        return count, mean, square
    total = count + added
    block_mean = values.mean(axis=1)
    block_square = ((values - block_mean[:, None]) ** 2).sum(axis=1)
    step = block_mean - mean
    return total, mean + step * added / total, square + block_square + step**2 * count * added / total


def _windows(path: str | Path, sensor: Sensor | None, bands: Sequence[str], known: PixelMetadata) -> Iterator[Window]:
    info = describe_raster(path)
    for row in range(0, info.height, BLOCK):
        for column in range(0, info.width, BLOCK):
            extent: Extent = (column, row, min(BLOCK, info.width - column), min(BLOCK, info.height - row))
            if sensor is None:
                yield read_window(path, extent, bands=band_numbers(info, bands) if bands else None)
            else:
                yield read_bands(path, sensor, bands, extent, known=known)


def statistics_command(domain: Domain, argv: list[str]) -> int:
    """Measure mean and standard deviation of rasters, for data.mean and data.std."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} statistics", description=statistics_command.__doc__
    )
    parser.add_argument(
        "paths", nargs="+", help="rasters, folders of them, or http(s) addresses: of the training split"
    )
    parser.add_argument("--sensor", default="", help="what took them; left out: numbers as stored")
    parser.add_argument("--bands", default="", help="names by comma, in the order of the channels; left out: all")
    parser.add_argument("--baseline", default="", help=BASELINE_HELP)
    parser.add_argument("--units", default="", choices=("stored", "physical"), help=UNITS_HELP)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args(argv)
    # An address is no path of this machine: it stays as it was given.
    paths = [
        file
        for path in args.paths
        for file in (list(folder_manifest(path, domain.extensions).table["path"]) if Path(path).is_dir() else [path])
    ]
    with shown_progress() as on_progress:
        found = band_statistics(
            paths,
            sensor_named(args.sensor) if args.sensor else None,
            parse_bands(args.bands),
            known=from_options(baseline=args.baseline, units=args.units),
            on_progress=on_progress,
        )
    if args.out:
        write_text(args.out, json.dumps(asdict(found), indent=1) + "\n")
    console.print(f"{found.files} files, {found.pixels} valid pixels, {found.invalid} left out; {found.unit}")
    console.print(f"--data.bands '{json.dumps(list(found.bands))}'")
    console.print(f"--data.mean '{json.dumps([round(value, 6) for value in found.mean])}'")
    console.print(f"--data.std '{json.dumps([round(value, 6) for value in found.std])}'")
    return 0
