from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from vitdomains.core.data.manifest import labels, read_manifest
from vitdomains.core.errors import ManifestError
from vitdomains.cxr.phantoms import make
from vitdomains.cxr.phantoms.anatomy import Geometry, Scene, draw_geometry
from vitdomains.cxr.phantoms.cohort import PHANTOM_FINDINGS, FilmSpec, Finding, Patient, assign_splits, draw_cohort
from vitdomains.cxr.phantoms.film import attenuation, draw_scene, make_film, place_findings, transmission

N, SIZE = 12, 160
PATIENT = Patient("PH00007", "M", 52, 0.0, 7)


def film(findings: dict[str, Finding] | None = None, view: str = "PA") -> FilmSpec:
    return FilmSpec("PH00007_000", PATIENT, view, findings or {})


def scene_of(spec: FilmSpec, size: int = SIZE) -> tuple[Scene, Geometry, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    g = draw_geometry(spec, rng)
    scene = draw_scene(spec, g, rng, size)
    return scene, g, place_findings(scene, g, spec, rng)


def fingerprint(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_phantoms(tmp_path_factory.mktemp("phantoms") / "p", N, seed=3, size=SIZE, workers=1)


def test_same_bytes_whatever_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    other = make.make_phantoms(
        tmp_path / "q", N, seed=3, size=SIZE, workers=2, progress=lambda done, total: steps.append((done, total))
    )
    assert fingerprint(other) == fingerprint(root)
    assert steps[-1] == (N, N) and [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_another_seed_is_another_cohort(root: Path, tmp_path: Path) -> None:
    other = make.make_phantoms(tmp_path / "p", 2, seed=4, size=96, workers=1)
    mine, theirs = (pd.read_csv(r / "manifest.csv") for r in (root, other))
    assert list(mine["age"][:2]) != list(theirs["age"])


def test_manifest_masks_and_boxes_agree(root: Path) -> None:
    m = read_manifest(root / "manifest.csv")
    assert m.classes == PHANTOM_FINDINGS and len(m) == N
    assert {"sex", "age", "age_band", "view"} <= set(m.table.columns)
    assert m.table.groupby("group")["split"].nunique().max() == 1
    boxes = pd.read_csv(root / "boxes.csv")
    for row, y in zip(m.table.itertuples(), labels(m), strict=True):
        present = {name for name, value in zip(m.classes, y, strict=True) if value == 1}
        masks = make.read_masks(root, str(row.id))
        assert set(masks) == present
        ds = pydicom.dcmread(str(row.path), stop_before_pixels=True)
        for name, mask in masks.items():
            assert mask.shape == (ds.Rows, ds.Columns)
            mine = boxes[(boxes["id"] == row.id) & (boxes["finding"] == name)]
            inside = np.zeros_like(mask)
            for box in mine.itertuples():
                inside[int(box.y) : int(box.y) + int(box.h), int(box.x) : int(box.x) + int(box.w)] = True
            assert len(mine) and (mask & inside).sum() >= 0.5 * mask.sum()
    with pytest.raises(ManifestError, match="PH99999"):
        make.read_masks(root, "PH99999_000")


def test_default_cohort_is_balanced_enough_to_learn_from() -> None:
    films = draw_cohort(600, 0)
    present = np.array([[name in f.findings for name in PHANTOM_FINDINGS] for f in films])
    assert len(films) == 600 and len({f.id for f in films}) == 600
    assert (present.mean(0) > 0.10).all() and (present.mean(0) < 0.26).all()
    assert 0.2 < (present.sum(1) == 0).mean() < 0.35
    assert 0.25 < np.mean([f.view == "AP" for f in films]) < 0.5
    split = np.array(assign_splits(films, 0))
    for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.20)):
        assert abs((split == part).mean() - share) < 0.05
        assert present[split == part].any(0).all()
    counts = pd.Series([f.patient.id for f in films]).value_counts()
    assert counts.max() == 4 and counts.min() == 1


def test_follow_up_shares_anatomy_and_evolves() -> None:
    films = draw_cohort(200, 1)
    pairs = [(a, b) for a, b in itertools.pairwise(films) if a.patient.id == b.patient.id]
    kept = [(a.findings[n], b.findings[n]) for a, b in pairs for n in a.findings if n in b.findings]
    assert len(kept) > 10
    assert all(a.seed == b.seed and a.side == b.side for a, b in kept)
    assert any(a.severity != b.severity for a, b in kept)
    g = [draw_geometry(dataclasses.replace(film(), number=i), np.random.default_rng(i)) for i in range(2)]
    assert g[0].half_width == g[1].half_width and g[0].dome != g[1].dome  # same bones, another breath


@pytest.mark.parametrize("name", PHANTOM_FINDINGS)
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_every_finding_shows_from_subtle_to_gross(name: str, view: str) -> None:
    areas = []
    for severity in (0.0, 0.5, 1.0):
        pixels, masks, _ = make_film(film({name: Finding(severity, 1, 21)}, view), np.random.default_rng(1), SIZE)
        assert set(masks) == {name} and masks[name].shape == pixels.shape
        areas.append(int(masks[name].sum()))
    assert areas[0] > 5 and areas[2] > areas[0]


def test_many_seeds_leave_no_label_without_a_mask() -> None:
    for seed in range(25):
        findings = {
            n: Finding(0.1 if seed % 2 else 0.8, 1 if seed % 3 else -1, seed) for n in ("Nodule", "Atelectasis")
        }
        *_, masks = scene_of(film(findings, "AP" if seed % 2 else "PA"), 96)
        assert all(mask.any() for mask in masks.values()), seed


def test_findings_lie_where_they_belong() -> None:
    side = -1  # the patient's right, left in the image
    for name in ("Effusion", "Pneumothorax", "Consolidation", "Mass"):
        scene, g, masks = scene_of(film({name: Finding(0.5, side, 5)}))
        x, y = scene.x[masks[name]], scene.y[masks[name]]
        assert (x < 1.0).mean() > 0.97, name
        middle = g.top + 0.5 * g.height
        if name == "Effusion":
            assert np.median(y) > middle
        if name == "Pneumothorax":
            assert np.median(y) < middle
    scene, _, masks = scene_of(film({"Edema": Finding(0.7, 1, 5)}))
    assert 0.25 < (scene.x[masks["Edema"]] > 0).mean() < 0.75  # both lungs
    scene, _, masks = scene_of(film({"Cardiomegaly": Finding(0.5, 1, 5)}))
    normal = scene_of(film())[0].heart
    assert masks["Cardiomegaly"].any(0).sum() > normal.any(0).sum()


def test_pneumothorax_has_no_lung_and_no_vessels() -> None:
    healthy, *_ = scene_of(film())
    scene, _, masks = scene_of(film({"Pneumothorax": Finding(0.6, 1, 5)}))
    inside = masks["Pneumothorax"] & (scene.gas > 4.0)
    assert inside.sum() > 200
    assert np.abs(scene.vessels[inside]).mean() < 0.25 * np.abs(healthy.vessels[inside]).mean()
    assert scene.lung[inside].mean() < 0.1 * healthy.lung[inside].mean()


def test_beer_lambert_ordering_and_nist_values() -> None:
    # NIST tables 3 and 4, mass attenuation at 60 keV times density.
    assert attenuation("soft", 60.0) == pytest.approx(0.2048 * 1.06)
    assert attenuation("bone", 60.0) == pytest.approx(0.3148 * 1.92)
    assert attenuation("bone", 55.0) > attenuation("bone", 60.0) > attenuation("soft", 60.0) > attenuation("fat", 60.0)
    scene, g, _ = scene_of(film())
    through = transmission(scene, g, 58.0)
    lung, heart, bone = scene.lung > 10, scene.heart & (scene.lung < 3), (scene.bone > 0.5) & (scene.lung < 1)
    assert through[scene.body == 0].min() > 0.999
    assert np.median(through[lung]) > 2 * np.median(through[heart]) and bone.any()
    scene.bone[:] = 0
    assert (transmission(scene, g, 58.0)[bone] > through[bone]).all()


def test_film_is_bone_bright() -> None:
    pixels, masks, _ = make_film(film({"Mass": Finding(0.7, -1, 8)}), np.random.default_rng(2), SIZE)
    g_rng = np.random.default_rng(2)
    g = draw_geometry(film({"Mass": Finding(0.7, -1, 8)}), g_rng)
    assert pixels.dtype == np.float32 and pixels.min() >= 0 and pixels.max() <= 1
    mass = pixels[masks["Mass"]].mean()
    mirrored = pixels[:, ::-1][masks["Mass"]].mean()
    assert g.half_width > 10 and mass > mirrored + 0.03


def test_dicom_of_both_interpretations_shows_the_same_film(root: Path) -> None:
    m = read_manifest(root / "manifest.csv")
    kinds, bits = set(), set()
    films = {f.id: f for f in draw_cohort(N, 3)}
    for index, row in enumerate(m.table.itertuples()):
        ds = pydicom.dcmread(str(row.path))
        kinds.add(ds.PhotometricInterpretation)
        bits.add(ds.BitsStored)
        stored = ds.pixel_array.astype(np.float64)
        assert stored.max() < 2**ds.BitsStored and ds.PixelRepresentation == 0
        shown = np.clip((stored - float(ds.WindowCenter)) / float(ds.WindowWidth) + 0.5, 0, 1)
        if ds.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        picture = np.random.SeedSequence([3, 3, index]).spawn(2)[0]
        pixels, *_ = make_film(films[str(row.id)], np.random.default_rng(picture), SIZE)
        assert np.abs(shown - pixels).max() < 0.04
        assert str(ds.PatientName).startswith("PHANTOM^") and "ynthetic" in ds.ImageComments
        assert ds.ViewPosition == row.view and ds.PatientSex == row.sex and int(ds.PatientAge[:3]) == row.age
        assert pydicom.uid.UID(ds.SOPInstanceUID).is_valid and 0.5 < float(ds.PixelSpacing[0]) < 6
    assert kinds == {"MONOCHROME1", "MONOCHROME2"} and bits <= {12, 13, 14, 15} and len(bits) > 1


def test_finished_folder_is_kept_and_another_one_replaced(tmp_path: Path) -> None:
    target = tmp_path / "p"
    make.make_phantoms(target, 2, size=64, workers=1)
    before = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    make.make_phantoms(target, 2, size=64, workers=1, progress=lambda *_: pytest.fail("drew again"))
    assert {p: p.stat().st_mtime_ns for p in target.rglob("*")} == before
    make.make_phantoms(target, 3, size=64, workers=1)
    assert len(list((target / "films").iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_foreign_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ManifestError, match="not a folder of phantoms"):
        make.make_phantoms(tmp_path, 2, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ManifestError, match="at least 1 film"):
        make.make_phantoms(tmp_path / "p", 0)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(make, "write_dicom", fail)
    with pytest.raises(OSError, match="disk full"):
        make.make_phantoms(tmp_path / "p", 2, size=64, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_killed_half_way_leaves_no_root(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from vitdomains.cxr.phantoms.make import make_phantoms; " \
           "make_phantoms(Path(sys.argv[1]), 500, size=64, workers=1)"  # fmt: skip
    target = tmp_path / "p"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], env={**os.environ, "PYTHONPATH": str(Path(make.__file__).parents[2])}
    )
    limit = time.monotonic() + 60
    while len(list(tmp_path.glob(".p.partial-*/films/*.dcm"))) < 3:
        assert child.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not target.exists()
    left = next(tmp_path.glob(".p.partial-*"))
    make.make_phantoms(target, 2, size=64, workers=1)
    assert left.exists()  # it might be of a run that still goes on
    os.utime(left / "films", (0, 0))
    make.make_phantoms(target, 3, size=64, workers=1)
    assert not left.exists()
