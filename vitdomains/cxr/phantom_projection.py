"""Chest films, default data: from thickness maps to a displayed film.

Beer-Lambert transmission at one effective energy, scatter as a wide Gaussian of the primary, detector blur, quantum and
electronic noise, and the logarithm and contrast curve of a digital detector. Linear attenuation is mass attenuation times
density, both of NIST (Hubbell and Seltzer, NISTIR 5632, tables 1 to 4; tissues of ICRU Report 44).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vitdomains.cxr.phantoms.anatomy import Geometry, Map, Scene
from vitdomains.cxr.phantoms.cohort import FilmSpec

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
