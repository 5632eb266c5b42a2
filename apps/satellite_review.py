"""Review a mapped scene: ``streamlit run apps/satellite_review.py -- --bundle B --tiles landcover.parquet --scene scene.tif``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.shared.address import address
from apps.shared.components import TILES
from apps.shared.session import (
    Screen,
    about,
    blinded_switch,
    connect,
    log_out,
    other_page,
    role_switch,
    run_page,
)
from apps.tiles.map_page import map_page
from apps.tiles.session import NOTICE, TITLE, TileSession, open_scene_context, parse_tile_options
from apps.tiles.team_page import tiles_team_page
from apps.tiles.tile_page import tile_page
from vitdomains.core.geo.read.scene_paths import files_of


def open_session() -> TileSession:
    """The resources of the server and the reviewer of this page.

    Raises:
        VitDomainsError: Bundle, tiles, scene or store cannot be opened, or nobody knows who is at the other end.
    """
    options = parse_tile_options(sys.argv[1:])
    return TileSession(*connect(options, TITLE), open_scene_context(options))


def draw(session: TileSession) -> Screen:
    """The page that the address names."""
    item = address().get("item", "")
    if address().get("show") == "team":
        tiles_team_page(session)
    elif item:
        return item, tile_page(session, item)
    else:
        map_page(session)
    return "", []


def side_bar(session: TileSession) -> None:
    """Who reviews with what, and the few switches."""
    files = ", ".join(Path(file).name for file in files_of(session.context.scene.path))
    scene = f"Scene: {files}, {len(session.tiles):,} tiles"
    about(session, [f"Model: {session.bundle.model}, bundle {session.bundle.id}", scene])
    other_page("team", "Team, agreement, export", "Map")
    role_switch(session)
    blinded_switch(session)
    log_out(session)


run_page(TITLE, TILES, NOTICE, open_session, draw, side_bar)
