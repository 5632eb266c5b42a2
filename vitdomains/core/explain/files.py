"""Beside overlay: pictures and maps as files. matplotlib and rasterio are imported only where they are asked for."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitdomains.core.atomic import write_atomically
from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.overlay import Floats, Picture, Style, as_rgb

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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path


def to_geotiff(heat: Floats, transform: Any, crs: Any, path: str | Path) -> Path:
    """The map as a float32 GeoTIFF on the tile's own grid.

    Args:
        heat: [H,W] on the tile (``to_original``); NaN is no data.
        transform: The tile's affine transform (six numbers, as rasterio's ``Affine``).
        crs: The tile's coordinate reference system, anything that rasterio takes, e.g. ``EPSG:32633``.
        path: Output file.

    Raises:
        ExplainError: rasterio is not installed.
    """
    try:
        rasterio = importlib.import_module("rasterio")
    except ImportError as error:
        raise ExplainError(
            "A GeoTIFF needs rasterio, which is not installed.", hint="Run: pip install rasterio"
        ) from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    profile = {"driver": "GTiff", "width": heat.shape[1], "height": heat.shape[0], "count": 1, "dtype": "float32"}
    with rasterio.open(
        part,
        "w",
        **profile,
        crs=crs,
        transform=rasterio.Affine(*tuple(transform)[:6]),
        nodata=float("nan"),
        compress="deflate",
    ) as target:
        target.write(heat.astype(np.float32), 1)
        target.set_band_description(1, "relevance")
    os.replace(part, path)
    return path
