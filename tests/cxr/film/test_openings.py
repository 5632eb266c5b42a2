"""Where a DICOM film begins in its file, and what is said of files that are no films."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from tests.cxr.film.test_disagreements import coded, frame_of, syntaxes
from tests.cxr.film_files import chest, data_set_bytes, dataset, png_16, save
from vitdomains.core.errors import ImageError
from vitdomains.cxr.film import read_display, read_film, read_image
from vitdomains.cxr.film.display import read_facts

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def test_without_preamble_or_file_meta_information_and_behind_other_bytes(tmp_path: Path) -> None:
    head, body = data_set_bytes(dataset(**WINDOW), tmp_path / "whole.dcm")
    expected = read_image(tmp_path / "whole.dcm")
    bare = syntaxes(dataset(**WINDOW), tmp_path / "other.dcm").values()
    group_length = b"\x08\x00\x00\x00UL\x04\x00" + len(body).to_bytes(4, "little")
    openings = [
        head[128:] + body,  # no preamble
        head[132:] + body,  # nor DICM
        b"\1" * 128 + head[132:] + body,  # a preamble without DICM
        *bare,
        group_length + body,
        b"\0" * 128 + body,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\n\r\n" + head[128:] + body,
        b"x" * 3000 + head + body,
    ]
    for opening in openings:
        path = tmp_path / "film.dcm"
        path.write_bytes(opening)
        np.testing.assert_array_equal(read_image(path), expected)
        assert read_display(path).levels.shape == expected.shape
        facts = read_facts(path)
        assert facts is not None and facts.text("ViewPosition") == "PA"


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_a_bare_data_set_with_compressed_pixels(tmp_path: Path, syntax: uid.UID) -> None:
    film = coded(dataset(**WINDOW), syntax, frame_of(chest(), 12, syntax))
    _, body = data_set_bytes(film, tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(body)
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm"), read_image(tmp_path / "a.dcm"))
    rle = dataset(**WINDOW)
    rle.compress(uid.RLELossless, generate_instance_uid=False)
    (tmp_path / "c.dcm").write_bytes(data_set_bytes(rle, tmp_path / "d.dcm")[1])
    with pytest.raises(ImageError, match="transfer syntax"):  # RLE has no signature
        read_film(tmp_path / "c.dcm")


def test_what_is_no_film_is_called_by_its_name(tmp_path: Path) -> None:
    film = save(dataset(**WINDOW), tmp_path / "film.dcm").read_bytes()
    archive, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("film.dcm", film)
    with tarfile.open(fileobj=tape, mode="w") as tarred:
        tarred.add(tmp_path / "film.dcm", "film.dcm")
    pictures = {}
    for kind in ("TIFF", "GIF", "BMP", "WEBP", "JPEG2000"):
        Image.fromarray(chest(bits=8)).save(buffer := io.BytesIO(), format=kind)
        pictures[kind] = buffer.getvalue()
    cases = {
        "gzip archive": gzip.compress(film),
        "bzip2 archive": bz2.compress(film),
        "ZIP archive": archive.getvalue(),
        "tar archive": tape.getvalue(),
        "TIFF picture": pictures["TIFF"],
        "GIF picture": pictures["GIF"],
        "BMP picture": pictures["BMP"],
        "WebP picture": pictures["WEBP"],
        "JPEG 2000 picture": pictures["JPEG2000"],
        "text in XML or HTML": b"<!doctype html><html>",
        "PDF document": b"%PDF-1.7\n",
        "NIfTI volume": b"\x5c\x01\x00\x00" + bytes(344),
    }
    for name, content in cases.items():
        path = tmp_path / "given.dcm"
        path.write_bytes(content)
        for read in (read_film, read_display, read_facts):
            with pytest.raises(ImageError, match=f"is an? {name}, not a film") as caught:
                read(path)
            assert caught.value.hint
    (tmp_path / "ls.jpg").write_bytes(frame_of(chest(), 12, uid.JPEGLSLossless))
    with pytest.raises(ImageError, match="JPEG that only DICOM viewers read"):
        read_film(tmp_path / "ls.jpg")


def test_a_camera_s_jpeg_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    first, second = Image.fromarray(chest(60, 40, bits=8)), Image.fromarray(chest(30, 20, bits=8))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert read_film(tmp_path / "a.jpg").full_size == (60, 40)


def test_transparent_pixels_of_deep_pictures_are_padding(tmp_path: Path) -> None:
    for kind in ("RGBA", "grey alpha"):
        film = read_film(png_16(tmp_path / "a.png", chest(bits=16), kind, alpha=0))
        assert film.valid is not None and not film.valid.any() and not film.pixels.any()
    content = png_16(tmp_path / "b.png", chest(bits=16), "RGB").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="damaged|decode"):
        read_film(tmp_path / "b.png")
