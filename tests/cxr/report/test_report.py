"""The report of a film: what stands in it, what does not (the patient), and a DICOM SR that others can read."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from tests.small_run import FINDINGS, SmallRun, small_run
from vitdomains.core.errors import BundleError, ImageError, VitDomainsError
from vitdomains.core.explain.render import explain_file
from vitdomains.core.files import file_sha256
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.metrics.bootstrap import wilson
from vitdomains.core.review.store import Answer, Decision, Region, ReviewStore
from vitdomains.cxr import DOMAIN, NOTICE
from vitdomains.cxr.commands import report
from vitdomains.cxr.film.film import read_image
from vitdomains.cxr.quality import read_checked
from vitdomains.cxr.report.content import FilmReport
from vitdomains.cxr.report.neighbours import HeldOut, read_held_out
from vitdomains.cxr.report.report import make_report, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def predictor(run: SmallRun) -> Predictor:
    return Predictor(run.bundle, read_image, precision="fp32", threads=1)


@pytest.fixture(scope="module")
def film(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom with a name that needs its character set."""
    dataset = pydicom.dcmread(sorted(run.films.glob("*.dcm"))[0])
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Müller^Änne", "SECRET-ID", "ACC-77"
    path = tmp_path_factory.mktemp("film") / "film.dcm"
    dataset.save_as(path)
    return path


def decision(film: Path, **changes: object) -> Decision:
    values: dict[str, object] = {
        "item": file_sha256(film),
        "bundle_id": "b",
        "reviewer": "Dr <Ann>^Lee",
        "answers": {"Effusion": Answer("disagree"), "Nodule": Answer("unsure")},
        "calls": {"Effusion": "present", "Nodule": "absent"},
        "regions": (Region("box", 10, 20, 30, 40, "Effusion"), Region("point", 5, 6)),
        "note": "see <b>left</b> base",
        "seconds": 42.0,
    }
    return Decision(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(predictor: Predictor, film: Path) -> FilmReport:
    return make_report(predictor, film, notice=NOTICE, decisions=[decision(film, note="old"), decision(film)])


def test_the_report_gathers_model_evidence_and_readers(made: FilmReport, film: Path, predictor: Predictor) -> None:
    assert [f.name for f in made.findings] == list(FINDINGS)
    effusion = made.findings[1]
    assert 0 < effusion.probability < 1 and effusion.called == (effusion.probability >= effusion.threshold)
    assert effusion.readers == (("Dr <Ann>^Lee", "absent"),)
    assert made.item == file_sha256(film) and [d.note for d in made.decisions] == ["see <b>left</b> base"]
    assert made.patient == {} and made.references["StudyInstanceUID"].startswith("2.25.")
    assert all(image.startswith(b"\x89PNG") for _, image in made.pictures) and made.pictures


def test_html_is_escaped_and_knows_no_patient(made: FilmReport, tmp_path: Path) -> None:
    text = write_report(made, tmp_path / "report.html").read_text()
    assert NOTICE in text and "Adebayo" in text and "Cardiomegaly" in text
    assert "<b>left</b>" not in text and "&lt;b&gt;left" in text and "Dr &lt;Ann&gt;^Lee" in text
    for secret in ("Müller", "SECRET-ID", "ACC-77", made.references["StudyInstanceUID"], "film.dcm"):
        assert secret not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # needs no other file


def test_pdf_is_a_pdf_with_searchable_text(made: FilmReport, tmp_path: Path) -> None:
    content = write_report(made, tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF") and len(content) > 10_000
    assert b"SECRET-ID" not in content


def test_the_structured_report_refers_to_the_study_and_carries_no_patient(made: FilmReport, tmp_path: Path) -> None:
    path = write_report(made, tmp_path / "report.dcm")
    raw = path.read_bytes()
    assert b"SECRET-ID" not in raw and "Müller".encode() not in raw and b"ACC-77" not in raw
    document = highdicom.sr.srread(path)
    assert document.StudyInstanceUID == made.references["StudyInstanceUID"] and document.PatientID == ""
    assert document.SOPClassUID == pydicom.uid.ComprehensiveSRStorage
    evidence = (
        document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    )
    assert evidence.ReferencedSOPInstanceUID == made.references["SOPInstanceUID"]
    groups = document.content.get_image_measurement_groups()
    assert [g.tracking_identifier for g in groups] == list(FINDINGS)
    for group, line in zip(groups, made.findings, strict=True):
        measured = {m.name.meaning: float(m.value) for m in group.get_measurements()}
        assert measured["Probability"] == pytest.approx(line.probability, abs=1e-4)
        assert measured["Threshold"] == pytest.approx(line.threshold, abs=1e-4)
        words = {e.name.meaning: e.value.meaning for e in group.get_qualitative_evaluations()}
        assert words["Model call"] == ("Present" if line.called else "Absent")
    assert groups[1].finding_type == pydicom.sr.codedict.codes.SCT.PleuralEffusion
    regions = document.content.get_planar_roi_measurement_groups()
    assert len(regions) == 2
    np.testing.assert_allclose(regions[0].roi.value[0], [10.5, 20.5])
    np.testing.assert_allclose(regions[0].roi.value[2], [40.5, 60.5])


def test_the_patient_is_copied_where_asked_for(predictor: Predictor, film: Path, tmp_path: Path) -> None:
    with_patient = make_report(predictor, film, notice=NOTICE, findings=["Nodule"], with_patient=True)
    assert with_patient.patient["PatientName"] == "Müller^Änne" and with_patient.patient["PatientID"] == "SECRET-ID"
    assert "SECRET-ID" in write_report(with_patient, tmp_path / "r.html").read_text()
    document = pydicom.dcmread(write_report(with_patient, tmp_path / "r.dcm"))
    assert document.PatientName == "Müller^Änne" and document.AccessionNumber == "ACC-77"


def test_a_picture_has_a_page_but_no_structured_report(predictor: Predictor, film: Path, tmp_path: Path) -> None:
    grey = (read_image(film) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "film.png"), grey)
    made = make_report(predictor, tmp_path / "film.png", notice=NOTICE)
    assert write_report(made, tmp_path / "r.html").exists()
    with pytest.raises(ImageError, match="structured|DICOM SR"):
        write_report(made, tmp_path / "r.dcm")
    assert not (tmp_path / "r.dcm").exists()
    with pytest.raises(VitDomainsError, match="neither"):
        write_report(made, tmp_path / "r.docx")


def mirrored(film: Path, target: Path, **elements: object) -> Path:
    """The same film, stored from the patient's left to the right, and saying so."""
    dataset = pydicom.dcmread(film)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    dataset.PixelData = np.ascontiguousarray(dataset.pixel_array[:, ::-1]).tobytes()
    dataset["PixelData"].VR, dataset.PatientOrientation = "OW", ["R", "F"]
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


def test_a_mirrored_film_gives_the_same_report_and_its_regions_lie_in_the_stored_picture(
    predictor: Predictor, film: Path, made: FilmReport, tmp_path: Path
) -> None:
    path = mirrored(film, tmp_path / "film.dcm")
    other = make_report(predictor, path, notice=NOTICE, decisions=[decision(path)])
    assert [f.probability for f in other.findings] == [f.probability for f in made.findings]
    text = write_report(other, tmp_path / "r.html").read_text()
    assert "turned from R\\F" in text and "the pictures may name the patient" in text
    columns = pydicom.dcmread(path).Columns
    regions = highdicom.sr.srread(write_report(other, tmp_path / "r.dcm")).content.get_planar_roi_measurement_groups()
    np.testing.assert_allclose(regions[0].roi.value[0], [columns - 10.5, 20.5])
    np.testing.assert_allclose(regions[0].roi.value[2], [columns - 40.5, 60.5])


def test_identifiers_that_are_none_are_refused(predictor: Predictor, film: Path, tmp_path: Path) -> None:
    path = mirrored(film, tmp_path / "film.dcm", StudyInstanceUID="of Monday", SOPInstanceUID="1..2")
    with pytest.raises(ImageError, match="DICOM SR"):
        write_report(make_report(predictor, path, notice=NOTICE), tmp_path / "r.dcm")
    assert not (tmp_path / "r.dcm").exists()


def test_one_film_in_many_files_has_the_same_scores_on_every_way(
    run: SmallRun, predictor: Predictor, film: Path, tmp_path: Path
) -> None:
    deep = np.rint(read_image(film) * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "colour.png"), np.dstack([deep] * 3))
    cv2.imwrite(str(tmp_path / "twelve.png"), np.rint(read_image(film) * 4095).astype(np.uint16))
    cv2.imwrite(str(tmp_path / "eight.png"), np.rint(read_image(film) * 255).astype(np.uint8))
    flag = Image.Exif()
    flag[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(deep))).save(tmp_path / "exif.png", exif=flag)
    mirrored(film, tmp_path / "mirrored.dcm")
    (tmp_path / "bare.dcm").write_bytes(film.read_bytes()[132:])
    expected = explain_file(predictor, film, "gradcam", []).scores
    paths = sorted(tmp_path.iterdir())
    for path, found in zip(paths, predictor.predict((p.name, str(p)) for p in paths), strict=True):
        np.testing.assert_allclose(found.scores, expected, atol=0.004, err_msg=path.name)
        np.testing.assert_allclose(explain_file(predictor, path, "gradcam", []).scores, found.scores, atol=1e-5)
        np.testing.assert_array_equal(read_checked(path)[0], read_image(path))


def test_a_bundle_of_tiles_makes_no_report_of_a_film(run: SmallRun, film: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is a bundle of cxr"):
        report(replace(DOMAIN, name="satellite"), [str(run.bundle), str(film), "--out", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()


def test_the_command(run: SmallRun, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'reviews.db'}"
    with ReviewStore(url) as store:
        store.add(decision(film))
    outs = [str(tmp_path / name) for name in ("a.html", "a.pdf", "a.dcm")]
    words = [str(run.bundle), str(film), "--store", url, *(w for out in outs for w in ("--out", out))]
    assert report(DOMAIN, words) == 0
    assert all(Path(out).stat().st_size > 1000 for out in outs)
    assert "Dr &lt;Ann&gt;" in Path(outs[0]).read_text()
    assert "Effusion" in capsys.readouterr().out
    with pytest.raises(ImageError, match="not there"):
        report(DOMAIN, [str(run.bundle), str(tmp_path / "absent.dcm")])


def test_evidence_counts_the_nearest_films() -> None:
    scores = np.linspace(0, 1, 1001)
    known = HeldOut({"Mass": scores}, {"Mass": scores > 0.5}, {})
    found = known.evidence("Mass", 0.5)
    assert found is not None and found.n == 60 and 28 <= found.positives <= 31
    assert found.lowest == pytest.approx(0.47, abs=0.002) and found.highest == pytest.approx(0.53, abs=0.002)
    assert found.low < 0.5 < found.high and "60 held-out films" in found.text()
    top = known.evidence("Mass", 1.0)
    assert top is not None and top.positives == 60 and top.high == pytest.approx(1.0) and top.lowest > 0.93
    assert known.evidence("Edema", 0.5) is None and known.evidence("Mass", float("nan")) is None
    few = HeldOut({"Mass": scores[:10]}, {"Mass": scores[:10] > 0.5}, {})
    assert few.evidence("Mass", 0.5) is None


def test_wilson_interval_of_published_values() -> None:
    # 81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17, table I, method 3).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5) and wilson(0, 0) == (0.0, 1.0)


def test_held_out_predictions_come_from_the_bundle(run: SmallRun, tmp_path: Path) -> None:
    known = read_held_out(run.bundle, FINDINGS)
    assert set(known.scores) == set(FINDINGS) and (np.diff(known.scores["Nodule"]) >= 0).all()
    assert "AUROC" in known.calibration("Nodule") and known.calibration("Hernia") == ""
    assert read_held_out(tmp_path, FINDINGS).scores == {}


def test_films_that_training_saw_are_no_evidence(run: SmallRun, tmp_path: Path) -> None:
    """Also of a bundle of 0.1, whose report may be that of its training split: its table says so by the splits alone."""
    table = pd.read_csv(run.bundle / "report" / "predictions.csv")
    folder = tmp_path / "report"
    folder.mkdir()
    shutil.copy(run.bundle / "report" / "report.json", folder)
    for shown in (table.assign(role="fitted"), table.drop(columns="role").assign(split="train")):
        shown.to_csv(folder / "predictions.csv", index=False)
        known = read_held_out(tmp_path, FINDINGS)
        assert not known.scores["Nodule"].size and known.evidence("Nodule", 0.5) is None
        assert known.calibration("Nodule") == ""
