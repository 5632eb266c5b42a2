"""Beside overlay: pictures and maps as files. matplotlib is imported only where it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio

from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.overlay import Floats, Picture, Style, as_rgb
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.read.raster import describe_raster

_PRINTED = Style(contour=None)


def write_png(picture: Picture, path: str | Path) -> Path:
    """Write [H,W,3] RGB as PNG; the file appears whole or not at all."""
    path = Path(path)
    done, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR))
    if not done:
        raise ExplainError(f"A picture of shape {picture.shape} cannot be written.", hint="Give [H,W,3], uint8.")
    write_atomically(path, lambda part: part.write_bytes(data.tobytes()))
    return path


def publication_figure(
    image: npt.NDArray[Any],
    heats: Sequence[Floats],
    titles: Sequence[str],
    path: str | Path,
    *,
    style: Style = _PRINTED,
    dpi: int = 300,
) -> Path:
    """The original and one overlay a map by matplotlib: vector text, one colour bar; format by suffix (pdf, svg, png)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(heats) + 1
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes.flat[0].imshow(as_rgb(image))
    axes.flat[0].set_title("original", fontsize=8)
    mappable = None
    for axis, heat, title in zip(axes.flat[1:], heats, titles, strict=False):
        axis.imshow(as_rgb(image))
        mappable = axis.imshow(heat, cmap=style.colour_map, vmin=0, vmax=1, alpha=style.opacity * np.clip(heat, 0, 1))
        if style.contour is not None and heat.max() > heat.min():
            axis.contour(heat, levels=[float(np.percentile(heat, style.contour))], colors="cyan", linewidths=0.6)
        axis.set_title(title, fontsize=8)
    if mappable is not None:
        from matplotlib.cm import ScalarMappable

        figure.colorbar(ScalarMappable(cmap=style.colour_map), ax=list(axes.flat), shrink=0.6, label="relevance")
    path = Path(path)
    write_atomically(path, lambda part: figure.savefig(part, dpi=dpi, format=path.suffix[1:]))
    return path


def to_geotiff(heats: Sequence[Floats], names: Sequence[str], source: str | Path, path: str | Path) -> Path:
    """Maps as bands of a float32 GeoTIFF on the grid and in the CRS of the raster that they explain; NaN is no data.

    Args:
        heats: One map [H,W] a band, on the tile (``to_original``).
        names: Description of each band.
        source: The tile.
        path: Output file.

    Raises:
        ImageError: ``source`` is no raster.
        ExplainError: ``source`` has no place on the ground, or another size than the maps.
    """
    info = describe_raster(source)
    if info.crs is None or (info.height, info.width) != heats[0].shape:
        raise ExplainError(
            f"{source} gives no grid of {heats[0].shape} pixels with a place on the ground.",
            hint="A GeoTIFF of a heat map needs a georeferenced image in one file; write a .png instead.",
        )
    profile = {
        "driver": "GTiff", "width": info.width, "height": info.height, "count": len(heats), "dtype": "float32",
        "crs": info.crs, "transform": info.transform, "nodata": math.nan, "compress": "deflate",
    }  # fmt: skip

    def fill(part: Path) -> None:
        with rasterio.open(part, "w", **profile) as target:
            for band, (heat, name) in enumerate(zip(heats, names, strict=True), start=1):
                target.write(heat.astype(np.float32), band)
                target.set_band_description(band, name)

    path = Path(path)
    write_atomically(path, fill)
    return path
