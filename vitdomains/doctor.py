"""The command ``doctor``: versions, devices, runtimes and codecs of this installation, in one screen for a bug report.

No name of a user, host or folder is shown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from vitdomains import __version__
from vitdomains.core.process import has_fast_bf16, physical_cores
from vitdomains.core.terminal import console, parse_args

PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pandas", "pydicom", "rasterio", "monai", "scikit-learn",
            "onnxruntime", "albumentations")  # fmt: skip
EXTRAS = {
    "apps": ("streamlit", "plotly", "pydeck"),
    "openvino": ("openvino", "nncf"),
    "ray": ("ray",),
    "postgres": ("psycopg",),
    "lossless-jpeg": ("pylibjpeg-libjpeg",),
    "mlflow": ("mlflow",),
}
"""Optional packages by the extra that brings them; the same names as in pyproject.toml."""

SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended, 12 bit",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first order",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE lossless",
}


def doctor(argv: Sequence[str]) -> int:
    """Show versions, devices, runtimes, codecs, and what is missing and how to get it; status 1 where something is broken."""
    parse_args(argparse.ArgumentParser(prog="vitdomains doctor", description=doctor.__doc__), argv, "")
    table = Table(show_header=False, box=None, pad_edge=False)
    broken = []
    for name, found, fault in _findings():
        table.add_row(escape(name), escape(found))
        broken += [fault] if fault else []
    console.print(table, highlight=False)
    for fault in broken:
        console.print(f"to do: {fault}", style="bold", markup=False, highlight=False, soft_wrap=True)
    return 1 if broken else 0


def _findings() -> Iterator[tuple[str, str, str]]:
    """(what, what was found, what to do about it where it is broken)."""
    yield (
        "vitdomains",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        "",
    )
    missing = [name for name in PACKAGES if not _version(name)]
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if _version(name))
    yield "packages", found, f"pip install {' '.join(missing)}" if missing else ""
    yield "processor", f"{physical_cores()} cores, bfloat16 in hardware: {'yes' if has_fast_bf16() else 'no'}", ""
    yield "accelerators", _accelerators(), ""
    yield from _runtimes()
    yield "DICOM codecs", *_codecs()
    yield "rasters", *_rasters()
    for extra, names in EXTRAS.items():
        lacking = [name for name in names if not _version(name)]
        here = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
        yield f"[{extra}]", here if not lacking else f"not installed: pip install 'vitdomains[{extra}]'", ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _accelerators() -> str:
    import torch

    cards = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if torch.backends.mps.is_available():
        cards.append("Apple MPS")
    return ", ".join(cards) or "none"


def _runtimes() -> Iterator[tuple[str, str, str]]:
    import onnxruntime

    yield "onnxruntime", ", ".join(onnxruntime.get_available_providers()), ""
    if importlib.util.find_spec("openvino"):
        import openvino

        yield "openvino", ", ".join(openvino.Core().available_devices), ""


def _codecs() -> tuple[str, str]:
    """Transfer syntaxes that can be decoded, and those that cannot with the reason."""
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

    lacking = [name for uid, name in SYNTAXES.items() if not get_decoder(uid).is_available]
    here = ", ".join(name for name in SYNTAXES.values() if name not in lacking)
    note = f"; not: {', '.join(lacking)} (pip install 'vitdomains[lossless-jpeg]', GPL-3.0)" if lacking else ""
    return here + note, ""


def _rasters() -> tuple[str, str]:
    import rasterio
    from rasterio.drivers import raster_driver_extensions

    drivers = sorted(set(raster_driver_extensions().values()) & {"GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG", "WEBP"})
    return f"GDAL {rasterio.__gdal_version__}, {', '.join(drivers)}", ""
