"""Who the phantom patients are and what each of their films shows.

Everything is drawn from seeds, so a cohort is a function of (seed, number of films) alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Chance of a finding in a patient who is not healthy; conditional boosts follow in `_draw_findings`.
_PREVALENCE: Mapping[str, float] = {
    "Cardiomegaly": 0.20, "Effusion": 0.195, "Pneumothorax": 0.185, "Consolidation": 0.19,
    "Nodule": 0.185, "Mass": 0.17, "Edema": 0.165, "Atelectasis": 0.195,
}  # fmt: skip
PHANTOM_FINDINGS = tuple(_PREVALENCE)
"""The findings that the phantoms carry, in the order of the bits of a mask file (bit 0 first)."""
_HEALTHY = 0.19
_PERSISTS = 0.6


@dataclass(frozen=True)
class Finding:
    """One finding on one film.

    Args:
        severity: 0 (barely visible) to 1 (gross).
        side: -1 the patient's right (left of the image), +1 the patient's left.
        seed: Place and shape; kept between the films of a patient.
    """

    severity: float
    side: int
    seed: int


@dataclass(frozen=True)
class Patient:
    """One phantom patient; ``seed`` fixes the anatomy that all films share.

    Args:
        id: Group key, e.g. ``PH00012``.
        sex: ``F`` or ``M``.
        age: Years at the first film.
        habitus: Build, -1.5 (slight) to 2.5 (obese), in standard deviations.
        seed: Seed of the anatomy.
    """

    id: str
    sex: str
    age: int
    habitus: float
    seed: int


@dataclass(frozen=True)
class FilmSpec:
    """What is on one film.

    Args:
        id: Film id, e.g. ``PH00012_001``.
        patient: Whose film.
        view: ``PA`` or ``AP``.
        findings: Finding name to its severity, side and seed; absent: not there.
        number: Count of the patient's films before this one.
    """

    id: str
    patient: Patient
    view: str = "PA"
    findings: Mapping[str, Finding] = field(default_factory=dict)
    number: int = 0


def draw_patient(index: int, rng: np.random.Generator) -> Patient:
    """A patient with a plausible mix of sex, age and build."""
    sex = "F" if rng.random() < 0.48 else "M"
    age = int(np.clip(rng.normal(56, 17), 18, 94))
    habitus = float(np.clip(rng.normal(0.2, 0.9), -1.5, 2.5))
    return Patient(f"PH{index:05d}", sex, age, habitus, int(rng.integers(2**31)))


def draw_film(patient: Patient, number: int, previous: FilmSpec | None, rng: np.random.Generator) -> FilmSpec:
    """The next film of a patient: findings persist, grow, heal or appear since ``previous``."""
    findings = _draw_findings(patient, previous.findings if previous else {}, rng)
    # Sick patients are filmed in bed more often; the overlap is wide enough that the view alone says little.
    p_bedside = 0.24 + 0.09 * min(len(findings), 4) + 0.06 * ("Edema" in findings)
    view = "AP" if rng.random() < p_bedside else "PA"
    return FilmSpec(f"{patient.id}_{number:03d}", patient, view, findings, number)


def draw_cohort(n_films: int, seed: int) -> list[FilmSpec]:
    """Films of patients with one to four films each, ``n_films`` in all."""
    films: list[FilmSpec] = []
    index = 0
    while len(films) < n_films:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 1, index]))
        patient = draw_patient(index, rng)
        count = int(rng.choice([1, 2, 3, 4], p=[0.45, 0.28, 0.17, 0.10]))
        previous: FilmSpec | None = None
        for number in range(count):
            previous = draw_film(patient, number, previous, rng)
            films.append(previous)
        index += 1
    return films[:n_films]


def assign_splits(films: list[FilmSpec], seed: int) -> list[str]:
    """``train``, ``val`` or ``test`` for every film, 65/15/20 by patient.

    Patients are ordered by their rarest combination of findings (ties in a seeded order) and dealt out in a fixed
    cycle of twenty, which spreads every kind of patient over the three parts.
    """
    burden: dict[str, int] = {}
    for film in films:
        bits = sum(1 << PHANTOM_FINDINGS.index(name) for name in film.findings)
        burden[film.patient.id] = burden.get(film.patient.id, 0) | bits
    patients = list(burden)
    tie = np.random.default_rng(np.random.SeedSequence([seed, 2])).permutation(len(patients))
    order = sorted(range(len(patients)), key=lambda i: (burden[patients[i]], tie[i]))
    cycle = ["train", "test", "train", "val", "train"] * 3 + ["train", "test", "train", "train", "train"]
    split = {patients[i]: cycle[rank % len(cycle)] for rank, i in enumerate(order)}
    return [split[film.patient.id] for film in films]


def _draw_findings(patient: Patient, previous: Mapping[str, Finding], rng: np.random.Generator) -> dict[str, Finding]:
    age_factor = float(np.clip(0.75 + (patient.age - 30) / 90, 0.7, 1.3))
    if not previous and rng.random() < _HEALTHY / age_factor:
        return {}
    found: dict[str, Finding] = {}
    for name in PHANTOM_FINDINGS:
        chance = _PREVALENCE[name] * (age_factor if name in ("Cardiomegaly", "Mass", "Nodule") else 1.0)
        if name == "Edema" and "Cardiomegaly" in found:
            chance *= 1.7
        if name == "Effusion" and "Cardiomegaly" in found:
            chance *= 1.4
        if name == "Atelectasis" and "Effusion" in found:
            chance *= 1.4
        old = previous.get(name)
        if old is not None:
            chance = 0.97 if name == "Cardiomegaly" else _PERSISTS
        elif previous:
            chance *= 0.6
        if rng.random() < chance:
            found[name] = _evolve(old, rng)
    return found


def _evolve(old: Finding | None, rng: np.random.Generator) -> Finding:
    if old is None:
        side = -1 if rng.random() < 0.53 else 1
        return Finding(float(rng.beta(1.9, 1.3)), side, int(rng.integers(2**31)))
    severity = float(np.clip(old.severity + rng.normal(0, 0.18), 0.0, 1.0))
    return Finding(severity, old.side, old.seed)
