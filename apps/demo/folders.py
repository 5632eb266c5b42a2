"""The folders of the demonstration: each is made once, whole, for the place where it lies; a half-made one is made anew."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_text
from vitdomains.core.terminal import shown_progress

STAMP = "demo.json"
TRAINED, FILMS = Path("runs/demo/bundle"), Path("runs/phantoms")
"""What ``make demo`` leaves; the chest film app takes it where it is there."""


@dataclass(frozen=True)
class Size:
    """How much is made: films, pixels along the side of what is drawn, and passes or steps of training."""

    films: int = 200
    film_side: int = 192
    film_epochs: int = 20
    land_side: int = 1024
    land_epochs: int = 10
    pair_steps: int = 150


def prepare(name: str, root: Path, size: Size) -> tuple[list[str], str]:
    """Make the data of one app unless it is there: (the words to start the app with, what to say of the data).

    Args:
        name: cxr, satellite or zeroshot.
        root: Folder of all demonstrations; it may be moved, the data is then made anew.
        size: How much to make.

    Raises:
        ConfigError: The folder holds something else, or another process is at work in it.
        VitDomainsError: As the steps of making raise.
    """
    if name == "cxr" and (TRAINED / "bundle.json").is_file() and (FILMS / "phantoms.json").is_file():
        return _words(name, root, TRAINED.absolute(), FILMS.absolute()), f"the model of `make demo` ({TRAINED})"
    folder = root.absolute() / name
    with _alone(root):
        note = _finished(folder, size)
        if note is None:
            _clear(folder)
            _stamp(folder, {"finished": False})
            from apps.demo.data import MAKERS  # PyTorch comes with it; a second start does without

            with shown_progress(5.0) as on_progress:
                note = MAKERS[name](folder, size, on_progress)
            _stamp(folder, {"finished": True, "of": _fingerprint(folder, size), "note": note})
    return _words(name, root, folder / "run" / "bundle", folder / "phantoms"), note


def _words(name: str, root: Path, bundle: Path, films: Path) -> list[str]:
    """The words after ``--``."""
    root = root.absolute()
    folder = root / name
    own: dict[str, dict[str, Path]] = {
        "cxr": {"bundle": bundle, "studies": films / "films", "cache": root / "cxr-cache"},
        "satellite": {"bundle": bundle, "tiles": folder / "landcover.parquet", "scene": folder / "scene.tif",
                      "queue": folder / "queue.parquet"},
        "zeroshot": {"labels": folder / "labels"},
    }  # fmt: skip
    words = [word for key, value in own[name].items() for word in (f"--{key}", str(value))]
    return [*words, "--store", f"sqlite:///{root / f'{name}-reviews.db'}"]


def _fingerprint(folder: Path, size: Size) -> str:
    """Changes with the place (tables hold whole paths), the size, and the code that makes the data."""
    digest = hashlib.sha256(json.dumps([str(folder.resolve()), asdict(size)]).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _finished(folder: Path, size: Size) -> str | None:
    """What was said of the data when it was finished; None where it has to be made."""
    stamp = _read_stamp(folder) or {}
    done = stamp.get("finished") and stamp.get("of") == _fingerprint(folder, size)
    return str(stamp.get("note", "")) if done else None


def _stamp(folder: Path, content: dict[str, Any]) -> None:
    write_text(folder / STAMP, json.dumps(content, indent=1) + "\n")


def _clear(folder: Path) -> None:
    """Remove what was made here before; what carries no stamp of ours stays, and is an error."""
    if folder.exists() and _read_stamp(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds no demo data.", hint="Name another --folder, or move this one away.")
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it when the process ends, however that happens."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another process makes demo data in {root}.", hint="Wait for it, or name another --folder."
            ) from error
        yield
