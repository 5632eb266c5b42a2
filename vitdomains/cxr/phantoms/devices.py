"""Leads, tubes, lines, pacemakers, side markers and nipples on a phantom film."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.anatomy import Geometry, Scene
from vitdomains.cxr.phantoms.cohort import FilmSpec

_SHIFT = 4


def add_devices(scene: Scene, g: Geometry, spec: FilmSpec, rng: np.random.Generator) -> None:
    """Draws confounders into ``scene.metal`` (centimetres of iron) and nipples into ``scene.body``."""
    canvas = np.zeros(scene.x.shape, np.uint8)
    bedside = spec.view == "AP"
    if rng.random() < (0.65 if bedside else 0.06):
        _leads(scene, g, canvas, rng)
    if rng.random() < (0.30 if bedside else 0.03):
        _line(scene, g, canvas, rng)
    if rng.random() < (0.22 if bedside else 0.0):
        tip = g.top + rng.uniform(0.18, 0.3) * g.height
        _curve(scene, canvas, [(0.2, g.top - 14.0), (0.1, g.top), (0.3 * g.shift + 0.2, tip)], 95, 0.35)
        if rng.random() < 0.6:
            path = [(0.5, g.top - 14.0), (0.3, g.top + 4.0), (0.9, g.top + 0.7 * g.height)]
            _curve(scene, canvas, [*path, (5.0, g.dome[1] + 4.5), (2.5, g.dome[1] + 7.5)], 120, 0.2)
    if rng.random() < 0.05 + 0.004 * max(spec.patient.age - 60, 0):
        _pacemaker(scene, g, canvas, rng)
    scene.metal = canvas.astype(np.float32) * np.float32(0.25 / 255.0)
    if rng.random() < 0.4:
        _nipples(scene, g, rng)


def marker(canvas: NDArray[np.float32], view: str, rng: np.random.Generator) -> None:
    """Burns the side marker, and often the view, into display-ready pixels in place (white)."""
    height, width = canvas.shape
    size = height / 448.0
    left = rng.random() < 0.7  # the patient's left is on the right of the image
    x = int((rng.uniform(0.86, 0.93) if left else rng.uniform(0.03, 0.09)) * width)
    y = int(rng.uniform(0.06, 0.2) * height)
    text = ["L" if left else "R"]
    if rng.random() < (0.5 if view == "AP" else 0.1):
        text.append(view)
    lead = np.zeros(canvas.shape, np.uint8)
    for row, word in enumerate(text):
        at = (x - int(8 * size) * (len(word) - 1), y + int(row * 18 * size))
        cv2.putText(lead, word, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55 * size, 245, max(1, round(1.6 * size)), cv2.LINE_AA)
    np.maximum(canvas, lead.astype(np.float32) / np.float32(255.0), out=canvas)


def _curve(scene: Scene, canvas: NDArray[np.uint8], knots: list[tuple[float, float]], value: int, width: float) -> None:
    """A smooth line through knots (Catmull-Rom), ``width`` in centimetres."""
    p = np.array([knots[0], *knots, knots[-1]])
    t = np.linspace(0, 1, 12)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    points = np.round(scene.points(np.concatenate(parts)) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(canvas, [points], False, value, max(1, round(width / scene.pixel)), cv2.LINE_AA, _SHIFT)


def _leads(scene: Scene, g: Geometry, canvas: NDArray[np.uint8], rng: np.random.Generator) -> None:
    places = [(-0.75, 0.08), (0.75, 0.06), (-0.7, 0.85), (0.8, 0.9), (0.1, 0.55)]
    exit_x = rng.choice([-1, 1]) * (g.half_width + 6.0)
    for u, v in places[: int(rng.integers(3, 6))]:
        x = u * g.half_width + rng.normal(0, 1.2)
        y = g.top + v * g.height + rng.normal(0, 1.5)
        (cx, cy) = np.round(scene.points(np.array([[x, y]]))[0] * (1 << _SHIFT)).astype(int).tolist()
        radius = round(0.55 / scene.pixel * (1 << _SHIFT))
        cv2.circle(canvas, (cx, cy), radius, 110, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(canvas, (cx, cy), radius // 2, 230, -1, cv2.LINE_AA, _SHIFT)
        bend = (0.5 * (x + exit_x) + rng.normal(0, 3.0), y + rng.uniform(1.0, 8.0))
        _curve(scene, canvas, [(x, y), bend, (exit_x, g.top + g.height + rng.uniform(0, 8))], 75, 0.12)


def _line(scene: Scene, g: Geometry, canvas: NDArray[np.uint8], rng: np.random.Generator) -> None:
    tip = (-2.0 + g.shift, g.top + rng.uniform(0.36, 0.5) * g.height)
    if rng.random() < 0.5:
        knots = [(-5.0, g.top - 7.0), (-3.6, g.top - 1.0), (-2.5, g.top + 3.5), tip]
    else:
        knots = [(-g.half_width - 3.0, g.top + 6.5), (-7.5, g.clavicle - 0.3), (-3.2, g.clavicle + 0.8), tip]
    _curve(scene, canvas, knots, 100, 0.2)


def _pacemaker(scene: Scene, g: Geometry, canvas: NDArray[np.uint8], rng: np.random.Generator) -> None:
    x, y = 0.68 * g.half_width + rng.normal(0, 0.5), g.top + 0.22 * g.height + rng.normal(0, 0.6)
    (cx, cy) = np.round(scene.points(np.array([[x, y]]))[0] * (1 << _SHIFT)).astype(int).tolist()
    axes = (round(2.2 / scene.pixel * (1 << _SHIFT)), round(1.9 / scene.pixel * (1 << _SHIFT)))
    cv2.ellipse(canvas, (cx, cy), axes, 20, 0, 360, 255, -1, cv2.LINE_AA, _SHIFT)
    apex = (0.75 * g.heart_width + g.shift, g.dome[1] - 0.8)
    knots = [
        (x - 1.5, y - 1.2),
        (4.0, g.clavicle + 0.4),
        (-1.6, g.top + 0.34 * g.height),
        (-1.8, g.dome[0] - 5.0),
        apex,
    ]
    _curve(scene, canvas, knots, 190, 0.16)


def _nipples(scene: Scene, g: Geometry, rng: np.random.Generator) -> None:
    sides = [-1, 1] if rng.random() < 0.6 else [int(rng.choice([-1, 1]))]
    for side in sides:
        x = side * 0.62 * g.half_width + rng.normal(0, 0.6)
        y = g.top + (g.breast_low + 0.09) * g.height + rng.normal(0, 0.8)
        r2 = ((scene.x - x) ** 2 + (scene.y - y) ** 2) / rng.uniform(0.4, 0.6) ** 2
        scene.body = scene.body + np.float32(rng.uniform(0.6, 1.1)) * np.sqrt(np.maximum(1.0 - r2, 0.0))
