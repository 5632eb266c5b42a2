"""Films that are right: every way to store one gives the image that the standard says."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from tests.cxr.film_files import PATIENT, chest, data_set_bytes, dataset, deflate, lut_item, save
from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.film import Film, read_film, read_image


def linear(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1, written out as the standard does."""
    shown = ((values - (centre - 0.5)) / (width - 1) + 0.5).astype(float)
    shown[values <= centre - 0.5 - (width - 1) / 2] = 0.0
    shown[values > centre - 0.5 + (width - 1) / 2] = 1.0
    return shown


def test_window_is_applied_after_the_modality_transformation_and_inversion_last(tmp_path: Path) -> None:
    pixels = chest(bits=12)
    described = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 2500, "WindowWidth": 3000}
    expected = linear(2.0 * pixels - 1000.0, 2500, 3000)
    plain = read_image(save(dataset(pixels, **described), tmp_path / "a.dcm"))
    inverse = read_image(
        save(dataset(pixels, PhotometricInterpretation="MONOCHROME1", **described), tmp_path / "b.dcm")
    )
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    np.testing.assert_allclose(inverse, 1.0 - expected, atol=1e-6)
    assert 0.1 < expected.mean() < 0.9


def test_a_negative_slope_is_inverted_by_the_slope_alone(tmp_path: Path) -> None:
    pixels = chest(bits=12)
    film = read_image(
        save(
            dataset(pixels, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096), tmp_path / "a"
        )
    )
    np.testing.assert_allclose(film, linear(4095.0 - pixels, 2048, 4096), atol=1e-6)
    assert film[0].mean() > film[-1].mean()  # the stored values rise downwards


def test_presentation_lut_shape_does_not_invert_a_second_time(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}
    without = read_image(save(dataset(**window), tmp_path / "a.dcm"))
    inverse = read_image(save(dataset(**window, PresentationLUTShape="INVERSE"), tmp_path / "b.dcm"))
    np.testing.assert_array_equal(without, inverse)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_every_depth_and_sign(tmp_path: Path, bits: int, signed: bool) -> None:
    pixels = chest(bits=bits, signed=signed)
    centre, width = float(pixels.mean()), float(2 ** (bits - 1))
    film = read_film(save(dataset(pixels, bits, WindowCenter=centre, WindowWidth=width), tmp_path / "a.dcm"))
    np.testing.assert_allclose(film.pixels, linear(pixels.astype(float), centre, width), atol=1e-6)
    assert film.bits == bits


def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    clean = chest(bits=12)
    overlaid = clean | np.uint16(0x5000)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    a, b = (read_image(save(dataset(p, 12, **window), tmp_path / n)) for p, n in ((clean, "a"), (overlaid, "b")))
    np.testing.assert_array_equal(a, b)


def test_window_functions(tmp_path: Path) -> None:
    pixels = chest(bits=12)
    exact = read_image(
        save(dataset(pixels, WindowCenter=2000, WindowWidth=1000.5, VOILUTFunction="LINEAR_EXACT"), tmp_path / "a")
    )
    np.testing.assert_allclose(exact, np.clip((pixels - 2000.0) / 1000.5 + 0.5, 0, 1), atol=1e-6)
    sigmoid = read_image(
        save(dataset(pixels, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID"), tmp_path / "b")
    )
    np.testing.assert_allclose(sigmoid, 1.0 / (1.0 + np.exp(-4.0 * (pixels - 2000.0) / 1000.0)), atol=1e-6)
    threshold = read_image(save(dataset(pixels, WindowCenter=2000, WindowWidth=1), tmp_path / "c"))
    np.testing.assert_array_equal(threshold, (pixels > 1999.5).astype(np.float32))


def test_windows_by_default_index_name_and_value(tmp_path: Path) -> None:
    pixels = chest(bits=12)
    path = save(
        dataset(
            pixels, WindowCenter=[1000, 3000], WindowWidth=[500, 900], WindowCenterWidthExplanation=["LUNG", "BONE"]
        ),
        tmp_path / "a",
    )
    lung, bone = linear(pixels.astype(float), 1000, 500), linear(pixels.astype(float), 3000, 900)
    for chosen, expected in (
        (None, lung),
        (0, lung),
        (1, bone),
        ("bone", bone),
        ("LUNG", lung),
        ((3000.0, 900.0), bone),
    ):
        np.testing.assert_allclose(read_film(path, window=chosen).pixels, expected, atol=1e-6)
    for absent in (2, -1, "HEART"):
        with pytest.raises(ImageError, match="window"):
            read_film(path, window=absent)
    assert "BONE" in read_film(path, window=1).window


def test_lookup_tables_come_before_windows(tmp_path: Path) -> None:
    pixels = chest(bits=10)
    curve = [round(4095 * (value / 1023) ** 2) for value in range(1024)]
    film = dataset(pixels, 10, WindowCenter=512, WindowWidth=1024, VOILUTSequence=[lut_item(0, curve, 12, "CURVE")])
    path = save(film, tmp_path / "a.dcm")
    np.testing.assert_allclose(read_image(path), np.array(curve)[pixels] / 4095.0, atol=1e-6)
    np.testing.assert_allclose(read_film(path, window=1).pixels, linear(pixels.astype(float), 512, 1024), atol=1e-6)
    np.testing.assert_array_equal(read_film(path, window="curve").pixels, read_image(path))


def test_a_modality_table_clamps_below_and_above_its_inputs(tmp_path: Path) -> None:
    pixels = chest(bits=12)
    entries = list(range(0, 4000, 4))  # 1000 entries from stored value 500 on
    film = dataset(pixels, WindowCenter=2000, WindowWidth=4000, ModalityLUTSequence=[lut_item(500, entries, 12)])
    expected = linear(np.array(entries)[np.clip(pixels.astype(int) - 500, 0, 999)].astype(float), 2000, 4000)
    np.testing.assert_allclose(read_image(save(film, tmp_path / "a.dcm")), expected, atol=1e-6)


def test_without_a_window_deep_films_are_stretched_and_shallow_ones_are_not(tmp_path: Path) -> None:
    deep = (chest(rows=200, columns=100, bits=12) // 4 + 1000).astype(np.uint16)
    deep[0, :5] = 4095  # a burned-in letter must not decide the contrast
    film = read_film(save(dataset(deep), tmp_path / "a.dcm"))
    low, high = np.percentile(deep.astype(float), [0.5, 99.5], method="inverted_cdf")
    np.testing.assert_allclose(film.pixels, np.clip((deep - low) / (high - low), 0, 1), atol=1e-6)
    assert film.window == "percentiles 0.5 to 99.5"
    shallow = (chest(bits=8) // 2).astype(np.uint8)
    np.testing.assert_allclose(read_image(save(dataset(shallow, 8), tmp_path / "b.dcm")), shallow / 255.0, atol=1e-6)


def test_padding_is_masked_black_and_kept_out_of_the_contrast(tmp_path: Path) -> None:
    pixels = chest(rows=100, columns=100, bits=12)
    padded = pixels.copy()
    padded[:, :30] = 4095
    padded[:, 30:40] = 4090
    film = dataset(padded, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1")
    film.PixelPaddingRangeLimit = 4090
    read = read_film(save(film, tmp_path / "a.dcm"))
    assert read.valid is not None
    np.testing.assert_array_equal(read.valid, padded < 4090)
    assert not read.pixels[:, :40].any()
    low, high = np.percentile(padded[padded < 4090].astype(float), [0.5, 99.5], method="inverted_cdf")
    np.testing.assert_allclose(read.pixels[:, 40:], 1 - np.clip((padded[:, 40:] - low) / (high - low), 0, 1), atol=1e-6)
    assert read_film(save(dataset(pixels, PixelPaddingValue=0), tmp_path / "b.dcm")).valid is None


def test_what_a_film_knows(tmp_path: Path) -> None:
    film = read_film(save(dataset(ImageLaterality="L", PatientAge="018M"), tmp_path / "a.dcm"))
    assert (film.view, film.laterality, film.patient, film.study, film.sex, film.modality) == (
        "PA",
        "L",
        "P-17",
        "1.2.3",
        "F",
        "CR",
    )
    assert film.age == pytest.approx(1.5)
    assert film.spacing == (0.2, 0.2)
    assert film.instance == "1.2.3.4"
    assert film.full_size == film.pixels.shape == (40, 32)
    unknown = {
        "PixelSpacing": [0, 0],
        "ImagerPixelSpacing": [0.15, 0.14],
        "ViewPosition": "LL",
        "PatientAge": None,
        "PatientID": None,
    }
    film = read_film(save(dataset(**unknown), tmp_path / "b.dcm"))
    assert (film.spacing, film.view, film.age, film.patient) == ((0.15, 0.14), "LATERAL", None, "")
    assert read_film(save(dataset(PixelSpacing=[0, 0]), tmp_path / "c.dcm")).spacing is None


SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=[s.name for s in SYNTAXES])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
def test_the_same_film_in_every_transfer_syntax(tmp_path: Path, syntax: uid.UID, bits: int, signed: bool) -> None:
    pixels = chest(rows=41, columns=33, bits=bits, signed=signed)
    window = {"WindowCenter": float(pixels.mean()), "WindowWidth": float(2**bits - 10)}
    film = dataset(pixels, bits, **window)
    path = tmp_path / "a.dcm"
    plain = read_image(save(film, path))
    if syntax == uid.ExplicitVRBigEndian:
        swapped = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        film.PixelData = (
            np.frombuffer(swapped + b"\0" * (len(swapped) % 2), np.uint16).byteswap().tobytes()
            if bits == 8
            else swapped
        )
        film["PixelData"].VR = "OW"
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        film.file_meta.TransferSyntaxUID = syntax
        head, body = data_set_bytes(dataset(pixels, bits, **window), path)
        path.write_bytes(
            head.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99").replace(b"UI\x14\0", b"UI\x16\0")
            + deflate([body])
        )
    elif syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        film.file_meta.TransferSyntaxUID = syntax
        dcmwrite(
            path,
            film,
            implicit_vr=syntax == uid.ImplicitVRLittleEndian,
            little_endian=syntax != uid.ExplicitVRBigEndian,
        )
    else:
        plugin = "pyjpegls" if syntax == uid.JPEGLSLossless else "pylibjpeg"
        if plugin not in get_encoder(syntax).available_plugins:
            pytest.skip(f"{plugin} is not installed")
        film.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        film.save_as(path)
    np.testing.assert_array_equal(read_image(path), plain)


def test_jpeg_baseline_is_within_its_loss(tmp_path: Path) -> None:
    pixels = chest(rows=64, columns=48, bits=8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    film = dataset(pixels, 8)
    film.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    film.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    film["PixelData"].is_undefined_length = True
    shown = read_image(save(film, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(shown, read_image(tmp_path / "a.jpg"))
    np.testing.assert_allclose(shown, pixels / 255.0, atol=6 / 255)


def picture(kind: str, grey: np.ndarray) -> Image.Image:
    eight = Image.fromarray((grey * 255).round().astype(np.uint8))
    if kind == "16-bit":
        return Image.fromarray((grey * 65535).round().astype(np.uint16))
    if kind == "12 of 16 bits":
        return Image.fromarray((grey * 4095).round().astype(np.uint16))
    if kind == "palette":
        return eight.convert("P")
    return eight if kind == "8-bit" else eight.convert(kind)


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "12 of 16 bits", "palette", "RGB", "RGBA", "LA"])
def test_pictures_of_every_kind(tmp_path: Path, kind: str) -> None:
    grey = (chest(64, 48, bits=8) - 4) / 244.0
    grey = (grey - grey.min()) / np.ptp(grey)
    path = tmp_path / "film.dcm"  # the name says nothing
    picture(kind, grey).save(path, format="PNG")
    film = read_film(path)
    assert film.pixels.dtype == np.float32
    np.testing.assert_allclose(film.pixels, grey, atol=1 / 255)
    assert film.valid is None


def test_transparent_pixels_are_padding(tmp_path: Path) -> None:
    rgba = np.full((8, 6, 4), 200, np.uint8)
    rgba[:, :, 3] = 255
    rgba[:, :2, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    film = read_film(tmp_path / "a.png")
    assert film.valid is not None
    assert not film.valid[:, :2].any() and film.valid[:, 2:].all()
    assert not film.pixels[:, :2].any()
    np.testing.assert_allclose(film.pixels[:, 2:], 200 / 255, atol=1e-6)


def test_the_collimation_border_is_cropped_on_demand(tmp_path: Path) -> None:
    full = np.zeros((120, 100), np.uint8)
    full[10:105, 7:96] = np.random.default_rng(0).integers(60, 220, (95, 89))
    full[2:5, 20:22] = 255  # a marker on the border
    path = save(dataset(full, 8), tmp_path / "a.dcm")
    assert read_film(path).offset == (0, 0)
    film = read_film(path, crop_border=True)
    assert (film.offset, film.pixels.shape, film.full_size) == ((10, 7), (95, 89), (120, 100))
    top, left = film.offset
    np.testing.assert_array_equal(film.pixels, read_image(path)[top : top + 95, left : left + 89])
    blank = read_film(save(dataset(np.zeros((50, 50), np.uint8), 8), tmp_path / "b.dcm"), crop_border=True)
    assert blank.pixels.shape == (50, 50)


def test_films_and_errors_cross_processes_and_threads(tmp_path: Path) -> None:
    path = save(dataset(WindowCenter=2048, WindowWidth=4096), tmp_path / "a.dcm")
    assert pickle.loads(pickle.dumps(read_image)) is read_image
    film: Film = pickle.loads(pickle.dumps(read_film(path)))
    np.testing.assert_array_equal(film.pixels, read_image(path))
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(read_image, [path] * 64):
            np.testing.assert_array_equal(pixels, film.pixels)
    with pytest.raises(ImageError) as caught:
        read_film(save(dataset(Modality="CT"), tmp_path / "b.dcm"))
    again: Any = pickle.loads(pickle.dumps(caught.value))
    assert (again.tag, again.value, str(again)) == ("Modality", "CT", str(caught.value))
    assert PATIENT not in str(caught.value)


def test_memory_is_handed_on_only_when_the_last_view_is_gone(tmp_path: Path) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    one = save(dataset(chest(rows=300, columns=200), **window), tmp_path / "a.dcm")
    other = save(dataset(chest(rows=300, columns=200)[::-1].copy(), **window), tmp_path / "b.dcm")
    expected = read_image(one).copy()
    row = read_image(one)[7]  # the film itself is gone, a view of it is not
    others = [read_image(other) for _ in range(5)]
    np.testing.assert_array_equal(row, expected[7])
    assert all(not np.shares_memory(others[0], later) for later in others[1:])
    addresses = {film.ctypes.data for film in others}
    del others
    assert read_image(one).ctypes.data in addresses
    with ThreadPoolExecutor(4) as pool:
        films = list(pool.map(read_image, [one, other] * 20))
    for index, film in enumerate(films):
        np.testing.assert_array_equal(film, expected if index % 2 == 0 else read_image(other))
