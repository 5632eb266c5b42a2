"""The pages of the zero-shot app: opens what a session needs, and draws the page that the address names."""

from __future__ import annotations

from apps.labels.options import TITLE, Options, stamp
from apps.labels.output_page import output_page
from apps.labels.page import review_page
from apps.labels.session import Session, open_labels, open_model, open_pictures
from apps.shared.address import address
from apps.shared.components import soft
from apps.shared.session import Screen, about, connect, log_out, other_page, role_switch


def draw(session: Session) -> Screen:
    """The page that the address names."""
    if address().get("show") == "output":
        output_page(session)
        return "", []
    return review_page(session)


def open_session(options: Options) -> Session:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: The labels or the store cannot be opened, or nobody knows who is at the other end.
    """
    changed = stamp(options.labels)
    return Session(
        *connect(options, TITLE), changed, open_labels(options.labels, changed),
        open_model(options.labels, changed, options.model, options.threads), open_pictures(options.labels, changed),
    )  # fmt: skip


def side_bar(session: Session) -> None:
    """Who reviews what, the other page, and the keys."""
    copies = len(session.labels.tiles) - len(session.labels.rows)
    tiles = f"Tiles: {len(session.labels.rows):,}" + (f", and {copies:,} copies of some of them" if copies else "")
    about(session, [f"Labels: {session.labels.folder.name}, bundle {session.labels.bundle_id}", tiles])
    other_page("output", "Export, labels, student", "Review")
    role_switch(session)
    log_out(session)
    soft(
        "Keys: left and right go from tile to tile, Page Up and Down from page to page, n to the next that waits; a accepts, "
        "1 to 9 and Shift+1 to 9 name a class, 0 none of them, u unsure, Shift+A accepts the page, z takes the last decision "
        "or the page back, l sorts by likeness, e export and student, Ctrl+Enter in the editor applies the classes."
    )
