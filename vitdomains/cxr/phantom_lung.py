"""Chest films, default data: the pulmonary vessels, the bronchi beside them and the texture of the parenchyma.

The trees branch by Murray's law (d^3 = d1^3 + d2^3; Murray 1926, PNAS 12:207) from the hila outwards.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.anatomy import Geometry, Map, Scene, cage_half_width, smooth_noise

Tree = NDArray[np.float64]
"""Segments [N, 5]: x0, y0, x1, y1, diameter; centimetres."""

_FULL = 1.6  # diameter that a canvas value of 255 stands for, cm


def grow_tree(g: Geometry, seed: int, upper: float = 0.72) -> Tree:
    """The vessels of both lungs.

    Args:
        g: Anatomy; segments that leave the cage are dropped.
        seed: Seed of the patient.
        upper: Diameter of the upper-lobe roots relative to the lower ones; near 1 with raised venous pressure.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 13]))
    start, angle, diameter = _roots(g, rng, upper)
    grown = []
    for generation in range(11):
        n = len(start)
        if n == 0:
            break
        length = (1.1 + 1.4 * diameter) * rng.uniform(0.55, 1.5, n) * (0.8 if generation == 0 else 1.0)
        stop = start + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        reach = cage_half_width(g, stop[:, 1].astype(np.float32)).astype(np.float64)
        keep = (np.abs(stop[:, 0]) < reach) & (stop[:, 0] * start[:, 0] > 0)
        grown.append(np.column_stack([start, stop, diameter])[keep])
        start, angle, diameter = stop[keep], angle[keep], diameter[keep]
        share = rng.uniform(0.5, 0.8, len(start))  # of d^3 that the larger child takes
        turn = rng.choice([-1.0, 1.0], len(start))
        spread = rng.uniform(0.15, 0.7, (2, len(start)))
        children = np.concatenate([diameter * share ** (1 / 3), diameter * (1 - share) ** (1 / 3)])
        angle = np.concatenate([angle + turn * 0.45 * spread[0], angle - turn * (0.3 + spread[1])])
        start = np.concatenate([start, start])
        alive = (children > 0.13) & (rng.random(len(children)) < 0.93)
        start, angle, diameter = start[alive], angle[alive], children[alive]
    return np.concatenate(grown)


def _roots(g: Geometry, rng: np.random.Generator, upper: float) -> tuple[NDArray[np.float64], ...]:
    # Direction of each root against the lateral horizontal, degrees (down positive), and its diameter, cm.
    degrees = np.array([-72, -48, -25, 4, 26, 46, 64, 82], dtype=np.float64)
    width = np.array([0.95, 0.88, 0.75, 0.80, 1.00, 1.20, 1.30, 1.05])
    starts, angles, widths = [], [], []
    for side, level in ((-1, 0.47), (1, 0.43)):
        tilt = np.radians(degrees + rng.normal(0, 6, 8))
        starts.append(np.tile([side * 3.0 + g.shift, g.top + level * g.height], (8, 1)) + rng.normal(0, 0.4, (8, 2)))
        angles.append(np.where(side > 0, tilt, np.pi - tilt))
        widths.append(width * np.where(degrees < 0, upper / 0.72, 1.0) * rng.normal(1.0, 0.08, 8))
    return np.concatenate(starts), np.concatenate(angles), np.concatenate(widths)


def draw_tree(scene: Scene, tree: Tree, scale: float = 1.0) -> Map:
    """Thickness of a tree of round vessels, centimetres along the beam, drawn at twice the resolution."""
    height, width = scene.x.shape
    canvas = np.zeros((2 * height, 2 * width), np.uint8)
    ends = np.concatenate([scene.points(tree[:, 0:2]), scene.points(tree[:, 2:4])], axis=1)
    fixed = np.round((ends * 2.0 + 0.5) * 16).astype(np.int32)
    order = np.argsort(tree[:, 4])  # the widest last, on top
    wide = np.maximum(np.round(tree[:, 4] * scale * 2.0 / scene.pixel), 1).astype(int)
    # A vessel narrower than a pixel keeps its cross-section by being fainter.
    shown = np.minimum(tree[:, 4] * scale, tree[:, 4] ** 2 * scale * scale * 2.0 / scene.pixel / wide * 3.2)
    value = np.clip(shown / _FULL * 255.0 * 1.35, 0, 255)
    for i in order.tolist():
        x0, y0, x1, y1 = fixed[i].tolist()
        cv2.line(canvas, (x0, y0), (x1, y1), float(value[i]), int(wide[i]), cv2.LINE_AA, 4)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 0.6)
    return np.asarray(soft * np.float32(_FULL / 255.0), dtype=np.float32)


def texture(scene: Scene, seed: int, rng: np.random.Generator) -> Map:
    """Sum of vessels too small to draw, centimetres of soft tissue (zero mean before clipping)."""
    shape = scene.x.shape
    own = np.random.default_rng(np.random.SeedSequence([seed, 14]))
    fine = smooth_noise(own, shape, max(shape) // 3) * 0.085
    middle = smooth_noise(own, shape, max(shape) // 9) * 0.085
    coarse = smooth_noise(rng, shape, 9) * 0.12
    return np.asarray(fine + middle + coarse, dtype=np.float32)


def add_vessels(scene: Scene, g: Geometry, tree: Tree, seed: int, congestion: float, rng: np.random.Generator) -> None:
    """Puts the vessels and the texture into ``scene.vessels``.

    Args:
        scene: With lungs.
        g: Anatomy.
        tree: Of ``grow_tree``, in the place where the lungs are now.
        seed: Seed of the patient.
        congestion: Raised venous pressure, 0..1: wider vessels with hazy margins.
        rng: Of this film.
    """
    vessels = draw_tree(scene, tree, scale=1.0 + 0.25 * congestion)
    if congestion > 0:
        hazy = cv2.GaussianBlur(vessels, (0, 0), 0.18 / scene.pixel)
        vessels += np.float32(congestion) * (hazy * np.float32(1.15) - vessels) * np.float32(0.8)
    vessels += texture(scene, seed, rng)
    scene.vessels = (vessels * np.minimum(scene.lung / 4.0, 1.0)).astype(np.float32)
