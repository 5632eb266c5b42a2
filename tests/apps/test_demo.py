"""The demonstration: its data is made once and whole, each app opens it, servers come up at free ports and go when told to."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'vitdomains[apps]'")

from streamlit import config
from streamlit.testing.v1 import AppTest

from apps.demo import __main__ as demo
from apps.demo import data, folders
from apps.demo.folders import STAMP, Size, prepare
from apps.demo.land import KINDS, draw_land
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import OnProgress

ROOT = Path(__file__).resolve().parents[2]
SMALL = Size(films=40, film_side=64, film_epochs=1, land_side=320, land_epochs=1, pair_steps=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def no_trained_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folders, "TRAINED", tmp_path / "none")


@pytest.fixture
def localhost() -> Iterator[None]:
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    yield
    config.set_option("server.address", before)


@pytest.mark.usefixtures("no_trained_model", "localhost")
@pytest.mark.parametrize("name", list(demo.PORTS))
def test_each_app_opens_its_data_which_is_made_once(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, note = prepare(name, root, SMALL)
    monkeypatch.setattr(sys, "argv", [f"{name}_review.py", *words, "--threads", "1"])
    page = AppTest.from_file(str(ROOT / "apps" / f"{name}_review.py"), default_timeout=60).run()
    assert not page.exception and not page.error and page.button
    monkeypatch.setitem(data.MAKERS, name, _fail)
    assert prepare(name, root, SMALL) == (words, note) and note


def _fail(folder: Path, size: Size, on_progress: OnProgress) -> str:
    (folder / "half").write_text("")
    raise KeyboardInterrupt


def _make(folder: Path, size: Size, on_progress: OnProgress) -> str:
    (folder / "whole").write_text("")
    return "made"


def test_half_made_or_moved_data_is_made_anew_and_nothing_else_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.MAKERS, "satellite", _fail)
    with pytest.raises(KeyboardInterrupt):
        prepare("satellite", tmp_path / "a", SMALL)
    assert json.loads((tmp_path / "a" / "satellite" / STAMP).read_text()) == {"finished": False}
    monkeypatch.setitem(data.MAKERS, "satellite", _make)
    words, note = prepare("satellite", tmp_path / "a", SMALL)
    assert note == "made" and f"{tmp_path / 'a' / 'satellite' / 'scene.tif'}" in words
    assert sorted(p.name for p in (tmp_path / "a" / "satellite").iterdir()) == [STAMP, "whole"]
    (tmp_path / "a").rename(tmp_path / "b")
    for changed, size in ((tmp_path / "b", SMALL), (tmp_path / "b", Size())):
        (changed / "satellite" / "old").write_text("")
        prepare("satellite", changed, size)
        assert not (changed / "satellite" / "old").exists()
    (tmp_path / "c" / "satellite").mkdir(parents=True)
    (tmp_path / "c" / "satellite" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="holds no demo data"):
        prepare("satellite", tmp_path / "c", SMALL)
    assert (tmp_path / "c" / "satellite" / "mine.txt").exists()


def test_two_do_not_make_at_once(tmp_path: Path) -> None:
    with folders._alone(tmp_path), pytest.raises(ConfigError, match="Another process"):
        prepare("zeroshot", tmp_path, SMALL)


def test_the_model_of_make_demo_is_taken_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (folders.TRAINED / "bundle.json", folders.FILMS / "phantoms.json"):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    words, note = prepare("cxr", tmp_path / "demo", SMALL)
    assert words[:4] == [
        "--bundle",
        str(tmp_path / "runs/demo/bundle"),
        "--studies",
        str(tmp_path / "runs/phantoms/films"),
    ]
    assert "make demo" in note and not (tmp_path / "demo" / "cxr").exists()


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        used = other.getsockname()[1]
        found = demo.free_port(used)
        assert found > used and demo.free_port(used, [found]) > found


def test_servers_start_and_stop_with_the_command(tmp_path: Path) -> None:
    """One app, whose data is finished as far as the stamp says: it comes up, and ends at once when it is interrupted."""
    folder = tmp_path / "zeroshot"
    folder.mkdir()
    folders._stamp(folder, {"finished": True, "of": folders._fingerprint(folder, Size()), "note": "there"})
    port = demo.free_port(8700)
    argv = [
        sys.executable,
        "-m",
        "apps.demo",
        "--only",
        "zeroshot",
        "--folder",
        str(tmp_path),
        "--zeroshot_port",
        str(port),
    ]
    log = tmp_path / "out.txt"
    with log.open("w") as out:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while "Ctrl-C" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        while f"http://localhost:{port}" not in log.read_text():
            assert time.monotonic() < until
        socket.create_connection(("127.0.0.1", port), 5).close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and "stopped" in log.read_text()
    finally:
        process.kill()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_server_that_ends_is_an_error_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "HERE", tmp_path)  # there is no app
    with pytest.raises(ConfigError, match="cxr ended with status.*cxr_review.py"), demo.running(
        {"cxr": []}, {"cxr": demo.free_port(8750)}, tmp_path
    ):  # fmt: skip
        pass


def test_drawn_land_is_a_function_of_its_seed_and_its_kinds_differ() -> None:
    pixels, kinds = draw_land(256, 5)
    again, other = draw_land(256, 5)[0], draw_land(256, 6)[0]
    assert np.array_equal(pixels, again) and not np.array_equal(pixels, other)
    assert sorted(np.unique(kinds)) == list(range(1, len(KINDS) + 1)) and pixels.shape == (4, 256, 256)
    near_infrared = {name: pixels[3][kinds == k].mean() for k, name in enumerate(KINDS, start=1)}
    assert min(near_infrared, key=near_infrared.get) == "water" and near_infrared["meadow"] > 130  # type: ignore[arg-type]
