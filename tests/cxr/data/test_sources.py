"""Each publisher's release in miniature, with its own header lines and folders."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.manifest import Manifest, labels, make_manifest, write_manifest
from vitdomains.core.errors import ManifestError
from vitdomains.cxr.data import columns, sources
from vitdomains.cxr.data.sources import build_manifest

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
MIMIC_LABELS = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
VINDR_LOCAL = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
)


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def row_of(m: Manifest, name: str) -> dict[str, object]:
    found = m.table[m.table["id"] == name]
    assert len(found) == 1, f"{name} not in {list(m.table['id'])}"
    return found.iloc[0].to_dict()


def nih_release(root: Path, patients: int = 20, *, lists: bool = True, v2020: bool = True) -> Path:
    """Two films a patient; Effusion in every third, Mass and Hernia now and then; the last quarter is the test list."""
    rows, train, test = [], [], []
    for p in range(1, patients + 1):
        for visit in range(2):
            name = f"{p:08d}_{visit:03d}.png"
            found = [
                f
                for f, due in (("Effusion", p % 3 == 0), ("Mass", p % 4 == 1), ("Pleural_Thickening", p % 5 == 0))
                if due
            ]
            age = str(30 + p) if v2020 else f"{30 + p:03d}Y"
            facts = f"{visit},{p},{age},{'MF'[p % 2]},{'PA' if visit else 'AP'},2682,2749,0.143,0.143"
            rows.append(f"{name},{'|'.join(found) or 'No Finding'},{facts}")
            put(root / f"images_{1 + p % 12:03d}" / "images" / name)
            (test if p > patients * 3 // 4 else train).append(name)
    header = NIH_HEADER.format(sex="Patient Sex" if v2020 else "Patient Gender")
    put(root / ("Data_Entry_2017_v2020.csv" if v2020 else "Data_Entry_2017.csv"), "\n".join([header, *rows]) + "\n")
    if lists:
        put(root / "train_val_list.txt", "\n".join(train) + "\n")
        put(root / "test_list.txt", "\n".join(test))
    return root


def nih(root: Path, **source: object) -> Data:
    return Data(root=str(root), sources=[Source(name="nih", **source)])  # type: ignore[arg-type]


def test_nih_official_split_with_validation_taken_by_patient(tmp_path: Path) -> None:
    m = build_manifest(nih(nih_release(tmp_path)))
    assert m.name == "nih_chestxray14"
    assert m.classes == ("Effusion", "Mass", "Pleural_Thickening")
    assert len(m) == 40
    groups = m.table.groupby("split")["group"].unique()
    assert sorted(map(int, groups["test"])) == [16, 17, 18, 19, 20]
    assert len(groups["val"]) == round(0.15 * 15)
    assert not set(groups["val"]) & set(groups["train"])
    row = row_of(m, "00000015_001.png")
    assert (row["Effusion"], row["Mass"], row["Pleural_Thickening"]) == (1, 0, 1)
    assert (row["sex"], row["age"], row["age_band"], row["view"], row["follow_up"]) == ("F", 45, "40-59", "PA", 1)
    assert (row["width"], row["height"]) == (2682, 2749)
    assert row["path"] == str(tmp_path / "images_004" / "images" / "00000015_001.png")


def test_nih_first_release_with_ages_as_text_and_one_flat_folder(tmp_path: Path) -> None:
    nih_release(tmp_path, lists=False, v2020=False)
    for file in list(tmp_path.glob("images_*/images/*.png")):
        put(tmp_path / "images" / file.name)
        file.unlink()
    table = (tmp_path / "Data_Entry_2017.csv").read_text().replace("031Y", "414Y").replace("032Y", "013M")
    table = table.replace("2682", "", 1)
    put(tmp_path / "Data_Entry_2017.csv", table)
    m = build_manifest(nih(tmp_path))
    assert np.isnan(row_of(m, "00000001_000.png")["age"]) and np.isnan(row_of(m, "00000001_000.png")["width"])
    assert row_of(m, "00000001_000.png")["age_band"] == ""
    assert row_of(m, "00000002_000.png")["age"] == pytest.approx(13 / 12)
    assert row_of(m, "00000005_000.png")["sex"] == "F"
    assert m.table.groupby("split")["group"].nunique().to_dict() == {"test": 4, "train": 13, "val": 3}


def test_nih_keep_limit_and_grouped_split(tmp_path: Path) -> None:
    root = nih_release(tmp_path)
    pa = build_manifest(nih(root, keep={"view": ["PA"]}))
    assert set(pa.table["view"]) == {"PA"}
    assert len(pa) == 20
    few = build_manifest(nih(root, limit=21))
    assert len(few) == 20
    assert few.table["group"].value_counts().eq(2).all()
    more = build_manifest(nih(root, limit=30))
    assert set(few.table["id"]) < set(more.table["id"])
    ours = build_manifest(replace(nih(root), split="grouped"))
    assert set(map(int, ours.table["group"][ours.table["split"] == "test"].unique())) != {16, 17, 18, 19, 20}
    with pytest.raises(ManifestError, match=r"view in LAT.*keep"):
        build_manifest(nih(root, keep={"view": ["LAT"]}))
    with pytest.raises(ManifestError, match=r"no column 'scanner'.*it has id, path"):
        build_manifest(nih(root, keep={"scanner": ["x"]}))
    with pytest.raises(ManifestError, match=r"limit: 1"):
        build_manifest(nih(root, limit=1))


def test_explicit_classes_in_order_with_aliases_and_errors(tmp_path: Path) -> None:
    root = nih_release(tmp_path)
    data = replace(nih(root), classes=["Pleural Thickening", "effusion", "No Finding"])
    m = build_manifest(data)
    assert m.classes == ("Pleural_Thickening", "Effusion", "No_Finding")
    assert (labels(m)[:, 2] == (labels(build_manifest(nih(root))) == 0).all(axis=1)).all()
    with pytest.raises(ManifestError, match=r"no positive in the training split for Hernia"):
        build_manifest(replace(data, classes=["Hernia"]))
    assert build_manifest(replace(data, classes=["Hernia"]), require_positives=False).classes == ("Hernia",)
    with pytest.raises(ManifestError, match=r"No source annotates Fracture"):
        build_manifest(replace(data, classes=["Fracture"]))
    with pytest.raises(ManifestError, match=r"Did you mean Effusion"):
        build_manifest(replace(data, classes=["Efusion"]))


def test_rare_classes_are_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = nih_release(tmp_path)
    with caplog.at_level(logging.WARNING):
        m = build_manifest(replace(nih(root), min_positives=7))
    assert m.classes == ("Effusion",)
    assert "Pleural_Thickening" in caplog.text
    with pytest.raises(ManifestError, match=r"No class has 99 positives"):
        build_manifest(replace(nih(root), min_positives=99))


def test_missing_files_are_found_before_an_image_is_read(tmp_path: Path) -> None:
    root = nih_release(tmp_path)
    for p in (1, 2):
        (root / f"images_{1 + p:03d}" / "images" / f"{p:08d}_000.png").unlink()
    with pytest.raises(ManifestError) as caught:
        build_manifest(nih(root))
    assert "2 of 40 files are missing" in caught.value.message
    assert "00000002_000.png" in caught.value.message
    assert len(build_manifest(nih(root), check_files=False)) == 40


def test_patient_in_both_official_lists_is_an_error(tmp_path: Path) -> None:
    root = nih_release(tmp_path)
    name = "00000001_000.png"
    put(root / "train_val_list.txt", (root / "train_val_list.txt").read_text().replace(name + "\n", ""))
    put(root / "test_list.txt", (root / "test_list.txt").read_text() + "\n" + name)
    with pytest.raises(ManifestError, match=r"1 groups are in more than one split: 1"):
        build_manifest(nih(root))
    put(root / "test_list.txt", "00000020_000.png")
    with pytest.raises(ManifestError, match=r"in neither official list"):
        build_manifest(nih(root))


def test_nih_hints_for_a_wrong_root_table_or_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no root.*--data.root"):
        build_manifest(Data(sources=[Source(name="nih")]))
    with pytest.raises(ManifestError, match=r"is no folder"):
        build_manifest(nih(tmp_path / "none"))
    put(tmp_path / "labels.csv", "name,label\na.png,Mass\n")
    with pytest.raises(
        ManifestError, match=r"looked for Data_Entry_2017_v2020.csv, Data_Entry_2017.csv. It holds labels.csv"
    ):
        build_manifest(nih(tmp_path))
    with pytest.raises(
        ManifestError, match=r"no column 'Image Index', 'Finding Labels', 'Patient ID'; it has name, label"
    ):
        build_manifest(nih(tmp_path, csv="labels.csv"))
    put(tmp_path / "labels.csv", "Image Index,Finding Labels,Patient ID\na.png,Mass,1\n")
    with pytest.raises(ManifestError, match=r"No image folder.*images"):
        build_manifest(nih(tmp_path, csv="labels.csv"))
    put(tmp_path / "labels.csv", "Image Index,Finding Labels,Patient ID\na.png,Masse,1\n")
    with pytest.raises(ManifestError, match=r"not NIH's: Masse"):
        build_manifest(nih(tmp_path, csv="labels.csv"))
    put(tmp_path / "labels.csv", "")
    with pytest.raises(ManifestError, match=r"cannot be read as a table"):
        build_manifest(nih(tmp_path, csv="labels.csv"))


def test_unknown_source_lists_the_allowed(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        build_manifest(Data(root=str(tmp_path), sources=[Source(name="chexprt")]))
    assert "Did you mean chexpert?" in caught.value.hint
    assert "phantoms, nih, chexpert" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_nih_lists_and_tables_written_by_windows(tmp_path: Path, encoding: str) -> None:
    root = nih_release(tmp_path)
    for name in ("train_val_list.txt", "test_list.txt", "Data_Entry_2017_v2020.csv"):
        text = (root / name).read_text()
        text = text if name.endswith("csv") else "\n".join(f"images\\{line}" for line in text.split())
        (root / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    m = build_manifest(nih(root))
    assert len(m) == 40 and sorted(map(int, m.table["group"][m.table["split"] == "test"].unique())) == [
        16,
        17,
        18,
        19,
        20,
    ]


def test_rows_without_an_image_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = nih_release(tmp_path)
    table = root / "Data_Entry_2017_v2020.csv"
    put(table, table.read_text() + ",Mass,0,99,50,F,PA,1,1,0.1,0.1\n")
    with caplog.at_level(logging.INFO):
        m = build_manifest(nih(root))
    assert len(m) == 40 and "41 images found, 40 used" in caplog.text
    assert "1 left out, a row without Image Index: Data_Entry_2017_v2020.csv, row 42" in caplog.text


def test_one_header_gives_one_age_sex_and_view() -> None:
    assert [columns.years(text) for text in ("045Y", "45", "018M", "007D")] == pytest.approx([45, 45, 1.5, 7 / 365.25])
    assert all(np.isnan(columns.years(text)) for text in ("", "414Y", "old", "-3"))
    assert [columns.age_band(columns.years(text)) for text in ("017Y", "018Y", "011M", "080Y", "")] == [
        "0-17", "18-39", "0-17", "80+", ""
    ]  # fmt: skip
    assert [columns.sex(text) for text in ("female", "M", "O", "")] == ["F", "M", "", ""]
    assert [columns.view(text) for text in ("ap", "LL", "posteroanterior", "?")] == ["AP", "LATERAL", "PA", ""]


def chexpert_release(root: Path, patients: int = 12) -> Path:
    rows = []
    for p in range(1, patients + 1):
        path = f"CheXpert-v1.0-small/train/patient{p:05d}/study1/view1_frontal.jpg"
        put(root / path.split("/", 1)[1])
        if p == 1:  # nothing found, a device
            rows.append(f"{path},Female,68,Frontal,AP,1.0,,,,,,,,,,,,,1.0")
        elif p == 2:  # edema uncertain, effusion uncertain, fracture
            rows.append(f"{path},Male,87,Frontal,PA,,,,,,-1.0,,,,0.0,-1.0,,1.0,")
        else:
            rows.append(f"{path},Male,{20 + p},Frontal,AP,,,1.0,,,{float(p % 2)},,,,{float(p % 3 == 0)},,,1.0,")
    lateral = "CheXpert-v1.0-small/train/patient00003/study1/view2_lateral.jpg"
    put(root / lateral.split("/", 1)[1])
    rows.append(f"{lateral},Male,23,Lateral,,,,1.0,,,1.0,,,,1.0,,,1.0,")
    put(root / "train.csv", "\n".join([CHEXPERT_HEADER, *rows]) + "\n")
    valid = "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"
    put(root / valid.split("/", 1)[1])
    put(
        root / "valid.csv",
        f"{CHEXPERT_HEADER}\n{valid},Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n",
    )
    return root


def test_chexpert_uncertain_blank_views_and_patients(tmp_path: Path) -> None:
    root = chexpert_release(tmp_path)
    classes = ["Edema", "Effusion", "Fracture", "Support_Devices", "Cardiomegaly"]
    base = Data(root=str(root), classes=classes)
    source = Source(name="chexpert", uncertain={"Edema": "ones", "Pleural Effusion": "zeros"})
    m = build_manifest(replace(base, sources=[source]), require_positives=False)
    first = row_of(m, "train/patient00001/study1/view1_frontal.jpg")
    assert (first["Edema"], first["Effusion"], first["Fracture"], first["Support_Devices"]) == (0, 0, 0, 1)
    second = row_of(m, "train/patient00002/study1/view1_frontal.jpg")
    assert (second["Edema"], second["Effusion"], second["Fracture"]) == (1, 0, 1)
    assert np.isnan(second["Cardiomegaly"])
    assert np.isnan(second["Support_Devices"])
    assert (second["view"], second["sex"], second["group"], second["age_band"]) == ("PA", "M", "patient00002", "80+")
    lateral = row_of(m, "train/patient00003/study1/view2_lateral.jpg")
    assert lateral["view"] == "LATERAL"
    assert lateral["split"] == row_of(m, "train/patient00003/study1/view1_frontal.jpg")["split"]
    assert list(m.table["id"][m.table["split"] == "test"]) == ["valid/patient64541/study1/view1_frontal.jpg"]
    assert (m.table["split"] == "val").any()
    ignoring = build_manifest(replace(base, sources=[Source(name="chexpert")]), require_positives=False)
    assert np.isnan(row_of(ignoring, "train/patient00002/study1/view1_frontal.jpg")["Edema"])
    blank = build_manifest(replace(base, sources=[Source(name="chexpert", blank="negative")]), require_positives=False)
    row = row_of(blank, "train/patient00002/study1/view1_frontal.jpg")
    assert row["Cardiomegaly"] == 0
    assert np.isnan(row["Edema"])


def test_chexpert_with_a_test_table_and_the_release_folder_inside_the_root(tmp_path: Path) -> None:
    inner = chexpert_release(tmp_path / "CheXpert-v1.0-small")
    for name in ("train.csv", "valid.csv"):
        (inner / name).rename(tmp_path / name)
    put(inner / "test/patient64741/study1/view1_frontal.jpg")
    short = CHEXPERT_HEADER.replace("Sex,Age,Frontal/Lateral,AP/PA,", "")
    put(tmp_path / "test.csv", f"{short}\ntest/patient64741/study1/view1_frontal.jpg{',0' * 14}\n")
    m = build_manifest(Data(root=str(tmp_path), sources=[Source(name="chexpert")]))
    assert row_of(m, "test/patient64741/study1/view1_frontal.jpg")["split"] == "test"
    assert row_of(m, "valid/patient64541/study1/view1_frontal.jpg")["split"] == "val"
    assert "No_Finding" not in m.classes


def test_chexpert_label_that_is_no_number(tmp_path: Path) -> None:
    root = chexpert_release(tmp_path)
    put(root / "valid.csv", (root / "valid.csv").read_text().replace("0.0\n", "yes\n"))
    with pytest.raises(ManifestError, match=r"'Support Devices' holds 'yes'"):
        build_manifest(Data(root=str(root), sources=[Source(name="chexpert")]))


def test_padchest_maps_its_tree(tmp_path: Path) -> None:
    listed = [
        ("a.png", "['pleural effusion', ' COPD signs', 'alveolar pattern']", "PA", "P1"),
        ("b.png", "['normal']", "AP_horizontal", "P2"),
        ("c.png", "['exclude', 'nodule']", "L", "P3"),
        ("d.png", "['unchanged']", "PA", "P4"),
        ("e.png", "['hydropneumothorax', 'pulmonary mass', 'NSG tube', '']", "PA", "P5"),
        ("f.png", "", "PA", "P6"),
        ("", "['normal']", "PA", "P7"),
    ]
    header = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,"
    header += "MethodLabel,Rows_DICOM,Columns_DICOM,Labels"
    rows = [
        f'{i},{n},{i % 3},20140915,S{i},{p},1930.0,F,{v},Physician,2300,0,"{t}"'
        for i, (n, t, v, p) in enumerate(listed)
    ]
    put(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "\n".join([header, *rows]) + "\n")
    for i, (name, *_) in enumerate(listed[:-1]):
        put(tmp_path / str(i % 3) / name)
    names = [
        "Effusion",
        "Emphysema",
        "Infiltration",
        "Consolidation",
        "Pneumothorax",
        "Mass",
        "Support_Devices",
        "No_Finding",
    ]
    data = Data(root=str(tmp_path), sources=[Source(name="padchest")], classes=names, test_fraction=0.0, max_lost=0.6)
    m = build_manifest(data, require_positives=False)
    assert list(m.table["id"]) == ["a.png", "b.png", "e.png"]
    assert {part.reason: len(part.names) for part in m.skipped} == {"a row without ImageID": 1, "no known label": 3}
    np.testing.assert_array_equal(
        labels(m),
        np.array(
            [[1, np.nan, 1, np.nan, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 1, 1, 0]], dtype=np.float32
        ),
    )
    row = row_of(m, "b.png")
    assert (row["age"], row["view"], row["projection"], row["group"]) == (84, "AP", "AP_horizontal", "P2")
    assert row["height"] == 2300 and np.isnan(row["width"])  # no image is 0 pixels wide
    assert row["path"] == str(tmp_path / "1" / "b.png")


def vindr_row(image: str, reader: str, **positive: int) -> str:
    cells = [str(positive.get(name.replace(" ", "_").replace("/", "_"), 0)) for name in VINDR_LOCAL.split(",")]
    return ",".join([image, reader, *cells])


def test_vindr_majority_joint_classes_and_official_test(tmp_path: Path) -> None:
    rows = []
    for image in ("a", "b", "c", "d", "e", "f"):
        put(tmp_path / "train" / f"{image}.dicom")
        for n, reader in enumerate(("R1", "R2", "R3")):
            rows.append(
                vindr_row(
                    image,
                    reader,
                    Cardiomegaly=int(n < 2),
                    Edema=int(n < 1),
                    Nodule_Mass=int(image == "a"),
                    Pleural_effusion=1,
                )
            )
    rows[-1] = vindr_row("f", "R2", No_finding=1)
    rows = [r for r in rows if not r.startswith("f,R3")] + [vindr_row("f", "R4", No_finding=1)]
    put(
        tmp_path / "annotations" / "image_labels_train.csv", f"image_id,rad_id,{VINDR_LOCAL}\n" + "\n".join(rows) + "\n"
    )
    put(tmp_path / "test" / "t.dicom")
    consensus = vindr_row("t", "", Rib_fracture=1).replace("t,,", "t,")
    put(tmp_path / "annotations" / "image_labels_test.csv", f"image_id,{VINDR_LOCAL}\n{consensus}\n")
    data = Data(
        root=str(tmp_path),
        sources=[Source(name="vindr")],
        classes=["Cardiomegaly", "Edema", "Nodule", "Mass", "Lung_Lesion", "Effusion", "Fracture"],
    )
    m = build_manifest(data, require_positives=False)
    a, f, t = (row_of(m, x) for x in "aft")
    assert (a["Cardiomegaly"], a["Edema"], a["Lung_Lesion"], a["Effusion"]) == (1, 0, 1, 1)
    assert np.isnan(a["Nodule"])
    assert np.isnan(a["Mass"])
    assert row_of(m, "b")["Nodule"] == 0
    assert np.isnan(f["Effusion"])  # two of four readers
    assert t["split"] == "test"
    assert t["Fracture"] == 1
    assert t["group"] == "t"
    assert a["path"] == str(tmp_path / "train" / "a.dicom")
    assert a["view"] == "PA"
    assert set(m.table["split"]) == {"train", "val", "test"}


def mimic_release(root: Path) -> Path:
    keys = "dicom_id,subject_id,study_id"
    tail = "PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime"
    films = [("d1", "10000032", "50414267", "PA", "train"), ("d2", "10000032", "50414267", "LATERAL", "train"),
             ("d3", "11000033", "51111111", "AP", "validate"), ("d4", "12000044", "52222222", "LL", "test"),
             ("d5", "13000055", "53333333", "AP", "train")]  # fmt: skip
    meta = [f"{d},{p},{s},CHEST (PA AND LAT),{v},3056,2544,21800506,213014.531" for d, p, s, v, _ in films]
    put(root / "mimic-cxr-2.0.0-metadata.csv.gz", "\n".join([f"{keys},{tail}", *meta]) + "\n")
    put(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "\n".join([f"{keys},split", *(f"{d},{p},{s},{x}" for d, p, s, _, x in films)]) + "\n",
    )
    found = [
        "10000032,50414267,-1.0,1.0,,,,,,,,0.0,,,,",
        "11000033,51111111,,,,,,,,,1.0,,,,,",
        "12000044,52222222,1.0,,,,,,,,,1.0,,,,",
    ]
    put(root / "mimic-cxr-2.0.0-chexpert.csv.gz", "\n".join([MIMIC_LABELS, *found]) + "\n")
    for d, p, s, *_ in films:
        put(root / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{d}.jpg")
    return root


def test_mimic_labels_belong_to_studies_and_the_split_is_the_publishers(tmp_path: Path) -> None:
    data = Data(
        root=str(mimic_release(tmp_path)),
        sources=[Source(name="mimic")],
        classes=["Atelectasis", "Cardiomegaly", "Effusion"],
    )
    m = build_manifest(data, require_positives=False)
    assert list(m.table["id"]) == ["d1", "d2", "d3", "d4"]  # d5's study has no labels
    assert list(m.table["split"]) == ["train", "train", "val", "test"]
    expected = [[np.nan, 1, 0], [np.nan, 1, 0], [0, 0, 0], [1, np.nan, 1]]
    np.testing.assert_array_equal(labels(m), np.array(expected, dtype=np.float32))
    assert list(m.table["view"]) == ["PA", "LATERAL", "AP", "LATERAL"]
    assert set(m.table["width"]) == {2544} and set(m.table["height"]) == {3056}
    assert list(m.table["group"]) == ["10000032", "10000032", "11000033", "12000044"]
    assert m.table["path"][0] == str(tmp_path / "files/p10/p10000032/s50414267/d1.jpg")
    assert len(build_manifest(replace(data, split="official"), require_positives=False)) == 4


def csv_data(root: Path, text: str, *, data: Data | None = None, **source: object) -> Data:
    put(root / "table.csv", text)
    for i in range(6):
        put(root / "films" / f"{i}.png")
    made = Source(name="csv", csv="table.csv", images="films", **source)  # type: ignore[arg-type]
    return replace(data or Data(), root=str(root), sources=[made], val_fraction=0.2, test_fraction=0.2)


def test_csv_with_one_labels_column(tmp_path: Path) -> None:
    rows = [
        f"{i}.png,{p},{t}"
        for i, (p, t) in enumerate(
            [
                ("x", "mass; Pleural Effusion"),
                ("x", "No Finding"),
                ("y", "mass"),
                ("z", "widget"),
                ("w", "mass"),
                ("v", ""),
            ]
        )
    ]
    data = csv_data(
        tmp_path,
        "\n".join(["file,who,found", *rows]),
        columns={"id": "file", "path": "file", "group": "who", "labels": "found"},
        separator=";",
    )
    m = build_manifest(replace(data, classes=["Mass", "Effusion", "widget"]), require_positives=False)
    expected = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(
        labels(m), np.array(expected, dtype=np.float32)
    )  # the blank row is unknown, so left out
    assert m.name == tmp_path.name
    assert m.table["path"][0] == str(tmp_path / "films" / "0.png")
    negative = replace(data.sources[0], blank="negative")
    assert len(build_manifest(replace(data, sources=[negative], classes=["Mass"]), require_positives=False)) == 6


def test_csv_with_class_columns_split_column_and_further_columns(tmp_path: Path) -> None:
    text = "path,group,split,Pleural effusion,smoker,ward,Sex,age\n" + "".join(
        f"{i}.png,g{i},{s},{i % 2},1,A,{'FM'[i % 2]},{20 * i}\n"
        for i, s in enumerate(("train", "TRAIN", "validation", "val", "Test", "test"))
    )
    data = csv_data(tmp_path, text, columns={"sex": "Sex", "hospital_ward": "ward"})
    m = build_manifest(data)
    assert m.classes == ("Effusion",)
    assert list(m.table["split"]) == ["train", "train", "val", "val", "test", "test"]
    assert list(m.table["hospital_ward"]) == ["A"] * 6
    assert list(m.table["sex"][:2]) == ["F", "M"]
    assert list(m.table["age_band"]) == ["0-17", "18-39", "40-59", "60-79", "80+", "80+"]
    assert list(m.table["id"]) == [f"{i}.png" for i in range(6)]
    mapped = replace(data.sources[0], columns={"Mass": "smoker"})
    assert build_manifest(replace(data, sources=[mapped])).classes == ("Mass",)
    column = replace(data, split="column")
    assert list(build_manifest(column).table["split"]) == list(m.table["split"])
    with pytest.raises(ManifestError, match=r"`data.split` is official"):
        build_manifest(replace(data, split="official"))


def test_csv_classes_of_ones_own_and_no_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,rotated,note\n" + "".join(f"{i}.png,{i % 2},7\n" for i in range(6))
    with caplog.at_level(logging.WARNING):
        m = build_manifest(csv_data(tmp_path, text))
    assert m.classes == ("rotated",)
    assert "no group column" in caplog.text
    assert m.table["group"].nunique() == 6


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("path,note\n0.png,x\n", {}, "no class column; it has path, note"),
        ("file,Mass\n0.png,1\n", {}, "no column 'path'; it has file, Mass"),
        ("path,Mass\n0.png,1\n", {"group": "patient"}, "no column 'patient'"),
        ("path,Mass\n0.png,perhaps\n", {}, "holds 'perhaps'"),
        ("path,Mass\n0.png,3\n1.png,1\n2.png,0\n3.png,1\n", {}, "labels other than 1, 0 and unknown: 3"),
        (
            "path,Mass,split\n0.png,1,hold-out\n1.png,1,train\n2.png,0,train\n3.png,0,train\n",
            {},
            "unknown splits hold-out",
        ),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        build_manifest(csv_data(tmp_path, text, columns=columns))


def test_csv_needs_its_table(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"needs the name of its table"):
        build_manifest(Data(root=str(tmp_path), sources=[Source(name="csv")]))
    with pytest.raises(ManifestError, match=r"No table at"):
        build_manifest(Data(root=str(tmp_path), sources=[Source(name="csv", csv="x.csv")]))


def test_merged_sources_share_one_label_space(tmp_path: Path) -> None:
    nih_release(tmp_path / "nih")
    chexpert_release(tmp_path / "chexpert")
    data = Data(root=str(tmp_path), sources=[Source(name="nih", root="nih"), Source(name="chexpert", root="chexpert")])
    m = build_manifest(data)
    assert m.name == "nih_chestxray14+chexpert"
    assert set(m.table["source"]) == {"nih_chestxray14", "chexpert"}
    from_nih = (m.table["source"] == "nih_chestxray14").to_numpy()
    y = pd.DataFrame(labels(m), columns=list(m.classes))
    assert y["Fracture"][from_nih].isna().all()
    assert y["Mass"][~from_nih].isna().all()
    assert y["Effusion"][from_nih].notna().all()
    assert m.table.groupby("group")["split"].nunique().max() == 1
    for rows in (from_nih, ~from_nih):
        assert set(m.table["split"][rows]) == {"train", "val", "test"}


def test_same_release_twice_never_parts_a_patient(tmp_path: Path) -> None:
    root = nih_release(tmp_path, lists=False)
    views = [Source(name="nih", keep={"view": ["PA"]}), Source(name="nih", keep={"view": ["AP"]})]
    m = build_manifest(Data(root=str(root), sources=views))
    assert len(m) == 40
    assert m.table["group"].nunique() == 20
    assert m.table.groupby("group")["split"].nunique().max() == 1


def test_phantoms_source_makes_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = pytest.importorskip("vitdomains.cxr.phantoms.make")
    asked: list[tuple[Path, int]] = []

    def fake(root: Path, n_films: int = 600, **_: object) -> Path:
        asked.append((Path(root), n_films))
        ids = [str(i) for i in range(9)]
        for i in ids:
            put(Path(root) / "films" / f"{i}.dcm")
        paths = [str(Path(root) / "films" / f"{i}.dcm") for i in ids]
        write_manifest(make_manifest(ids, paths, ids, ("Mass",), [[1.0]] * 9), Path(root) / "manifest.csv")
        return Path(root)

    monkeypatch.setattr(phantom, "make_phantoms", fake, raising=False)
    m = build_manifest(Data(root=str(tmp_path / "new"), sources=[Source(name="phantoms", limit=9)]))
    assert m.name == "phantoms"
    assert len(m) == 9
    assert asked == [(tmp_path / "new", 9)]
    monkeypatch.chdir(tmp_path)
    build_manifest(Data())
    assert asked[-1] == (Path("runs/phantoms"), 600)


def test_every_source_of_the_config_has_a_reader() -> None:
    assert list(sources.SOURCES) == ["phantoms", "nih", "chexpert", "padchest", "vindr", "mimic", "csv"]


def test_real_nih_subset(shared: Path) -> None:
    data = Data(
        root=str(shared / "data" / "nih_cxr14_subset"),
        sources=[Source(name="nih", csv="Data_Entry_2017_subset.csv")],
        min_positives=12,
    )
    m = build_manifest(data)
    assert len(m) == 800
    assert m.table["group"].nunique() == 546
    positives = dict(zip(m.classes, (labels(m) == 1).sum(axis=0).tolist(), strict=True))
    assert positives["Pneumonia"] == 400
    assert positives["Infiltration"] == 149
    assert positives["Pleural_Thickening"] == 24
    assert "Hernia" not in m.classes
    assert m.table.groupby("group")["split"].nunique().max() == 1
    share = m.table.groupby("split")["group"].nunique() / 546
    assert share["val"] == pytest.approx(0.15, abs=0.005)
    assert share["test"] == pytest.approx(0.2, abs=0.005)
    pneumonia = m.table.groupby("split")["Pneumonia"].mean()
    assert pneumonia.max() - pneumonia.min() < 0.12
