"""Files and folders that are there whole or not at all, their hashes, and names that are safe to join to a folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file, which is read piece by piece.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary sibling, flush it to the disk, and put it in the place of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_sibling(path)
    try:
        write(part)
        flush(part)
        os.replace(part, path)
        flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` to fill; where the block ends well it takes the place of ``target``.

    An error leaves ``target`` as it was. What is written in the block is flushed to the disk before.
    """
    part = temporary_sibling(target)
    part.mkdir(parents=True)
    try:
        yield part
        for file in sorted(part.rglob("*")):
            flush(file)
        flush(part)
        replace_folder(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, target: Path) -> None:
    """Put ``part`` in the place of ``target``; a folder cannot be replaced in one call, so the old one steps aside first.

    Raises:
        OSError: ``part`` cannot be moved there; ``target`` is then what it was.
    """
    old = temporary_sibling(target)
    with suppress(FileNotFoundError):
        os.replace(target, old)
    try:
        os.replace(part, target)
    except OSError:
        with suppress(OSError):
            os.replace(old, target)
        raise
    flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk; where a system cannot sync folders, go on."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError:
        if not folder:
            raise
    finally:
        os.close(handle)


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is the name of one entry of a folder on any system: no separator, drive, ``..``, NUL or lone dot."""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\:\0]", name)


def is_inside(name: str) -> bool:
    """Whether a relative name with ``/``, joined to a folder, stays inside that folder on any system."""
    return (
        not PureWindowsPath(name).drive
        and "\\" not in name
        and not PurePosixPath(name).is_absolute()
        and bool(name)
        and all(is_plain_name(piece) for piece in PurePosixPath(name).parts)
    )


def as_file_name(text: str) -> str:
    """``text`` as part of a file's name: letters, digits, ``-`` and ``_`` stay, anything else becomes ``_``."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text) or "_"
