"""Films that a reviewer brings along: checked on the server by content, kept by reviewer for a day, then gone."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.films.worklist import film_row
from apps.shared.address import go
from apps.shared.components import problems, soft
from vitdomains.core.errors import ImageError
from vitdomains.core.files import write_text

if TYPE_CHECKING:
    from apps.films.session import Session

MAX_BYTES = 64 << 20
MAX_UPLOADS = 20  # a reviewer
KEPT_SECONDS = 24 * 3600


def _folder(cache: Path, reviewer: str) -> Path:
    return cache / "uploads" / hashlib.sha256(reviewer.encode()).hexdigest()[:16]


def kept_uploads(cache: Path, reviewer: str) -> dict[str, dict[str, Any]]:
    """Item to row of the films that a reviewer brought along and that are still kept; older ones are removed."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(_folder(cache, reviewer).glob("*.json")):
        if time.time() - file.stat().st_mtime > KEPT_SECONDS:
            file.unlink(missing_ok=True)
            file.with_suffix("").unlink(missing_ok=True)
            continue
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # removed by another page meanwhile
            continue
        found[str(row["item"])] = row
    return found


def upload_film(session: Session) -> None:
    """The uploader; an accepted film opens at once."""
    soft(
        "DICOM, PNG or JPEG, at most 64 MB. The film is kept on this server for a day, for you alone, and is not added to the "
        "list; a decision on it is stored under the hash of its content."
    )
    given = st.file_uploader("Film", key="upload", label_visibility="collapsed")
    uploads = kept_uploads(session.options.cache, session.reviewer.name)
    for item in uploads:
        st.button(f"Film {item[:8]}", key=f"uploaded:{item}", on_click=go, kwargs={"item": item})
    if uploads:
        st.button("Forget these films", key="forget-uploads", type="tertiary", on_click=forget_uploads, args=(session,))
    if given is None:
        return
    with problems():
        item = accept(session, given.getvalue())
        if st.session_state.get("upload_opened") != item:
            st.session_state["upload_opened"] = item
            go(item=item)
            st.rerun()


def forget_uploads(session: Session) -> None:
    """Remove this reviewer's films from the server."""
    shutil.rmtree(_folder(session.options.cache, session.reviewer.name), ignore_errors=True)


def accept(session: Session, content: bytes) -> str:
    """Check an uploaded film and put it among this reviewer's films; returns its item.

    The name that the browser sends plays no part: the file gets one of its own, and its type is that of its content.

    Raises:
        ImageError: It is too large, no film, or one too many.
    """
    from vitdomains.cxr.film.film import read_film

    if len(content) > MAX_BYTES:
        raise ImageError("the upload", f"has more than {MAX_BYTES >> 20} MB", tag="size", value=len(content))
    uploads = kept_uploads(session.options.cache, session.reviewer.name)
    item = hashlib.sha256(content).hexdigest()
    if item in uploads:
        return item
    if len(uploads) >= MAX_UPLOADS:
        raise ImageError("the upload", f"is one more than {MAX_UPLOADS} films", hint="Press Forget these films.")
    folder = _folder(session.options.cache, session.reviewer.name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / secrets.token_hex(8)
    path.write_bytes(content)
    try:
        read_film(path)  # refuses by content, size and pixels before anything else touches the file
        found, stacked = film_row(session.engine, str(path))
        scores = session.engine.scores([stacked])[0]
    except ImageError as error:
        path.unlink(missing_ok=True)
        raise ImageError("the upload", error.problem, tag=error.tag, value=error.value, hint=error.hint) from error
    row: dict[str, Any] = found | {"item": item, "path": str(path), "name": "uploaded film", "patient": "", "error": ""}
    row |= {f"prob:{c}": float(p) for c, p in zip(session.bundle.classes, scores, strict=True)}
    write_text(path.with_suffix(".json"), json.dumps(row))
    return item
