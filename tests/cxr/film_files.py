"""Films made on the spot: small DICOM files that are right, and ways to make them wrong."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

PATIENT = "DOE^JANE"


def chest(rows: int = 40, columns: int = 32, bits: int = 12, signed: bool = False) -> NDArray[Any]:
    """A smooth picture over nearly the whole stored range, with values on both sides of zero where signed."""
    row, column = np.mgrid[0:rows, 0:columns]
    shade = 0.02 + 0.96 * (0.6 * row / rows + 0.4 * (0.5 + 0.5 * np.sin(column / 5.0)))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    word = (np.int8 if signed else np.uint8) if bits <= 8 else (np.int16 if signed else np.uint16)
    return np.rint(low + shade * (high - low)).astype(word)


def dataset(pixels: NDArray[Any] | None = None, bits: int = 12, **elements: Any) -> FileDataset:
    """A CR film of ``pixels``; ``elements`` overwrite its elements by keyword, None deletes."""
    pixels = chest(bits=bits) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    film = FileDataset("", Dataset(), preamble=b"\0" * 128, file_meta=meta)
    film.SOPClassUID, film.SOPInstanceUID = ComputedRadiographyImageStorage, UID("1.2.3.4")
    film.StudyInstanceUID, film.SeriesInstanceUID = UID("1.2.3"), UID("1.2.3.1")
    film.Modality, film.ViewPosition, film.PatientID, film.PatientName = "CR", "PA", "P-17", PATIENT
    film.PatientSex, film.PatientAge, film.PixelSpacing = "F", "045Y", [0.2, 0.2]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * pixels.itemsize, bits, bits - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    film.PixelData = data + b"\0" * (len(data) % 2)
    film["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(film, keyword)
        else:
            setattr(film, keyword, value)
    return film


def save(film: FileDataset, path: Path) -> Path:
    """Write a film without letting pydicom check or repair it."""
    film.save_as(path, enforce_file_format=False)
    return path


def with_raw(path: Path, keyword_tag: tuple[int, int], vr: bytes, value: bytes) -> Path:
    """Replace one short element of an explicit little endian file by raw bytes, past any check of a writer."""
    content = path.read_bytes()
    needle = struct.pack("<HH", *keyword_tag)
    at = content.index(needle, 132)
    (length,) = struct.unpack("<H", content[at + 6 : at + 8])
    value += b" " * (len(value) % 2)
    path.write_bytes(content[:at] + needle + vr + struct.pack("<H", len(value)) + value + content[at + 8 + length :])
    return path


def data_set_bytes(film: FileDataset, path: Path) -> tuple[bytes, bytes]:
    """(preamble and file meta information, data set) of a film as it would be written."""
    save(film, path)
    content = path.read_bytes()
    at = content.index(b"\x08\x00", 132)
    while content[at + 4 : at + 6] not in (b"UI", b"CS", b"LO", b"SH"):
        at = content.index(b"\x08\x00", at + 1)
    return content[:at], content[at:]


def nested(depth: int, *, defined_length: bool = False) -> bytes:
    """A private sequence that holds a sequence that holds ..., as explicit little endian bytes."""
    tag = struct.pack("<HH", 0x0009, 0x1001)
    if not defined_length:
        opening = tag + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
        closing = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
        return opening * depth + closing * depth
    inner = b""
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
        inner = tag + b"SQ\0\0" + struct.pack("<L", len(item)) + item
    return inner


def deflate(chunks: list[bytes]) -> bytes:
    """Raw deflate data of ``chunks``, without holding what they inflate to more than once."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = io.BytesIO()
    for chunk in chunks:
        out.write(compressor.compress(chunk))
    out.write(compressor.flush())
    return out.getvalue()


def lut_item(first: int, entries: list[int], bits: int, name: str = "") -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    if name:
        item.LUTExplanation = name
    return item


def png_16(path: Path, grey: NDArray[np.uint16], kind: str, significant: int = 0, alpha: int = 65535) -> Path:
    """A PNG of 16 bits, as no common writer makes it: "grey", "grey alpha", "RGB" or "RGBA", with or without sBIT."""
    colour, channels = {"grey": (0, 1), "grey alpha": (4, 2), "RGB": (2, 3), "RGBA": (6, 4)}[kind]
    samples = np.repeat(grey[:, :, None], channels, axis=2)
    if channels in (2, 4):
        samples[..., -1] = alpha
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [(b"IHDR", struct.pack(">LLBBBBB", grey.shape[1], grey.shape[0], 16, colour, 0, 0, 0))]
    chunks += [(b"sBIT", bytes([significant] * channels))] if significant else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">L", len(d)) + n + d + struct.pack(">L", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path
