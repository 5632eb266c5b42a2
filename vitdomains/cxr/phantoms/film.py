"""Chest films, default data: one phantom film from its specification, through all stages of the drawing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantom_lung import add_vessels, grow_tree
from vitdomains.cxr.phantom_projection import develop, draw_exposure, expose
from vitdomains.cxr.phantom_skeleton import add_skeleton
from vitdomains.cxr.phantoms.anatomy import Geometry, Scene, add_body, add_lungs, draw_geometry
from vitdomains.cxr.phantoms.cohort import FilmSpec
from vitdomains.cxr.phantoms.devices import add_devices, marker
from vitdomains.cxr.phantoms.findings import apply_findings, collapse_tree


def make_film(
    spec: FilmSpec, rng: np.random.Generator, size: int = 448
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.bool_]], dict[str, Any]]:
    """Draws one film.

    Args:
        spec: Patient, view and findings.
        rng: Of this film: posture, breath, exposure, devices, noise.
        size: Longer side, pixels.

    Returns:
        Pixels float32 [H, W] in 0..1, bone bright; finding name to bool [H, W] for the findings of ``spec``; and
        ``pixel_spacing`` (mm), ``view``, ``devices`` (bool: anything of metal or plastic on the film).
    """
    g = draw_geometry(spec, rng)
    exposure = draw_exposure(spec, rng)
    scene = draw_scene(spec, g, rng, size)
    masks = place_findings(scene, g, spec, rng)
    add_devices(scene, g, spec, rng)
    pixels = develop(expose(scene, g, exposure, rng), scene, exposure)
    _shutter(pixels, rng)
    marker(pixels, spec.view, rng)
    metadata = {"pixel_spacing": 10.0 * scene.pixel, "view": spec.view, "devices": bool(scene.metal.any())}
    return pixels, masks, metadata


def draw_scene(spec: FilmSpec, g: Geometry, rng: np.random.Generator, size: int) -> Scene:
    """Body, lungs and skeleton as thickness maps, before vessels and findings."""
    scene = _lay_out(spec, g, rng, size)
    add_body(scene, g)
    add_lungs(scene, g, spec.view == "AP")
    add_skeleton(scene, g, spec.patient.seed)
    return scene


def place_findings(scene: Scene, g: Geometry, spec: FilmSpec, rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Vessels and findings into ``scene``, in place; the masks of the findings."""
    tree = grow_tree(g, spec.patient.seed)
    congestion = 0.0
    if (edema := spec.findings.get("Edema")) is not None:
        congestion = 0.3 + 0.7 * edema.severity
        tree = grow_tree(g, spec.patient.seed, upper=0.72 + 0.35 * congestion)
    if (pneumothorax := spec.findings.get("Pneumothorax")) is not None:
        tree = collapse_tree(tree, g, pneumothorax)
    add_vessels(scene, g, tree, spec.patient.seed, congestion, rng)
    return apply_findings(scene, g, spec, tree)


def _lay_out(spec: FilmSpec, g: Geometry, rng: np.random.Generator, size: int) -> Scene:
    """An empty scene: film format, field of view, tilt and centring."""
    bedside = spec.view == "AP"
    rows, columns = ((1.0, 1.0), (1.0, 0.83), (0.83, 1.0))[rng.choice(3, p=[0.5, 0.3, 0.2])]
    height, width = round(size * rows), round(size * columns)
    field = max(rng.uniform(34.0, 44.0), (2 * g.half_width + 4.0) / columns, (g.height + 6.0) / rows)
    pixel = field / size
    tilt = np.radians(rng.normal(0, 4.0 if bedside else 1.6))
    dx = rng.normal(0, 1.8 if bedside else 0.9)
    dy = rng.normal(1.8, 1.5)
    cos, sin = np.cos(tilt) / pixel, np.sin(tilt) / pixel
    to_pixel = np.array([[cos, -sin, (width - 1) / 2 + dx / pixel], [sin, cos, (height - 1) / 2 - dy / pixel]])
    back = cv2.invertAffineTransform(to_pixel)
    column = np.arange(width, dtype=np.float32)[None, :]
    row = np.arange(height, dtype=np.float32)[:, None]
    x = (back[0, 0] * column + back[0, 1] * row + back[0, 2]).astype(np.float32)
    y = (back[1, 0] * column + back[1, 1] * row + back[1, 2]).astype(np.float32)
    empty = np.zeros((7, height, width), np.float32)
    body, lung, gas, fluid, vessels, bone, metal = empty
    heart = np.zeros((height, width), bool)
    return Scene(x, y, pixel, to_pixel, body, lung, gas, fluid, vessels, bone, metal, heart)


def _shutter(pixels: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Collimation blades at the borders of some films, black or white."""
    if rng.random() > 0.3:
        return
    height, width = pixels.shape
    top, bottom, left, right = rng.uniform(0.0, 0.05, 4) * (height, height, width, width)
    value = 0.0 if rng.random() < 0.7 else 0.95
    pixels[: int(top)] = value
    pixels[height - int(bottom) :] = value
    pixels[:, : int(left)] = value
    pixels[:, width - int(right) :] = value
