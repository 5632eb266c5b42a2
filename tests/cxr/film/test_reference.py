"""Real DICOM files, against pydicom's own pipeline: to one grey level of the stored range, or a typed error."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from vitdomains.core.errors import ImageError
from vitdomains.cxr.film.film import Film, read_film, read_image

BUILT_IN = Path(pydicom.__file__).parent / "data" / "test_files"


def optional_files() -> Path | None:
    """The folder of the pydicom-data package, found without importing pydicom's downloader."""
    found = importlib.util.find_spec("data_store")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    return folder if folder and folder.is_dir() else None


OPTIONAL = optional_files()
FILES = sorted(BUILT_IN.glob("*")) + (sorted(p for p in OPTIONAL.rglob("*") if p.suffix == ".dcm") if OPTIONAL else [])
MUST_READ = {
    "693_J2KR.dcm", "693_UNCI.dcm", "CT_small.dcm", "JPEG2000.dcm", "JPEG-LL.dcm", "JPEGLSNearLossless_16.dcm",
    "JPGExtended.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "RG1_J2KI.dcm", "RG1_UNCI.dcm", "RG3_J2KR.dcm", "RG3_UNCR.dcm",
    "image_dfl.dcm", "mlut_18.dcm", "vlut_04.dcm",
}  # fmt: skip


def reference(film: pydicom.FileDataset) -> np.ndarray:
    """0..1 by pydicom: modality, VOI, inversion last; scaled from its output range, or the documented fall-back one."""
    modality = apply_modality_lut(film.pixel_array, film)
    shown = apply_voi_lut(modality, film).astype(np.float64)
    bits = film.BitsStored
    low, high = (0, 2**bits - 1) if film.PixelRepresentation == 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    slope, intercept = film.get("RescaleSlope"), film.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        low, high = low * slope + intercept, high * slope + intercept
    if film.get("ModalityLUTSequence"):
        low, high = 0, 2 ** film.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if film.get("VOILUTSequence"):
        low, high = 0, 2 ** film.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif film.get("WindowCenter") is None and bits > 8:
        low, high = np.percentile(modality, [0.5, 99.5], method="inverted_cdf")
    shown = np.clip((shown - float(low)) / (float(high) - float(low)), 0.0, 1.0)
    return 1.0 - shown if film.PhotometricInterpretation == "MONOCHROME1" else shown


def assert_equals_reference(film: Film, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = film.turn.apply(reference(pydicom.dcmread(path)))
    difference = np.abs(film.pixels - expected)
    if film.valid is not None:
        assert not film.pixels[~film.valid].any()
        difference = difference[film.valid]
    assert difference.max() <= 1.0 / (2**film.bits - 1) + 1e-6  # float32 of the nearest grey level


@pytest.mark.parametrize("path", [p for p in FILES if p.is_file()], ids=lambda p: p.name)
def test_every_file_of_pydicom_equals_its_pipeline_or_is_refused(path: Path) -> None:
    try:
        film = read_film(path, modalities=None)
    except ImageError as error:
        assert error.path == path and error.tag and str(path) in str(error)
        assert path.name not in MUST_READ
        return
    assert film.pixels.dtype == np.float32 and film.pixels.min() >= 0.0 and film.pixels.max() <= 1.0
    assert_equals_reference(film, path)


@pytest.mark.skipif(OPTIONAL is None, reason="pydicom-data is not installed")
@pytest.mark.parametrize(
    ("one", "other"),
    [("RG1_UNCI", "RG1_J2KI"), ("RG1_UNCR", "RG1_J2KR"), ("RG3_UNCR", "RG3_J2KR"), ("RG3_UNCI", "RG3_J2KI")],
)
def test_the_same_film_in_two_transfer_syntaxes(one: str, other: str) -> None:
    assert OPTIONAL is not None
    first, second = (next(OPTIONAL.rglob(f"{name}.dcm")) for name in (one, other))
    np.testing.assert_array_equal(read_image(first), read_image(second))


def test_real_films_equal_the_reference(shared: Path) -> None:
    paths = sorted((shared / "data" / "dicom_cxr").glob("*.dcm"))
    assert len(paths) == 3
    for path in paths:
        film = read_film(path)
        assert_equals_reference(film, path)
        assert film.view == "PA" and film.pixels.std() > 0.1


def test_the_monochrome1_copy_is_the_inverse_of_its_twin(shared: Path) -> None:
    folder = shared / "data" / "dicom_cxr"
    twin = next(p for p in folder.glob("1.2.276*.dcm"))
    np.testing.assert_allclose(read_image(folder / "Fake_MONOHR1.dcm"), 1.0 - read_image(twin), atol=1e-6)
