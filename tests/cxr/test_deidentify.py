"""Films without their patients: nothing of the patient is left, and what belongs together still does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.cxr.film.test_reference import BUILT_IN
from tests.cxr.film_files import dataset, save
from vitdomains.core.errors import VitDomainsError
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.commands import deidentify as command
from vitdomains.cxr.film import read_image

pytest.importorskip("dicognito", reason="the extra deidentify is not installed")
from vitdomains.cxr.deidentify import deidentify

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def film(path: Path, patient: str, number: int, study: str, **elements: object) -> Path:
    made = dataset(PatientID=patient, SOPInstanceUID=f"1.2.3.4.{number}", StudyInstanceUID=study, **elements, **WINDOW)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.StudyDate, made.StudyTime, made.PatientBirthDate = f"2020010{number}", "101112", "19590417"
    made.StudyDescription, made.ImageComments = "Jane after her fall", "ask Dr. Jekyll"
    made.AccessionNumber, made.InstitutionName, made.ReferringPhysicianName = "ACC-SECRET", "St. Elsewhere", "HYDE^H"
    made.add_new(0x00091001, "LO", "private Jane")
    made.add_new(0x60000102, "US", 0)
    made.add_new(0x60004000, "LT", "overlay Jane")
    inner = Dataset()
    inner.ReferencedSOPInstanceUID, inner.PatientComments = "1.2.3.4.1", "nested Jane"
    made.ReferencedImageSequence = [inner]
    return save(made, path)


def test_nothing_of_the_patient_is_left_and_what_belongs_together_still_does(tmp_path: Path) -> None:
    given = [
        film(tmp_path / f"{i}.dcm", "P-1" if i < 3 else "P-2", i, "1.9.77.1" if i < 3 else "1.9.77.2")
        for i in (1, 2, 3)
    ]
    results = deidentify(given, tmp_path / "out", b"k" * 32)
    assert [r.error for r in results] == ["", "", ""] and {r.burned_in for r in results} == {"not said"}
    made = [pydicom.dcmread(tmp_path / "out" / r.file) for r in results]
    for old, new, result in zip(given, made, results, strict=True):
        content = (tmp_path / "out" / result.file).read_bytes()
        for secret in (b"Jane", b"JANE", b"DOE", b"P-1", b"P-2", b"ACC-SECRET", b"Jekyll", b"HYDE", b"Elsewhere", b"19590417",
                       b"2020010", b"1.2.3.4.", b"1.9.77.1", b"1.9.77.2"):  # fmt: skip
            assert secret not in content, secret
        np.testing.assert_array_equal(read_image(tmp_path / "out" / result.file), read_image(old))
        assert "PatientIdentityRemoved" not in new  # not while text may be burned in
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        assert new.ViewPosition == "PA" and new.PatientSex == "F" and not any(e.tag.is_private for e in new)
    one, two, other = made
    assert one.PatientID == two.PatientID != other.PatientID and one.StudyInstanceUID == two.StudyInstanceUID
    assert two.ReferencedImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    days = pd.to_datetime([str(d.StudyDate) for d in made])
    assert (days[1] - days[0]).days == 1 and days[0] < pd.Timestamp("2019-11-01")
    again = deidentify(given, tmp_path / "again", b"k" * 32)
    assert [r.file for r in again] == [r.file for r in results]
    assert [r.file for r in deidentify(given, tmp_path / "third")] != [r.file for r in results]


def test_the_command_flags_burned_in_text_and_goes_on_past_what_is_no_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    film(folder / "a.dcm", "P-1", 1, "1.9.77.1", BurnedInAnnotation="YES")
    film(folder / "b.dcm", "P-1", 2, "1.9.77.1", BurnedInAnnotation="NO")
    (folder / "Jane_Doe.txt").write_text("no film")
    key = tmp_path / "key"
    assert command(DOMAIN, [str(folder), "--out", str(tmp_path / "out"), "--key", str(key)]) == 0
    table = pd.read_csv(tmp_path / "out" / "films.csv", keep_default_na=False)
    assert sorted(table["burned_in"]) == ["", "no", "yes"] and (table["error"] != "").sum() == 1
    clean = table.loc[table["burned_in"] == "no", "file"].item()
    assert pydicom.dcmread(tmp_path / "out" / clean).PatientIdentityRemoved == "YES"
    assert "Jane" not in (tmp_path / "out" / "films.csv").read_text() and key.stat().st_mode & 0o77 == 0
    assert "burned into 1 of them" in " ".join(capsys.readouterr().out.split())
    assert command(DOMAIN, [str(folder / "Jane_Doe.txt"), "--out", str(tmp_path / "none")]) == 4
    key.write_bytes(b"short")
    with pytest.raises(VitDomainsError, match="fewer than 16"):
        command(DOMAIN, [str(folder), "--out", str(tmp_path / "out"), "--key", str(key)])


def test_pydicom_s_files_lose_their_names_or_are_refused(tmp_path: Path) -> None:
    paths = sorted(p for p in BUILT_IN.glob("*.dcm"))
    for path, result in zip(paths, deidentify(paths, tmp_path / "out"), strict=True):
        assert result.file or result.error
        if result.file:
            old, new = (pydicom.dcmread(p, force=True) for p in (path, tmp_path / "out" / result.file))
            for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "AccessionNumber"):
                value = str(old.get(keyword) or "")
                assert not value or str(new.get(keyword)) != value, (path.name, keyword)
            assert old.get("PixelData") == new.get("PixelData")
