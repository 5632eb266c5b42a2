"""The zero-shot app without a browser: classes and prompts, thresholds, search, decisions, bulk accept, labels and a student."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'vitdomains[apps]'")

from streamlit import config
from streamlit.testing.v1 import AppTest

from apps.labels.labelling import NO_LABEL, make_view
from apps.labels.options import NOTICE, stamp
from apps.labels.output import labels_of
from apps.labels.prompts import as_text, as_yaml, parse, write_asked
from apps.labels.session import open_model
from apps.labels.store import read_labels
from tests.apps.test_cxr_review import send
from tests.zeroshot import tiny
from vitdomains import satellite
from vitdomains.core.bundle import read_bundle
from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.files import file_sha256
from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.review.store import Answer, Decision, ReviewStore
from vitdomains.zeroshot.embeddings.store import plan_tiles
from vitdomains.zeroshot.labels.label import Compute, Options, label_tiles
from vitdomains.zeroshot.labels.prompts import make_prompts, read_classes
from vitdomains.zeroshot.models.towers import Towers, load_towers
from vitdomains.zeroshot.students.student import read_reviewed, read_tiles

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "zeroshot_review.py"
CLASSES = "forest, river or lake, residential buildings, parking lot"
NAMES = tuple(CLASSES.split(", "))
EXACT = Compute(ComputeOptions(shard_size=32), "fp32", batch_size=8)
TILES = 40  # that can be read, all different


def texts(page: AppTest) -> str:
    """All that stands on the page."""
    kinds = (page.markdown, page.caption, page.error, page.info, page.warning, page.success, page.html, page.subheader)
    found = [str(getattr(e, "value", None) or getattr(e.proto, "body", "")) for kind in kinds for e in kind]
    found += [f"{w.label} {getattr(w, 'value', '')}" for w in page.button]
    found += [option for radio in page.radio for option in radio.options]
    return "\n".join(found).replace("\\", "")


def click(page: AppTest, key: str) -> AppTest:
    clicked = page.button(key=key).click().run()
    assert not clicked.exception, clicked.exception
    return clicked


def address(page: AppTest, key: str) -> str:
    value = page.query_params.get(key, "")
    return value[0] if isinstance(value, list) else value


def counts(page: AppTest) -> dict[str, int]:
    """Label to the count that the list shows."""
    parts = [option.replace("\\", "").split(" · **") for option in page.radio[0].options]
    return {name: int(rest.split("**")[0].replace(",", "")) for name, rest in parts}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in ``clip``, tiles of which one is a copy and one cannot be read, and their labels."""
    folder = tmp_path_factory.mktemp("zeroshot")
    tiny.clip().save(folder / "clip")
    tiny.write_tiles(folder / "tiles", TILES)
    (folder / "tiles" / "bad.png").write_bytes(b"no picture")
    (folder / "tiles" / "copy.png").write_bytes((folder / "tiles" / "tile_00003.png").read_bytes())
    label_tiles(
        load_towers(folder / "clip"),
        read_classes(CLASSES),
        plan_tiles([folder / "tiles"]),
        folder / "labels",
        compute=EXACT,
    )
    return folder


@pytest.fixture(scope="module")
def towers(root: Path) -> Towers:
    return load_towers(root / "clip")


@dataclass
class App:
    """How a test starts the app: labels and a store of its own."""

    labels: Path
    url: str
    monkeypatch: pytest.MonkeyPatch

    def open(self, *words: str, **params: str) -> AppTest:
        """A fresh page, as after a reload, with the model loaded."""
        self.arguments(*words)
        model = open_model(self.labels, stamp(self.labels), "", 1)
        until = time.monotonic() + 60
        while model.loading:
            assert time.monotonic() < until
            time.sleep(0.05)
        return self.page(**params)

    def arguments(self, *words: str) -> None:
        given = ["--labels", self.labels, "--store", self.url, "--reviewer", "ann", "--threads", "1", *words]
        self.monkeypatch.setattr(sys, "argv", ["zeroshot_review.py", *map(str, given)])

    def page(self, **params: str) -> AppTest:
        made = AppTest.from_file(str(SCRIPT), default_timeout=60)
        for key, value in params.items():
            made.query_params[key] = value
        return made.run()

    @property
    def store(self) -> ReviewStore:
        return ReviewStore(self.url)


@pytest.fixture
def app(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    shutil.copytree(root / "labels", tmp_path / "labels")
    yield App(tmp_path / "labels", f"sqlite:///{tmp_path / 'reviews.db'}", monkeypatch)
    config.set_option("server.address", before)


def test_the_page_shows_labels_with_counts_and_the_notice(app: App, root: Path) -> None:
    page = app.open()
    assert not page.exception and not page.error
    assert NOTICE in texts(page) and f"{TILES + 1} in sight, page 1 of 2" in texts(page)
    table = read_tiles(app.labels).drop_duplicates("path")
    table = table[~table["path"].str.endswith("copy.png") | (table["label"] == "")]
    expected = table["label"].replace("", NO_LABEL).value_counts().to_dict()
    shown = counts(page)
    assert shown.pop("all tiles") == TILES + 1
    assert {name: n for name, n in shown.items() if n} == expected
    assert str(root) not in texts(page)


def test_borderline_tiles_come_first_and_the_sheet_follows_the_label(app: App) -> None:
    labels = read_labels(app.labels)
    page = app.open()
    table = labels.shown.reset_index(drop=True)
    closest = table["margin"].astype(float).idxmin()  # without thresholds another label is as far as the second class
    first = click(page, "next")
    second = table["margin"].astype(float).argsort().iloc[1]
    assert address(first, "item") == labels.items[labels.rows[second]]
    assert address(click(first, "previous"), "item") == labels.items[labels.rows[closest]]
    name = table["label"].value_counts().index[0]
    page.radio[0].set_value(name).run()
    assert address(page, "label") == name and f"{counts(page)[name]} in sight" in texts(page)
    page.checkbox(key="near").check().run()
    assert address(page, "near") == "1" and not page.exception


def test_prompts_change_counts_without_an_image_pass(app: App, root: Path, towers: Towers) -> None:
    page = app.open()
    before = counts(page)
    typed = "forest: dense trees\nwater > river or lake\n# not a class\nbeach | sea and sand of a beach\n- parking lot"
    page.text_area(key="classes").set_value(typed).run()
    assert not page.exception and not page.error
    after = counts(page)
    assert "beach" in after and "residential buildings" not in after and "parking lot" not in after and after != before

    # What the page says is what the model says of the pictures, computed anew.
    prompts = parse(typed, read_classes(CLASSES).templates, read_classes(CLASSES))
    again = label_tiles(towers, prompts, plan_tiles([root / "tiles"]), root / "again", index_folder=app.labels / "index",
                        options=Options(sheets=False), compute=EXACT)  # fmt: skip
    table = read_tiles(again.folder)
    table = table[~table["path"].str.endswith("copy.png")]
    expected = table["label"].replace("", NO_LABEL).value_counts().to_dict()
    assert {k: v for k, v in after.items() if v and k != "all tiles"} == expected

    # A shared link opens the same classes; the way back is one button.
    link = {"asked": address(page, "asked")}
    other = app.open(**link)
    assert counts(other) == after and other.text_area(key="classes").value == page.text_area(key="classes").value
    other = click(other, "as-labelled")
    assert counts(other) == before and "asked" not in other.query_params


def test_the_label_in_sight_stays_while_prompts_and_thresholds_change(app: App) -> None:
    page = app.open(label=NAMES[1])
    page.text_area(key="classes").set_value(f"beach\n{NAMES[1]}: water\nmeadow").run()
    assert address(page, "asked") and address(page, "label") == NAMES[1] == page.radio[0].value
    page.slider(key="threshold").set_value(0.5).run()
    assert address(page, "t").split(",")[1] == "0.5" and address(page, "label") == NAMES[1] == page.radio[0].value
    page.text_area(key="classes").set_value("beach\nmeadow").run()
    assert page.radio[0].value == "" and not page.exception


def test_text_that_is_no_class_list_stays_with_the_reason(app: App) -> None:
    page = app.open()
    page.text_area(key="classes").set_value("forest\nforest").run()
    assert "stands twice" in page.error[0].value.replace("\\", "") and "asked" not in page.query_params
    assert page.text_area(key="classes").value == "forest\nforest"
    page.text_area(key="classes").set_value("forest\n: trees").run()
    assert "Line 2 is no class" in page.error[0].value.replace("\\", "")
    page = click(page, "as-labelled")
    assert not page.error and page.text_area(key="classes").value.startswith("forest\n")


def test_a_template_set_is_part_of_the_question(app: App) -> None:
    page = app.open()
    page.selectbox(key="templates").select("photo").run()
    assert not page.exception and address(page, "asked")
    kept = json.loads((app.labels / "asked" / f"{address(page, 'asked')}.json").read_text())
    assert kept["classes"][0]["prompts"] == ["a photo of a forest."]
    assert page.selectbox(key="templates").value == "photo"


def test_thresholds_move_tiles_to_unknown(app: App) -> None:
    page = app.open()
    labels = read_labels(app.labels)
    p = labels.probabilities
    best = np.nan_to_num(p).max(axis=1)
    limit = round(float(np.median(best[best > 0])), 2)
    page.slider(key="threshold").set_value(limit).run()
    assert counts(page)[UNKNOWN] == int(((best < limit) & (best > 0)).sum()) > 0
    reloaded = app.open(t=address(page, "t"))
    assert counts(reloaded) == counts(page)
    name = NAMES[int(np.bincount(np.nan_to_num(p).argmax(axis=1)[best > 0]).argmax())]
    one = app.open(label=name)
    one.slider(key="threshold").set_value(1.0).run()
    found = counts(one)
    assert found[name] == 0 and all(found[c] == counts(app.open())[c] for c in NAMES if c != name)


def test_search_finds_what_the_command_finds_and_tiles_like_a_tile(app: App, towers: Towers) -> None:
    from vitdomains.zeroshot.embeddings.run import text_query
    from vitdomains.zeroshot.embeddings.store import nearest_tiles, open_index

    page = app.open()
    page.text_input(key="q").set_value("blue water").run()
    assert not page.exception and address(page, "q") == "blue water" and page.selectbox(key="order").value == "similar"
    nearest = nearest_tiles(open_index(app.labels / "index"), text_query(towers, "blue water")[0], 2)["path"].tolist()
    page = click(click(page, "next"), "previous")
    assert address(page, "item") == file_sha256(Path(nearest[0]))
    page = click(page, "like")
    assert address(page, "like") == file_sha256(Path(nearest[0])) and "q" not in page.query_params


def test_a_round_of_decisions(app: App) -> None:
    labels = read_labels(app.labels)
    page = click(app.open(), "waiting")
    first = address(page, "item")
    page = send(page, "note", first, text="sand, not water")
    page = click(page, f"class:{NAMES[2]}")
    second = address(page, "item")
    page = click(page, "accept")
    page = click(page, "none")
    page = click(page, "unsure")
    written = app.store.decisions()
    row = labels.shown[labels.items[labels.rows] == first].iloc[0]
    assert written[0].item == first == file_sha256(Path(row["path"])) and second != first
    assert written[0].note == "sand, not water" and written[0].calls == {"label": row["label"]}
    agrees = row["label"] == NAMES[2]
    assert written[0].answers == {"label": Answer("agree") if agrees else Answer("label", NAMES[2])}
    assert [d.answers["label"].verdict for d in written[1:]] == ["agree", "label", "unsure"]
    assert written[2].answers["label"].label == UNKNOWN and len({d.item for d in written}) == 4
    assert written[0].reviewer == "ann" and written[0].bundle_id == labels.bundle_id
    assert written[0].probabilities[NAMES[0]] == pytest.approx(float(row[f"prob:{NAMES[0]}"]))
    app.store.verify()
    assert "4 in sight" in texts(app.open(status="done")) and f"{TILES + 1 - 4} in sight" in texts(
        app.open(status="open")
    )
    again = app.open(item=first)
    assert f"You said: {NAMES[2]}" in texts(again)


def test_a_decision_on_other_prompts_says_which(app: App) -> None:
    page = app.open()
    page.text_area(key="classes").set_value("beach\nmeadow").run()
    click(page, "accept")
    (written,) = app.store.decisions()
    assert written.bundle_id.endswith(f"with prompts {address(page, 'asked')}") and set(written.probabilities) == {
        "beach",
        "meadow",
    }


def test_accepting_a_page_and_a_class_above_its_threshold(app: App) -> None:
    page = click(app.open(order="listed"), "accept-page")
    assert len(app.store.decisions()) == 30 - 1  # one of the page cannot be read
    labels = read_labels(app.labels)
    p = labels.probabilities
    name = labels.shown["label"].value_counts().index[0]
    k = NAMES.index(name)
    limit = round(float(np.nanquantile(p[:, k], 0.6)), 2)
    page = app.open(label=name)
    page.slider(key="threshold").set_value(limit).run()
    seen = {d.item for d in app.store.decisions()}
    wins = (np.nan_to_num(p).argmax(axis=1) == k) & (np.nan_to_num(p[:, k]) >= limit)
    expected = set(labels.items[labels.rows][wins]) - seen
    assert expected
    page = click(page, "bulk-ask")
    assert f"Accept {len(expected)} tiles as {name}" in texts(page) and len(app.store.decisions()) == len(seen)
    page = click(page, "bulk-yes")
    more = app.store.decisions()[len(seen) :]
    assert {d.item for d in more} == expected and {d.answers["label"] for d in more} == {Answer("agree")}
    assert more[0].note == f"accepted together: {name} from {limit:.2f} on"
    assert page.button(key="bulk-ask").disabled


def test_a_tile_that_cannot_be_read_says_so_and_takes_no_decision(app: App) -> None:
    page = app.open(label=NO_LABEL)
    assert "1 in sight" in texts(page) and "nothing to decide" in texts(page)
    assert "no picture" in page.error[0].value and not [b for b in page.button if b.key == "accept"]
    click(page, "accept-page")
    assert app.store.count() == 0


def test_nonsense_in_the_address_is_ignored_and_a_lost_link_says_so(app: App) -> None:
    page = app.open(label="?", order="?", status="?", t="x,y", item="?", near="?", like="?")
    assert not page.exception and "There is no such tile" in texts(page)
    page = app.open(asked="0123456789ab")
    assert not page.exception and "not kept here" in page.error[0].value
    assert counts(page) == counts(app.open())
    page = app.open(asked="../../etc/passwd")
    assert not page.exception and "not kept here" in page.error[0].value


def test_an_adjudicator_sees_readers_and_has_the_last_word(app: App) -> None:
    labels = read_labels(app.labels)
    item = str(labels.items[labels.rows[0]] if labels.shown["label"].iloc[0] else labels.items[labels.rows[1]])
    for reader, name in (("bob", "forest"), ("eve", "parking lot")):
        app.store.add(Decision(item, "b", reader, {"label": Answer("label", name)}, calls={"label": "forest"}))
    assert "bob" not in texts(app.open(item=item))
    assert "1 in sight" in texts(app.open(status="disagreement"))
    page = app.open(item=item, role="adjudicator")
    assert "bob: forest." in texts(page) and "eve: parking lot." in texts(page)
    click(page, "class:parking lot")
    assert app.store.decisions()[-1].role == "adjudicator"
    assert "No tile passes" in texts(app.open(status="disagreement"))


def test_assigned_tiles_come_first(app: App) -> None:
    page = app.open(show="output")  # who works alone on this machine is admin, too
    page.multiselect(key="assign-readers").set_value(["ann", "bob"])
    page.number_input(key="assign-each").set_value(1)
    page.number_input(key="assign-count").set_value(4)
    page = click(page, "FormSubmitter:assign-Deal out")
    assert not page.exception and "4 readings dealt out" in texts(page).replace("\\", "")
    mine = set(app.store.assignments("ann")["item"])
    assert len(mine) == 2 == len(app.store.assignments("bob"))
    page = app.open(status="mine")
    assert "2 in sight" in texts(page)
    page = app.open()
    seen = []
    for _ in range(2):
        page = click(page, "waiting")
        seen.append(address(page, "item"))
        page.run()
    assert set(seen) == mine


def test_export_and_accepted_labels(app: App, tmp_path: Path) -> None:
    page = app.open(show="output")
    assert "Nothing to export" in texts(page) and "No label is settled" in texts(page)
    labels = read_labels(app.labels)
    tiles = labels.tiles.set_index("path")
    copied = next(p for p in tiles.index if p.endswith("tile_00003.png"))
    app.store.add(
        Decision(file_sha256(Path(copied)), "b", "ann", {"label": Answer("label", "forest")}, calls={"label": "x"})
    )
    page = app.open(show="output")
    names = {b.key: b.label for b in page.download_button}
    assert names["csv"] == "Decisions as CSV (1)" and "parquet" in names and "(2 tiles)" in names["accepted"]
    found = labels_of(labels, {file_sha256(Path(copied)): "forest"})
    found.to_csv(tmp_path / "accepted.csv", index=False)
    given = read_reviewed(tmp_path / "accepted.csv", labels.tiles)
    assert set(given.values()) == {"forest"} and len(given) == 2


def test_a_student_gets_accepted_and_confident_tiles_and_a_file_that_trains(app: App) -> None:
    labels = read_labels(app.labels)
    good = labels.shown[labels.shown["label"] != ""].sort_values("probability", ascending=False)
    items = [file_sha256(Path(p)) for p in good["path"]]
    app.store.add(
        Decision(items[0], "b", "ann", {"label": Answer("label", UNKNOWN)}, calls={"label": "x"}),
        Decision(items[1], "b", "ann", {"label": Answer("unsure")}, calls={"label": "x"}),
        Decision(items[-1], "b", "ann", {"label": Answer("label", "parking lot")}, calls={"label": "x"}),
    )
    page = app.open(show="output")
    page.slider(key="confident").set_value(0.0)
    page.text_input(key="run-dir").set_value("runs/mine")
    page = click(page, "FormSubmitter:student-Write the training file")
    assert not page.error and "Written: 1 accepted and" in texts(page)
    manifest = read_manifest(app.labels / "manifest.csv")
    table = manifest.table.set_index("path")
    assert good["path"].iloc[0] not in table.index and good["path"].iloc[1] not in table.index
    corrected = table.loc[good["path"].iloc[-1]]
    assert corrected["parking lot"] == 1 and corrected["weight"] == 1 and bool(corrected["reviewed"])
    made = parse_config(["--config", str(app.labels / "student.yaml")], satellite.default_config(), "train")
    assert made.run.dir == "runs/mine" and made.data.classes == list(NAMES)
    page.slider(key="confident").set_value(1.0)
    app.store.add(Decision(items[-1], "b", "ann", {"label": Answer("unsure")}, calls={"label": "x"}))
    page = click(page, "FormSubmitter:student-Write the training file")
    assert "No tile of" in page.error[0].value.replace("\\", "")


def test_classes_in_sight_become_the_labels(app: App) -> None:
    page = app.open()
    page.text_area(key="classes").set_value("beach: sea\nmeadow").run()
    page.slider(key="threshold").set_value(0.55).run()
    wanted = counts(page)
    asked = {key: address(page, key) for key in ("asked", "t")}
    page = app.open(show="output", **asked)
    assert "go back to those" in texts(page)
    page = click(page, "write-labels")
    assert not page.error and "asked" not in page.query_params
    table = read_tiles(app.labels)
    assert read_bundle(app.labels / "bundle").classes == ("beach", "meadow")
    table = table[~table["path"].str.endswith("copy.png")]
    found = table["label"].replace("", NO_LABEL).value_counts().to_dict()
    assert found == {k: v for k, v in wanted.items() if v and k != "all tiles"}
    assert table.loc[table["path"].str.endswith("bad.png"), "error"].iloc[0]
    fresh = app.open()
    assert counts(fresh) == wanted and fresh.button(key="as-labelled").disabled


def test_who_holds_no_admin_role_changes_no_file(app: App) -> None:
    app.store.grant("bob", "reader", by="ann")
    app.open()
    app.arguments("--user_header", "X-User")
    app.monkeypatch.setattr("streamlit.runtime.context.ContextProxy.headers", {"X-User": "bob"})
    page = app.page(show="output")
    assert not page.exception and "reviewers stay independent" in texts(page) and not page.get("form")
    assert [b.key for b in page.download_button] == ["yaml"]
    other = app.page(show="output", asked=_kept(app))
    assert other.button(key="write-labels").disabled
    page = click(app.page(), "accept")
    assert [d.reviewer for d in app.store.decisions()] == ["bob"]
    app.monkeypatch.setattr("streamlit.runtime.context.ContextProxy.headers", {"X-User": "eve"})
    assert "hold no role" in app.page().warning[0].value


def _kept(app: App) -> str:
    prompts = read_classes("beach, meadow")
    return write_asked(app.labels, prompts)


def test_without_the_model_review_goes_on(app: App, tmp_path: Path) -> None:
    app.arguments("--model", str(tmp_path / "nowhere"))
    model = open_model(app.labels, stamp(app.labels), str(tmp_path / "nowhere"), 1)
    while model.loading:
        time.sleep(0.05)
    page = app.page()
    assert not page.exception and "Prompts and search are off" in texts(page)
    assert page.text_area(key="classes").disabled and page.text_input(key="q").disabled
    click(page, "accept")
    assert app.store.count() == 1


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda f: (f / "run.json").unlink(), "zeroshot label"),
        (lambda f: shutil.rmtree(f / "index"), "no index"),
        (lambda f: (f / "prompts.json").write_text("{}"), "holds no prompts"),
        (lambda f: (f / "run.json").write_text("{}"), "is not whole"),
        (lambda f: shutil.rmtree(f / "tiles"), "no labelled tiles"),
    ],
)
def test_labels_that_are_not_whole_are_an_error_that_says_what_to_do(
    app: App, break_it: Callable[[Path], object], text: str
) -> None:
    break_it(app.labels)
    app.arguments()
    page = app.page()
    assert not page.exception and text in page.error[0].value.replace("\\", "")


def test_a_command_line_without_labels_says_how_to_start(app: App) -> None:
    app.monkeypatch.setattr(sys, "argv", ["zeroshot_review.py"])
    assert "--labels labels/" in app.page().error[0].value.replace("\\", "")


def test_labels_of_a_scene_and_of_sigmoids(tmp_path: Path) -> None:
    import rasterio
    from affine import Affine

    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (3, 6, 8), np.uint8), np.ones((1, 16, 16), np.uint8))
    profile = {"count": 3, "dtype": "uint8", "width": 128, "height": 96, "crs": "EPSG:32633"}
    with rasterio.open(
        tmp_path / "scene.tif", "w", "GTiff", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile
    ) as out:
        out.write(pixels)
    tiny.siglip().save(tmp_path / "siglip")
    towers = load_towers(tmp_path / "siglip")
    label_tiles(towers, read_classes(CLASSES), plan_tiles([tmp_path / "scene.tif"], 32), tmp_path / "labels",
                options=Options(threshold=0.2), compute=EXACT)  # fmt: skip
    labels = read_labels(tmp_path / "labels")
    assert labels.kind == "sigmoid" and len(labels.rows) == 12 and len({*labels.items}) == 12
    view = make_view(labels.prompts, "sigmoid", labels.thresholds, labels.probabilities, labels.shown)
    assert view.label.tolist() == labels.shown["label"].tolist()
    called = labels.probabilities >= 0.2
    assert [view.counts[name] for name in NAMES] == called.sum(axis=0).tolist()
    assert all(view.call(i) in (NAMES[labels.probabilities[i].argmax()], UNKNOWN) for i in range(12))


def test_lines_and_class_files_mean_the_same(tmp_path: Path) -> None:
    prompts = read_classes(Path(__file__).resolve().parents[2] / "configs" / "zeroshot" / "landuse.yaml")
    assert parse(as_text(prompts), prompts.templates, prompts) == prompts
    (tmp_path / "classes.yaml").write_text(as_yaml(prompts), encoding="utf-8")
    assert read_classes(tmp_path / "classes.yaml").classes == prompts.classes
    assert set(read_yaml(tmp_path / "classes.yaml")) == {"name", "templates", "classes"}
    aliased = make_prompts({"classes": [{"name": "annual crop land", "aliases": ["AnnualCrop"]}]}, ("plain",))
    assert parse(as_text(aliased), aliased.templates, aliased) == aliased
    for text in ("", "unknown", "a\tb", "x" * 101, "a > "):
        with pytest.raises(ConfigError):
            parse(text, prompts.templates, prompts)


def test_lead_and_boundary_are_the_distance_to_another_label() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 300)
    tiles = pd.DataFrame({name: np.zeros(300, int) for name in ("col", "row", "width", "height")})
    tiles = tiles.assign(tile_id=[str(i) for i in range(300)], scene="s", path="p")
    prompts = read_classes(CLASSES)
    limits = (0.3, 0.4, 0.5, 0.0)
    view = make_view(prompts, "softmax", limits, p, tiles)
    for i in range(300):
        k = int(p[i].argmax())
        assert (view.lead[i, k] >= 0) == (view.label[i] == NAMES[k])
        assert (view.lead[i] >= 0).sum() <= 1
        moved = view.boundary[i] - 1e-9  # so much less or more for the best class changes nothing
        for sign in (-1, 1):
            q = p[i].copy()
            q[k] += sign * moved
            label = NAMES[int(q.argmax())] if q.max() >= limits[int(q.argmax())] else UNKNOWN
            assert label == view.label[i]
    order = view.ordered(np.arange(300), "forest", "borderline")
    assert np.all(np.diff(np.abs(view.lead[order, 0])) >= 0)


def test_an_index_without_files_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "labels", tmp_path / "labels")
    (tmp_path / "labels" / "index" / "files.parquet").unlink()
    with pytest.raises(ManifestError, match="not whole"):
        read_labels(tmp_path / "labels")
