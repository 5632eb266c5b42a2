"""The map on both pages of the satellite app: pictures of the scene, tiles, heat map; and what the reviewer does on it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from apps.map_viewer import map_viewer
from apps.shared.address import address, go, settle_part
from apps.shared.components import hold, problems
from apps.shared.loading import colour_maps
from apps.shared.media import media_url
from apps.shared.memo import Memo, not_there
from apps.tiles.filters import TileFilters, paint
from apps.tiles.scene_image import STRETCHES, Look, Shown, look_of
from apps.tiles.session import TileSession
from apps.tiles.tile_list import TileList

BYTES = "application/octet-stream"
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
    scene = session.context.scene
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
        _, look = look_of(session.context.scene, address())
        first = session.context.scene.info.indexes
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
    ahead: Sequence[str] = (),
) -> None:
    """The map; drawn again alone while a heat map or a sharper picture is on its way.

    Args:
        session: Of this page.
        rows: Tiles in sight.
        colouring: One of ``filters.COLOURINGS``.
        taken: Pixels of the screen's height that the rest of the page needs.
        item: The tile in focus; empty on the map page.
        name: The class whose heat map is shown.
        method: By which it is made.
        ahead: Tiles that will be in focus next.
    """
    settle_part()
    with problems():
        _, look = look_of(session.context.scene, address())
        row = session.row(item) if item else None
        focus = [int(v) for v in session.tiles.extents[row]] if row is not None else None
        info = session.context.scene.info
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
            "ahead": _pictures_ahead(session, look, ahead),
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


def _made(session: TileSession, look: Look, window: Window | None) -> Future[tuple[Shown, bytes]]:
    scene = session.context.scene

    def make() -> tuple[Shown, bytes]:
        shown = scene.overview(look) if window is None else scene.part(look, window, DETAIL_SIDE)
        return shown, shown.png

    return _pictures(scene.path).get((scene.resolution, scene.crs, look, window), make)


def _picture(session: TileSession, look: Look, window: Window | None, slot: str) -> dict[str, Any]:
    shown, png = _made(session, look, window).result()
    return picture(shown, png, slot, key=f"{look.bands}{look.stretch}{window or ''}")


def _surroundings(focus: list[int]) -> Window:
    left, top, width, height = _around(focus, MARGIN)
    return left, top, width, height


def _pictures_ahead(session: TileSession, look: Look, ahead: Sequence[str]) -> dict[str, Any]:
    """Sharp pictures of tiles that come next, as far as they are made; the others are begun."""
    windows = {item: _surroundings(session.tiles.extents[session.tiles.position[item]].tolist()) for item in ahead}
    ready = {item: _made(session, look, window).done() for item, window in windows.items()}
    return {item: _picture(session, look, windows[item], f"ahead{n}") for n, item in enumerate(ahead) if ready[item]}


def _detail(session: TileSession, look: Look, item: str, focus: list[int] | None) -> dict[str, Any] | None:
    """The sharper picture: what the viewer asked for last, else the surroundings of the tile in focus."""
    asked = st.session_state.get("look") or {}
    if asked.get("place") == (item or "map"):
        return _picture(session, look, asked["window"], "detail")
    if focus:
        return _picture(session, look, _surroundings(focus), "detail")
    return None


def _painted(session: TileSession, rows: NDArray[np.int64], colouring: str) -> NDArray[np.uint8]:
    """Colours of the tiles; kept while nothing changes, for the map is drawn again at every move."""
    key = (session.options.tiles, colouring, rows.tobytes(), session.decisions.last, session.role)
    kept = st.session_state.get("paint")
    if kept is None or kept[0] != hash(key):
        kept = st.session_state["paint"] = (hash(key), paint(session, rows, colouring))
    return cast("NDArray[np.uint8]", kept[1])


def heat_for_viewer(session: TileSession, extent: tuple[int, ...], name: str, method: str) -> dict[str, Any]:
    """The heat map where it is ready; else its key, at which the viewer asks again."""
    window = cast("Window", extent)
    engine, key = session.context.engine, f"{','.join(map(str, extent))}:{name}:{method}"
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


def picture(shown: Shown, png: bytes, slot: str, **more: Any) -> dict[str, Any]:
    """A picture of the scene as the viewer takes it."""
    return {"url": media_url(png, slot), "rect": list(shown.rect), **more}


def tile_bytes(tiles: TileList, *, hidden: bool = False) -> bytes:
    """Places, classes and probabilities of N tiles: int32 [N, 4], uint16 [N] (K: none) and uint8 [N] in percent, in a row.

    ``hidden``: without what the model said.
    """
    code = np.where((tiles.code < 0) | hidden, len(tiles.classes), tiles.code).astype("<u2")
    percent = np.rint(100 * np.nan_to_num(tiles.table["probability"].to_numpy(np.float32))).astype(np.uint8)
    percent[hidden] = 0
    return tiles.extents.astype("<i4").tobytes() + code.tobytes() + percent.tobytes()


def tiles_for_viewer(
    tiles: TileList, places: bytes, colours: NDArray[np.uint8], *, hidden: bool = False
) -> dict[str, Any]:
    """The tiles as the viewer takes them; ``colours`` is [N, 4] RGBA, clear for what is out of sight; ``hidden``: blinded."""
    return {
        "count": len(tiles),
        "step": list(tiles.step),
        "places": media_url(places, "places", BYTES),
        "paint": media_url(colours.tobytes(), "paint", BYTES),
        "absent": "blinded" if hidden else "no label",
        "names": [name.replace("_", " ") for name in tiles.classes],
    }
