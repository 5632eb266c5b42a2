"""Files that lie: each is a typed error that names file, tag and value, or the right image, in bounded memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from tests.cxr.film_files import PATIENT, chest, data_set_bytes, dataset, deflate, lut_item, nested, save, with_raw
from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.film import read_film, read_image

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


@contextmanager
def at_most(megabytes: int) -> Iterator[None]:
    """Fails if more than this is allocated at once inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes << 20, f"{peak / 2**20:.0f} MiB"


def refused(path: Path, tag: str, value: object = ..., **options: Any) -> ImageError:
    with at_most(32), pytest.raises(ImageError) as caught:
        read_film(path, **options)
    error = caught.value
    assert error.tag == tag, str(error)
    assert error.path == path and str(path) in str(error)
    if value is not ...:
        assert error.value == value and ("None" not in str(error) if value is None else repr(value)[:60] in str(error))
    assert PATIENT not in str(error) and "P-17" not in str(error)
    return error


IMPOSSIBLE: list[tuple[dict[str, Any], str, object]] = [
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope", 0.0),
    ({"WindowCenter": 100, "WindowWidth": 0}, "WindowWidth", 0.0),
    ({"WindowCenter": 100, "WindowWidth": -5}, "WindowWidth", -5.0),
    ({"WindowCenter": 100, "WindowWidth": 0.5}, "WindowWidth", 0.5),
    ({**WINDOW, "VOILUTFunction": "CUBIC"}, "VOILUTFunction", "CUBIC"),
    ({"Modality": "CT"}, "Modality", "CT"),
    ({"SOPClassUID": uid.CTImageStorage}, "SOPClassUID", str(uid.CTImageStorage)),
    ({"NumberOfFrames": 3}, "NumberOfFrames", 3.0),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "SamplesPerPixel", 3),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation", "PALETTE COLOR"),
    ({"PhotometricInterpretation": None}, "PhotometricInterpretation", None),
    ({"Rows": 0}, "Rows", 0),
    ({"Rows": 65535, "Columns": 65535}, "Rows x Columns", "65535 x 65535"),
    ({"Rows": None}, "Rows", None),
    ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "BitsAllocated", 32),
    ({"BitsStored": 17}, "BitsStored", 17),
    ({"HighBit": 15}, "HighBit", 15),
    ({"PixelRepresentation": 7}, "PixelRepresentation", 7),
    ({"PixelData": None}, "PixelData", None),
    ({**WINDOW, "Rows": 8000, "Columns": 8000}, "PixelData", "2560 bytes, 128000000 expected"),
    ({"Rows": 39}, "PixelData", "2560 bytes, 2496 expected"),
    ({"Rows": 41}, "PixelData", "2560 bytes, 2624 expected"),
    ({"Columns": 31}, "PixelData", "2560 bytes, 2480 expected"),
    ({"PixelData": b""}, "PixelData", "0 bytes, 2560 expected"),
]


@pytest.mark.parametrize(("elements", "tag", "value"), IMPOSSIBLE, ids=[f"{t}={v}" for _, t, v in IMPOSSIBLE])
def test_impossible_elements(tmp_path: Path, elements: dict[str, Any], tag: str, value: object) -> None:
    refused(save(dataset(**elements), tmp_path / "film.dcm"), tag, value)


@pytest.mark.parametrize("text", [b"nan", b"inf", b"-inf", b"1e400"])
@pytest.mark.parametrize(
    ("element", "tag"),
    [((0x28, 0x1053), "RescaleSlope"), ((0x28, 0x1051), "WindowWidth"), ((0x28, 0x1050), "WindowCenter")],
)
def test_non_finite_numbers(tmp_path: Path, element: tuple[int, int], tag: str, text: bytes) -> None:
    path = save(dataset(RescaleSlope=1, RescaleIntercept=0, **WINDOW), tmp_path / "film.dcm")
    refused(with_raw(path, element, b"DS", text), tag)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    path = with_raw(save(dataset(**WINDOW), tmp_path / "a.dcm"), (0x28, 0x1051), b"DS", b"wide")
    refused(path, "WindowWidth", "wide")
    path = with_raw(save(dataset(), tmp_path / "b.dcm"), (0x28, 0x30), b"DS", b"nan\\0.2 ")
    assert read_film(path).spacing is None
    path = with_raw(save(dataset(), tmp_path / "c.dcm"), (0x28, 0x30), b"DS", b"wide")
    assert read_film(path).spacing is None


def test_a_hundred_thousand_by_a_hundred_thousand(tmp_path: Path) -> None:
    path = save(dataset(), tmp_path / "a.dcm")
    for element in ((0x28, 0x10), (0x28, 0x11)):
        with_raw(path, element, b"UL", struct.pack("<L", 100_000))
    refused(path, "Rows x Columns", "100000 x 100000")
    head = b"\x89PNG\r\n\x1a\n"
    header = b"IHDR" + struct.pack(">LLBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1 << 20))
    chunks = [struct.pack(">L", len(c) - 4) + c + struct.pack(">L", zlib.crc32(c)) for c in (header, body, b"IEND")]
    (tmp_path / "b.png").write_bytes(head + b"".join(chunks))
    refused(tmp_path / "b.png", "Rows x Columns", "100000 x 100000")
    refused(save(dataset(**WINDOW), tmp_path / "c.dcm"), "Rows x Columns", "40 x 32", max_pixels=1000)


def deflated(path: Path, chunks: Callable[[bytes], list[bytes]], **elements: Any) -> Path:
    head, body = data_set_bytes(dataset(**WINDOW, **elements), path)
    head = head.replace(b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI\x16\x001.2.840.10008.1.2.1.99")
    path.write_bytes(head + deflate(chunks(body)))
    return path


def test_deflate_bombs(tmp_path: Path) -> None:
    plain = read_image(save(dataset(**WINDOW), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(read_image(deflated(tmp_path / "b.dcm", lambda body: [body])), plain)
    megabyte = bytes(1 << 20)

    def in_pixels(body: bytes) -> list[bytes]:
        at = body.index(b"\xe0\x7f\x10\x00")
        return [body[: at + 8], struct.pack("<L", 200 << 20), *[megabyte] * 200]

    refused(deflated(tmp_path / "c.dcm", in_pixels), "PixelData", f"{200 << 20} bytes, 2560 expected")

    def in_private_element(body: bytes) -> list[bytes]:
        at = body.index(b"\x10\x00\x20\x00")
        return [body[:at], b"\x09\x00\x01\x10OB\0\0", struct.pack("<L", 200 << 20), *[megabyte] * 200, body[at:]]

    path = deflated(tmp_path / "d.dcm", in_private_element)
    assert path.stat().st_size < 1 << 20
    refused(path, "TransferSyntaxUID")
    damaged = deflated(tmp_path / "e.dcm", lambda body: [body])
    damaged.write_bytes(damaged.read_bytes()[:400] + b"\xff" * 64)
    with pytest.raises(ImageError):
        read_film(damaged)


@pytest.mark.parametrize("depth", [1000, 50_000])
def test_sequences_nested_a_thousand_deep(tmp_path: Path, depth: int) -> None:
    def with_sequence(sequence: bytes, name: str) -> Path:
        head, body = data_set_bytes(dataset(**WINDOW), tmp_path / name)
        at = body.index(b"\x10\x00\x20\x00")
        (tmp_path / name).write_bytes(head + body[:at] + sequence + body[at:])
        return tmp_path / name

    assert "64 deep" in str(refused(with_sequence(nested(depth), "a.dcm"), "(0009,1001)"))
    plain = read_image(save(dataset(**WINDOW), tmp_path / "plain.dcm"))
    np.testing.assert_array_equal(read_image(with_sequence(nested(40), "b.dcm")), plain)
    if depth == 1000:  # one of defined length is stepped over whole, however deep: the right image
        with at_most(32):
            shown = read_image(with_sequence(nested(depth, defined_length=True), "c.dcm"))
        np.testing.assert_array_equal(shown, plain)


def test_endless_empty_items(tmp_path: Path) -> None:
    head, body = data_set_bytes(dataset(), tmp_path / "a.dcm")
    at = body.index(b"\x10\x00\x20\x00")
    items = b"\x09\x00\x01\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 300_000
    (tmp_path / "a.dcm").write_bytes(head + body[:at] + items + body[at:])
    refused(tmp_path / "a.dcm", "elements", 50_001)


def test_truncation_anywhere(tmp_path: Path) -> None:
    content = save(dataset(**WINDOW), tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    for length in [*range(0, 700, 7), len(content) - 2000, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ImageError) as caught:
            read_film(path)
        assert caught.value.tag
    for suffix in ("png", "jpg"):
        Image.fromarray(chest(200, 200, 8)).save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for share in (0.01, 0.3, 0.6, 0.9):
            path.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(ImageError):
                read_film(path)


def compressed(path: Path, syntax: uid.UID, frame: bytes, **elements: Any) -> Path:
    film = dataset(chest(bits=8), 8, **elements)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encapsulate([frame])
    film["PixelData"].is_undefined_length = True
    return save(film, path)


def test_compressed_frames_that_are_not_what_the_header_says(tmp_path: Path) -> None:
    Image.fromarray(chest(bits=8)).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(chest(bits=8)).save(tmp_path / "a.jp2", irreversible=False)
    jpeg, jpeg_2000 = (tmp_path / "a.jpg").read_bytes(), (tmp_path / "a.jp2").read_bytes()
    for syntax, frame in ((uid.JPEGBaseline8Bit, jpeg), (uid.JPEG2000Lossless, jpeg_2000)):
        assert read_image(compressed(tmp_path / "ok.dcm", syntax, frame)).shape == (40, 32)
        for lie in ({"Rows": 20}, {"Columns": 64}, {"Rows": 8000, "Columns": 8000}):
            refused(compressed(tmp_path / "size.dcm", syntax, frame, **WINDOW, **lie), "Rows x Columns")
        refused(compressed(tmp_path / "cut.dcm", syntax, frame[:30]), "PixelData")
        refused(compressed(tmp_path / "text.dcm", syntax, b"no image at all, but long enough to be one"), "PixelData")
    siz = jpeg_2000.index(b"\xff\x4f\xff\x51") + 8
    huge = jpeg_2000[:siz] + struct.pack(">LL", 100_000, 100_000) + jpeg_2000[siz + 8 :]
    refused(compressed(tmp_path / "huge.dcm", uid.JPEG2000Lossless, huge), "Rows x Columns")
    Image.fromarray(np.stack([chest(bits=8)] * 3, axis=-1)).save(tmp_path / "colour.jpg")
    refused(
        compressed(tmp_path / "rgb.dcm", uid.JPEGBaseline8Bit, (tmp_path / "colour.jpg").read_bytes()), "Rows x Columns"
    )
    refused(compressed(tmp_path / "rle.dcm", uid.RLELossless, b"\x01" * 80), "TransferSyntaxUID")
    refused(compressed(tmp_path / "mpeg.dcm", uid.MPEG2MPML, jpeg), "TransferSyntaxUID", str(uid.MPEG2MPML))
    two = dataset(chest(bits=8), 8)
    two.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    two.PixelData = encapsulate([jpeg, jpeg])
    two["PixelData"].is_undefined_length = True
    assert "single frame" in str(refused(save(two, tmp_path / "two.dcm"), "PixelData"))


def test_lookup_tables_that_do_not_hold_what_they_say(tmp_path: Path) -> None:
    item = lut_item(0, [1, 2, 3], 12)
    item.LUTDescriptor = [1000, 0, 12]
    refused(save(dataset(VOILUTSequence=[item]), tmp_path / "a.dcm"), "LUTData", "6 bytes for 1000 entries")
    item.LUTDescriptor = [3, 0, 99]
    refused(save(dataset(ModalityLUTSequence=[item]), tmp_path / "b.dcm"), "LUTDescriptor", (3, 0, 99))


def test_nothing_to_see(tmp_path: Path) -> None:
    refused(save(dataset(np.full((40, 32), 700, np.uint16)), tmp_path / "a.dcm"), "PixelData")
    assert "padding" in str(
        refused(
            save(dataset(np.full((40, 32), 9, np.uint16), PixelPaddingValue=9, **WINDOW), tmp_path / "b.dcm"),
            "PixelData",
        )
    )


def test_what_is_no_file_or_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").write_bytes(b"")
    refused(tmp_path / "empty.dcm", "size", 0)
    refused(tmp_path, "file type", "directory")
    os.mkfifo(tmp_path / "pipe.dcm")
    refused(tmp_path / "pipe.dcm", "file type", "special file")
    refused(tmp_path / "absent.dcm", "file", "FileNotFoundError")
    with pytest.raises(ImageError, match="usable path"):
        read_film("nul\0.dcm")
    (tmp_path / "text.dcm").write_text(f"{PATIENT} was here", encoding="utf-8")
    refused(tmp_path / "text.dcm", "signature")
    (tmp_path / "zip.png").write_bytes(b"PK\x03\x04" + bytes(300))
    refused(tmp_path / "zip.png", "signature")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4)
)
def test_whatever_is_overwritten_it_is_a_film_or_an_image_error(
    tmp_path: Path, edits: list[tuple[float, bytes]]
) -> None:
    content = bytearray(save(dataset(**WINDOW), tmp_path / "film.dcm").read_bytes())
    for place, data in edits:
        at = 132 + int(place * (900 - 132))
        content[at : at + len(data)] = data
    (tmp_path / "film.dcm").write_bytes(content)
    try:
        film = read_film(tmp_path / "film.dcm")
    except ImageError:
        return
    assert np.isfinite(film.pixels).all() and film.pixels.min() >= 0.0 and film.pixels.max() <= 1.0
