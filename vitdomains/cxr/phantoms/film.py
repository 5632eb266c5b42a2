"""One phantom film from its specification: scene, exposure, development.

Beer-Lambert transmission at one effective energy, scatter as a wide Gaussian of the primary, detector blur, quantum and
electronic noise, and the logarithm and contrast curve of a digital detector. Linear attenuation is mass attenuation times
density, both of NIST (Hubbell and Seltzer, NISTIR 5632, tables 1 to 4; tissues of ICRU Report 44).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdomains.cxr.phantoms.anatomy import (
    Geometry,
    Map,
    Scene,
    add_body,
    add_lungs,
    add_skeleton,
    add_vessels,
    draw_geometry,
    grow_tree,
)
from vitdomains.cxr.phantoms.cohort import FilmSpec
from vitdomains.cxr.phantoms.devices import add_devices, marker
from vitdomains.cxr.phantoms.findings import apply_findings, collapse_tree

_DENSITY = {"soft": 1.06, "fat": 0.95, "bone": 1.92, "metal": 7.874}  # g/cm^3
# cm^2/g at 50 and 60 keV: Tissue Soft, Adipose, Bone Cortical (ICRU-44), iron.
_MASS_ATTENUATION = {
    "soft": (0.2264, 0.2048),
    "fat": (0.2123, 0.1974),
    "bone": (0.4242, 0.3148),
    "metal": (1.958, 1.205),
}


@dataclass(frozen=True)
class Exposure:
    """How a film was taken and shown.

    Args:
        energy: Effective energy, keV (50 to 60).
        photons: Mean count per pixel behind the lungs.
        scatter: Share of the primary that reappears as scatter spread over centimetres, 0..1 (what a grid lets through).
        electronic: Standard deviation of the electronic noise, photons.
        low, high: Percentiles of the log signal shown as black and as white.
        gamma: Exponent of the contrast curve.
        detail: Gain on structures finer than about 1 cm.
        compression: Loss of contrast between regions, 0..1.
    """

    energy: float
    photons: float
    scatter: float
    electronic: float
    low: float
    high: float
    gamma: float
    detail: float
    compression: float


def attenuation(material: str, energy: float) -> float:
    """Linear attenuation coefficient, 1/cm, log-log between 50 and 60 keV.

    Args:
        material: soft, fat, bone or metal.
        energy: keV, 50 to 60.
    """
    low, high = _MASS_ATTENUATION[material]
    t = np.log(energy / 50.0) / np.log(60.0 / 50.0)
    return float(low * (high / low) ** t * _DENSITY[material])


def draw_exposure(spec: FilmSpec, rng: np.random.Generator) -> Exposure:
    """Technique of an upright unit with a grid (PA) or of a mobile one, often without (AP)."""
    bedside = spec.view == "AP"
    return Exposure(
        energy=rng.uniform(50, 55) if bedside else rng.uniform(56, 60),
        photons=float(np.exp(rng.uniform(np.log(1500), np.log(12000) if bedside else np.log(40000)))),
        scatter=rng.uniform(0.15, 0.45) if bedside else rng.uniform(0.06, 0.18),
        electronic=rng.uniform(2, 8),
        low=rng.uniform(2, 14),
        high=rng.uniform(93, 99.5),
        gamma=float(np.exp(rng.normal(0.0, 0.22))),
        detail=rng.uniform(0.4, 1.6),
        compression=rng.uniform(0.15, 0.5),
    )


def transmission(scene: Scene, g: Geometry, energy: float) -> Map:
    """Primary transmission exp(-integral of mu), 0..1, [H, W] (Beer-Lambert)."""
    soft, fat = attenuation("soft", energy), attenuation("fat", energy)
    flesh = soft + (fat - soft) * g.fat_share
    lung = soft * g.lung_density
    vessels = np.minimum(scene.vessels, np.maximum(scene.lung - scene.fluid, 0.0))
    path = flesh * np.maximum(scene.body - scene.lung - scene.gas, 0.0)
    path += lung * scene.lung + (soft - lung) * (scene.fluid + vessels)
    path += (attenuation("bone", energy) - soft) * scene.bone + attenuation("metal", energy) * scene.metal
    return np.asarray(np.exp(-path), dtype=np.float32)


def expose(scene: Scene, g: Geometry, e: Exposure, rng: np.random.Generator) -> Map:
    """Detected photons per pixel: primary, scatter, blur and noise, [H, W]."""
    primary = transmission(scene, g, e.energy)
    source = primary * (1.0 - np.exp(-0.2 * scene.body))
    scattered = _local_mean(source, 4.0 / scene.pixel)
    body = scene.body > 1.0
    through_lung = float(np.percentile(primary[::4, ::4][scene.lung[::4, ::4] > 6.0], 50)) if body.any() else 1.0
    total = cv2.GaussianBlur(primary, (0, 0), 0.55) + np.float32(e.scatter) * scattered
    mean = total * np.float32(e.photons / through_lung)
    # Counts are in the hundreds and more, where a Poisson law is a normal one with variance = mean.
    noise = rng.standard_normal(mean.shape, dtype=np.float32) * np.sqrt(mean + np.float32(e.electronic**2))
    return np.asarray(np.maximum(mean + noise, 1.0), dtype=np.float32)


def develop(signal: Map, scene: Scene, e: Exposure) -> Map:
    """Logarithm, range, local equalisation and contrast curve: 0..1, bone bright, [H, W]."""
    density = -np.log(signal)
    body = scene.body[::4, ::4] > 3.0
    sample = density[::4, ::4][body]
    low, high = np.percentile(sample, [e.low, e.high])
    low -= 0.10 * (high - low)
    shown = (density - np.float32(low)) / np.float32(high - low)
    limited = np.clip(shown, -0.3, 1.3)
    near, far = _local_mean(limited, 0.9 / scene.pixel), _local_mean(limited, 3.0 / scene.pixel)
    fine = np.clip(limited - near, -0.2, 0.2)
    shown = limited + np.float32(e.detail) * fine - np.float32(e.compression) * (far - np.float32(0.5))
    return np.asarray(np.clip(shown, 0.0, 1.0) ** np.float32(e.gamma), dtype=np.float32)


def _local_mean(values: Map, sigma: float) -> Map:
    """Gaussian mean, computed on a grid of a quarter of sigma; ``sigma`` in pixels."""
    height, width = values.shape
    step = max(sigma / 4.0, 1.0)
    small = cv2.resize(
        values, (max(round(width / step), 8), max(round(height / step), 8)), interpolation=cv2.INTER_AREA
    )
    soft = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


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
