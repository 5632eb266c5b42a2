"""Overlays drawn by OpenCV: a heat map brought back onto the original image, with colours, a contour and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitdomains.core.errors import ExplainError

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]  # [H,W,3], RGB

COLOUR_MAPS = {
    "inferno": cv2.COLORMAP_INFERNO,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
}
"""Perceptually uniform colour maps; cividis also for readers who do not tell red from green."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CONTOUR = (0, 255, 255)
_GAP = 4  # pixels between two images of a picture


@dataclass(frozen=True)
class Style:
    """How an overlay looks."""

    colour_map: str = "inferno"
    opacity: float = 0.55
    """Of the colours where the map is one, 0..1; it falls with the map, so that the film stays readable elsewhere."""
    contour: float | None = 90.0
    """Percentile of the map at which a line is drawn; None: no line."""
    height: int = 640
    """Of one image in the picture, pixels."""

    def __post_init__(self) -> None:
        if self.colour_map not in COLOUR_MAPS:
            raise ExplainError(
                f"Unknown colour map {self.colour_map!r}.", hint=f"It is one of {', '.join(COLOUR_MAPS)}."
            )
        if (
            not 0 <= self.opacity <= 1
            or (self.contour is not None and not 0 <= self.contour <= 100)
            or self.height < 64
        ):
            raise ExplainError(
                f"Impossible style: {self}.", hint="0 <= opacity <= 1, 0 <= contour <= 100, height >= 64."
            )


def to_original(values: Floats, affine: npt.NDArray[np.float64], shape: tuple[int, int]) -> Floats:
    """A map of the input grid on the original image: [h,w] -> [H,W], bilinear; zero where the model saw nothing.

    Args:
        values: On the input grid.
        affine: [2,3], grid pixel centre to original pixel, (x, y): ``preprocess.geometry``.
        shape: Height and width of the original, pixels.
    """
    linear = np.linalg.inv(np.asarray(affine, dtype=np.float64)[:, :2])
    offset = -linear @ np.asarray(affine, dtype=np.float64)[:, 2]
    x = np.arange(shape[1], dtype=np.float64)
    y = np.arange(shape[0], dtype=np.float64)[:, None]
    grid_x = (linear[0, 0] * x + linear[0, 1] * y + offset[0]).astype(np.float32)
    grid_y = (linear[1, 0] * x + linear[1, 1] * y + offset[1]).astype(np.float32)
    found = cv2.remap(
        np.ascontiguousarray(values, dtype=np.float32),
        grid_x,
        grid_y,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    height, width = values.shape
    seen = (grid_x >= -0.5) & (grid_x <= width - 0.5) & (grid_y >= -0.5) & (grid_y <= height - 0.5)
    return np.where(seen, found, np.float32(0)).astype(np.float32)


def colours(values: Floats, colour_map: str = "inferno") -> Picture:
    """[H,W] in 0..1 -> [H,W,3] RGB."""
    level = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(level, COLOUR_MAPS[colour_map]), cv2.COLOR_BGR2RGB), dtype=np.uint8
    )


def as_rgb(image: npt.NDArray[Any]) -> Picture:
    """Grey [H,W] or colour [H,W,3], uint8 or float in 0..1, -> [H,W,3] RGB."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ExplainError(f"An image of shape {image.shape} cannot be drawn.", hint="Give [H,W] or [H,W,3].")
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    rgb = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def composite(image: npt.NDArray[Any]) -> Picture:
    """The first three bands (of fewer the first) of an image [H,W,C] of any scale as [H,W,3] RGB, to look at.

    Each band is stretched between its 2nd and 98th percentile. Models never see this: it makes all images equally bright.
    """
    bands = np.atleast_3d(image)[:, :, : 3 if image.ndim == 3 and image.shape[2] >= 3 else 1].astype(np.float32)
    low, high = np.nanpercentile(bands, (2, 98), axis=(0, 1))
    return as_rgb((bands - low) / np.maximum(high - low, 1e-12))


def blend(image: npt.NDArray[Any], heat: Floats, style: Style = Style()) -> Picture:
    """The map over the image, both [H,W], at the image's size.

    Raises:
        ExplainError: The shapes differ: bring the map to the image with ``to_original`` first.
    """
    base = as_rgb(image)
    if heat.shape != base.shape[:2]:
        raise ExplainError(f"A heat map {heat.shape} on an image {base.shape[:2]}.", hint="Use to_original first.")
    heat = np.clip(np.nan_to_num(heat), 0, 1).astype(np.float32)
    alpha = (style.opacity * heat)[:, :, None]
    out: Picture = np.rint(base * (1 - alpha) + colours(heat, style.colour_map) * alpha).astype(np.uint8)
    if style.contour is not None and heat.max() > heat.min():
        above = (heat >= max(float(np.percentile(heat, style.contour)), 1e-6)).astype(np.uint8)
        lines, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(
            out, lines, -1, _CONTOUR, thickness=max(1, round(min(base.shape[:2]) / 400)), lineType=cv2.LINE_AA
        )
    return out


def _fit(picture: npt.NDArray[Any], height: int) -> npt.NDArray[Any]:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrink = height < picture.shape[0]
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    )


def _text(width: int, lines: Sequence[str]) -> Picture:
    """A strip with lines of text, as large as fits the width. OpenCV draws Latin letters only; others become a question mark."""
    strip = np.zeros((10 + 24 * len(lines), width, 3), dtype=np.uint8)
    for row, line in enumerate(lines):
        line = line.encode("ascii", "replace").decode()
        scale = 0.6
        (length, _), _ = cv2.getTextSize(line, _FONT, scale, 1)
        scale = min(scale, scale * (width - 16) / max(length, 1))
        cv2.putText(strip, line, (8, 22 + 24 * row), _FONT, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return strip


def _scale_bar(height: int, colour_map: str) -> Picture:
    """The colours of 0..1, with their numbers, [height,64,3]."""
    bar = np.zeros((height, 64, 3), dtype=np.uint8)
    ramp = np.linspace(1, 0, height - 24, dtype=np.float32)[:, None].repeat(16, axis=1)
    bar[12:-12, 8:24] = colours(ramp, colour_map)
    for value in (1.0, 0.5, 0.0):
        y = round(12 + (height - 25) * (1 - value))
        cv2.putText(bar, f"{value:.1f}", (28, y + 5), _FONT, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return bar


def _title(finding: str, probability: float | None, method: str) -> str:
    parts = [finding or "all findings", "" if probability is None else f"p = {probability:.2f}", method]
    return "   ".join(part for part in parts if part)


def overlay(
    image: npt.NDArray[Any],
    heat: Floats,
    *,
    finding: str = "",
    probability: float | None = None,
    method: str = "",
    style: Style = Style(),
) -> Picture:
    """The original, the overlay beside it, the colour scale, and a line with finding, probability and method.

    Args:
        image: [H,W] or [H,W,3], uint8 or float in 0..1.
        heat: [H,W] in 0..1, on the image (``to_original``).
        finding, probability, method: For the title.
        style: Colours, opacity, contour, size.
    """
    # Blending comes after the resize: the contour keeps its thickness on a film of any size.
    small, warm = _fit(as_rgb(image), style.height), _fit(np.ascontiguousarray(heat, dtype=np.float32), style.height)
    gap = np.zeros((style.height, _GAP, 3), dtype=np.uint8)
    row = np.hstack([small, gap, blend(small, warm, style), _scale_bar(style.height, style.colour_map)])
    return np.vstack([_text(row.shape[1], [_title(finding, probability, method)]), row])


def panel(
    image: npt.NDArray[Any],
    heats: Sequence[Floats],
    findings: Sequence[str],
    probabilities: Sequence[float] | None = None,
    *,
    method: str = "",
    columns: int = 4,
    style: Style = Style(height=320),
) -> Picture:
    """All findings of one image: the original, then one overlay a finding, in rows of ``columns``."""
    if (
        len(heats) != len(findings)
        or (probabilities is not None and len(probabilities) != len(findings))
        or columns < 1
    ):
        raise ExplainError(
            f"{len(heats)} heat maps for {len(findings)} findings.", hint="Give one map and probability a finding."
        )
    small = _fit(as_rgb(image), style.height)
    tiles = [np.vstack([_text(small.shape[1], ["original"]), small])]
    for index, (heat, finding) in enumerate(zip(heats, findings, strict=True)):
        warm = _fit(np.ascontiguousarray(heat, dtype=np.float32), style.height)
        title = _title(finding, None if probabilities is None else probabilities[index], "")
        tiles.append(np.vstack([_text(small.shape[1], [title]), blend(small, warm, style)]))
    columns = min(columns, len(tiles))
    tiles = [np.pad(tile, ((0, 0), (0, _GAP), (0, 0))) for tile in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    body = np.vstack(rows)
    bar = np.zeros((body.shape[0], 64, 3), dtype=np.uint8)
    bar[-style.height :] = _scale_bar(style.height, style.colour_map)
    picture = np.hstack([body, bar])
    return np.vstack([_text(picture.shape[1], [method]), picture]) if method else picture
