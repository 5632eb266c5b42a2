"""Images of a folder: which files count, what is passed over and why; sub-folders as classes, train, val and test as splits."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitdomains.core.data.endings import UNREAD
from vitdomains.core.data.manifest import FIXED, Manifest, SkipKind, Skipped, log_skipped, make_manifest, read_manifest
from vitdomains.core.data.tables import read_text
from vitdomains.core.errors import ManifestError

log = logging.getLogger(__name__)

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "trn": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
"""Names of folders, in lower case, that are splits and never classes; tables may use them too."""
_MANIFESTS = ("manifest.csv", "manifest.parquet")


def manifest_in(folder: str | Path) -> Path | None:
    """The manifest that a folder holds beside its images (``manifest.csv`` or ``.parquet``, with all fixed columns)."""
    for name in _MANIFESTS:
        path = Path(folder) / name
        if path.is_file():
            try:
                head = {*read_manifest(path).table.columns} if path.suffix == ".parquet" else _header(path)
            except ManifestError:
                continue
            if {*FIXED} <= head:
                return path
    return None


def _header(path: Path) -> set[str]:
    return {cell.strip().strip('"') for cell in re.split(r"[,;\t|]", read_text(path).partition("\n")[0])}


def list_images(folder: str | Path, endings: Sequence[str]) -> tuple[list[Path], list[Skipped]]:
    """Every image file below a folder, and what was passed over.

    Args:
        folder: Searched to the bottom, links to folders included (each folder once). Where a folder holds a manifest
            (``manifest_in``), its files are the images, and nothing else below it: masks lie beside films.
        endings: Those that count, e.g. ``(".dcm", ".png")``, case ignored; ``""``: files without one; nothing: every file.

    Returns:
        Files, folder by folder, sorted by name in each, files before sub-folders; what is not among them, by reason.
    """
    wanted = tuple(e.lower() if e.startswith(".") or not e else f".{e.lower()}" for e in endings)
    files: list[Path] = []
    left: dict[tuple[str, SkipKind], list[str]] = {}
    seen: set[tuple[int, int]] = set()

    def leave(path: str, reason: str, kind: SkipKind = "lost") -> None:
        left.setdefault((reason, kind), []).append(path)

    def walk(base: str) -> None:
        try:
            about = os.stat(base)
            entries = sorted(os.scandir(base), key=lambda entry: entry.name)
        except OSError as error:
            return leave(base, f"the folder cannot be opened ({error.strerror})")
        if (about.st_dev, about.st_ino) in seen:
            return leave(base, "the same folder under another name", "other")
        seen.add((about.st_dev, about.st_ino))
        listed = manifest_in(base) if any(entry.name in _MANIFESTS for entry in entries) else None
        if listed:
            log.info("%s: its %s says which files are images", base, listed.name)
            files.extend(map(Path, read_manifest(listed).table["path"]))
            return None
        below = []
        for entry in entries:
            if entry.is_dir():
                hidden = entry.name.startswith(".") or entry.name == "__MACOSX"
                below += [] if hidden else [entry.path]
            elif (reason := _reason(entry, wanted)) is None:
                files.append(Path(entry.path))
            else:
                leave(entry.path, *reason)
        for path in below:
            walk(path)
        return None

    walk(os.fspath(folder))
    return files, [Skipped(reason, tuple(names), kind) for (reason, kind), names in left.items()]


def _reason(entry: os.DirEntry[str], endings: tuple[str, ...]) -> tuple[str, SkipKind] | None:
    """Why a file is no image that is read; None: it is one."""
    ending = os.path.splitext(entry.name)[1].lower()
    counts = not endings or _ends(entry.name, endings)
    if entry.name.startswith("."):
        return ("a hidden file", "other")
    if not entry.is_file():
        try:
            odd = not stat.S_ISREG(entry.stat().st_mode)
        except OSError:
            return ("a link to nothing", "lost" if counts else "other")
        return ("neither file nor folder", "other") if odd else None
    if counts:
        return None
    reason = f"the ending {ending} is not read here" if ending else "a file without an ending"
    return (reason, "lost" if ending in UNREAD else "other")


def _ends(file: str, endings: tuple[str, ...]) -> bool:
    """Whether the ending counts; a number is none, for DICOM files are often named by their UID (1.2.840.113619)."""
    bare = not Path(file).suffix[1:].strip("0123456789")
    return file.lower().endswith(tuple(e for e in endings if e)) or (bare and "" in endings)


def folder_manifest(
    inputs: str | Path | Iterable[str | Path], extensions: Sequence[str] = (), name: str = "folder"
) -> Manifest:
    """Images without labels, for prediction: files as given, folders as ``list_images`` lists them.

    What is passed over is logged.

    Args:
        inputs: Files and folders, in the order of the wanted output. A file is taken whatever its ending, and also where it
            is missing among others: reading it is what fails, in its own row.
        extensions: Endings that count in a folder.
        name: Name of the manifest.

    Returns:
        A manifest without classes; ``id`` is the path as it was reached from the input, made unique; each file is
        its own group.

    Raises:
        ManifestError: None of the inputs exists, or nothing was found at all.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if given and not any(Path(entry).exists() for entry in given):
        raise ManifestError(f"{given[0]} does not exist.", hint="Give image files, or folders of them.")
    found: dict[str, str] = {}
    skipped: list[Skipped] = []
    for entry in map(Path, given):
        files, left = list_images(entry, extensions) if entry.is_dir() else ([entry], [])
        skipped += left
        for file in files:
            found.setdefault(str(file), os.path.abspath(file))
    if not found:
        raise no_images(", ".join(map(str, given)) or "nothing", extensions, skipped)
    ids = list(found)
    m = make_manifest(ids, list(found.values()), ids, (), np.empty((len(ids), 0)), name=name)
    m = replace(m, skipped=tuple(skipped))
    log_skipped(m)
    return m


def no_images(where: str, endings: Sequence[str], skipped: Sequence[Skipped]) -> ManifestError:
    """The error for a place without an image, with what lies there instead."""
    ends = ", ".join(e or "no ending" for e in endings) or "any ending"
    there = "; ".join(str(part) for part in skipped[:4])
    return ManifestError(
        f"No image in {where} ({ends})." + (f" It holds {there}." if there else ""),
        hint="Check the folder and the endings of its files.",
    )


def sub_folders(base: Path) -> list[Path]:
    """The folders in a folder, hidden ones apart, sorted by name."""
    if not base.is_dir():
        return []
    return sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX")


def split_folders(base: Path) -> dict[Path, str]:
    """Folder -> train, val or test, where two of these lie in ``base``, or nothing else does; else empty."""
    inside = sub_folders(base)
    found = {folder: SPLIT_FOLDERS[folder.name.lower()] for folder in inside if folder.name.lower() in SPLIT_FOLDERS}
    return found if found and (len(set(found.values())) > 1 or len(found) == len(inside)) else {}


def class_names(base: Path, class_of: Callable[[str], str | None] = lambda name: name) -> set[str]:
    """The classes that have a folder in ``base``, or in its splits."""
    places = list(split_folders(base)) or [base]
    return {name for place in places for folder in sub_folders(place) if (name := class_of(folder.name))}


def class_folders(
    base: Path,
    endings: Sequence[str],
    name: str,
    *,
    class_of: Callable[[str], str | None] = lambda name: name,
    order: Sequence[str] = (),
    least: int = 2,
) -> Manifest:
    """Images whose class is the folder that they lie in, at any depth; folders train, val and test above are splits.

    Args:
        base: The folder that holds the class folders, or the splits with the class folders in each.
        endings: As ``list_images`` takes them.
        name: Of the manifest.
        class_of: Name of a folder -> its class; None: not one, which is left out.
        order: Order of the classes; empty: by name.
        least: Classes that have to be there.

    Returns:
        The id of an image is SPLIT/CLASS/PATH without its ending (without SPLIT where there are none); each is a group of
        its own.

    Raises:
        ManifestError: Too few class folders, or no image in them.
    """
    splits: dict[Path, str] = split_folders(base) or {base: ""}
    rows: list[tuple[str, str, str, str]] = []  # id, path, class, split
    skipped: list[Skipped] = []
    for place, split in splits.items():
        prefix = f"{place.name}/" if split else ""
        for folder in sub_folders(place):
            of = class_of(folder.name)
            if of is None:
                skipped.append(Skipped("a folder that is no class", (str(folder),), "other"))
                continue
            files, left = list_images(folder, endings)
            skipped += left
            if not files:
                skipped.append(Skipped("a class folder without an image that is read", (str(folder),)))
            parts = [file.relative_to(folder) if file.is_relative_to(folder) else file for file in files]
            stems = [part.with_suffix("").as_posix() for part in parts]
            count = Counter(stems)
            for part, stem, file in zip(parts, stems, files, strict=True):  # one tile in two formats: a.jpg and a.tif
                own = part.as_posix() if count[stem] > 1 else stem
                rows.append((f"{prefix}{of}/{own}", os.path.abspath(file), of, split))
    if "" not in splits.values():
        others = [folder for folder in sub_folders(base) if folder not in splits]
        skipped += [Skipped("a folder beside the splits", tuple(map(str, others)), "other")] if others else []
    loose = _loose(splits, endings)
    skipped += [Skipped("an image outside the class folders", loose)] if loose else []
    known = class_names(base, class_of)
    if len(known) < least:
        what = (
            f"Its folders {', '.join(f.name for f in splits)} are splits; they hold"
            if splits != {base: ""}
            else "It has"
        )
        raise ManifestError(
            f"{base}: {what} {len(known)} sub-folders; a folder for each class is needed.",
            hint="Point data.root at the folder that holds the class folders, or train, val and test with those in each.",
        )
    if not rows:
        raise no_images(f"the class folders of {base}", endings, skipped)
    classes = [c for c in order if c in known] or sorted(known)
    ids, paths, owners, given = (list(column) for column in zip(*rows, strict=True))
    targets = np.eye(len(classes), dtype=np.float32)[[classes.index(owner) for owner in owners]]
    m = make_manifest(ids, paths, ids, classes, targets, splits=given, name=name)
    return replace(m, skipped=tuple(skipped))


def _loose(places: Iterable[Path], endings: Sequence[str]) -> tuple[str, ...]:
    """Images that lie straight in folders that should hold folders only."""
    found = []
    for place in places:
        with os.scandir(place) as entries:
            found += [e.path for e in entries if not e.is_dir() and _reason(e, tuple(endings)) is None]
    return tuple(sorted(found))
