"""The satellite app, without a browser: map, filters, a round of reviewing, bulk, undo, export, and what it refuses."""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.io import MemoryFile
from rasterio.windows import Window

from tests.apps.rows import listed
from tests.apps.test_cxr_review import click, send, texts
from tests.satellite.scenes.test_map import one_file_a_band, write_scene, write_tiny_bundle
from tests.satellite.tile_files import write_raster
from tests.small_map import CLASSES, SmallMap, small_map
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ConfigError, ImageError, ManifestError
from vitdomains.core.geo.read.raster import describe_raster
from vitdomains.core.review.store import Answer, Assignment, Decision, ReviewStore
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.scenes.map import map_command

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'vitdomains[apps]'")

from streamlit import config
from streamlit.testing.v1 import AppTest

from apps.shared.access import Reviewer
from apps.shared.bundle_info import read_bundle_info
from apps.shared.decisions import DecisionTable
from apps.shared.drafts import Drafts
from apps.tiles import actions, export
from apps.tiles.engine import TileEngine
from apps.tiles.filters import TileFilters, paint, points_of, visible
from apps.tiles.map_pane import heat_for_viewer, tile_bytes
from apps.tiles.scene_image import NDVI, Look, SceneImage, look_of
from apps.tiles.session import (
    NOTICE,
    TileOptions,
    TileSession,
    open_scene_context,
    parse_tile_options,
    tile_words,
)
from apps.tiles.tile_list import TileList, read_tiles

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "satellite_review.py"


@dataclass
class SatelliteApp:
    """How a test starts the app."""

    map_: SmallMap
    url: str
    monkeypatch: pytest.MonkeyPatch

    @property
    def words(self) -> list[str]:
        """The command line that fits the map."""
        paths = {"bundle": self.map_.bundle, "tiles": self.map_.tiles, "scene": self.map_.scene, "store": self.url}
        return [word for name, path in paths.items() for word in (f"--{name}", str(path))] + ["--threads", "1"]

    def open(self, *words: str, **params: str) -> AppTest:
        """A fresh page, as after a reload."""
        given = [*self.words, "--reviewer", "ann", *words]
        self.monkeypatch.setattr(sys, "argv", ["satellite_review.py", *map(str, given)])
        made = AppTest.from_file(str(SCRIPT), default_timeout=60)
        for key, value in params.items():
            made.query_params[key] = value
        return made.run()

    @property
    def store(self) -> ReviewStore:
        return ReviewStore(self.url)

    def session(self, reviewer: str = "ann") -> TileSession:
        """What the pages work with, outside of a page."""
        decisions = DecisionTable(self.store)
        decisions.refresh()
        return TileSession(self.options, Reviewer(reviewer, frozenset({"reader"})), self.store, decisions, Drafts(),
                           open_scene_context(self.options))  # fmt: skip

    @property
    def options(self) -> TileOptions:
        return parse_tile_options(self.words)

    @property
    def tiles(self) -> TileList:
        info = describe_raster(self.map_.scene)
        facts = read_bundle_info(self.map_.bundle, "satellite", ("singlelabel", "multilabel"))
        return read_tiles(self.map_.tiles, str(self.map_.scene), info, facts)


def started(small: SmallMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SatelliteApp]:
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    yield SatelliteApp(small, f"sqlite:///{tmp_path / 'reviews.db'}", monkeypatch)
    config.set_option("server.address", before)


@pytest.fixture
def app(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SatelliteApp]:
    yield from started(small_map(tmp_path_factory), tmp_path, monkeypatch)


@pytest.fixture
def multi(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SatelliteApp]:
    yield from started(small_map(tmp_path_factory, "multilabel"), tmp_path, monkeypatch)


def param(page: AppTest, name: str) -> str:
    found = page.query_params.get(name, "")
    return found[0] if isinstance(found, list) else found


def labelled(app: SatelliteApp) -> pd.DataFrame:
    table = app.tiles.table
    return table[table["probability"].notna()]


def test_the_map_shows_all_labelled_tiles_with_a_legend(app: SatelliteApp) -> None:
    page = app.open()
    assert not page.exception and not page.error
    found = labelled(app)
    assert len(listed(page)) == min(100, len(found))
    text = texts(page)
    assert NOTICE in text and f"**{len(found):,}** of {len(app.tiles):,} tiles in sight" in text
    counts = found["label"].value_counts()
    assert f"<b>{counts.iloc[0]:,}</b>" in text and "sea &amp; lake" in text


@pytest.mark.parametrize(
    ("params", "holds"),
    [
        ({"class": "town"}, lambda t: t["label"] == "town"),
        ({"low": "0.4", "high": "0.6"}, lambda t: t["probability"].between(0.4, 0.6)),
        ({"class": "town", "low": "0.5"}, lambda t: (t["label"] == "town") & (t["prob:town"] >= 0.5)),
        ({"margin": "0.2"}, lambda t: t["margin"] <= 0.2),
        ({"entropy": "0.9"}, lambda t: t["entropy"] >= 0.9 * np.log(3)),
        ({"area": "0,0;60,0;60,45;0,45"}, lambda t: (t["col"] + 8 < 60) & (t["row"] + 8 < 45)),
        ({"status": "read"}, lambda t: t["label"] == "never"),
        ({"search": "000024_000012"}, lambda t: (t["col"] == 24) & (t["row"] == 12)),
    ],
)
def test_filters_from_the_address(app: SatelliteApp, params: dict[str, str], holds: object) -> None:
    page = app.open(**params)
    assert not page.exception
    table = labelled(app)
    expected = table[holds(table)]  # type: ignore[operator]
    assert f"**{len(expected):,}** of" in texts(page)
    if not len(expected):
        assert "No tile passes the filters" in texts(page)
        page = click(page, "clear")
        assert "status" not in page.query_params and len(listed(page)) == min(100, len(table))


def test_nonsense_in_the_address_is_ignored_and_a_filter_goes_there(app: SatelliteApp) -> None:
    page = app.open(status="?", low="x", margin="nan", area="1,2;3", sort="?", page="99", bands="1,2,99", colour="?")
    assert not page.exception and len(listed(page)) == min(100, len(labelled(app)))
    page.selectbox(key="filter:class").select("forest").run()
    assert param(page, "class") == "forest" and set(listed(page)["Label"]) == {"forest"}
    page.selectbox(key="filter:sort").select("unsure").run()
    shown = listed(page)["Probability"].tolist()
    assert shown == sorted(shown)


def test_the_queue_comes_in_its_order(app: SatelliteApp) -> None:
    queue = pd.read_parquet(app.map_.queue)["tile_id"].tolist()
    page = app.open("--queue", str(app.map_.queue), status="queue", sort="queue")
    assert [f"scene_{tile}" for tile in listed(page)["Tile"]] == queue
    page = click(page, "start")
    assert f"tile {queue[0]}" in texts(page).replace("\\", "") and "number 1 of the queue" in texts(page)


def test_a_round_of_reviewing(app: SatelliteApp) -> None:
    found = labelled(app)
    page = click(app.open(), "start")
    assert param(page, "item") == found["item"].iloc[0] and not page.exception and not page.error
    assert "margin" in texts(page) and "Adebayo" in texts(page)
    page = send(page, "note", found["item"].iloc[0], text="clear water")
    page = click(page, "say-0")  # one answer is the whole decision
    assert param(page, "item") == found["item"].iloc[1]
    other = next(k for k, c in enumerate(CLASSES, start=1) if c != found["label"].iloc[1])
    page = click(page, f"class-{other}")
    page = click(page, "say-1")
    page = click(page, "agree-next")
    assert not page.exception and param(page, "item") == found["item"].iloc[4]
    written = app.store.decisions()
    assert [d.item for d in written] == found["item"].iloc[:4].tolist()
    said = [d.answers["label"] for d in written]
    assert said == [Answer("agree"), Answer("label", CLASSES[other - 1]), Answer("disagree"), Answer("agree")]
    first = written[0]
    assert first.note == "clear water" and first.calls == {"label": found["label"].iloc[0]} and first.reviewer == "ann"
    assert first.bundle_id == found["model_id"].iloc[0] and set(first.probabilities) == set(CLASSES)
    assert first.probabilities["town"] == pytest.approx(found["prob:town"].iloc[0])
    again = app.open()
    assert "**4** reviewed by you" in texts(again)
    assert listed(again)["Mine"].tolist()[:5] == [
        found["label"].iloc[0], CLASSES[other - 1], f"not {found['label'].iloc[2]}", found["label"].iloc[3], "",
    ]  # fmt: skip


def test_a_reload_keeps_the_draft_and_undo_is_another_row(app: SatelliteApp) -> None:
    item = labelled(app)["item"].iloc[5]
    page = click(app.open(item=item, advance="0"), "say-2")
    again = app.open(item=item)
    assert next(b for b in again.button if b.key == "say-2").proto.type == "primary"
    click(again, "finish")
    page = click(app.open(item=item), "say-0")  # a correction
    assert len(app.store.decisions(item=item)) == 2
    page = click(page, "undo")
    assert param(page, "item") == item
    third = app.store.decisions(item=item)[2]
    assert third.answers == {"label": Answer("unsure")} and third.token.startswith("undo-2-")
    page = click(page, "undo")
    last = app.store.decisions(item=item)[3]
    assert last.answers == {} and last.note == "taken back"
    page = app.open()
    assert "**0** reviewed by you" in texts(page)
    page = click(page, "undo")
    assert app.store.count() == 4
    app.store.verify()


def test_acceptance_in_bulk_and_its_undo(app: SatelliteApp) -> None:
    found = labelled(app)
    towns = found[found["label"] == "town"]
    click(click(app.open(item=towns["item"].iloc[0]), "class-1"), "finish")
    page = click(app.open(**{"class": "town", "colour": "status"}), "bulk")
    assert not page.exception and not page.error
    written = app.store.decisions()
    assert {d.item for d in written[1:]} == set(towns["item"].iloc[1:])
    assert all(d.answers == {"label": Answer("agree")} and d.calls == {"label": "town"} for d in written[1:])
    assert f"**{len(towns)}** reviewed by you" in texts(page)
    page = click(page, "undo")
    assert "**1** reviewed by you" in texts(page) and app.store.count() == 1 + 2 * (len(towns) - 1)
    page = click(page, "undo")
    assert param(page, "item") == towns["item"].iloc[0] and "**0** reviewed by you" in texts(app.open())


def test_the_last_tile_leads_back_to_the_map(app: SatelliteApp) -> None:
    found = labelled(app)
    page = app.open(item=found["item"].iloc[0], search=found["tile_id"].iloc[0])
    page = click(page, "agree-next")
    assert "item" not in page.query_params and "All tiles in sight are reviewed" in texts(page)


def test_a_tile_that_the_model_left_out_can_still_be_named(app: SatelliteApp) -> None:
    table = app.tiles.table
    item = table.loc[table["probability"].isna(), "item"].iloc[0]
    page = app.open(item=item, status="nodata")
    assert not page.exception and "said nothing of this tile" in page.warning[0].value.replace("\\", "")
    assert page.button(key="say-0").disabled and page.button(key="agree-next").disabled
    click(click(page, "class-2"), "finish")
    (written,) = app.store.decisions()
    assert written.answers == {"label": Answer("label", CLASSES[1])} and written.calls == {}


def test_assigned_tiles_come_first_and_adjudicators_see_the_readers(app: SatelliteApp) -> None:
    items = labelled(app)["item"].tolist()
    app.store.assign([Assignment(items[7], "ann")], by="root")
    assert param(click(app.open(), "start"), "item") == items[7]
    for reviewer, key in (("ann", "say-0"), ("bob", "class-2"), ("bob", "say-1")):
        click(app.open("--reviewer", reviewer, item=items[9]), key)
    assert "bob" not in texts(app.open("--reviewer", "dora", item=items[9]))
    page = app.open("--reviewer", "dora", item=items[9], role="adjudicator", status="disagreement")
    assert "ann" in texts(page) and "bob" in texts(page) and "1 of 1 in sight" in texts(page)


def test_several_labels_are_answered_one_by_one(multi: SatelliteApp) -> None:
    found = labelled(multi)
    page = click(multi.open(), "start")
    assert not page.exception and not page.error and len(page.segmented_control) == 3
    page.segmented_control[0].set_value("agree").run()
    page = click(page, "up")
    page = click(page, "say-1")
    page = click(page, "agree-next")
    (written,) = multi.store.decisions()
    assert set(written.answers) == set(CLASSES) and sorted(a.verdict for a in written.answers.values()) == [
        "agree",
        "agree",
        "disagree",
    ]
    assert written.calls == {
        c: "present" if found[f"prob:{c}"].iloc[0] >= np.float32(0.4) else "absent" for c in CLASSES
    }
    assert "3 classes" in listed(multi.open())["Mine"].tolist()


def test_export_with_review_columns(app: SatelliteApp, tmp_path: Path) -> None:
    found = labelled(app)
    page = app.open(show="team")
    assert "Nothing to export" in texts(page)
    click(click(app.open(item=found["item"].iloc[0]), "class-2"), "finish")
    click(click(app.open("--reviewer", "bob", item=found["item"].iloc[1]), "say-1"), "finish")
    click(click(app.open("--reviewer", "bob", item=found["item"].iloc[0]), "class-2"), "finish")
    page = app.open(show="team")
    assert page.dataframe[0].value["Tiles read twice"].tolist() == [1]
    for kind in (".gpkg", ".csv", "decisions", ".zip"):
        page.selectbox(key="export-kind").select(kind).run()
        page = click(page, "export-make")
        assert not page.exception and not page.error and page.download_button(key="export-get") is not None
    session = app.session()
    table = export.reviewed_tiles(session)
    assert len(table) == len(app.tiles)
    assert table.loc[table["settled"], "review"].tolist() == [CLASSES[1], f"not {found['label'].iloc[1]}"]
    assert table["reviewers"].iloc[table.index[table["settled"]][0]] == "ann, bob"
    for ending, read in (
        (".gpkg", geopandas.read_file),
        (".geojson", geopandas.read_file),
        (".parquet", geopandas.read_parquet),
    ):
        file = tmp_path / f"out{ending}"
        export.write_table(session, export.reviewed_tiles(session, only_reviewed=True), file)
        frame = read(file)
        assert len(frame) == 2 and frame["review"].tolist()[0] == CLASSES[1]
        where = frame.to_crs("EPSG:32633").geometry.iloc[0].bounds
        x, y = 500_000 + 10 * found["col"].iloc[0], 5_200_000 - 10 * found["row"].iloc[0]
        np.testing.assert_allclose(where, (x, y - 160, x + 160, y), atol=0.01)


def test_blinded_nothing_of_the_model_is_shown_before_the_decision(app: SatelliteApp) -> None:
    found = labelled(app)
    page = app.open("--blinded", **{"class": "town", "low": "0.9", "colour": "class"})
    assert (
        not page.exception and set(listed(page).columns) == {"Tile", "Mine"} and f"**{len(found):,}** of" in texts(page)
    )
    assert page.selectbox(key="colour").options == ["my review"] and not page.slider
    session = replace(app.session(), options=replace(app.options, blinded=True))
    n = len(session.tiles)
    hidden = tile_bytes(session.tiles, hidden=True)
    assert set(np.frombuffer(hidden, "<u2", n, 16 * n)) == {len(CLASSES)} and not any(hidden[18 * n :])
    item, label = found["item"].iloc[0], found["label"].iloc[0]
    other = next(c for c in CLASSES if c != label)
    page = app.open("--blinded", item=item)
    assert "nats" not in texts(page) and f"{found['probability'].iloc[0]:.2f}" not in texts(page)
    assert page.button(key="agree-next").disabled and not any(s.key == "method" for s in page.selectbox)
    page = click(click(page, f"class-{CLASSES.index(other) + 1}"), "finish")
    assert (
        param(page, "item") == item and "nats" in texts(page) and f"{found['probability'].iloc[0]:.2f}" in texts(page)
    )
    (written,) = app.store.decisions()
    assert written.blinded and written.answers["label"].label == other and written.calls == {"label": label}
    page = click(page, "finish")
    assert param(page, "item") == found["item"].iloc[1] and len(app.store.decisions()) == 1


def test_who_took_a_blinded_decision_back_has_seen_the_model(app: SatelliteApp) -> None:
    item = labelled(app)["item"].iloc[2]
    page = click(click(app.open("--blinded", item=item), "class-1"), "finish")
    page = click(page, "undo")
    assert param(page, "item") == item and "nats" in texts(page), "what was shown is not hidden again"
    click(click(page, "class-2"), "finish")
    assert [d.blinded for d in app.store.decisions() if d.answers] == [True, False]


def test_blinded_nothing_is_accepted_in_bulk_and_nothing_exported(app: SatelliteApp) -> None:
    session = replace(app.session(), options=replace(app.options, blinded=True))
    actions.accept_all(session, "", np.arange(len(session.tiles)))
    assert not app.store.decisions()
    click(click(app.open("--blinded", item=labelled(app)["item"].iloc[0]), "class-1"), "finish")
    assert "what is exported says what the model says" in texts(app.open("--blinded", show="team"))
    assert any(b.key == "export-make" for b in app.open("--blinded", show="team", role="adjudicator").button)
    # Colours of a blinded map say what the reviewer said, whatever the address asks for.
    page = app.open("--blinded", colour="entropy", sort="unsure", **{"class": "town"})
    assert page.selectbox(key="colour").options == ["my review"] and page.selectbox(key="filter:sort").options == [
        "as mapped"
    ]
    queued = app.open("--blinded", "--queue", str(app.map_.queue), status="queue")
    assert "in the queue" not in queued.selectbox(key="filter:status").options


def test_what_was_answered_in_sight_of_the_model_is_no_blinded_answer(multi: SatelliteApp) -> None:
    item = labelled(multi)["item"].iloc[1]
    click(multi.open(item=item), "say-0")
    page = multi.open(item=item, blinded="1")
    assert not page.exception and not any(c.value for c in page.segmented_control)
    click(page, "say-0")
    page = multi.open(item=item)  # the other way round: a blinded answer is put into the words of the open page
    assert not page.exception and sum(c.value in ("agree", "disagree") for c in page.segmented_control) == 1


def test_blinded_several_classes_are_present_or_absent(multi: SatelliteApp) -> None:
    item = labelled(multi)["item"].iloc[0]
    page = multi.open(item=item, blinded="1")
    assert all([*c.options] == ["Present", "Absent", "Unsure"] for c in page.segmented_control)
    page = click(click(page, "say-0"), "finish")
    (written,) = multi.store.decisions()
    assert written.blinded and written.answers[CLASSES[0]].label == "present" and set(written.calls) == set(CLASSES)
    assert "nats" in texts(page)


def test_the_training_set_is_what_train_takes(app: SatelliteApp, tmp_path: Path) -> None:
    found = labelled(app)
    for n, key in ((0, "class-2"), (4, "say-1"), (6, "say-2")):
        click(click(app.open(item=found["item"].iloc[n]), key), "finish")
    export.training_set(app.session(), tmp_path / "set.zip")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        archive.extractall(tmp_path)
    made = read_manifest(tmp_path / "manifest.csv")
    assert made.table["id"].tolist() == found["tile_id"].iloc[[0, 4]].tolist() and made.classes == CLASSES
    assert made.table[CLASSES[1]].iloc[0] == 1 and made.table[found["label"].iloc[4]].iloc[1] == 0
    col, row = found["col"].iloc[4], found["row"].iloc[4]
    with rasterio.open(made.table["path"].iloc[1]) as tile, rasterio.open(app.map_.scene) as scene:
        np.testing.assert_array_equal(tile.read(), scene.read()[:, row : row + 16, col : col + 16])
        assert tile.crs == scene.crs and tile.transform @ (0, 0) == scene.transform @ (col, row)


def test_a_tile_that_is_not_there_and_a_shared_link(app: SatelliteApp) -> None:
    page = app.open(item="f" * 64)
    assert not page.exception and "There is no such tile" in texts(page)
    assert "item" not in click(page, "to-map").query_params
    moved = app.tiles.table["item"].tolist()
    assert len(set(moved)) == len(moved) and app.tiles.table["item"].tolist() == moved


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bundle", "nowhere"], "nowhere does not exist"),
        (["--tiles", "nowhere.parquet"], "nowhere.parquet does not exist"),
        (["--scene", "nowhere.tif"], "nowhere.tif does not exist"),
        (["--nonsense"], "Start it as"),
        (["--resolution", "20"], "do not lie on the pixels"),
        (["--store", "mysql://x"], "no store of reviews"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(app: SatelliteApp, words: list[str], text: str) -> None:
    page = app.open(*words)
    assert not page.exception and len(page.error) == 1
    assert text in page.error[0].value.replace("\\", "")


def test_tables_that_do_not_fit_are_refused(app: SatelliteApp, tmp_path: Path) -> None:
    info, facts = describe_raster(app.map_.scene), read_bundle_info(app.map_.bundle, "satellite", ("singlelabel",))
    table = pd.read_parquet(app.map_.tiles).drop(columns=["geometry", "bbox"])

    def refused(changed: pd.DataFrame, text: str) -> None:
        changed.to_parquet(tmp_path / "t.parquet")
        with pytest.raises(ManifestError, match=text):
            read_tiles(tmp_path / "t.parquet", str(app.map_.scene), info, facts)

    refused(table.rename(columns={"prob:town": "prob:city"}), "the bundle has")
    refused(table.assign(path="elsewhere.tif"), "its scenes are elsewhere.tif")
    refused(table.assign(col=-1), "lists image files")
    refused(table.iloc[:0], "holds no tile")
    refused(table.assign(col=table["col"] + 500), "do not lie on the pixels")
    refused(pd.concat([table, table]), "names a tile twice")
    (tmp_path / "q.csv").write_text("tile_id\nother\n")
    with pytest.raises(ManifestError, match="No tile of"):
        read_tiles(app.map_.tiles, str(app.map_.scene), info, facts, tmp_path / "q.csv")
    with pytest.raises(ConfigError, match="is no table"):
        parse_tile_options(
            ["--bundle", str(app.map_.bundle), "--tiles", str(app.map_.scene), "--scene", str(app.map_.scene)]
        )


def test_a_moved_scene_keeps_its_items(app: SatelliteApp, tmp_path: Path) -> None:
    moved = tmp_path / app.map_.scene.name
    moved.write_bytes(app.map_.scene.read_bytes())
    facts = read_bundle_info(app.map_.bundle, "satellite", ("singlelabel",))
    there = read_tiles(app.map_.tiles, str(moved), describe_raster(moved), facts)
    assert there.table["item"].tolist() == app.tiles.table["item"].tolist()


def test_bands_and_stretch_are_for_the_eye(tmp_path: Path) -> None:
    pixels = np.zeros((4, 40, 60), np.uint16)
    pixels[0], pixels[1], pixels[2], pixels[3] = 100, np.arange(60) * 10, 300, 900
    pixels[:, :, :5] = 0
    path = write_raster(tmp_path / "s.tif", pixels, bands=("blue", "green", "red", "nir"), nodata=0)
    scene = SceneImage(str(path))
    assert scene.roles == {"red": 3, "green": 2, "blue": 1, "nir": 4} and list(scene.presets()) == [
        "true",
        "false",
        NDVI,
    ]
    assert look_of(scene, {"bands": "false"}) == ("false", Look((4, 3, 2), "2"))
    assert look_of(scene, {"bands": "2,2,1", "stretch": "0"}) == ("own", Look((2, 2, 1), "0"))
    assert look_of(scene, {"bands": "7,8,9", "stretch": "x"})[0] == "true"
    shown = scene.part(Look((2, 2, 2), "0"), (0, 0, 60, 40), 600)
    assert shown.rect == (0, 0, 60, 40) and (shown.rgba[:, :5, 3] == 0).all() and (shown.rgba[:, 5:, 3] == 255).all()
    low, high = scene.limits(2, "0")
    assert (low, high) == (50, 590)
    np.testing.assert_allclose(shown.rgba[7, 5:, 0], np.rint(255 * (np.arange(5, 60) * 10 - 50) / 540), atol=1)
    # A part of the scene has the scene's own stretch: tiles compare.
    part = scene.part(Look((2, 2, 2), "0"), (20, 10, 10, 10), 600)
    np.testing.assert_array_equal(part.rgba, shown.rgba[10:20, 20:30])
    small = scene.overview(Look((2, 2, 2), "0"), 30)
    assert small.rgba.shape == (20, 30, 4) and small.rect == (0, 0, 60, 40)
    index = scene.part(Look(()), (10, 0, 4, 4), 600)
    assert len(np.unique(index.rgba.reshape(-1, 4), axis=0)) == 1
    outside = scene.part(Look((2, 2, 2)), (-10, -10, 20, 20), 600)
    assert outside.rect == (0, 0, 10, 10)


def test_a_scene_on_another_grid_is_placed_right(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(120, dtype=np.uint16), (3, 80, 1))
    path = write_raster(tmp_path / "s.tif", pixels)
    scene = SceneImage(str(path), resolution=20.0)
    assert (scene.info.width, scene.info.height) == (60, 40)
    shown = scene.part(Look((1, 1, 1), "stored"), (10, 10, 20, 20), 600)
    assert shown.rect == pytest.approx((10, 10, 20, 20)) and shown.rgba[5, 5, 0] == pytest.approx(2 * 15 + 0.5, abs=1)
    whole = scene.overview(Look((1, 1, 1), "stored"), 30)
    assert whole.rect == pytest.approx((0, 0, 60, 40), abs=0.05) and whole.rgba.shape[:2] == (20, 30)


def test_a_hundred_thousand_tiles_stay_fast(app: SatelliteApp) -> None:
    import time

    session = app.session()
    n = 100_000
    rng = np.random.default_rng(0)
    tiles = session.tiles
    rows = rng.integers(0, len(tiles), n)
    table = tiles.table.iloc[rows].reset_index(drop=True).assign(item=[f"{i:064d}" for i in range(n)])
    many = replace(tiles, table=table, called=tiles.called[rows], queued=np.full(n, n, np.int64))
    large = replace(session, context=replace(session.context, tiles=many))
    made = [Decision(f"{i:064d}", "b", "ann", {"label": Answer("agree")}, calls={"label": "town"}) for i in range(5000)]
    session.store.add(*made)
    session.decisions.refresh()
    filters = TileFilters(status="unread", name="town", low=0.3, sort="margin", area=points_of("0,0;90,0;90,90;0,90"))
    assert len(tile_bytes(many)) == 19 * n
    visible(large, filters)
    began = time.perf_counter()
    found = visible(large, filters)
    colours = paint(large, found, "status")
    assert time.perf_counter() - began < 1.0  # measured at a tenth of it; a loop over tiles would take several seconds
    assert 0 < len(found) < n and not (found < 5000).any()
    assert (colours[:, 3] > 0).sum() == len(found)
    margins = table["margin"].to_numpy()[found]
    assert (np.diff(margins) >= 0).all()


def test_words_of_what_was_said() -> None:
    calls = {"label": "town"}
    assert tile_words({"label": "town"}, calls, single=True) == {"label": "agree"}
    assert tile_words({"label": "not town"}, calls, single=True) == {"label": "disagree"}
    assert tile_words({"label": "forest"}, calls, single=True) == {"label": "forest"}
    assert tile_words({"label": "unsure"}, calls, single=True) == {"label": "unsure"}
    assert tile_words({"town": "absent"}, {"town": "present"}, single=False) == {"town": "disagree"}


def test_a_heat_map_that_cannot_be_made_says_why(app: SatelliteApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the app was not told the sensor: the viewer asks again and again, and must hear of it."""

    def fails(*_: Any) -> Any:
        raise ImageError("Doe_Jane.tif", "is no picture of 8 bits", hint="Say what took it.")

    monkeypatch.setattr(TileEngine, "_heat", fails)
    session, said = app.session(), []
    extent = tuple(int(v) for v in session.tiles.extents[0])
    for _ in range(100):
        said.append(heat_for_viewer(session, extent, CLASSES[0], "gradcam"))
        if "pending" not in said[-1]:
            break
        time.sleep(0.02)
    assert "is no picture of 8 bits" in said[-1]["error"] and "Say what took it." in said[-1]["error"]
    assert "Doe" not in said[-1]["error"] and heat_for_viewer(session, extent, CLASSES[0], "gradcam") == said[-1]


@dataclass(frozen=True)
class SplitMap(SmallMap):
    """A scene of 16 bits whose bands have a file each, the third with pixels of twice the size."""

    @property
    def scene(self) -> Path:
        return self.root / "coarse.json"


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SatelliteApp]:
    made = SplitMap(tmp_path / "split")
    made.root.mkdir()
    one_file_a_band(made.root, write_scene(made.root / "whole.tif", 80, 120, dtype="uint16"))
    write_tiny_bundle(made.bundle, storage="float32")  # it does not say of which sensor
    told = ["--sensor", "landsat8_l1", "--bands", "B4,B3,B2"]
    words = [made.scene, "--bundle", made.bundle, "--out", made.root / "m.tif", "--tiles", made.tiles, *told]
    assert map_command(DOMAIN, [*map(str, words), "--threads", "1"]) == 0
    yield from started(made, tmp_path, monkeypatch)


def test_a_scene_of_one_file_a_band_is_shown_as_it_was_mapped(split: SatelliteApp, tmp_path: Path) -> None:
    assert (split.options.sensor, split.options.bands) == ("landsat8_l1", "B4,B3,B2"), "as map was told"
    session = split.session()
    scene, whole = session.context.scene, SceneImage(str(split.map_.root / "whole.tif"))
    assert scene.roles == {"red": 1, "green": 2, "blue": 3} and scene.band_names[1] == "B4 (red)"
    assert next(iter(scene.presets())) == "true" and len(session.tiles) == len(pd.read_parquet(split.map_.tiles))
    look = Look((1, 2, 3), "0")
    for window in ((0, 0, 120, 80), (31, 17, 16, 16), (-8, -8, 32, 32)):
        one, other = scene.part(look, window, 60), whole.part(look, window, 60)
        assert one.rgba.shape == other.rgba.shape and one.rect == other.rect
        np.testing.assert_array_equal(one.rgba[..., [0, 1, 3]], other.rgba[..., [0, 1, 3]])
        assert np.abs(one.rgba[..., 2].astype(int) - other.rgba[..., 2]).mean() < 12
    heat = session.context.engine.heat((16, 16, 16, 16), CLASSES[0], session.context.engine.methods()[0]).result()
    assert heat.about["rect"] == [16, 16, 16, 16]
    with MemoryFile(export.tile_file(session, (10, 20, 16, 16))) as memory, memory.open() as tile:
        with rasterio.open(whole.path) as file:
            expected = file.read(window=Window(10, 20, 16, 16))
        np.testing.assert_array_equal(tile.read((1, 2)), expected[:2])
        assert (
            tile.descriptions == ("B4", "B3", "B2") and np.abs(tile.read(3) - expected[2]).mean() < 0.1 * expected.max()
        )
    page = split.open(item=str(session.tiles.table["item"].iloc[3]))
    assert not page.exception and not page.error
    with pytest.raises(ConfigError, match="2 files are not the 3 bands"):
        SceneImage(f"{whole.path}|{whole.path}", bands=("B4", "B3", "B2"))


def test_files_that_were_moved_are_known_by_their_names(split: SatelliteApp, tmp_path: Path) -> None:
    away = (
        tmp_path / "away" / split.map_.root.name
    )  # the folder goes along: files of a band are called alike everywhere
    other = tmp_path / "other"
    for folder in (away, other):
        folder.mkdir(parents=True)
        for name in ("red.tif", "green.tif", "coarse.tif", "coarse.json"):
            (folder / name).write_bytes((split.map_.root / name).read_bytes())
    words = ["--bundle", str(split.map_.bundle), "--tiles", str(split.map_.tiles), "--scene"]
    moved = open_scene_context(parse_tile_options([*words, str(away / "coarse.json")]))
    with pytest.raises(ManifestError, match="has no tile of"):
        open_scene_context(parse_tile_options([*words, str(other / "coarse.json")]))
    assert moved.tiles.table["item"].tolist() == open_scene_context(split.options).tiles.table["item"].tolist()
    with pytest.raises(ConfigError, match="nowhere.tif does not exist"):
        parse_tile_options([*words, f"{away / 'red.tif'}|nowhere.tif"])
