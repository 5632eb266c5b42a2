"""Heat maps of a file on the original image, written as a picture, a figure for print or a GeoTIFF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import torch

from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.preprocess import geometry, normalise
from vitdomains.core.errors import ExplainError
from vitdomains.core.explain.api import CLASS_AGNOSTIC, Heatmap, heatmaps
from vitdomains.core.explain.attention import attention_blocks
from vitdomains.core.explain.overlay import Floats, Picture, Style, as_rgb, composite, overlay, panel, to_original
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.read.raster import describe_raster
from vitdomains.core.inference.predictor import Predictor

_PRINTED = Style(contour=None)


def write_png(picture: Picture, path: str | Path) -> Path:
    """Write [H,W,3] RGB as PNG; the file appears whole or not at all."""
    write_atomically(Path(path), lambda part: part.write_bytes(png(picture)))
    return Path(path)


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
    write_atomically(path, lambda part: figure.savefig(part, dpi=dpi, format=path.suffix[1:].lower()))
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


@dataclass(frozen=True)
class Explained:
    """One image with its heat maps: ``heats`` [H, W] lie on the original image, ``scores`` are the class probabilities [K]."""

    image: npt.NDArray[Any]
    maps: tuple[Heatmap, ...]
    heats: tuple[npt.NDArray[np.float32], ...]
    findings: tuple[str, ...]
    scores: npt.NDArray[np.float64]


def explain_file(
    predictor: Predictor, path: str | Path, method: str, findings: Sequence[str] = (), *, steps: int = 8
) -> Explained:
    """Heat maps of one file, each with its deletion score beside that of random maps.

    Args:
        predictor: A loaded bundle.
        path: The image.
        method: A key of ``METHODS``.
        findings: Classes to explain; empty: those that the model calls, or else the most probable one.
        steps: Points of the deletion curve; 0: no score.

    Raises:
        ExplainError: A finding that the bundle does not know, or a method that does not fit the model.
        ImageError: The file cannot be read.
    """
    return explain_image(predictor, predictor.read(path), method, findings, steps=steps)


def explain_image(
    predictor: Predictor, image: npt.NDArray[Any], method: str, findings: Sequence[str] = (), *, steps: int = 8
) -> Explained:
    """As ``explain_file``, for an image [H, W] or [H, W, C] as the domain's reader gives it."""
    bundle = predictor.bundle
    unknown = [name for name in findings if name not in bundle.classes]
    if unknown:
        raise ExplainError(
            f"The bundle knows no finding {', '.join(unknown)}.", hint=f"It knows {', '.join(bundle.classes)}."
        )
    stacked = torch.from_numpy(predictor.planes(image))[None]
    scores = predictor.scores(predictor.logits(stacked))[0]
    if not np.isfinite(scores).all():
        raise ExplainError(
            "The model gives no finite number for this image.", hint="Look at the image, or at the bundle's report."
        )
    chosen = tuple(findings) or predictor.labels(scores) or (bundle.classes[int(scores.argmax())],)
    indices = [bundle.classes.index(name) for name in chosen]
    if method in CLASS_AGNOSTIC:
        chosen, indices = chosen[:1], indices[:1]
    x = normalise(stacked.to(predictor.device), bundle.preprocess)
    maps = heatmaps(predictor.model, x, bundle.classes, method, indices, kind=bundle.task_kind, steps=steps)[0]
    affine = geometry(bundle.preprocess, image.shape[:2])
    heats = tuple(to_original(m.values, affine, image.shape[:2]) for m in maps)
    # Bands of any scale, or of any number, are no picture yet.
    bands = bundle.preprocess.storage == "float32" or (image.ndim == 3 and image.shape[2] not in (1, 3))
    shown = composite(image) if bands else image
    return Explained(shown, tuple(maps), heats, chosen, scores)


def picture(explained: Explained, classes: Sequence[str], method: str) -> npt.NDArray[np.uint8]:
    """RGB picture [H, W, 3]: one overlay beside the original, or a panel where there are several findings."""
    probabilities = [float(explained.scores[list(classes).index(name)]) for name in explained.findings]
    if len(explained.findings) == 1:
        name, probability = explained.findings[0], probabilities[0]
        return overlay(explained.image, explained.heats[0], finding=name, probability=probability, method=method)
    return panel(explained.image, explained.heats, explained.findings, probabilities, method=method)


def write_explained(
    explained: Explained, classes: Sequence[str], method: str, source: str | Path, path: str | Path
) -> None:
    """What ``explain`` was asked for, by suffix: .png a picture, .pdf or .svg a figure for print, .tif the maps themselves.

    Args:
        explained: From ``explain_file``.
        classes: Of the bundle.
        method: By which the maps were made; part of the picture.
        source: The file that was explained; a .tif takes its grid.
        path: Output file, with a suffix of ``choices.FIGURES``.

    Raises:
        ExplainError: A .tif of a file without a place on the ground.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    if suffix == ".png":
        write_png(picture(explained, classes, method), path)
    elif suffix in (".pdf", ".svg"):
        values = [explained.scores[list(classes).index(name)] for name in explained.findings]
        titles = [f"{name}, {value:.2f}" for name, value in zip(explained.findings, values, strict=True)]
        publication_figure(explained.image, explained.heats, titles, path)
    else:
        to_geotiff(explained.heats, explained.findings, source, path)


def png(rgb: npt.NDArray[np.uint8]) -> bytes:
    """A picture as PNG."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR))[1])


def example_pictures(
    predictor: Predictor,
    images: ImageDataset,
    predictions: pd.DataFrame,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    method: str = "relevance",
    at_most: int = 16,
) -> list[tuple[str, bytes]]:
    """For each class the surest right call among ``images``, explained: (caption, PNG).

    ``predictions`` has one row an image, with its ``score:CLASS``.
    """
    classes = predictor.bundle.classes[:at_most]
    method = method if attention_blocks(predictor.model) else "gradcam"  # a CNN has no attention to follow
    out = []
    for k, name in enumerate(classes):
        right = np.flatnonzero(images.targets[:, k] == 1)
        if len(right):
            best = right[predictions[f"score:{name}"].to_numpy()[right].argmax()]
            explained = explain_file(predictor, images.paths[best], method, [name])
            caption = (
                f"{name}: the surest right call among these images, by {method}. {faithfulness_text(explained.maps[0])}"
            )
            out.append((caption, png(picture(explained, classes, method))))
        on_progress(k + 1, len(classes))
    return out


def faithfulness_text(heatmap: Heatmap) -> str:
    """The scores that a heat map carries, in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in (heatmap.faithfulness or {}).items())
