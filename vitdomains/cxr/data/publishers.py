"""Five public chest-film releases, each read in its publisher's own layout, into one table with one label space.

What is in a release and what its labels mean stands in ``data_cards/``. No reader opens an image.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.data.manifest import Manifest, Skipped, make_manifest
from vitdomains.core.data.tables import as_text, find_file, label_columns, read_list, read_table, require_columns
from vitdomains.core.errors import ManifestError
from vitdomains.cxr.data import label_maps, labels
from vitdomains.cxr.data.columns import image_folders, locate, named_rows, patient_columns, size_columns

log = logging.getLogger(__name__)

_CHEXPERT_COLUMNS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
_NIH_FOLDERS = ("images", "images_*/images", "images_*")


def nih(source: Source, root: Path) -> Manifest:
    """NIH ChestX-ray14: ``Data_Entry_2017_v2020.csv``, ``images_001/images`` to ``images_012/images`` or ``images``.

    ``test_list.txt`` and ``train_val_list.txt``, where both are there, give the official split, to which
    ``build_manifest`` adds a validation split by patient. A table with only the image, its labels and the patient
    will do.
    """
    csv = find_file(root, source.csv, ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"), "NIH label table")
    wanted = ("Image Index", "Finding Labels", "Patient ID")
    table, skipped = named_rows(read_table(csv, wanted, text=wanted), "Image Index", csv)
    listed = [[x.strip() for x in cell.split("|")] for cell in as_text(table["Finding Labels"])]
    strange = sorted({x for row in listed for x in row} - {*labels.NIH, "No Finding", ""})
    if strange:
        raise ManifestError(
            f"{csv} names findings that are not NIH's: {', '.join(strange[:5])}.",
            hint="Use a `csv` source for a table with labels of your own.",
        )
    classes = (*labels.NIH, labels.NO_FINDING)
    positive = {c: frozenset({c}) for c in labels.NIH} | {labels.NO_FINDING: frozenset({"No Finding"})}
    targets = labels.from_lists(listed, positive, {})
    targets[[row == [""] for row in listed]] = 0.0 if source.blank == "negative" else np.nan
    sexes = "Patient Sex" if "Patient Sex" in table.columns else "Patient Gender"
    extra = patient_columns(table, sexes, "Patient Age", "View Position")
    # The comma in "OriginalImage[Width,Height]" ends a column.
    extra = extra.join(size_columns(table, "OriginalImage[Width", "Height]"))
    if "Follow-up #" in table.columns:
        extra["follow_up"] = table["Follow-up #"]
    names = table["Image Index"].str.strip().tolist()
    m = make_manifest(
        names, locate(image_folders(root, source, _NIH_FOLDERS), names), as_text(table["Patient ID"]).tolist(),
        classes, targets, splits=_nih_splits(root, names), extra=extra, name="nih_chestxray14",
    )  # fmt: skip
    return replace(m, skipped=skipped)


def _nih_splits(root: Path, names: list[str]) -> list[str] | None:
    lists = {"train": root / "train_val_list.txt", "test": root / "test_list.txt"}
    if not all(path.is_file() for path in lists.values()):
        return None
    owner = {PureWindowsPath(line).name: split for split, path in lists.items() for line in read_list(path)}
    lost = [name for name in names if name not in owner]
    if lost:
        raise ManifestError(
            f"{len(lost)} of {len(names)} images are in neither official list: {', '.join(lost[:5])}.",
            hint="Remove the lists to split by patient, or use the release's own table.",
        )
    return [owner[name] for name in names]


def chexpert(source: Source, root: Path) -> Manifest:
    """CheXpert: ``train.csv``, ``valid.csv`` and, where it is there, ``test.csv``; ``Path`` starts with the release.

    The patient is read from the path. ``valid.csv`` (read by radiologists) is the test split, or the validation split
    where there is a ``test.csv``.
    """
    wanted = (source.csv,) if source.csv else ("train.csv", "valid.csv", "test.csv")
    present = [name for name in wanted if (root / name).is_file()]
    if not present:
        find_file(root, source.csv, ("train.csv", "valid.csv"), "CheXpert label table")
    parts, skipped = [], tuple[Skipped, ...]()
    for name in present:
        part, blank = named_rows(read_table(root / name, ("Path",), text=("Path",)), "Path", root / name)
        skipped += blank
        if name == "test.csv" and "No Finding" not in part.columns:
            log.warning("%s has no labels and is left out", root / name)
            continue
        require_columns(part, _CHEXPERT_COLUMNS, root / name)
        stem = name.split(".")[0]
        held_out = "val" if "test.csv" in present else "test"
        parts.append(part.assign(split={"valid": held_out, "test": "test"}.get(stem, "train")))
    table = pd.concat(parts, ignore_index=True)
    inner = table["Path"].astype("str").str.replace("\\", "/").str.extract(r"^(?:.*?/)??((?:train|valid|test)/.+)$")[0]
    group = inner.str.extract(r"(patient\d+)")[0]
    if bool(group.isna().any()):
        bad = table["Path"][group.isna()].iloc[0]
        raise ManifestError(
            f"CheXpert path {bad!r} names no patient.",
            hint="Paths read .../train/patient00001/study1/view1_frontal.jpg.",
        )
    targets = label_columns(table, _CHEXPERT_COLUMNS, root)
    targets = labels.no_finding_closure(targets, labels.CHEXPERT)
    targets = labels.apply_policies(targets, labels.CHEXPERT, source.uncertain, source.blank)
    side = as_text(table.get("AP/PA", pd.Series("", index=table.index)))
    if "Frontal/Lateral" in table.columns:
        side = side.where(as_text(table["Frontal/Lateral"]) != "Lateral", "LATERAL")
    base = str(_chexpert_base(root, source, str(table["Path"].iloc[0])))
    m = make_manifest(
        inner.tolist(), [f"{base}/{p}" for p in inner], group.tolist(), labels.CHEXPERT, targets,
        splits=table["split"].tolist() if not source.csv else None,
        extra=patient_columns(table.assign(side=side), "Sex", "Age", "side"), name="chexpert",
    )  # fmt: skip
    return replace(m, skipped=skipped)


def _chexpert_base(root: Path, source: Source, path: str) -> Path:
    """The folder that holds ``train`` and ``valid``: the root, or the release's folder in it that the paths name."""
    if source.images:
        return (root / source.images).absolute()
    inside = root / path.split("/")[0]
    return (inside if not (root / "train").is_dir() and (inside / "train").is_dir() else root).absolute()


def padchest(source: Source, root: Path) -> Manifest:
    """PadChest: ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, images in ``0`` to ``54`` or ``images``.

    Its labels are mapped through the tree of its paper (``label_maps.py``); age is the year of study less that of
    birth.
    """
    names = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "PADCHEST_chest_x_ray_images_labels_160K.csv")
    csv = find_file(root, source.csv, names, "PadChest label table")
    wanted = ("ImageID", "PatientID", "Projection", "Labels")
    table, skipped = named_rows(read_table(csv, wanted, text=wanted), "ImageID", csv)
    # Cells read "['nodule', ' pleural effusion']"; no label holds a quote.
    cells = as_text(table["Labels"]).str.findall(r"'([^']*)'")
    listed = [[x.strip() for x in cell] for cell in cells]
    targets = labels.from_lists(listed, label_maps.PADCHEST_POSITIVE, label_maps.PADCHEST_UNSURE)
    normal = np.zeros((len(table), 1), dtype=np.float32)
    for i, row in enumerate(listed):
        stated = set(row) - label_maps.PADCHEST_SILENT
        normal[i] = stated == {"normal"}
        if not stated or "exclude" in row:
            targets[i], normal[i] = np.nan, np.nan
    if "StudyDate_DICOM" in table.columns and "PatientBirth" in table.columns:
        studied = pd.to_numeric(table["StudyDate_DICOM"], errors="coerce") // 10000
        table = table.assign(age=studied - pd.to_numeric(table["PatientBirth"], errors="coerce"))
    extra = patient_columns(table, "PatientSex_DICOM", "age", "Projection")
    extra = extra.join(size_columns(table, "Columns_DICOM", "Rows_DICOM"))
    extra["projection"] = as_text(table["Projection"])
    if "MethodLabel" in table.columns:
        extra["label_method"] = as_text(table["MethodLabel"])
    folders = image_folders(root, source, ("[0-9]", "[0-9][0-9]", "images/[0-9]", "images/[0-9][0-9]", "images", ""))
    ids = table["ImageID"].tolist()
    m = make_manifest(
        ids, locate(folders, ids), as_text(table["PatientID"]).tolist(),
        (*label_maps.PADCHEST_POSITIVE, labels.NO_FINDING), np.concatenate([targets, normal], axis=1),
        extra=extra, name="padchest",
    )  # fmt: skip
    return replace(m, skipped=skipped)


def vindr(source: Source, root: Path) -> Manifest:
    """VinDr-CXR: ``annotations/image_labels_train.csv`` and ``..._test.csv``, ``train/ID.dicom`` and ``test/ID.dicom``.

    A training image has one row a radiologist: the majority counts, a tie is unknown. The test rows are a consensus
    and the official test split. The release names no patient, so each image is its own group.
    """
    parts, skipped = [], tuple[Skipped, ...]()
    for split in ("train", "test"):
        csv = find_file(
            root, "", (f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv"), "VinDr-CXR table"
        )
        table, blank = named_rows(read_table(csv, ("image_id",), text=("image_id",)), "image_id", csv)
        skipped += blank
        table.columns = pd.Index([c if c == "image_id" else c.lower() for c in table.columns])
        columns = sorted({*sum(label_maps.VINDR_POSITIVE.values(), ()), *label_maps.VINDR_JOINT.values()})
        require_columns(table, columns, csv)
        values = pd.DataFrame(label_columns(table, columns, csv), columns=columns)
        share = values.groupby(table["image_id"], sort=True).mean()
        voted = (share > 0.5).astype(np.float32).where(share.notna() & (share != 0.5))
        folder = image_folders(root, source, (split,)) if not source.images else [root / source.images / split]
        paths = locate(folder, [f"{i}.dicom" for i in voted.index])
        parts.append(voted.assign(id=voted.index, split=split, path=paths))
    joined = pd.concat(parts, ignore_index=True)
    targets = {f: joined[list(columns)].max(axis=1, skipna=False) for f, columns in label_maps.VINDR_POSITIVE.items()}
    targets |= {f: joined[column].where(joined[column] == 0) for f, column in label_maps.VINDR_JOINT.items()}
    ids = joined["id"].tolist()
    extra = pd.DataFrame({"view": pd.Series("PA", index=joined.index, dtype="str")})
    stacked = np.stack([v.to_numpy(dtype=np.float32) for v in targets.values()], axis=1)
    m = make_manifest(ids, joined["path"].tolist(), ids, tuple(targets), stacked, splits=joined["split"].tolist(),
                      extra=extra, name="vindr_cxr")  # fmt: skip
    return replace(m, skipped=skipped)


def mimic(source: Source, root: Path) -> Manifest:
    """MIMIC-CXR-JPG: its ``-chexpert``, ``-metadata`` and ``-split`` tables, ``files/p10/p10000032/s50414267/*.jpg``.

    Labels belong to a study and hold for all its images. Split as published (train, validate, test). Sex and age are
    not in the release.
    """
    stem = "mimic-cxr-2.0.0-"
    keys = ("dicom_id", "subject_id", "study_id")
    csv = find_file(root, "", (f"{stem}metadata.csv.gz",), "MIMIC metadata")
    meta, skipped = named_rows(read_table(csv, keys, text=keys), "dicom_id", csv)
    csv = find_file(root, source.csv, (f"{stem}chexpert.csv.gz",), "MIMIC label table")
    rows = read_table(csv, ("subject_id", "study_id", *_CHEXPERT_COLUMNS), text=("subject_id", "study_id"))
    split = read_table(
        find_file(root, "", (f"{stem}split.csv.gz",), "MIMIC split"), ("dicom_id", "split"), text=("dicom_id",)
    )
    if bool(rows["study_id"].duplicated().any()):
        raise ManifestError(f"{csv} has two rows for one study.", hint="Download the file again.")
    targets = rows.set_index("study_id").reindex(meta["study_id"]).reset_index(drop=True)
    values = labels.no_finding_closure(label_columns(targets, _CHEXPERT_COLUMNS, csv), labels.CHEXPERT)
    unlabelled = ~meta["study_id"].isin(rows["study_id"]).to_numpy()
    values = labels.apply_policies(values, labels.CHEXPERT, source.uncertain, source.blank)
    values[unlabelled] = np.nan
    named = split.set_index("dicom_id")["split"].map({"train": "train", "validate": "val", "test": "test"})
    base = str((root / (source.images or "files")).absolute())
    paths = [f"{base}/p{p[:2]}/p{p}/s{s}/{d}.jpg" for d, p, s in meta[list(keys)].itertuples(index=False, name=None)]
    extra = patient_columns(meta, views="ViewPosition").join(size_columns(meta, "Columns", "Rows"))
    extra["study"] = meta["study_id"]
    m = make_manifest(
        meta["dicom_id"].tolist(), paths, as_text(meta["subject_id"]).tolist(), labels.CHEXPERT, values,
        splits=named.reindex(meta["dicom_id"]).fillna("").tolist(), extra=extra, name="mimic_cxr_jpg",
    )  # fmt: skip
    return replace(m, skipped=skipped)
