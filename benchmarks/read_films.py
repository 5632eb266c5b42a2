"""How fast a film becomes a display-ready array: this package, torchxrayvision, MONAI, and pydicom's bare decode.

    python benchmarks/read_films.py [--repeats 30]

"Display-ready" is float32 with the window applied and bone bright. The others do less: pydicom only decodes, MONAI's
LoadImage returns rescaled stored values, torchxrayvision scales them to -1024..1024. Needs ``pydicom-data``,
``torchxrayvision`` and ``monai``; the JPEG film is read from ``../shared/data/dicom_cxr`` (``VITDOMAINS_SHARED``) where
present. Nothing is downloaded. Run it alone: on a busy machine the ratios move, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from harness import environment, interleave, missing, require, write_result
from rich.console import Console
from rich.table import Table

from vitdomains.cxr.film.film import read_image

# Least speed relative to each peer that this package promises, by kind of film.
TARGETS = {
    "uncompressed": {"torchxrayvision": 4.0, "monai": 2.0},
    "compressed": {"pydicom decode": 0.95},
}


def films() -> dict[str, tuple[str, Path]]:
    """Name to (kind, path) of the films that are there."""
    found: dict[str, tuple[str, Path]] = {}
    spec = importlib.util.find_spec("data_store")
    if spec and spec.origin:
        by_name = {path.name: path for path in (Path(spec.origin).parent / "data").rglob("RG*.dcm")}
        for name in ("RG1_UNCI", "RG3_UNCI", "RG1_J2KI", "RG1_J2KR", "RG3_J2KI", "RG3_J2KR"):
            if f"{name}.dcm" in by_name:
                found[name] = ("uncompressed" if "UNC" in name else "compressed", by_name[f"{name}.dcm"])
    shared = Path(os.environ.get("VITDOMAINS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    for path in sorted((shared / "data" / "dicom_cxr").glob("1.2.276*.dcm")):
        found["JPEG baseline"] = ("compressed", path)
    return found


def peers() -> dict[str, Callable[[str], object]]:
    """Name to a reader of one path; the ones that are installed."""
    readers: dict[str, Callable[[str], object]] = {
        "vitdomains": read_image,
        "pydicom decode": lambda path: pydicom.dcmread(path).pixel_array,
    }
    if not missing("torchxrayvision"):
        from torchxrayvision.utils import read_xray_dcm

        readers["torchxrayvision"] = lambda path: read_xray_dcm(path)
    if not missing("monai"):
        from monai.transforms import LoadImage

        load = LoadImage(reader="PydicomReader", image_only=True, dtype=np.float32)
        readers["monai"] = lambda path: load(path)
    return readers


def measure(path: Path, kind: str, readers: dict[str, Callable[[str], object]], repeats: int) -> dict[str, Any]:
    """Time every reader on one film, and hold the ratios against what is promised for its kind."""
    timed = interleave({name: partial(reader, str(path)) for name, reader in readers.items()}, repeats)
    ours = timed["vitdomains"]["median_s"]
    ratios = {name: timing["median_s"] / ours for name, timing in timed.items() if name != "vitdomains"}
    promised = {name: least for name, least in TARGETS[kind].items() if name in ratios}
    return {
        "kind": kind,
        "bytes": path.stat().st_size,
        "seconds": timed,
        "speed_relative_to": ratios,
        "promised": promised,
        "met": {name: ratios[name] >= least for name, least in promised.items()},
    }


def ratio_text(result: dict[str, Any]) -> str:
    """One line a peer: how many times its speed, and whether what was promised is met."""
    lines = []
    for name, ratio in result["speed_relative_to"].items():
        line = f"{name} {ratio:.2f}"
        if name in result["promised"]:
            line += f" (>= {result['promised'][name]:g} {'met' if result['met'][name] else 'MISSED'})"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Time every reader on every film, print the table, write ``results/read_films.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=30, help="timed rounds a film (20 or more for a quotable number)"
    )
    arguments = parser.parse_args()
    if not films():
        require("data_store", otherwise="or set VITDOMAINS_SHARED to a folder with data/dicom_cxr")
    for reason in filter(None, map(missing, ("torchxrayvision", "monai"))):
        sys.stderr.write(f"left out: {reason}\n")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    load_before = environment()["load_average"]
    readers = peers()
    table = Table(title=f"File to array, median ms (10th to 90th percentile), {arguments.repeats} interleaved rounds")
    for column in ("film", *readers, "times the speed of"):
        table.add_column(column)
    results = {}
    for film, (kind, path) in films().items():
        result = results[film] = measure(path, kind, readers, arguments.repeats)
        timings = (
            f"{1e3 * t['median_s']:.2f} ({1e3 * t['p10_s']:.2f} to {1e3 * t['p90_s']:.2f})"
            for t in result["seconds"].values()
        )
        table.add_row(f"{film} ({kind})", *timings, ratio_text(result))
    console = Console()
    console.print(table)
    written = write_result("read_films", {"load_average_before": load_before, "films": results})
    console.print(f"written to {written}")


if __name__ == "__main__":
    main()
