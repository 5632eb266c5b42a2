"""Whether a film is acceptable: good ones pass, each defect is found and named, and predict says so in its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.cxr.film_files import dataset, save
from tests.small_run import small_run
from vitdomains.core.commands import cli
from vitdomains.core.errors import ImageError
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.film.film import Film, read_film
from vitdomains.cxr.phantoms.make import make_phantoms
from vitdomains.cxr.quality import film_quality, likeness, read_checked


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = make_phantoms(tmp_path_factory.mktemp("quality") / "phantoms", 8, seed=5, size=320, workers=1)
    return sorted((root / "films").iterdir())


def found(film: Film) -> set[str]:
    return {check.name for check in film_quality(film).checks if check.reason}


def test_good_films_pass_every_check(films: list[Path]) -> None:
    for path in films:
        quality = film_quality(read_film(path))
        assert quality.acceptable and quality.reasons == () and len(quality.checks) == 11, quality
        assert likeness(read_film(path).pixels) > 0.5


def inside(pixels: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    out = np.zeros_like(pixels)
    rows, columns = (round((1 - share) / 2 * side) for side in pixels.shape)
    out[rows:-rows, columns:-columns] = pixels[rows:-rows, columns:-columns]
    return out


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("inverted", lambda p: 1 - p),
        ("empty", np.zeros_like),
        ("empty", lambda p: np.random.default_rng(0).random(p.shape, np.float32)),  # a detector that saw nothing
        ("layout", lambda p: np.tile(np.linspace(0, 1, p.shape[1], dtype=np.float32), (len(p), 1))),  # no chest at all
        ("clipped", lambda p: np.clip(2.5 * p, 0, 1)),
        ("clipped", lambda p: np.clip(2.5 * p - 1.5, 0, 1)),
        ("field", lambda p: inside(p, 0.5)),
        ("aspect", lambda p: np.ascontiguousarray(p[:, : len(p) // 3])),
        ("size", lambda p: cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA)),
    ],
)  # fmt: skip
def test_each_defect_is_found(
    films: list[Path], name: str, spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    hits = 0
    for path in films:
        film = read_film(path)
        hits += name in found(replace(film, pixels=spoil(film.pixels), valid=None))
    assert hits >= len(films) - 1  # no threshold is that sharp


def test_an_empty_film_is_asked_no_more() -> None:
    quality = film_quality(Film(np.full((300, 300), 0.3, np.float32)))
    assert quality.reasons == ("nearly empty (contrast 0.00)",)
    assert [check.name for check in quality.checks][-1] == "empty"
    with pytest.raises(FrozenInstanceError):
        quality.checks = ()  # type: ignore[misc]


def test_padding_is_not_clipping(films: list[Path]) -> None:
    film = read_film(films[0])
    pixels, valid = film.pixels.copy(), np.ones(film.pixels.shape, bool)
    rows = np.s_[len(pixels) // 4 : len(pixels) // 2]
    pixels[rows], valid[rows] = 0.0, False
    assert "clipped" in found(replace(film, pixels=pixels, valid=None))
    assert "clipped" not in found(replace(film, pixels=pixels, valid=valid))


@pytest.mark.parametrize(
    ("elements", "name", "reason"),
    [
        ({"ViewPosition": "LL"}, "view", "not a frontal view (View Position LATERAL)"),
        ({"ViewPosition": "RAO"}, "view", "not a frontal view (View Position RAO)"),
        ({"BodyPartExamined": "HAND"}, "body_part", "not a chest (Body Part Examined HAND)"),
        ({"DeviationIndex": "4.25"}, "exposure", "overexposed (deviation index +4.2)"),
        ({"ExposureIndex": "100", "TargetExposureIndex": "1000"}, "exposure", "underexposed (deviation index -10.0)"),
    ],
)
def test_the_header_speaks_against_a_film(tmp_path: Path, elements: dict[str, str], name: str, reason: str) -> None:
    checks = film_quality(read_film(save(dataset(**elements), tmp_path / "film.dcm"))).checks
    assert {check.name: check.reason for check in checks}[name] == reason


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ViewPosition": "AP", "BodyPartExamined": "CHEST", "DeviationIndex": "-2.9"},
        {"ViewPosition": "", "BodyPartExamined": "PORT CHEST", "ExposureIndex": "400", "TargetExposureIndex": "0"},
        {"BodyPartExamined": "", "DeviationIndex": "", "ExposureIndex": "400"},
    ],
)
def test_what_the_header_does_not_say_is_not_held_against_it(tmp_path: Path, elements: dict[str, str]) -> None:
    assert not found(read_film(save(dataset(**elements), tmp_path / "film.dcm"))) & {"view", "body_part", "exposure"}


def test_an_exposure_index_that_is_no_number_harms_nothing(tmp_path: Path) -> None:
    film = dataset()
    film.add_new("DeviationIndex", "LO", "high")
    assert read_film(save(film, tmp_path / "film.dcm")).deviation_index is None


def test_real_films_are_acceptable(shared: Path) -> None:
    paths = sorted((shared / "data" / "nih_cxr14_subset" / "images").rglob("*.png"))[::20]
    assert sum(bool(read_checked(path)[1]) for path in paths) <= 2
    turned = sum("inverted" in found(replace(film, pixels=1 - film.pixels)) for film in map(read_film, paths))
    assert turned >= 0.95 * len(paths)


def test_predict_says_so_and_goes_on(
    films: list[Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")
    inverted, bad = tmp_path / "inverted.png", tmp_path / "bad.png"
    cv2.imwrite(str(inverted), np.rint(255 * (1 - read_film(films[0]).pixels)).astype(np.uint8))
    bad.write_bytes(b"no film")
    out = tmp_path / "predictions.csv"
    words = ["predict", str(small_run(tmp_path_factory).bundle), str(films[0]), str(bad), str(inverted)]
    assert cli.main(DOMAIN, [*words, "--out", str(out), "--threads", "1"]) == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert table.columns.tolist()[-3:] == ["labels", "quality", "error"]
    assert table["quality"].tolist()[:2] == ["", ""] and "likely inverted" in table["quality"][2]
    assert [bool(error) for error in table["error"]] == [False, True, False]
    assert pd.read_csv(out)["Effusion"].notna().tolist() == [True, False, True]
    with pytest.raises(ImageError):
        read_checked(bad)
