"""Every family of backbones through every format of ``export``, gates included: which pass, which are refused and why.

    python benchmarks/export_families.py                        # about twenty minutes; the same command goes on after a stop
    python benchmarks/export_families.py --families timm:resnet50 --formats onnx,pt2

Models are small (those of ``tests/core/models/test_build.py``), their weights random, which is hard on INT8 and says nothing of
the loss on trained ones; there is no accuracy to lose, so the gate is parity alone: of logits, on drawn films, in batches of 1,
3 and 8. Writes ``export_families.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_result
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.core.models.test_build import FAMILIES
from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import Manifest, read_manifest
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import VitDomainsError
from vitdomains.core.export.formats import FORMATS, reason_against
from vitdomains.core.export.job import ExportOptions, export_bundle
from vitdomains.core.files import write_text
from vitdomains.core.models.build import build_model
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.cxr.film.film import read_image
from vitdomains.cxr.phantoms.make import make_phantoms

FILMS = 24


def outcomes(
    name: str, options: dict[str, Any], size: int, films: Manifest, formats: list[str], folder: Path
) -> dict[str, str]:
    """Format -> "passed", or why there is no artefact."""
    torch.manual_seed(0)
    spec = PreprocessSpec(size, size, "letterbox", 3, (0.5,) * 3, (0.25,) * 3)
    model = Model(name=name, options=options)
    built = build_model(model, len(films.classes), image_size=size).eval()
    bundle = Bundle(
        path=folder / "bundle", domain="cxr", task_kind="multilabel", classes=films.classes, model=model, preprocess=spec,
        temperature=(1.0,), thresholds=(0.5,) * len(films.classes), threshold_rule="none", metrics={}, data_card="phantoms",
        provenance={}, exports={}, files={},
    )  # fmt: skip
    bundle = write_bundle(bundle, built.state_dict())
    found = {}
    for form in formats:
        reason = reason_against(form, built)
        if reason:
            found[form] = f"not offered: {reason}"
            continue
        try:
            bundle, (made,) = export_bundle(
                bundle, ImageDataset(films, read_image, spec), ExportOptions((form,), allowed=1.0, threads=1)
            )
        except VitDomainsError as error:
            found[form] = f"refused: {error.message}"
        else:
            found[form] = f"refused: {made.refused}" if made.refused else "passed"
    return found


def table(rows: dict[str, dict[str, str]], formats: list[str]) -> str:
    """Markdown: a family a row."""
    lines = [f"| family | {' | '.join(formats)} |", f"| --- |{' --- |' * len(formats)}"]
    lines += [f"| {family} | {' | '.join(cells[form] for form in formats)} |" for family, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=sorted({name for name, _, _ in FAMILIES}), metavar="NAME")
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(FORMATS))
    parser.add_argument("--work", type=Path, default=Path("runs/export_families"), help="what is done already")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    console, kept = Console(width=160), args.work / "outcomes.json"
    done: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        films = read_manifest(make_phantoms(folder / "phantoms", FILMS, size=128) / "manifest.csv", name="phantoms")
        films = replace(films, table=films.table.head(FILMS))
        for number, (name, options, size) in enumerate(FAMILIES):
            key = f"{name} {json.dumps(options, sort_keys=True)}"
            if name not in args.families or (key in done and set(args.formats) <= done[key].keys()):
                continue
            began = time.monotonic()
            done[key] = outcomes(name, options, size, films, args.formats, folder / str(number))
            write_text(kept, json.dumps(done))
            console.print(f"{name} ({time.monotonic() - began:.0f} s): {done[key]}", markup=False)
    written = write_result("export_families", {"formats": args.formats, "outcomes": done}, args.out)
    written.with_suffix(".md").write_text(table(done, args.formats), encoding="utf-8")
    console.print(f"written to {written} and .md")


if __name__ == "__main__":
    restart_with_tuned_allocator()
    main()
