"""Fields of a film's file that can disagree: which is believed, and why.

Every row of ``TABLE`` names two sources of one fact, which of them is believed (or that the file is refused with both), the
reason, and the test that shows it. ``test_the_table_is_whole`` holds the names against this module.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from tests.cxr.film_files import chest, data_set_bytes, dataset, lut_item, png_16, save
from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.display import read_display
from vitdomains.cxr.film.film import read_film, read_image
from vitdomains.cxr.quality import film_quality

TABLE = (
    # one, other, believed, why, test
    ("LUTDescriptor bits", "entries of LUTData", "entries", "writers put the size of the container (Agfa)", "lut_bits"),
    ("LUTDescriptor count", "length of LUTData", "refused", "no way to tell which entry belongs to which input", "lut_length"),
    ("LUTDescriptor VR", "range of the values", "values", "US and SS are mixed up; tables lie where values do", "lut_first"),
    ("BitsStored", "values, uncompressed", "refused where cut off", "values or bits are wrong", "bits_stored"),
    ("BitsStored", "overlay planes above it", "BitsStored", "the picture is smoother without them", "overlays"),
    ("BitsStored", "sign extension above it", "both", "they say the same", "overlays"),
    ("BitsStored, BitsAllocated", "precision of the codestream", "codestream", "its values are what is decoded", "precision"),
    ("PixelRepresentation 1", "unsigned JPEG 2000", "PixelRepresentation", "encoders take words as they are", "sign"),
    ("PixelRepresentation 0", "signed JPEG 2000", "refused where values are negative", "no word says which", "sign"),
    ("Rows, Columns, SamplesPerPixel", "codestream", "refused", "another picture than described", "frame_size"),
    ("Rows, Columns", "length of PixelData", "refused", "a wrong width shears the picture", "frame_size"),
    ("HighBit", "BitsStored", "refused", "words would have to be shifted", "frame_size"),
    ("TransferSyntaxUID, compressed", "signature of the frame", "frame", "it can be decoded in one way only", "codec"),
    ("TransferSyntaxUID, compressed", "plain pixels of the right length", "pixels", "compressed ones are encapsulated", "codec"),
    ("TransferSyntaxUID, byte order and VRs", "first element", "first element", "only one reading gives known tags", "encoding"),
    ("PixelPaddingValue sign", "sign of the pixels", "the same word", "-1 and 65535 are one word", "padding"),
    ("WindowCenter, WindowWidth", "values", "refused where all is one grey", "nothing would be seen", "window_outside"),
    ("Modality LUT", "RescaleSlope", "Modality LUT", "the more special one; the standard allows one", "luts_first"),
    ("VOI LUT", "WindowCenter", "VOI LUT", "the more special one; windows are offered as alternatives", "luts_first"),
    ("PhotometricInterpretation", "PresentationLUTShape", "PhotometricInterpretation", "INVERSE restates it", "luts_first"),
    ("PixelSpacing 0", "ImagerPixelSpacing", "the first that is positive", "CR units write zeros", "spacing"),
    ("Modality", "SOPClassUID", "refused where one is no film", "a slice is no film whatever its modality", "intent"),
    ("PresentationIntentType", "SOPClassUID", "refused where one is FOR PROCESSING", "raw values are no picture", "intent"),
    ("PatientOrientation", "stored rows and columns", "PatientOrientation", "the picture is turned to L and F", "orientation"),
    ("PatientOrientation", "FieldOfViewHorizontalFlip", "PatientOrientation", "a flip was done already", "field_of_view"),
    ("no PatientOrientation", "FieldOfViewHorizontalFlip, Rotation", "unknown, in words", "as above", "field_of_view"),
    ("BurnedInAnnotation", "pixels", "said in the report", "text cannot be taken back from a picture", "burned_in"),
    ("PNG of 16 bits", "largest sample", "the least bits that hold it", "12-bit films lie in 16-bit words", "png_bits"),
    ("sBIT", "largest sample", "sBIT where it holds the sample", "spread samples use all 16 bits", "png_bits"),
    ("EXIF orientation", "rows and columns", "EXIF", "cameras store as the sensor lies", "exif"),
    ("file name", "signature", "signature", "names are given by people", "names"),
)  # fmt: skip
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def smooth(bits: int, signed: bool = False) -> np.ndarray:
    """``chest``, so large that neighbours are alike, as on a film."""
    small = chest(bits=bits, signed=signed)
    large = cv2.resize(small.astype(np.float32), (320, 400), interpolation=cv2.INTER_LINEAR)
    return large.round().astype(small.dtype)


def test_the_table_is_whole() -> None:
    shown = {row[-1] for row in TABLE}
    tests = {name.removeprefix("test_") for name in dir(sys.modules[__name__]) if name.startswith("test_")}
    assert tests - shown == {"the_table_is_whole"} and shown <= tests


@pytest.mark.parametrize(("declared", "used"), [(16, 12), (16, 10), (12, 16), (8, 12), (14, 14), (16, 15)])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lut_bits(tmp_path: Path, sequence: str, declared: int, used: int) -> None:
    curve = [round((2**used - 1) * (i / 4095) ** 0.7) for i in range(4096)]
    film = dataset(**{sequence: [lut_item(0, curve, declared)]})
    if sequence == "ModalityLUTSequence":
        film.WindowCenter, film.WindowWidth = 2 ** (used - 1), 2**used
    pixels = read_image(save(film, tmp_path / "a.dcm"))
    np.testing.assert_allclose(pixels, np.array(curve)[chest()] / (2**used - 1), atol=2 / 2**used)


def test_lut_length(tmp_path: Path) -> None:
    for count, entries in ((1000, 3), (3, 1000), (0, 4096)):
        item = lut_item(0, list(range(entries)), 12)
        item.LUTDescriptor = [count, 0, 12]
        with pytest.raises(ImageError, match=f"{2 * entries} bytes for {count or 65536} entries"):
            read_film(save(dataset(VOILUTSequence=[item]), tmp_path / "a.dcm"))


def test_lut_first(tmp_path: Path) -> None:
    pixels = chest(signed=True)
    curve = [round(4095 * (i / 4095) ** 2) for i in range(4096)]
    right = dataset(pixels, VOILUTSequence=[lut_item(-2048, curve, 12)])
    expected = read_image(save(right, tmp_path / "a.dcm"))
    np.testing.assert_allclose(expected, np.array(curve)[pixels.astype(int) + 2048] / 4095, atol=1e-6)
    wrong = lut_item(0, curve, 12)
    wrong["LUTDescriptor"].value = [4096, 65536 - 2048, 12]  # the same word, called unsigned
    np.testing.assert_array_equal(
        read_image(save(dataset(pixels, VOILUTSequence=[wrong]), tmp_path / "b.dcm")), expected
    )
    unsigned = dataset(chest(), RescaleSlope=1, RescaleIntercept=-2048, VOILUTSequence=[wrong])
    np.testing.assert_array_equal(read_image(save(unsigned, tmp_path / "c.dcm")), expected)


@pytest.mark.parametrize(("actual", "declared"), [(14, 12), (13, 12), (16, 12), (12, 10), (7, 6)])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_stored(tmp_path: Path, actual: int, declared: int, signed: bool) -> None:
    deep = smooth(actual, signed)
    for window in ({}, {"WindowCenter": 100, "WindowWidth": 200}):
        path = save(dataset(deep, declared, **window), tmp_path / "a.dcm")
        for read in (read_film, read_display):
            with pytest.raises(ImageError, match=rf"BitsStored = '{declared}, values up to \d+'"):
                read(path)


@pytest.mark.parametrize("size", [(40, 32), (1200, 900)])
def test_overlays(tmp_path: Path, size: tuple[int, int]) -> None:
    clean = chest(*size)
    expected = read_image(save(dataset(clean, **WINDOW), tmp_path / "a.dcm"))
    overlay = clean.copy()
    cv2.circle(plane := np.zeros(size, np.uint8), (size[1] // 2, size[0] // 2), size[1] // 4, 1, 2)
    overlay[plane > 0] |= 0x1000
    overlay[: size[0] // 5] |= 0x8000
    for odd in (overlay, clean | np.uint16(0x5000)):
        np.testing.assert_array_equal(read_image(save(dataset(odd, **WINDOW), tmp_path / "b.dcm")), expected)
    signed = chest(*size, signed=True)
    extended = read_image(save(dataset(signed, WindowCenter=0, WindowWidth=4096), tmp_path / "c.dcm"))
    cut = dataset((signed.view(np.uint16) & 0xFFF).view(np.int16), WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(read_image(save(cut, tmp_path / "d.dcm")), extended)


def coded(film: FileDataset, syntax: uid.UID, frame: bytes) -> FileDataset:
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encapsulate([frame])
    film["PixelData"].is_undefined_length = True
    return film


def frame_of(pixels: np.ndarray, bits: int, syntax: uid.UID) -> bytes:
    plugin = "pyjpegls" if syntax == uid.JPEGLSLossless else "pylibjpeg"
    if plugin not in get_encoder(syntax).available_plugins:
        pytest.skip(f"{plugin} is not installed")
    film = dataset(pixels, bits)
    film.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    from pydicom.encaps import get_frame

    return get_frame(film.PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
@pytest.mark.parametrize(("coded_bits", "bits"), [(12, 16), (14, 12), (16, 12), (12, 10), (8, 12)])
def test_precision(tmp_path: Path, syntax: uid.UID, coded_bits: int, bits: int) -> None:
    pixels = smooth(coded_bits)
    window = {"WindowCenter": 2 ** (coded_bits - 1), "WindowWidth": 2**coded_bits}
    expected = read_image(save(dataset(pixels, coded_bits, **window), tmp_path / "a.dcm"))
    stretched = read_image(save(dataset(pixels, coded_bits), tmp_path / "b.dcm"))
    frame = frame_of(pixels, coded_bits, syntax)
    wrong = {"BitsAllocated": 16, "BitsStored": bits, "HighBit": bits - 1}
    for elements, right in ((window, expected), ({}, stretched)):
        path = save(coded(dataset(pixels, coded_bits, **elements, **wrong), syntax, frame), tmp_path / "c.dcm")
        np.testing.assert_array_equal(read_image(path), right)
        assert read_display(path).levels.max() <= 2**coded_bits - 1
    small = frame_of(smooth(12), 16, syntax)  # the container's size, as many encoders write it
    film = read_film(save(coded(dataset(smooth(12), 12), syntax, small), tmp_path / "d.dcm"))
    assert film.bits == 12


def test_sign(tmp_path: Path) -> None:
    pixels = chest(bits=12, signed=True)
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    expected = read_image(save(dataset(pixels, **window), tmp_path / "a.dcm"))
    unsigned = frame_of((pixels.view(np.uint16) & 0xFFF), 12, uid.JPEG2000Lossless)
    film = coded(dataset(pixels, **window), uid.JPEG2000Lossless, unsigned)
    np.testing.assert_array_equal(read_image(save(film, tmp_path / "b.dcm")), expected)
    signed = frame_of(pixels, 12, uid.JPEG2000Lossless)
    film = coded(dataset(chest(), **window), uid.JPEG2000Lossless, signed)
    with pytest.raises(ImageError, match="negative values.*PixelRepresentation = 0"):
        read_film(save(film, tmp_path / "c.dcm"))
    positive = (chest(bits=12) // 2).astype(np.int16)
    film = coded(
        dataset(positive.view(np.uint16), **WINDOW), uid.JPEG2000Lossless, frame_of(positive, 12, uid.JPEG2000Lossless)
    )
    plain = read_image(save(dataset(positive.view(np.uint16), **WINDOW), tmp_path / "d.dcm"))
    np.testing.assert_array_equal(read_image(save(film, tmp_path / "e.dcm")), plain)


def test_frame_size(tmp_path: Path) -> None:
    frame = frame_of(chest(), 12, uid.JPEG2000Lossless)
    for lie in ({"Rows": 20}, {"Columns": 64}):
        film = coded(dataset(**WINDOW, **lie), uid.JPEG2000Lossless, frame)
        with pytest.raises(ImageError, match=r"Rows x Columns = '\d+ x \d+, 40 x 32 in 1 components"):
            read_film(save(film, tmp_path / "a.dcm"))
    with pytest.raises(ImageError, match="2560 bytes, 2624 expected"):
        read_film(save(dataset(Rows=41), tmp_path / "b.dcm"))
    with pytest.raises(ImageError, match="HighBit = 15"):
        read_film(save(dataset(HighBit=15), tmp_path / "c.dcm"))


@pytest.mark.parametrize(
    "declared", [uid.JPEG2000, uid.JPEGLSLossless, uid.JPEGBaseline8Bit, uid.RLELossless, uid.ExplicitVRLittleEndian]
)
def test_codec(tmp_path: Path, declared: uid.UID) -> None:
    def relabelled(film: FileDataset, name: str) -> Path:
        content = save(film, tmp_path / name).read_bytes()
        actual = str(film.file_meta.TransferSyntaxUID)
        actual += "\0" * (len(actual) % 2)
        old, new = (struct.pack("<H", len(u)) + u.encode() for u in (actual, declared.ljust(22, "\0")))
        (tmp_path / name).write_bytes(content.replace(old, new, 1))
        return tmp_path / name

    pixels, window = chest(bits=8), {"WindowCenter": 128, "WindowWidth": 256}
    expected = read_image(save(dataset(pixels, 8, **window), tmp_path / "a.dcm"))
    for syntax in (uid.JPEG2000Lossless, uid.JPEGLSLossless):
        film = coded(dataset(pixels, 8, **window), syntax, frame_of(pixels, 8, syntax))
        np.testing.assert_array_equal(read_image(relabelled(film, "b.dcm")), expected)
    np.testing.assert_array_equal(read_image(relabelled(dataset(pixels, 8, **window), "c.dcm")), expected)


def syntaxes(film: FileDataset, path: Path) -> dict[uid.UID, bytes]:
    """The data set alone in each uncompressed transfer syntax."""
    from pydicom import dcmwrite

    found = {}
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        film.file_meta.TransferSyntaxUID = syntax
        if syntax == uid.ExplicitVRBigEndian:
            film.PixelData = np.frombuffer(film.PixelData, np.uint16).byteswap().tobytes()
        implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
        dcmwrite(path, film, implicit_vr=implicit, little_endian=little)
        content = path.read_bytes()
        first = b"\x08\x00\x16\x00" if little else b"\x00\x08\x00\x16"
        found[syntax] = content[content.index(first, 132) :]
    return found


def test_encoding(tmp_path: Path) -> None:
    film = dataset(**WINDOW)
    head, _ = data_set_bytes(film, tmp_path / "a.dcm")
    expected = read_image(tmp_path / "a.dcm")
    found = syntaxes(film, tmp_path / "b.dcm")
    for body in found.values():
        for declared in (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"):
            (tmp_path / "c.dcm").write_bytes(head.replace(b"1.2.840.10008.1.2.1\0", declared) + body)
            np.testing.assert_array_equal(read_image(tmp_path / "c.dcm"), expected)


def test_padding(tmp_path: Path) -> None:
    pixels = chest(bits=16, signed=True)
    pixels[:, :5] = -1
    film = dataset(pixels, 16, WindowCenter=0, WindowWidth=65536)
    film.add_new("PixelPaddingValue", "US", 65535)
    read = read_film(save(film, tmp_path / "a.dcm"))
    assert read.valid is not None and not read.valid[:, :5].any() and read.valid[:, 6:].mean() > 0.99
    words = chest(bits=12)
    words[:, :5] = 63536  # -2000, of more bits than are stored
    film = dataset(words, 12, **WINDOW)
    film.add_new("PixelPaddingValue", "SS", -2000)
    read = read_film(save(film, tmp_path / "b.dcm"))
    assert read.valid is not None and not read.valid[:, :5].any() and read.valid[:, 5:].all()
    assert not read.pixels[:, :5].any()
    for name, columns in (("a.dcm", 5), ("b.dcm", 5)):
        display = read_display(tmp_path / name)
        first, last = display.padding or (1, 0)
        padded = (display.levels >= first) & (display.levels <= last)
        assert padded[:, :columns].all() and not padded[:, columns + 1 :].any() and last < len(display.units)


def test_window_outside(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"window lies outside.*WindowCenter = 'LINEAR 40000/1000'"):
        read_film(save(dataset(WindowCenter=40000, WindowWidth=1000), tmp_path / "a.dcm"))
    curve = lut_item(60000, [0, 1, 2, 3], 12)
    with pytest.raises(ImageError, match="VOILUTSequence"):
        read_film(save(dataset(VOILUTSequence=[curve]), tmp_path / "b.dcm"))
    assert read_film(save(dataset(WindowCenter=40000, WindowWidth=1000), tmp_path / "a.dcm"), window=(2048, 4096))


def test_luts_first(tmp_path: Path) -> None:
    curve = lut_item(0, [4095 - i for i in range(4096)], 12)
    film = dataset(ModalityLUTSequence=[curve], RescaleSlope=1, RescaleIntercept=0, **WINDOW)
    plain = read_image(save(dataset(**WINDOW), tmp_path / "a.dcm"))
    np.testing.assert_allclose(read_image(save(film, tmp_path / "b.dcm")), 1 - plain, atol=1 / 4000)
    film = dataset(VOILUTSequence=[curve], **WINDOW)
    np.testing.assert_allclose(read_image(save(film, tmp_path / "c.dcm")), 1 - plain, atol=1 / 4000)
    shape = dataset(PresentationLUTShape="INVERSE", **WINDOW)
    np.testing.assert_array_equal(read_image(save(shape, tmp_path / "d.dcm")), plain)


def test_spacing(tmp_path: Path) -> None:
    for given, expected in (([0, 0], (0.15, 0.14)), ([-1, 0.2], (0.15, 0.14)), ([0.3, 0.2], (0.3, 0.2))):
        film = dataset(PixelSpacing=given, ImagerPixelSpacing=[0.15, 0.14])
        assert read_film(save(film, tmp_path / "a.dcm")).spacing == expected


def test_intent(tmp_path: Path) -> None:
    for elements in (
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": uid.DigitalXRayImageStorageForProcessing, "PresentationIntentType": "FOR PRESENTATION"},
    ):
        with pytest.raises(ImageError, match="raw detector values.*FOR PRESENTATION of the same study"):
            read_film(save(dataset(**elements), tmp_path / "a.dcm"))
    with pytest.raises(ImageError, match="not a radiograph but CT"):
        read_film(save(dataset(SOPClassUID=uid.CTImageStorage), tmp_path / "b.dcm"))
    assert read_film(save(dataset(PresentationIntentType="FOR PRESENTATION"), tmp_path / "c.dcm"))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["L", "F"], lambda p: p),
        (["R", "F"], lambda p: p[:, ::-1]),
        (["L", "H"], lambda p: p[::-1]),
        (["R", "H"], lambda p: p[::-1, ::-1]),
        (["F", "L"], lambda p: p.T),
        (["H", "L"], lambda p: np.rot90(p, -1)),
        (["F", "R"], lambda p: np.rot90(p, 1)),
        (["H", "R"], lambda p: np.rot90(p, 2).T),
        (["A", "F"], lambda p: p),
        (["P", "FL"], lambda p: p),
    ],
)  # fmt: skip
def test_orientation(tmp_path: Path, given: list[str], stored: Any) -> None:
    upright = chest(rows=40, columns=32)
    expected = read_image(save(dataset(upright, **WINDOW), tmp_path / "a.dcm"))
    film = dataset(np.ascontiguousarray(stored(upright)), PatientOrientation=given, PixelPaddingValue=1, **WINDOW)
    path = save(film, tmp_path / "b.dcm")
    read = read_film(path)
    np.testing.assert_array_equal(read.pixels, expected)
    assert read.full_size == (40, 32) and read.turn.stored_size((40, 32)) == stored(upright).shape
    levels = read_display(path).levels
    np.testing.assert_array_equal(levels, upright)
    row, column = 7, 21  # a place in the upright film, found again in the stored one
    ((x, y),) = read.turn.stored_points(np.array([[column + 0.5, row + 0.5]]), (40, 32))
    assert stored(upright)[int(y), int(x)] == upright[row, column]


def test_field_of_view(tmp_path: Path) -> None:
    plain = save(dataset(**WINDOW), tmp_path / "a.dcm")
    assert read_film(plain).turn.text == "not given"
    for elements in (
        {"FieldOfViewHorizontalFlip": "YES"},
        {"FieldOfViewRotation": "90"},
        {"PatientOrientation": ["X", "Q"]},
    ):
        film = read_film(save(dataset(**elements, **WINDOW), tmp_path / "b.dcm"))
        assert film.turn.text.startswith("unknown") and any(
            "left and right" in reason for reason in film_quality(film).reasons
        )
        np.testing.assert_array_equal(film.pixels, read_image(plain))
    both = dataset(FieldOfViewHorizontalFlip="YES", PatientOrientation=["R", "F"], **WINDOW)
    film = read_film(save(both, tmp_path / "c.dcm"))
    assert film.turn.text == "turned from R\\F"
    np.testing.assert_array_equal(film.pixels, read_image(plain)[:, ::-1])


def test_burned_in(tmp_path: Path) -> None:
    for given in ("YES", "NO", ""):
        assert read_film(save(dataset(BurnedInAnnotation=given), tmp_path / "a.dcm")).burned_in == given


@pytest.mark.parametrize("kind", ["grey", "grey alpha", "RGB", "RGBA"])
@pytest.mark.parametrize(
    ("used", "significant", "full"), [(12, 0, 12), (16, 0, 16), (11, 12, 12), (12, 12, 12), (16, 12, 16), (10, 0, 10)]
)
def test_png_bits(tmp_path: Path, kind: str, used: int, significant: int, full: int) -> None:
    grey = chest(bits=used)
    film = read_film(png_16(tmp_path / "a.png", grey, kind, significant))
    assert film.bits == full and film.valid is None
    np.testing.assert_allclose(film.pixels, grey / (2**full - 1), atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "8-bit PNG", "16-bit PNG"])
def test_exif(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = chest(rows=48, columns=32, bits=16 if kind == "16-bit PNG" else 8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, format=kind[-4:].strip(), exif=exif, quality=100)
    plain = tmp_path / "b"
    Image.fromarray(upright).save(plain, format=kind[-4:].strip(), quality=100)
    np.testing.assert_allclose(read_image(path), read_image(plain), atol=4 / 255)
    assert read_display(path).levels.shape == upright.shape


def test_names(tmp_path: Path) -> None:
    save(dataset(**WINDOW), tmp_path / "film.png")
    assert read_film(tmp_path / "film.png").modality == "CR"
