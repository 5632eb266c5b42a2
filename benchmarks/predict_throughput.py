"""From PNG films to probabilities, end to end: this package against a transformers pipeline and hand-written loops.

    python benchmarks/predict_throughput.py                     # 64 films of 448 px, ViT-Ti/16 at 384 px; about five minutes
    python benchmarks/predict_throughput.py --films 16 --repeats 2

The films are phantoms drawn here, the weights random; neither changes the time. ``vitdomains`` is ``Predictor`` with the
fastest runtime on this machine, as its own probe finds it among PyTorch and what was exported. ``pipeline`` is transformers'
``image-classification`` with default settings on a ViT of the same size. ``timm loop`` decodes with Pillow, transforms as
timm does, and runs batches under bf16 autocast; ``onnx loop`` the same with ONNX Runtime in fp32. ``bare forward`` is
OpenVINO in bf16 on an array in memory: what no program that also reads files on the same cores can exceed with it. All take
turns in one process.
Writes ``predict_throughput.json``. Run it alone: on a busy machine the ratios move, too.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from harness import RESULTS, interleave, require, write_result
from PIL import Image
from rich.console import Console
from rich.table import Table

from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import Manifest, read_manifest
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.export.job import ExportOptions, export_bundle
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.inference.runtimes import session
from vitdomains.core.models.build import build_model
from vitdomains.core.process import has_fast_bf16, physical_cores, restart_with_tuned_allocator
from vitdomains.cxr.film.film import read_image
from vitdomains.cxr.phantoms.make import make_phantoms

TARGETS = {"pipeline": 4.0, "bare forward": 0.9}
"""Least speed relative to each that this package promises."""
MODEL, PIXELS, FILM_PIXELS, BATCH = "vit_tiny_patch16_384", 384, 448, 8
MEAN = STD = (0.5, 0.5, 0.5)


def draw(folder: Path, count: int) -> Manifest:
    """``count`` phantom films as 8-bit PNG."""
    drawn = make_phantoms(folder / "phantoms", count, size=FILM_PIXELS)
    manifest = read_manifest(drawn / "manifest.csv", name="phantoms")
    paths = []
    for path in manifest.table["path"]:
        png = folder / f"{Path(path).stem}.png"
        Image.fromarray(np.rint(255 * read_image(path)).astype(np.uint8)).save(png)
        paths.append(str(png))
    return replace(manifest, table=manifest.table.assign(path=paths))


def make_bundle(folder: Path, films: Manifest, threads: int) -> Bundle:
    """A bundle with random weights and its artefacts for ONNX Runtime and OpenVINO."""
    torch.manual_seed(0)
    model, classes = Model(name=f"timm:{MODEL}"), films.classes
    spec = PreprocessSpec(PIXELS, PIXELS, "letterbox", 3, MEAN, STD)
    bundle = Bundle(
        path=folder / "bundle", domain="cxr", task_kind="multilabel", classes=classes, model=model, preprocess=spec,
        temperature=(1.0,), thresholds=(0.5,) * len(classes), threshold_rule="none", metrics={}, data_card="phantoms",
        provenance={}, exports={}, files={},
    )  # fmt: skip
    bundle = write_bundle(bundle, build_model(model, len(classes), image_size=PIXELS).state_dict())
    some = replace(films, table=films.table.head(32))
    # Random weights have no accuracy to lose; that outputs agree is checked all the same.
    options = ExportOptions(formats=("onnx", "openvino"), allowed=1.0, threads=threads)
    exported, made = export_bundle(bundle, ImageDataset(some, read_image, spec), options)
    for each in made:
        if each.refused:
            raise SystemExit(f"{each.format}: {each.refused}")
    return exported


def batches(paths: list[str]) -> Iterator[torch.Tensor]:
    """[8,3,384,384], decoded by Pillow and transformed as timm does."""
    transform = timm.data.create_transform(
        (3, PIXELS, PIXELS), crop_pct=1.0, interpolation="bilinear", mean=MEAN, std=STD
    )
    for first in range(0, len(paths), BATCH):
        yield torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[first : first + BATCH]])


def timm_loop(paths: list[str], classes: int) -> Callable[[], object]:
    model = timm.create_model(MODEL, num_classes=classes).eval()

    def loop() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            for batch in batches(paths):
                model(batch).sigmoid()

    return loop


def pipeline(paths: list[str], classes: int) -> Callable[[], object]:
    size = {"height": PIXELS, "width": PIXELS}
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=PIXELS,
        num_labels=classes,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    classify = transformers.pipeline(
        "image-classification", model=model, image_processor=transformers.ViTImageProcessor(size=size)
    )
    return lambda: list(classify(paths))


def candidates(bundle: Bundle, films: Manifest, threads: int) -> tuple[dict[str, Callable[[], object]], str]:
    """Name -> a call that handles all films once; and the way that ``Predictor`` chose."""
    paths, ids = list(films.table["path"]), list(films.table["id"])
    predictor = Predictor(bundle, read_image, runtime="auto", threads=threads, batch_size=BATCH)
    onnx = session(bundle.path / "model.onnx", "onnx", threads=threads)
    bf16 = "bf16" if has_fast_bf16() else "fp32"
    openvino = session(bundle.path / "model.xml", "openvino", threads=threads, precision=bf16)
    array = next(batches(paths)).numpy()
    calls: dict[str, Callable[[], object]] = {
        "vitdomains": lambda: list(predictor.predict(zip(ids, paths, strict=True))),
        "pipeline": pipeline(paths, len(bundle.classes)),
        "timm loop": timm_loop(paths, len(bundle.classes)),
        "onnx loop": lambda: [onnx(batch.numpy()) for batch in batches(paths)],
        "bare forward": lambda: [openvino(array) for _ in range(len(paths) // BATCH)],
    }
    return calls, f"{predictor.backend.runtime} {predictor.backend.precision}"


def main() -> None:
    """Time all candidates on the same films, print the table, write ``results/predict_throughput.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=64, help=f"a multiple of {BATCH} (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (20 or more for a quotable number)")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one a physical core")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    require("openvino")
    if args.films < BATCH or args.films % BATCH:
        parser.error(f"--films {args.films} is no multiple of {BATCH}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        films = draw(Path(folder), args.films)
        bundle = make_bundle(Path(folder), films, args.threads)
        calls, way = candidates(bundle, films, args.threads)
        torch.set_num_threads(args.threads)
        timed = interleave(calls, args.repeats, warmup=1)
    rates = {name: args.films / row["median_s"] for name, row in timed.items()}
    ratios = {name: rates["vitdomains"] / rate for name, rate in rates.items() if name != "vitdomains"}
    table = Table(
        "", "films/s", "10 to 90 %", "vitdomains is", title=f"{args.films} films, {args.threads} threads, {way}"
    )
    for name, row in timed.items():
        spread = f"{args.films / row['p90_s']:.1f} to {args.films / row['p10_s']:.1f}"
        verdict = f"{ratios[name]:.2f} times as fast" if name in ratios else ""
        if name in TARGETS:
            verdict += f" (>= {TARGETS[name]:g} {'met' if ratios[name] >= TARGETS[name] else 'MISSED'})"
        table.add_row(name, f"{rates[name]:.1f}", spread, verdict)
    console = Console()
    console.print(table)
    written = write_result(
        "predict_throughput",
        {"films": args.films, "film_pixels": FILM_PIXELS, "model": MODEL, "threads": args.threads, "chosen": way,
         "films_per_second": rates, "speed_relative_to": ratios, "promised": TARGETS, "seconds": timed},
        args.out,
    )  # fmt: skip
    console.print(f"written to {written}")


if __name__ == "__main__":
    restart_with_tuned_allocator()
    main()
