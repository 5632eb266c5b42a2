"""Chest films, default data: ribs, clavicles, scapulae, spine and humeri of a phantom chest.

A rib is a ring around the cage's elliptic cross-section. Seen from the front, its posterior half runs as
``y = y_n + D(asin u)`` and its anterior half as ``y = y_n + D(pi - asin u)``, u being the distance from the midline as a share of
the cage's half width, so that both halves meet at the lateral margin. Solving for n turns the whole set of ribs
into one map of phases: no rib is drawn on its own.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.anatomy import (
    Geometry,
    Map,
    Scene,
    cage_half_width,
    chord,
    cut_out,
    ramp,
    segment_distance,
)

_SHELL = 0.085  # cortical thickness of a rib, cm
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def add_skeleton(scene: Scene, g: Geometry, seed: int) -> None:
    """Adds every bone to ``scene.bone``, as centimetres of cortical bone."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 12]))
    bone = _ribs(scene, g, rng)
    far, reach = 60.0, abs(g.scoliosis) + 6.0 * abs(g.turn) + 3.0
    where, part = cut_out(scene, (-reach, -far), (reach, far))
    bone[where] += _spine(part, g, rng)
    for side in (-1, 1):
        where, part = cut_out(scene, (-far, g.clavicle - 5.0), (far, g.clavicle + 4.0))
        bone[where] += _clavicle(part, g, side, rng)
        near = g.half_width - 5.0 - g.scapula_in
        where, part = cut_out(scene, (min(side * near, side * far), -far), (max(side * near, side * far), far))
        bone[where] += _shoulder(part, g, side)
    scene.bone = np.asarray(bone * ramp(scene.body / 3.0), dtype=np.float32)  # none outside the skin


def tube(distance: Map, radius: float, depth: float, shell: float, trabecular: float) -> Map:
    """Chord through a tube with a cortical shell and cancellous core, centimetres of cortical bone.

    Args:
        distance: From the axis, in the image plane.
        radius: Half height in the image plane.
        depth: Extent along the beam.
        shell: Thickness of the cortex.
        trabecular: Mineral of the core relative to cortex.
    """
    outer = depth * chord((distance / radius) ** 2)
    inner = (depth - 2 * shell) * chord((distance / (radius - shell)) ** 2)
    return np.asarray(outer - (1.0 - trabecular) * inner, dtype=np.float32)


def _ribs(scene: Scene, g: Geometry, rng: np.random.Generator) -> Map:
    pitch = 0.095 * g.height
    steps = pitch * (1.0 + 0.05 * rng.standard_normal(14)) * np.linspace(0.9, 1.08, 14)
    levels = g.top - 0.035 * g.height + np.cumsum(steps)  # y of the spinal ends of ribs 1..14
    cage = cage_half_width(g, scene.y)
    u = np.clip(np.abs(scene.x) / cage, 0.0, 0.995)
    lateral = np.arcsin(u)
    sag = 0.42 * g.height * rng.normal(1.0, 0.06)
    # Beam and rib are nearly parallel at the lateral margin: the path through bone grows.
    grazing = np.minimum(1.0 / np.sqrt(1.0 - 0.85 * u * u), 2.0)
    posterior = _rib_set(scene, levels, sag, lateral, scene.y, 0.58, (0.6, 11.6), g.trabecular)
    posterior *= ramp((np.abs(scene.x + 6.0 * g.turn) - 1.6) / 1.0)
    anterior = _rib_set(scene, levels, sag, np.pi - lateral, scene.y, 0.72, (0.6, 8.4), g.trabecular)
    end = 0.42 + 0.1 * np.sin(scene.y * 1.7)
    anterior *= 0.85 * ramp((u - end) / 0.08 + 0.5)
    inside = (scene.y > g.top - 0.8) & (np.abs(scene.x) < cage + 0.15)
    return np.where(inside, (0.72 * posterior + 0.6 * anterior) * grazing, 0.0).astype(np.float32)


def _rib_set(
    scene: Scene,
    levels: NDArray[np.float64],
    sag: float,
    angle: Map,
    y: Map,
    radius: float,
    numbers: tuple[float, float],
    trabecular: float,
) -> Map:
    drop = sag * (0.5 - 0.5 * np.cos(angle)) ** 1.15 - 0.7 * np.sin(np.minimum(2.0 * angle, np.pi))
    # Upper ribs fall less than lower ones: two fixed-point steps solve for the rib that passes through the pixel.
    count = np.arange(1, len(levels) + 1)
    start = y - drop * 0.9
    number = np.interp(start, levels, count, left=0.0).astype(np.float32)
    start = y - drop * (0.72 + 0.045 * np.minimum(number, 8.0))
    number = np.interp(start, levels, count, left=0.0, right=20.0).astype(np.float32)
    gy = np.gradient(number, axis=0) / scene.pixel
    gx = np.gradient(number, axis=1) / scene.pixel
    slope = np.maximum(np.hypot(gx, gy), 0.15)
    nearest = np.round(number)
    distance = (np.abs(number - nearest) / slope).astype(np.float32)
    rib = tube(distance, radius, 0.75, _SHELL, trabecular)
    return np.where((nearest > numbers[0]) & (nearest < numbers[1]), rib, 0.0).astype(np.float32)


def _spine(scene: Scene, g: Geometry, rng: np.random.Generator) -> Map:
    y = scene.y
    bend = g.scoliosis * np.sin((y - g.top) / g.height * np.pi)
    x = scene.x - bend + 6.0 * g.turn
    t = np.clip((y - g.top) / g.height, -0.6, 1.6)
    half = 1.65 + 0.45 * t
    pitch = 2.3 * g.height / 24.0 * rng.normal(1.0, 0.03)
    phase = (y - g.top) / pitch
    within = np.abs(phase - np.round(phase))  # 0 in the middle of a vertebra, 0.5 in the disc
    waist = half * (0.9 + 0.35 * within)
    cube = np.abs(x / waist) * (x / waist) ** 2
    side = chord(cube * cube)
    body = side * ramp((0.44 - within) / 0.04)
    plates = side * np.exp(-(((within - 0.4) / 0.035) ** 2))
    bone = 1.0 * g.trabecular * body + 0.2 * plates
    bone += 0.16 * np.exp(-(((np.abs(x) - waist * 0.93) / 0.12) ** 2)) * (within < 0.43)
    rise = (within * np.sign(phase - np.round(phase)) + 0.08) * pitch
    pedicle = ((np.abs(x) - 0.66 * half) / 0.36) ** 2 + (rise / 0.55) ** 2
    bone += 0.14 * np.exp(-((np.sqrt(pedicle) - 1.0) ** 2) / 0.06)
    spinous = ((x + 3.0 * g.turn) / 0.3) ** 2 + ((rise - 0.55) / 0.5) ** 2
    bone += 0.3 * chord(spinous)
    return np.asarray(bone, dtype=np.float32)


def _clavicle(scene: Scene, g: Geometry, side: int, rng: np.random.Generator) -> Map:
    x0 = side * 1.9 + 6.5 * g.turn + 0.3 * g.shift
    x1 = side * (g.shoulder - 3.2)
    y1 = g.top + 0.4 + rng.normal(0, 0.5)
    t = (scene.x - x0) / (x1 - x0)
    tc = np.clip(t, 0.0, 1.0)
    axis = g.clavicle + (y1 - g.clavicle) * tc - 0.8 * np.sin(np.pi * tc) + 0.35 * np.sin(2 * np.pi * tc)
    slope = np.cos(np.arctan2(y1 - g.clavicle, abs(x1 - x0)))
    beyond = np.maximum(np.maximum(-t, t - 1.0), 0.0) * abs(x1 - x0)
    distance = np.hypot((scene.y - axis) * slope, beyond).astype(np.float32)
    return tube(distance, 0.62, 1.25, 0.2, g.trabecular)


def _shoulder(scene: Scene, g: Geometry, side: int) -> Map:
    joint = (side * (g.shoulder - 2.6), g.top + 3.6)
    elbow = (side * (g.shoulder - 1.0 + g.arm_out), g.top + 3.6 + 24.0)
    shaft = segment_distance(scene, joint, elbow)
    bone = tube(shaft, 1.15, 2.2, 0.38, 0.05)
    head = np.hypot(scene.x - joint[0], scene.y - joint[1]).astype(np.float32)
    bone = np.maximum(bone, tube(head, 2.3, 4.2, 0.12, 0.6 * g.trabecular))
    inner = g.half_width - 1.3 - g.scapula_in
    blade = np.array(
        [
            (g.shoulder - 4.9, g.top + 3.0),
            (g.shoulder - 4.7, g.top + 5.4),
            (inner + 1.6, g.top + 0.62 * g.height),
            (inner + 0.4, g.top + 0.60 * g.height),
            (inner - 0.2, g.top + 0.30 * g.height),
            (inner + 0.6, g.top + 1.6),
            (inner + 2.6, g.top + 0.9),
        ]
    ) * (side, 1.0)
    corners = np.round(scene.points(blade) * (1 << _SHIFT)).astype(np.int32)
    wide = max(2, round(0.35 / scene.pixel))
    flat = np.zeros(scene.x.shape, np.uint8)
    cv2.fillPoly(flat, [corners], 90, cv2.LINE_AA, _SHIFT)
    cv2.polylines(flat, [corners[1:3]], False, 255, wide + 1, cv2.LINE_AA, _SHIFT)
    cv2.polylines(flat, [corners[2:6]], False, 150, max(1, wide // 2), cv2.LINE_AA, _SHIFT)
    ridge = np.array([(inner + 0.8, g.top + 4.0), (g.shoulder - 2.2, g.top + 0.7)]) * (side, 1.0)
    ends = np.round(scene.points(ridge) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(flat, [ends], False, 210, wide + 2, cv2.LINE_AA, _SHIFT)
    soft = cv2.GaussianBlur(flat, (0, 0), max(0.12 / scene.pixel, 0.5))
    return np.asarray(bone + soft.astype(np.float32) * np.float32(0.55 / 255.0), dtype=np.float32)
