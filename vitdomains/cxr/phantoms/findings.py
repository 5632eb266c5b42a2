"""The findings of a phantom chest and the masks of where they are.

Each finding changes the thickness maps of a scene as the disease changes the lung (fluid for air, air without lung, ...), and
its mask is where it changed them by a visible amount.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.anatomy import (
    Geometry,
    Map,
    Scene,
    Tree,
    cage_half_width,
    chord,
    dome_height,
    draw_tree,
    is_lobar,
    ramp,
    segment_distance,
    smooth_noise,
)
from vitdomains.cxr.phantoms.cohort import FilmSpec, Finding

Mask = NDArray[np.bool_]


def apply_findings(scene: Scene, g: Geometry, spec: FilmSpec, tree: Tree) -> dict[str, Mask]:
    """Places every finding of ``spec`` except the geometry of the heart, which the anatomy already has.

    Args:
        scene: With lungs and vessels; changed in place.
        g: Anatomy.
        spec: The film.
        tree: The vessels, whose companions are the bronchi of an air bronchogram.

    Returns:
        Finding name to bool [H, W].
    """
    f, masks = spec.findings, {}
    pleural = np.zeros_like(scene.lung)
    if "Cardiomegaly" in f:
        masks["Cardiomegaly"] = scene.heart
    if "Pneumothorax" in f:
        pleural = _pneumothorax(scene, g, f["Pneumothorax"])
        masks["Pneumothorax"] = pleural > 0.5
    if "Edema" in f:
        masks["Edema"] = _visible(_edema(scene, g, f["Edema"]), 0.45)
    if "Consolidation" in f:
        masks["Consolidation"] = _visible(_consolidation(scene, g, f["Consolidation"], tree), 0.3)
    if "Atelectasis" in f:
        masks["Atelectasis"] = _visible(_atelectasis(scene, g, f["Atelectasis"]), 0.3)
    if "Nodule" in f:
        masks["Nodule"] = _round_lesions(scene, g, f["Nodule"], (0.65, 1.45)) > 0.2
    if "Mass" in f:
        masks["Mass"] = _round_lesions(scene, g, f["Mass"], (1.75, 4.0)) > 0.4
    if "Effusion" in f:
        masks["Effusion"] = _effusion(scene, g, f["Effusion"], spec.view == "AP", pleural) > 0.6
    return masks


def collapse_tree(tree: Tree, g: Geometry, finding: Finding) -> Tree:
    """The vessels of the lung that a pneumothorax has let shrink towards its hilum."""
    hx, hy, kx, ky = _collapse(g, finding)
    out = tree.copy()
    own = tree[:, 0] * finding.side > 0
    for column in (0, 2):
        out[own, column] = hx + (tree[own, column] - hx) * kx
        above = own & (tree[:, column + 1] < hy)
        out[above, column + 1] = hy + (tree[above, column + 1] - hy) * ky
    return out


def _visible(added: Map, share: float) -> Mask:
    return added > max(0.35, share * float(np.percentile(added[added > 0.1], 90)) if (added > 0.1).any() else 0.35)


def _fill(scene: Scene, thickness: Map) -> Map:
    """Replaces aerated lung by soft tissue, at most all of it; returns what was replaced."""
    added = np.clip(thickness, 0.0, np.maximum(scene.lung - scene.fluid, 0.0)).astype(np.float32)
    scene.fluid += added
    # A vessel is seen against air: where the air goes, its outline goes.
    scene.vessels *= 1.0 - np.clip(added / np.maximum(scene.lung, 0.5), 0.0, 1.0)
    return added


def _draw_sites(
    scene: Scene, g: Geometry, side: int, rng: np.random.Generator, count: int, low: float = 0.12, high: float = 0.9
) -> list[tuple[float, float]]:
    """Points of one lung with at least a third of the usual depth of air, in a random order."""
    height, width = scene.lung.shape
    found: list[tuple[float, float]] = []
    for _ in range(120):
        v = rng.uniform(low, high)
        y = g.top + v * (g.dome[0 if side < 0 else 1] - g.top)
        reach = float(cage_half_width(g, np.float32(y)))  # type: ignore[arg-type]
        x = side * (g.shift * side + rng.uniform(0.25, 0.85) * reach)
        column, row = np.round(scene.points(np.array([[x, y]]))[0]).astype(int)
        if 0 <= row < height and 0 <= column < width and scene.lung[row, column] > 0.66 * g.half_depth:
            found.append((x, y))
            if len(found) == count:
                break
    return found or [(side * 0.55 * g.half_width, g.top + 0.55 * g.height)]


def _pneumothorax(scene: Scene, g: Geometry, finding: Finding) -> Map:
    hx, hy, kx, ky = _collapse(g, finding)
    own = np.clip(scene.x * finding.side / 0.3, 0.0, 1.0)
    x = hx + (scene.x - hx) / kx
    y = np.where(scene.y < hy, hy + (scene.y - hy) / ky, scene.y).astype(np.float32)
    apex = g.top + 0.13 * (np.abs(x) - 0.36 * g.half_width) ** 2
    lateral = (cage_half_width(g, y) - np.abs(x)) * kx
    wave = 0.12 * np.sin(scene.y * 0.9 + finding.seed % 7)
    edge = np.minimum(lateral + wave, (y - apex) * ky)  # signed distance to the visceral pleura
    covered = np.clip(edge / scene.pixel + 0.5, 0.0, 1.0)
    gone = (1.0 - covered) * own
    pleural = (scene.lung * gone).astype(np.float32)
    scene.lung -= pleural
    scene.gas += pleural
    scene.vessels *= 1.0 - gone
    # The pleura is thin but met edge on; the shrunken lung behind it is denser.
    line = 0.75 * np.exp(-((edge / 0.1) ** 2)) * own * np.minimum(scene.lung + pleural, 1.0)
    scene.vessels += line.astype(np.float32)
    scene.fluid += (scene.lung * own * (0.22 * (1.0 - kx))).astype(np.float32)
    return np.asarray(pleural)


def _collapse(g: Geometry, finding: Finding) -> tuple[float, float, float, float]:
    s = finding.severity
    own = np.random.default_rng(finding.seed)
    kx = 1.0 - (0.06 + 0.55 * s**1.3) * own.uniform(0.8, 1.1)
    ky = 1.0 - (0.11 + 0.40 * s) * own.uniform(0.8, 1.15)
    return finding.side * 2.6, g.top + 0.52 * g.height, kx, ky


def _edema(scene: Scene, g: Geometry, finding: Finding) -> Map:
    rng = np.random.default_rng(finding.seed)
    s, shape = finding.severity, scene.lung.shape
    ax, v = np.abs(scene.x - g.shift), (scene.y - g.top - 0.5 * g.height)
    wing = np.exp(-(((ax - 4.0) / (3.2 + 2.2 * s)) ** 2) - (v / (0.26 * g.height)) ** 2)
    base = 0.35 * ramp((v + 2.0) / 9.0)
    patch = np.clip(1.0 + 0.35 * smooth_noise(rng, shape, 14) + 0.25 * smooth_noise(rng, shape, 40), 0.25, 2.0)
    lean = 1.0 + rng.uniform(-0.3, 0.3) * np.sign(scene.x)
    added = _fill(scene, scene.lung * (wing + base) * patch * lean * (0.13 + 0.29 * s))
    lines = np.zeros_like(scene.lung)
    for _ in range(int(rng.integers(8, 14) * (0.5 + s))):  # Kerley B: septa at the lateral base
        side = rng.choice([-1, 1])
        y = rng.uniform(0.55, 0.95) * g.height + g.top
        x1 = side * (float(cage_half_width(g, np.float32(y))) - 0.3)  # type: ignore[arg-type]
        ends = np.array([[x1, y], [x1 - side * rng.uniform(0.9, 1.9), y + rng.normal(0, 0.12)]])
        a, b = np.round(scene.points(ends) * 16).astype(np.int32).tolist()
        cv2.line(lines, a, b, 0.5, 1, cv2.LINE_8, 4)
    soft = cv2.GaussianBlur(lines, (0, 0), 0.6) * 1.4 * np.minimum(scene.lung / 3.0, 1.0)
    scene.vessels += soft.astype(np.float32)
    return added


def _consolidation(scene: Scene, g: Geometry, finding: Finding, tree: Tree) -> Map:
    rng = np.random.default_rng(finding.seed)
    s, shape = finding.severity, scene.lung.shape
    (cx, cy), *_ = _draw_sites(scene, g, finding.side, rng, 1, 0.2, 0.95)
    radius = (2.8 + 4.4 * s) * rng.uniform(0.85, 1.15)
    stretch = rng.uniform(0.75, 1.3)
    r = np.hypot((scene.x - cx) / stretch, (scene.y - cy) * stretch) / radius
    rough = 0.30 * smooth_noise(rng, shape, 11) + 0.14 * smooth_noise(rng, shape, 26)
    patch = ramp((1.0 - r + rough) / 0.9 + 0.2) * (scene.x * finding.side > -0.5)
    mottle = np.clip(1.0 + 0.10 * smooth_noise(rng, shape, 70), 0.4, 1.4)
    depth = np.minimum(scene.lung, 1.5 * radius)
    added = _fill(scene, patch * mottle * depth * (0.55 + 0.4 * s))
    wide = tree[tree[:, 4] > 0.25]
    beside = wide + np.array([0.3, 0.22, 0.3, 0.22, 0.0])
    bronchi = draw_tree(scene, beside, 0.8) * np.clip(added / 2.0, 0.0, 1.0)
    scene.fluid -= np.minimum(1.3 * bronchi, scene.fluid)
    return added


def _atelectasis(scene: Scene, g: Geometry, finding: Finding) -> Map:
    rng = np.random.default_rng(finding.seed)
    s, side = finding.severity, finding.side
    dome = g.dome[0 if side < 0 else 1]
    if is_lobar(finding.seed):
        # A collapsed lower lobe: a wedge behind the heart with a straight lateral border, over a raised diaphragm.
        edge = side * (scene.x - g.shift) - (2.0 + (scene.y - dome + 9.0) * rng.uniform(0.35, 0.6))
        wedge = ramp(-edge / 0.5 + 0.5) * ramp((scene.y - dome + 8.5) / 3.0) * (side * scene.x > 0)
        band = ramp((scene.y - dome + 1.0 + 1.8 * s) / 1.5) * (side * scene.x > 0)
        return _fill(scene, scene.lung * np.maximum(wedge * (0.4 + 0.35 * s), 0.55 * band))
    total = np.zeros_like(scene.lung)
    count = 1 + int(rng.integers(0, 2)) + int(2.5 * s)
    for x, y in _draw_sites(scene, g, side, rng, count, 0.62, 0.97):
        length, half = rng.uniform(2.5, 4.5) + 4.0 * s, rng.uniform(0.18, 0.28) + 0.28 * s
        tilt = rng.normal(0.1, 0.22)
        a = (x - side * 0.4 * length, y + tilt * 0.4 * length)
        b = (x + side * 0.6 * length, y - tilt * 0.6 * length)
        d = segment_distance(scene, a, b)
        total = np.maximum(total, (1.5 + 2.2 * s) * np.exp(-((d / half) ** 2)))
    return _fill(scene, total.astype(np.float32))


def _round_lesions(scene: Scene, g: Geometry, finding: Finding, radii: tuple[float, float]) -> Map:
    rng = np.random.default_rng(finding.seed)
    large = radii[0] > 1.5
    count = 1 if large else int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    total = np.zeros_like(scene.lung)
    for cx, cy in _draw_sites(scene, g, finding.side, rng, count):
        radius = radii[0] + (radii[1] - radii[0]) * finding.severity * rng.uniform(0.9, 1.0)
        dx, dy = scene.x - cx, scene.y - cy
        angle = np.arctan2(dy, dx)
        rim = np.ones_like(angle)
        # A few broad lobes; half of the masses have spicules as well.
        waves = [(k, 0.075 if large else 0.04) for k in (2, 3, 5)]
        if large and rng.random() < 0.5:
            waves += [(k, 0.022) for k in (9, 13, 19, 26)]
        for k, size in waves:
            rim += rng.normal(0, size) * np.cos(k * angle + rng.uniform(0, 6.3))
        r = np.hypot(dx, dy) / (radius * rim)
        ball = 2.0 * radius * chord(r * r)
        if large and rng.random() < 0.2:  # a thick-walled cavity
            ball -= 1.5 * radius * chord((r / 0.62) ** 2)
        total = np.maximum(total, ball)
    return _fill(scene, total.astype(np.float32))


def _effusion(scene: Scene, g: Geometry, finding: Finding, bedside: bool, pleural: Map) -> Map:
    s, side = finding.severity, finding.side
    rng = np.random.default_rng(finding.seed)
    own = np.clip(side * (scene.x - 0.5 * g.shift) / 0.4, 0.0, 1.0)
    lateral = cage_half_width(g, scene.y) - side * scene.x
    angle = float(dome_height(g, np.float32([side * g.half_width]))[0])  # type: ignore[arg-type]
    level = angle - 2.0 - (0.62 * g.height) * s**1.25
    if bedside and rng.random() < 0.5:
        # Supine: the fluid lies behind the lung, thickest at the base, and the vessels show through it.
        depth = (1.6 + 5.5 * s) * ramp((scene.y - g.top + 1.0) / (0.9 * g.height)) ** 0.8
        blunt = ramp((scene.y - angle + 2.5 + 2.0 * s) / 2.0) * scene.lung
        added = np.maximum(depth, blunt) * own * np.minimum(scene.lung / 2.0, 1.0)
        vessels = scene.vessels.copy()
        added = _fill(scene, added.astype(np.float32))
        scene.vessels = np.maximum(scene.vessels, 0.8 * vessels)
    else:
        # Upright: a meniscus that climbs the lateral wall; fluid wraps the lung, so opacity grows downwards.
        climb = 3.2 * np.exp(-np.maximum(lateral, 0.0) / 1.6) + 0.8 * np.exp(-np.abs(scene.x) / 2.5)
        under = scene.y - (level - climb + 1.5 * (1.0 - min(2.0 * s, 1.0)))
        share = ramp(under / (1.4 + 2.2 * s) + 0.15) * own
        added = _fill(scene, np.asarray(share * scene.lung))
        drowned = pleural * share
        scene.gas -= drowned
        added = np.asarray(added + drowned, dtype=np.float32)
    return np.asarray(added)
