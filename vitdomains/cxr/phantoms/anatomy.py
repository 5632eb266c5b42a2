"""The soft tissue and the skeleton of a phantom chest as maps of thickness along the beam.

Lengths are in centimetres. The body frame has its origin in the middle of the rib cage, x to the patient's left (the right
of the image), y down. A structure at depth z (towards the sternum positive) shifts by ``Geometry.turn * z`` when
the patient is turned about the long axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.cohort import FilmSpec

Map = NDArray[np.floating[Any]]
"""float32 [H, W]."""
Tree = NDArray[np.float64]
"""Vessels as segments [N, 5]: x0, y0, x1, y1, diameter; centimetres."""

_FULL = 1.6  # vessel diameter that a canvas value of 255 stands for, cm
_SHELL = 0.085  # cortical thickness of a rib, cm
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


@dataclass(frozen=True)
class Geometry:
    """Sizes and places of one patient on one film; centimetres, and ratios where no unit is named."""

    half_width: float  # inner rib cage, widest
    half_depth: float  # inner rib cage, front to back
    height: float  # bony cage, apex to the tenth posterior rib
    top: float  # y of the lung apex
    dome: tuple[float, float]  # y of the right and left diaphragm
    fat: float  # thickness under the skin
    fat_share: float  # adipose share of the soft tissue
    depth: float  # whole body, front to back
    shoulder: float  # half width at the shoulders
    neck: float  # half width of the neck
    heart_width: float  # half of the transverse diameter
    knob: float  # radius of the aortic knob
    shift: float  # of the mediastinum, positive to the patient's left
    turn: float  # sine of the rotation about the long axis
    scoliosis: float  # amplitude of the spine's curve
    scapula_in: float  # how far the scapulae lie over the lungs
    arm_out: float  # lateral run of the upper arm
    clavicle: float  # y of the medial ends
    breast: float  # largest thickness
    breast_low: float  # y of the breast's centre as a share of the cage
    trabecular: float  # mineral of cancellous bone relative to cortical
    lung_density: float  # relative to soft tissue
    bubble: tuple[float, float, float]  # stomach gas: size, place along x and height of the fluid level


@dataclass
class Scene:
    """Thickness maps of one film, float32 [H, W], centimetres along the beam."""

    x: Map
    y: Map
    pixel: float  # centimetres per pixel
    to_pixel: NDArray[np.float64]  # [2, 3] affine from (x, y) to (column, row)
    body: Map  # everything inside the skin
    lung: Map  # aerated parenchyma
    gas: Map  # pure air or gas inside the body
    fluid: Map  # soft tissue or fluid that took the place of parenchyma
    vessels: Map  # vessels inside the parenchyma
    bone: Map  # as cortical bone
    metal: Map  # devices and markers
    heart: NDArray[np.bool_]  # silhouette of the heart

    def points(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Body coordinates [N, 2] to pixel coordinates [N, 2]."""
        return xy @ self.to_pixel[:, :2].T + self.to_pixel[:, 2]


_MAPS = ("x", "y", "body", "lung", "gas", "fluid", "vessels", "bone", "metal", "heart")


def chord(r2: Map) -> Map:
    """``sqrt(1 - r2)`` where positive, else 0: the profile of an ellipsoid seen along the beam."""
    return np.asarray(np.sqrt(np.maximum(1.0 - r2, 0.0)), dtype=np.float32)


def ramp(values: Map) -> Map:
    """Smooth step from 0 (at 0) to 1 (at 1)."""
    t = np.clip(values, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), dtype=np.float32)


def segment_distance(scene: Scene, a: tuple[float, float], b: tuple[float, float]) -> Map:
    """Distance of every pixel from the segment a-b, centimetres."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((scene.x - a[0]) * dx + (scene.y - a[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.hypot(scene.x - a[0] - t * dx, scene.y - a[1] - t * dy).astype(np.float32)


def cut_out(scene: Scene, low: tuple[float, float], high: tuple[float, float]) -> tuple[tuple[slice, slice], Scene]:
    """The part of a scene that holds the rectangle low-high of the body frame (at least one pixel), and where it is.

    The maps of the part are views: what is added to them is added to the scene.
    """
    height, width = scene.x.shape
    corners = scene.points(np.array([(low[0], low[1]), (low[0], high[1]), (high[0], low[1]), (high[0], high[1])]))
    first = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, (width - 1, height - 1))
    last = np.clip(np.ceil(corners.max(0)).astype(int) + 2, first + 1, (width, height))
    where = (slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0])))
    to_pixel = scene.to_pixel - np.array([[0.0, 0.0, first[0]], [0.0, 0.0, first[1]]])
    maps = {name: getattr(scene, name)[where] for name in _MAPS}
    return where, replace(scene, to_pixel=to_pixel, **maps)


def draw_geometry(spec: FilmSpec, rng: np.random.Generator) -> Geometry:
    """Anatomy of the patient (from its seed) in the posture of this film (from ``rng``)."""
    p, f = spec.patient, spec.findings
    own = np.random.default_rng(np.random.SeedSequence([p.seed, 11]))
    female, bedside = p.sex == "F", spec.view == "AP"
    half_width = own.normal(12.3 if female else 13.6, 0.8) + 0.35 * p.habitus
    height = half_width * own.normal(1.72, 0.1) - 0.5 * p.habitus
    top = -0.52 * height
    ratio = own.normal(0.45, 0.022) + 0.006 * p.habitus
    knob = own.normal(1.75, 0.2) + 0.012 * (p.age - 45)
    base = own.normal(0.93, 0.03)
    elevation = own.normal(1.2, 0.6)
    breast = own.uniform(2.5, 5.5) + 1.5 * max(p.habitus, -0.7) if female else own.uniform(0.4, 1.2) + 0.5 * p.habitus
    breast_low = own.uniform(0.66, 0.84)
    fat = float(np.clip(1.6 + 1.0 * p.habitus + own.normal(0, 0.2), 0.4, 5.0))
    scoliosis, neck, shoulder = own.normal(0, 0.45), own.normal(5.6, 0.4), own.normal(17.6, 0.8)

    # From here on the posture of this film: breath, rotation, arms.
    breath = base - abs(rng.normal(0, 0.045)) - (abs(rng.normal(0.04, 0.06)) if bedside else 0.0)
    right = top + height * float(np.clip(breath, 0.68, 1.0))
    left = right + elevation
    shift = rng.normal(0, 0.15)
    if (c := f.get("Cardiomegaly")) is not None:
        ratio = 0.545 + 0.14 * c.severity
    if bedside:
        ratio *= rng.uniform(1.03, 1.12)  # shorter focus, heart far from the detector
    if (a := f.get("Atelectasis")) is not None and is_lobar(a.seed):
        lift = 1.0 + 2.6 * a.severity
        right, left = (right - lift, left) if a.side < 0 else (right, left - lift)
        shift += a.side * (0.3 + 1.0 * a.severity)
    if (e := f.get("Effusion")) is not None:
        shift -= e.side * 1.4 * max(e.severity - 0.55, 0.0)
    if (t := f.get("Pneumothorax")) is not None:
        shift -= t.side * 3.0 * max(t.severity - 0.6, 0.0)
    return Geometry(
        half_width=half_width,
        half_depth=half_width * own.normal(0.68, 0.03),
        height=height,
        top=top,
        dome=(right, left),
        fat=fat,
        fat_share=float(np.clip(0.16 + 0.1 * p.habitus, 0.08, 0.5)),
        depth=2 * half_width * 0.68 + 4.0 + 1.7 * fat,
        shoulder=shoulder + (1.8 if not female else 0.0) + 0.6 * p.habitus,
        neck=neck + 0.4 * p.habitus + (0.6 if not female else 0.0),
        heart_width=float(np.clip(ratio, 0.38, 0.74)) * half_width,
        knob=float(np.clip(knob, 1.4, 2.7)),
        shift=shift,
        turn=rng.normal(0, 0.065 if bedside else 0.03),
        scoliosis=scoliosis,
        scapula_in=rng.uniform(1.0, 4.0) if bedside else rng.uniform(-1.8, 0.8),
        arm_out=rng.uniform(0.5, 3.0) if bedside else rng.uniform(5.0, 11.0),
        clavicle=top + height * (rng.uniform(0.03, 0.13) if bedside else rng.uniform(0.1, 0.17)),
        breast=max(breast, 0.3),
        breast_low=breast_low,
        trabecular=float(np.clip(0.2 - 0.0014 * (p.age - 40), 0.1, 0.22)),
        bubble=(max(rng.normal(1.5, 0.9), 0.05), rng.normal(0, 1.3), rng.uniform(-0.3, 1.0)),
        lung_density=float(np.clip(0.25 + (0.95 - breath) * 0.5 + rng.normal(0, 0.015), 0.2, 0.38)),
    )


def is_lobar(seed: int) -> bool:
    """Whether an atelectasis collapses a lower lobe (else: plate-like bands)."""
    return seed % 5 < 2


def cage_half_width(g: Geometry, y: Map) -> Map:
    """Inner half width of the rib cage at each height, centimetres."""
    rest = 1.0 - np.clip((y - g.top) / (0.80 * g.height), 0.0, 1.0)
    rounded = np.sqrt(np.maximum(1.0 - rest * rest * rest, 1e-4))
    return np.asarray(g.half_width * rounded + 0.02 * np.maximum(y - g.top, 0.0), dtype=np.float32)


def dome_height(g: Geometry, x: Map) -> Map:
    """y of the diaphragm's dome over each x; it falls to the costophrenic angles."""
    out = np.empty_like(x)
    for side, dome in zip((-1, 1), g.dome, strict=True):
        half = x * side > 0
        u = (x[half] * side - 0.4 * g.half_width) / (0.6 * g.half_width)
        # Lateral slope to the costophrenic angle is steeper than the one to the heart.
        out[half] = dome + np.where(u > 0, 4.0 * u**2 * np.sqrt(np.abs(u)), 1.7 * u**2)
    out[x == 0] = g.dome[0]
    return out


def add_body(scene: Scene, g: Geometry) -> None:
    """Trunk, neck, shoulders, arms, breasts: thickness of everything inside the skin."""
    height, width = scene.x.shape
    # All of it is smooth: half the resolution is enough, and four times as fast.
    half = (width // 2, height // 2)
    x, y = (cv2.resize(values, half, interpolation=cv2.INTER_AREA) for values in (scene.x, scene.y))
    coarse = replace(scene, x=np.asarray(x), y=np.asarray(y))
    body = cv2.resize(_body(coarse, g), (width, height), interpolation=cv2.INTER_LINEAR)
    scene.body = np.asarray(body, dtype=np.float32)


def _body(scene: Scene, g: Geometry) -> Map:
    y, ax = scene.y, np.abs(scene.x)
    wall = g.half_width + 1.7 + g.fat
    rise = ramp((g.top + 0.42 * g.height - y) / (0.3 * g.height))
    width = wall + (max(g.shoulder + 0.6 * g.fat - wall, 0.0)) * rise - 0.02 * (y - g.top)
    trunk = g.depth * chord((ax / width) ** 2 * np.minimum(ax / width, 1.0))
    # The trapezius slopes from the neck to the shoulder, steep at first.
    near = (ax / (1.1 * g.neck)) ** 2
    line = g.top + 2.4 - 9.5 / (1.0 + near * near)
    trunk *= 0.75 * np.sqrt(np.clip((y - line) / 9.0, 0.0, 1.0)) + 0.25 * ramp((y - line) / 9.0)
    neck = 2.2 * g.neck * chord((ax / (g.neck + 0.3)) ** 2) * (y < g.top + 5.0)
    jaw = 11.0 * chord((scene.x / 6.5) ** 2 + ((y - g.top + 12.5) / 5.5) ** 2)
    neck = np.maximum(neck, jaw)
    body = np.sqrt(np.hypot(trunk**2, neck**2))  # a smooth maximum
    radius = 4.1 + 0.45 * g.fat
    for side in (-1, 1):
        joint = (side * (g.shoulder - 2.6), g.top + 3.6)
        elbow = (side * (g.shoulder - 1.0 + g.arm_out), g.top + 3.6 + 24.0)
        arm = segment_distance(scene, joint, elbow)
        body = np.maximum(body, 2.0 * radius * chord((arm / radius) ** 2))
    return np.asarray(body + _breasts(scene, g) * (trunk > 0), dtype=np.float32)


def _breasts(scene: Scene, g: Geometry) -> Map:
    total = np.zeros_like(scene.x)
    centre = g.top + g.breast_low * g.height
    rx = 0.44 * g.half_width + 0.2 * g.breast
    for side in (-1, 1):
        u = (scene.x - side * 0.6 * g.half_width - 4.0 * g.turn) / rx
        v = scene.y - centre
        down, up = 0.36 * g.half_width + 0.2 * g.breast, 0.85 * g.half_width
        profile = chord(u * u + (v / np.where(v > 0, down, up)) ** 2)
        # The lower fold is a sharp edge, the upper slope fades into the chest wall.
        total += g.breast * profile * np.where(v > 0, 1.0, ramp(1.0 + v / up))
    return total


def add_lungs(scene: Scene, g: Geometry, bedside: bool) -> None:
    """Chest cavity less mediastinum, heart and diaphragm: thickness of aerated lung, trachea and stomach gas."""
    x, y = scene.x, scene.y
    a = cage_half_width(g, y)
    cavity = 2 * g.half_depth * chord((x / a) ** 2)
    apex = g.top + 0.13 * (np.abs(x) - 0.36 * g.half_width) ** 2
    cavity *= np.sqrt(np.clip((y - apex) / (0.22 * g.height), 0.0, 1.0))
    below = np.maximum(y - dome_height(g, x), 0.0)
    diaphragm = 11.0 * np.sqrt(below) + 1.3 * below
    scene.lung = np.maximum(cavity - mediastinum(scene, g) - diaphragm, 0.0).astype(np.float32)
    carina = g.top + 0.37 * g.height
    middle = g.shift + 0.25 * g.knob
    airway = segment_distance(scene, (0.3 * g.shift, g.top - 12.0), (middle, carina))
    gas = 2.0 * chord((airway / 0.95) ** 2)
    for side, drop in ((-1, 2.2), (1, 2.6)):
        bronchus = segment_distance(scene, (middle, carina), (middle + side * 3.4, carina + drop))
        gas = np.maximum(gas, 1.1 * chord((bronchus / 0.6) ** 2))
    # Stomach bubble under the left dome, with a fluid level when upright.
    cx, cy = 0.42 * g.half_width + g.bubble[1], g.dome[1] + 1.0 + g.bubble[0]
    bubble = 2.6 * g.bubble[0] * chord(((x - cx) / (1.7 * g.bubble[0])) ** 2 + ((y - cy) / max(g.bubble[0], 0.1)) ** 2)
    scene.gas = gas + (bubble if bedside else bubble * ramp((cy + g.bubble[2] - y) / 0.15 + 0.5))


def mediastinum(scene: Scene, g: Geometry) -> Map:
    """Thickness of spine, great vessels, hila and heart inside the chest cavity; marks ``scene.heart``."""
    x, y = scene.x, scene.y
    bend = g.scoliosis * np.sin((y - g.top) / g.height * np.pi)
    xs = x - bend + g.turn * 6.0
    total = 7.0 * chord((xs / 2.3) ** 2)
    xm = x - g.shift - 0.4 * bend
    # Upper mediastinum: wide at the thoracic inlet, narrow below the arch.
    inlet = 2.5 + 0.15 * g.fat + 0.9 * ramp((g.top + 0.2 * g.height - y) / (0.25 * g.height))
    edge = chord((xm / inlet) ** 2)
    total += 19.0 * edge * np.sqrt(edge)
    knob_y = g.top + 0.30 * g.height
    left = 1.6 + 0.5 * (g.knob - 1.7)
    total += 4.5 * g.knob * chord(((xm - left) / g.knob) ** 2 + ((y - knob_y) / g.knob) ** 2)
    down = (xm - left - 0.25 + 0.05 * (y - knob_y)) / (0.78 * g.knob)
    total += 2.4 * chord(down**2) * (y > knob_y)
    total += 7.0 * chord(((xm - 2.0) / 2.3) ** 2 + ((y - g.top - 0.47 * g.height) / 3.8) ** 2)
    total += 3.5 * chord(((xm + 1.5 - 3.0 * g.turn) / 1.5) ** 2) * ramp((y - g.top - 0.12 * g.height) / 3.0)
    for side, drop in ((-1, 0.48), (1, 0.44)):  # hila; the left one stands higher
        u, v = xm - side * 3.5, y - g.top - drop * g.height
        total += 2.2 * np.exp(-((u / 1.2) ** 2) - ((v - 0.5 * side * u) / 1.9) ** 2)
    w = g.heart_width
    flat = min(1.0, 0.52 * g.half_width / w) ** 0.7  # a large heart widens more than it rises
    hx, hy = xm - 0.27 * w - 3.5 * g.turn, (y - max(g.dome) - 1.2) / flat + 0.78 * w
    cos, sin = 0.77, 0.64  # long axis points to the left and down
    p, q = (hx * cos + hy * sin) / (1.07 * w), (-hx * sin + hy * cos) / (0.86 * w)
    ventricle = p * p + q * q
    atrium = ((hx + 0.42 * w) / (0.58 * w)) ** 2 + ((hy + 0.02 * w) / (0.70 * w)) ** 2
    body = np.maximum(2.7 * w * chord(ventricle), 2.3 * w * chord(atrium))
    scene.heart = (np.minimum(ventricle, atrium) < 1.0) & (y < dome_height(g, x) + 1.5)
    return np.asarray(total + body, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Map:
    """Gaussian noise of unit variance on a cells x cells grid, interpolated to [H, W]."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def grow_tree(g: Geometry, seed: int, upper: float = 0.72) -> Tree:
    """The vessels of both lungs, which branch by Murray's law from the hila outwards (d^3 = d1^3 + d2^3; 1926, PNAS 12:207).

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
    # A rib is a ring around the cage's elliptic cross-section. Seen from the front, its posterior half runs as
    # y = y_n + D(asin u) and its anterior half as y = y_n + D(pi - asin u), u being the distance from the midline as a
    # share of the cage's half width, so that both halves meet at the lateral margin. Solving for n turns the whole set
    # of ribs into one map of phases: no rib is drawn on its own.
    pitch = 0.095 * g.height
    steps = pitch * (1.0 + 0.05 * rng.standard_normal(14)) * np.linspace(0.9, 1.08, 14)
    levels = g.top - 0.035 * g.height + np.cumsum(steps)  # y of the spinal ends of ribs 1..14
    cage = cage_half_width(g, scene.y)
    u = np.clip(np.abs(scene.x) / cage, 0.0, 0.995)
    lateral = np.arcsin(u)
    sag = 0.42 * g.height * rng.normal(1.0, 0.06)
    # Beam and rib are nearly parallel at the lateral margin: the path through bone grows.
    grazing = np.minimum(1.0 / np.sqrt(1.0 - 0.85 * u * u), 2.0)
    posterior = _rib_set(scene, levels, sag, lateral, 0.58, 11.6, g.trabecular)
    posterior *= ramp((np.abs(scene.x + 6.0 * g.turn) - 1.6) / 1.0)
    anterior = _rib_set(scene, levels, sag, np.pi - lateral, 0.72, 8.4, g.trabecular)
    end = 0.42 + 0.1 * np.sin(scene.y * 1.7)
    anterior *= 0.85 * ramp((u - end) / 0.08 + 0.5)
    inside = (scene.y > g.top - 0.8) & (np.abs(scene.x) < cage + 0.15)
    return np.where(inside, (0.72 * posterior + 0.6 * anterior) * grazing, 0.0).astype(np.float32)


def _rib_set(
    scene: Scene, levels: NDArray[np.float64], sag: float, angle: Map, radius: float, most: float, trabecular: float
) -> Map:
    drop = sag * (0.5 - 0.5 * np.cos(angle)) ** 1.15 - 0.7 * np.sin(np.minimum(2.0 * angle, np.pi))
    # Upper ribs fall less than lower ones: two fixed-point steps solve for the rib that passes through the pixel.
    count = np.arange(1, len(levels) + 1)
    start = scene.y - drop * 0.9
    number = np.interp(start, levels, count, left=0.0).astype(np.float32)
    start = scene.y - drop * (0.72 + 0.045 * np.minimum(number, 8.0))
    number = np.interp(start, levels, count, left=0.0, right=20.0).astype(np.float32)
    gy = np.gradient(number, axis=0) / scene.pixel
    gx = np.gradient(number, axis=1) / scene.pixel
    slope = np.maximum(np.hypot(gx, gy), 0.15)
    nearest = np.round(number)
    distance = (np.abs(number - nearest) / slope).astype(np.float32)
    rib = tube(distance, radius, 0.75, _SHELL, trabecular)
    return np.where((nearest > 0.6) & (nearest < most), rib, 0.0).astype(np.float32)


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
