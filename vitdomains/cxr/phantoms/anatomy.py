"""Chest films, default data: the soft tissue of a phantom chest as maps of thickness along the beam.

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
