"""Films that a reviewer brings along: checked on the server by content, kept in a temporary folder of the session, then gone."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import streamlit as st

from apps.films.session import Session
from apps.films.worklist import header_facts, identity
from apps.shared.address import go
from apps.shared.components import problems, soft
from vitdomains.core.errors import ImageError

MAX_BYTES = 64 << 20
MAX_UPLOADS = 20  # a session


def upload_film(session: Session) -> None:
    """The uploader; an accepted film opens at once."""
    soft(
        "DICOM, PNG or JPEG, at most 64 MB. The film is kept in a temporary folder until you leave and is not added to the "
        "list; a decision on it is stored under the hash of its content."
    )
    given = st.file_uploader("Film", key="upload", label_visibility="collapsed")
    if given is None:
        return
    with problems():
        item = accept(session, given.getvalue())
        if st.session_state.get("upload_opened") != item:
            st.session_state["upload_opened"] = item
            go(item=item)
            st.rerun()


def accept(session: Session, content: bytes) -> str:
    """Check an uploaded film and put it among this session's films; returns its item.

    The name that the browser sends plays no part: the file gets one of its own, and its type is that of its content.

    Raises:
        ImageError: It is too large, no film, or one too many.
    """
    from vitdomains.cxr.film.film import read_film

    uploads = st.session_state.setdefault("uploads", {})
    if len(content) > MAX_BYTES:
        raise ImageError("the upload", f"has more than {MAX_BYTES >> 20} MB", tag="size", value=len(content))
    if len(uploads) >= MAX_UPLOADS:
        raise ImageError(
            "the upload", f"is one more than {MAX_UPLOADS} films", hint="Reload the page to forget the others."
        )
    folder = st.session_state.setdefault("upload_folder", tempfile.TemporaryDirectory(prefix="vitdomains-upload-"))
    path = Path(folder.name) / secrets.token_hex(8)
    path.write_bytes(content)
    try:
        read_film(path)  # refuses by content, size and pixels before anything else touches the file
        row = identity(str(path))
        if row["item"] in uploads:
            path.unlink()
            return str(row["item"])
        row |= header_facts(str(path))
        stacked, _ = session.engine.prepared(str(path))
        scores = session.engine.scores([stacked])[0]
    except ImageError as error:
        path.unlink(missing_ok=True)
        raise ImageError("the upload", error.problem, tag=error.tag, value=error.value, hint=error.hint) from error
    names = ("sex", "age_band", "view", "modality", "date", "error")
    uploads[row["item"]] = (
        dict.fromkeys(names, "")
        | {"path": str(path), "name": "uploaded film", "patient": ""}
        | row
        | {f"prob:{c}": float(p) for c, p in zip(session.facts.classes, scores, strict=True)}
    )
    return str(row["item"])
