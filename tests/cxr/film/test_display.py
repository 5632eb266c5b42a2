"""A film for a screen: the default preset shows what a model is given, to the grey level."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cxr.film.test_reference import FILES
from tests.cxr.film_files import chest, dataset, lut_item, save
from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.display import Display, Preset, read_display, read_facts
from vitdomains.cxr.film.film import read_film


def shown(display: Display, preset: Preset) -> NDArray[np.float64]:
    """Grey in 0..1, by the arithmetic of the viewer."""
    x, c, w = display.units.astype(np.float64), preset.centre, preset.width
    if preset.table is not None:
        grey = preset.table / 255.0
    elif preset.function == "SIGMOID":
        grey = 1 / (1 + np.exp(-4 * (x - c) / w))
    else:
        c, w = (c - 0.5, w - 1) if preset.function == "LINEAR" else (c, w)
        grey = np.clip((x - c) / w + 0.5, 0, 1) if w > 0 else (x > c).astype(float)
    grey = 1 - grey if display.inverted else grey
    if display.padding:
        grey[display.padding[0] : display.padding[1] + 1] = 0
    return grey[display.levels]


@pytest.mark.parametrize(
    ("bits", "signed", "elements"),
    [
        (12, False, {}),
        (12, False, {"PhotometricInterpretation": "MONOCHROME1"}),
        (12, True, {"RescaleSlope": "2", "RescaleIntercept": "-100"}),
        (12, False, {"RescaleSlope": "-1", "RescaleIntercept": "4095"}),
        (16, False, {"WindowCenter": "30000", "WindowWidth": "20000"}),
        (10, False, {"WindowCenter": ["500", "300"], "WindowWidth": ["400", "100"], "VOILUTFunction": "SIGMOID"}),
        (8, False, {}),
        (12, False, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 900}),
        (12, False, {"VOILUTSequence": [lut_item(0, [i * 16 for i in range(4096)], 16, "CURVE")]}),
        (12, False, {"ModalityLUTSequence": [lut_item(0, [4095 - i for i in range(4096)], 12)]}),
    ],
)
def test_the_default_preset_shows_what_the_model_is_given(
    tmp_path: Path, bits: int, signed: bool, elements: dict[str, object]
) -> None:
    path = save(dataset(chest(bits=bits, signed=signed), bits=bits, **elements), tmp_path / "film.dcm")
    display = read_display(path)
    assert np.abs(shown(display, display.presets[0]) - read_film(path).pixels).max() < 1 / 250
    assert len(display.units) == display.levels.max(initial=0) + 1 or display.levels.max() < len(display.units)


@pytest.mark.parametrize(
    "name", ["RG1_UNCI.dcm", "JPGExtended.dcm", "MR_small_bigendian.dcm", "vlut_04.dcm", "mlut_18.dcm"]
)
def test_real_files(name: str) -> None:
    found = [f for f in FILES if f.name == name]
    if not found:
        pytest.skip(f"{name} is in pydicom-data, which is not installed")
    film = read_film(found[0], modalities=None)
    display = read_display(found[0])
    assert np.abs(shown(display, display.presets[0]) - film.pixels).max() < 1 / 250


def test_all_windows_of_the_file_are_offered_by_name(tmp_path: Path) -> None:
    film = dataset(
        WindowCenter=["2000", "1000"], WindowWidth=["3000", "0.5"], WindowCenterWidthExplanation=["NORMAL", "BAD"],
        VOILUTSequence=[lut_item(0, list(range(4096)), 12, "HARD")],
    )  # fmt: skip
    names = [p.name for p in read_display(save(film, tmp_path / "film.dcm")).presets]
    assert names == ["HARD", "NORMAL", "all values", "5th to 95th percentile"]


def test_pictures_keep_their_levels(tmp_path: Path) -> None:
    deep = chest(bits=12)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    display = read_display(tmp_path / "deep.png")
    assert display.levels.dtype == np.uint16 and np.array_equal(display.levels, deep)
    cv2.imwrite(str(tmp_path / "grey.png"), chest(bits=8))
    grey = read_display(tmp_path / "grey.png")
    assert grey.levels.dtype == np.uint8 and np.array_equal(grey.levels, chest(bits=8))
    assert np.abs(shown(grey, grey.presets[0]) - read_film(tmp_path / "grey.png").pixels).max() < 1e-6
    assert read_facts(tmp_path / "grey.png") is None


def test_facts_come_without_pixels(tmp_path: Path) -> None:
    path = save(dataset(StudyDate="20200102", AccessionNumber="A1"), tmp_path / "film.dcm")
    facts = read_facts(path)
    assert facts is not None and facts.text("StudyDate") == "20200102" and facts.text("AccessionNumber") == "A1"


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"no film at all")
    for read in (read_display, read_facts):
        with pytest.raises(ImageError):
            read(tmp_path / "absent.dcm")
    with pytest.raises(ImageError, match="neither DICOM"):
        read_display(tmp_path / "x.dcm")
    flat = save(dataset(np.full((8, 8), 5, np.uint16)), tmp_path / "flat.dcm")
    with pytest.raises(ImageError, match="same value"):
        read_display(flat)
    with pytest.raises(ImageError, match="pixels"):
        read_display(save(dataset(), tmp_path / "film.dcm"), max_pixels=100)
