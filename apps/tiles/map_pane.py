"""The map on both pages of the satellite app: pictures of the scene, tiles, heat map; and what the reviewer does on it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.map_viewer import map_viewer, picture, tile_bytes, tiles_for_viewer
from apps.shared.address import address, go, settle_part
from apps.shared.components import hold, problems
from apps.shared.heat_choices import colour_maps
from apps.shared.media import media_url
from apps.shared.memo import Memo, not_there
from apps.tiles.filters import TileFilters, paint
from apps.tiles.scene_image import STRETCHES, Look, Shown, look_of
from apps.tiles.session import TileSession

DETAIL_SIDE = 1400  # pixels of the sharper picture of the part in sight
MARGIN = 2  # sides of a tile around it that are fetched with it
Window = tuple[int, int, int, int]


@st.cache_resource(show_spinner=False)
def _pictures(scene: str) -> Memo:
    """Pictures of the scene that were made, for all who look at it."""
    return Memo(40, 2, "scene")


@st.cache_resource(show_spinner=False, max_entries=4)
def _places(scene: str, tiles: str, hidden: bool, _session: TileSession) -> bytes:
    return tile_bytes(_session.tiles, hidden=hidden)


def look_choices(session: TileSession, places: Any) -> None:
    """Which bands are shown and how they are stretched; ``places``: two columns. For the eye alone: the model sees the file."""
    scene = session.ground.scene
    key, look = look_of(scene, address())
    titles = {k: title for k, (title, _) in scene.presets().items()} | {"own": "any three bands"}
    hold("bands", key)
    hold("stretch", look.stretch)
    places[0].selectbox(
        "Bands", list(titles), format_func=titles.__getitem__, key="bands", on_change=_choose_bands, args=(session,),
        help="For the eye alone: the model sees its own bands, and never a stretch.",
    )  # fmt: skip
    if key == "own":
        names = scene.band_names
        with places[0].popover("Red, green, blue", width="stretch"):
            for i, colour in enumerate(("red", "green", "blue")):
                hold(f"band-{i}", look.bands[i])
                st.selectbox(f"Shown as {colour}", list(names), format_func=names.__getitem__, key=f"band-{i}",
                             on_change=_own_bands)  # fmt: skip
    places[1].selectbox("Stretch", list(STRETCHES), format_func=STRETCHES.__getitem__, key="stretch",
                        on_change=lambda: go(stretch=st.session_state["stretch"]),
                        help="Values of the whole scene that become black and white.")  # fmt: skip


def _choose_bands(session: TileSession) -> None:
    chosen = st.session_state["bands"]
    if chosen == "own":
        _, look = look_of(session.ground.scene, address())
        first = session.ground.scene.info.indexes
        chosen = ",".join(map(str, look.bands or (first * 3)[:3]))
    go(bands=chosen)


def _own_bands() -> None:
    go(bands=",".join(str(st.session_state[f"band-{i}"]) for i in range(3)))


@st.fragment
def map_pane(
    session: TileSession,
    rows: NDArray[np.int64],
    colouring: str,
    taken: int,
    item: str = "",
    name: str = "",
    method: str = "",
) -> None:
    """The map; drawn again alone while a heat map or a sharper picture is on its way.

    Args:
        session: Of this page.
        rows: Tiles in sight.
        colouring: One of ``tile_view.COLOURINGS``.
        taken: Pixels of the screen's height that the rest of the page needs.
        item: The tile in focus; empty on the map page.
        name: The class whose heat map is shown.
        method: By which it is made.
    """
    settle_part()
    with problems():
        _, look = look_of(session.ground.scene, address())
        row = session.row(item) if item else None
        focus = [int(v) for v in session.tiles.extents[row]] if row is not None else None
        info = session.ground.scene.info
        metres = info.resolution[0]
        data = {
            "mode": "tile" if focus else "map",
            "item": item,
            "look": f"{look.bands}{look.stretch}",
            "scene": {"width": info.width, "height": info.height},
            "unit": f", {metres:.3g} m a pixel" if metres == metres else "",
            "home": _around(focus, 1) if focus else [0, 0, info.width, info.height],
            "focus": focus,
            "base": _picture(session, look, None, "base"),
            "detail": _detail(session, look, item, focus),
            "tiles": tiles_for_viewer(session.tiles, _places(info.path, str(session.options.tiles), session.blinded, session),
                                      _painted(session, rows, colouring), hidden=session.blinded),
            "area": [list(p) for p in TileFilters.from_address(session).area] if not focus else [],
            "heat": heat_for_viewer(session, tuple(focus), name, method) if focus and name and method else None,
            "colourMaps": colour_maps() if focus else {},
            "taken": taken,
        }  # fmt: skip
        map_viewer(key="map", data=data, on_act_change=lambda: _acted(session))


def _around(extent: list[int], sides: int) -> list[int]:
    """A tile with so many sides of its own around it."""
    left, top, width, height = extent
    return [left - sides * width, top - sides * height, (1 + 2 * sides) * width, (1 + 2 * sides) * height]


def _picture(session: TileSession, look: Look, window: Window | None, slot: str) -> dict[str, Any]:
    scene = session.ground.scene

    def make() -> tuple[Shown, bytes]:
        shown = scene.overview(look) if window is None else scene.part(look, window, DETAIL_SIDE)
        return shown, shown.png

    shown, png = _pictures(scene.path).get((scene.resolution, scene.crs, look, window), make).result()
    return picture(shown, png, slot, key=f"{look.bands}{look.stretch}{window or ''}")


def _detail(session: TileSession, look: Look, item: str, focus: list[int] | None) -> dict[str, Any] | None:
    """The sharper picture: what the viewer asked for last, else the surroundings of the tile in focus."""
    asked = st.session_state.get("look") or {}
    if asked.get("place") == (item or "map"):
        return _picture(session, look, asked["window"], "detail")
    if focus:
        left, top, width, height = _around(focus, MARGIN)
        return _picture(session, look, (left, top, width, height), "detail")
    return None


def _painted(session: TileSession, rows: NDArray[np.int64], colouring: str) -> NDArray[np.uint8]:
    """Colours of the tiles; kept while nothing changes, for the map is drawn again at every move."""
    key = (session.options.tiles, colouring, rows.tobytes(), session.ledger.last, session.role)
    kept = st.session_state.get("paint")
    if kept is None or kept[0] != hash(key):
        kept = st.session_state["paint"] = (hash(key), paint(session, rows, colouring))
    return cast("NDArray[np.uint8]", kept[1])


def heat_for_viewer(session: TileSession, extent: tuple[int, ...], name: str, method: str) -> dict[str, Any]:
    """The heat map where it is ready; else its key, at which the viewer asks again."""
    window = cast("Window", extent)
    engine, key = session.ground.engine, f"{','.join(map(str, extent))}:{name}:{method}"
    future = engine.heat(window, name, method)
    if not future.done():
        engine.forget_waiting(window, name, method)
    absent = not_there(future, key)
    if absent:
        return absent
    made = future.result()
    return {**made.about, "url": media_url(made.png, "heat"), "key": key}


def _acted(session: TileSession) -> None:
    """What the viewer sends: a tile to open, an area, the wish for a sharper picture, or to be drawn again, which this is."""
    act = st.session_state["map"].get("act") or {}
    kind = act.get("kind")
    if kind == "open" and 0 <= int(act.get("index", -1)) < len(session.tiles):
        go(item=str(session.tiles.table["item"].iloc[int(act["index"])]), heat="")
    elif kind == "area":
        go(area=";".join(f"{float(x):g},{float(y):g}" for x, y in act.get("points", [])[:60]), page="")
    elif kind == "look":
        window = [int(v) for v in act.get("window", [])]
        if len(window) == 4 and window[2] > 0 and window[3] > 0:
            st.session_state["look"] = {"place": str(act.get("place")), "window": (*window,)}
