"""INT8 of a fine-tuned ViT-Ti and a Swin-T on aerial tiles (AID): size, accuracy and latency against float32.

    python benchmarks/int8_aid.py --root AID --weights VIT_TI.safetensors   # trains, exports, measures
    python benchmarks/int8_aid.py --root AID --weights VIT_TI.safetensors --prepare   # all but the latency, which needs quiet
    python benchmarks/int8_aid.py --vit BUNDLE --swin BUNDLE                # of bundles that are there

Ten classes, 128 px, 28 training, 21 validation and 21 test tiles a class. ViT-Ti starts from ``--weights`` (an ImageNet
model); Swin-T starts from random weights and sees so few tiles that its accuracy is poor: it shows what INT8 takes from it,
not what a Swin-T can do. ``export`` makes the artefacts and checks them on the validation split; the test split, which no gate
saw, is measured here. Latency is of one image on one thread, every artefact in turns in one process, and compared within one
runtime. What the gate refuses is a ViT-Ti whose weights were rescaled so that eight bits destroy it; in float32 it is the same.
What is done stays in ``--work``, and the same command goes on. Writes ``int8_aid.json``. Run it alone for the latency.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, interleave, require, write_result
from rich.console import Console
from rich.table import Table

from vitdomains.core import pipeline
from vitdomains.core.bundle import Bundle, load_model, read_bundle, write_bundle
from vitdomains.core.commands.export import data_config
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.loading import batches
from vitdomains.core.data.manifest import select_classes, subset
from vitdomains.core.data.preprocess import normalise
from vitdomains.core.export.formats import FORMATS
from vitdomains.core.files import write_text
from vitdomains.core.inference.runtimes import session
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.satellite import DOMAIN

CLASSES = "Beach,BareLand,DenseResidential,Desert,Farmland,Forest,Meadow,Parking,Pond,Port"
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "satellite" / "aid_vit_tiny.yaml"
COMMON = (
    f"--data.classes=[{CLASSES}]", "--data.image_size=128", "--data.val_fraction=0.3", "--data.test_fraction=0.3",
    "--recipe.keep=last", "--run.bootstrap=200",
)  # fmt: skip
FROM_SCRATCH = (
    "--model.name=timm:swin_tiny_patch4_window7_224", "--model.weights=", "--data.mean=[0.5,0.5,0.5]",
    "--data.std=[0.5,0.5,0.5]", "--recipe.layer_decay=1.0",
)  # fmt: skip
FLOAT = {"onnx": "onnx", "openvino": "openvino"}
"""Runtime -> the format that INT8 is compared with."""
INT8 = ("int8-dynamic", "int8-static", "int8-openvino")
OUTLIER = 300.0
"""Factor on the channel that makes the gate refuse."""
TARGETS = {"size_ratio": 0.3, "validation_loss": 0.005, "test_loss": 0.005, "latency_ratio": 0.6}
"""Largest share of float32's size and latency, and largest loss of top-1 accuracy, that this package promises."""
IMAGES = 4
"""Tiles a timed call, one at a time."""


def satellite(*words: str) -> int:
    """Exit status of a command of the domain, run in a process of its own."""
    return subprocess.run([sys.executable, "-m", "vitdomains.satellite", *words], check=False).returncode


def trained(args: argparse.Namespace, name: str, given: Path | None) -> Bundle:
    """The bundle that was given, or was trained before, or is trained now."""
    folder = given or args.work / name / "bundle"
    if not folder.is_dir():
        if not args.root or not args.weights:
            raise SystemExit(f"There is no bundle of {name}: give one, or --root and --weights to train it.")
        own = (*FROM_SCRATCH, f"--recipe.epochs={args.swin_epochs}") if name == "swin_tiny" else (
            f"--model.weights={args.weights}", f"--recipe.epochs={args.vit_epochs}"
        )  # fmt: skip
        place = (f"--data.root={args.root}", f"--run.dir={args.work / name}", f"--run.threads={args.threads}")
        status = satellite("train", f"--config={CONFIG}", *COMMON, *own, *place)
        if status:
            raise SystemExit(f"Training of {name} ended with status {status}.")
    return read_bundle(folder, domain=DOMAIN.name)


def exported(bundle: Bundle, threads: int) -> Bundle:
    """The bundle with the artefacts that passed their gates; those that did not are on record."""
    wanted = [*FLOAT.values(), *INT8]
    missing = [name for name in wanted if name not in bundle.exports]
    if missing:
        status = satellite("export", str(bundle.path), f"--formats={','.join(missing)}", f"--threads={threads}")
        if status not in (0, 3):
            raise SystemExit(f"Export ended with status {status}.")
    return read_bundle(bundle.path, domain=DOMAIN.name)


def split(bundle: Bundle, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images [N,C,H,W] and classes [N] of a split."""
    config = data_config(DOMAIN, bundle, [])
    part = select_classes(subset(DOMAIN.build_manifest(config.data), name), bundle.classes)
    images = pipeline.dataset(DOMAIN, part, bundle.preprocess, ImageCache(bundle.preprocess), config)
    stored = batches(images, 8, shuffle=False, seed=0, epoch=0)
    array = np.concatenate([normalise(batch, bundle.preprocess).contiguous().numpy() for batch, _, _ in stored])
    return array, images.targets.argmax(axis=1)


def artefact(bundle: Bundle, name: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A format of the bundle, loaded, all of it in float32 but what the file holds in INT8."""
    return session(bundle.path / bundle.exports[name]["files"][0], FORMATS[name].runtime, threads=threads)


def quality(bundle: Bundle, threads: int) -> dict[str, Any]:
    """Each format: size, accuracy on the validation split as the gate saw it, and accuracy on the test split."""
    images, classes = split(bundle, "test")
    rows: dict[str, Any] = {}
    for name in (*FLOAT.values(), *INT8):
        record = bundle.exports[name]
        if record["refused"]:
            rows[name] = {"refused": record["refused"]}
            continue
        forward = artefact(bundle, name, threads)
        outputs = np.concatenate([forward(images[i : i + 8]) for i in range(0, len(images), 8)])
        seen = record["checks"][0]
        rows[name] = {
            "bytes": record["bytes"],
            "validation_accuracy": seen["value"],
            "validation_loss": round(seen["reference"] - seen["value"], 5),
            "test_accuracy": round(float((outputs.argmax(axis=1) == classes).mean()), 5),
        }
    for name in INT8:
        if "bytes" in rows[name]:
            base = rows[FLOAT[FORMATS[name].runtime]]
            rows[name]["size_ratio"] = round(rows[name]["bytes"] / base["bytes"], 4)
            rows[name]["test_loss"] = round(base["test_accuracy"] - rows[name]["test_accuracy"], 5)
    fine_tuned = bundle.provenance["config"]["model"]["weights"]
    return {"parameters_from": "given weights, fine-tuned" if fine_tuned else "random start, few epochs",
            "validation_tiles": len(split(bundle, "val")[1]), "test_tiles": len(images), "formats": rows}  # fmt: skip


def refusal(bundle: Bundle, work: Path, threads: int) -> dict[str, Any]:
    """What ``export`` does with an artefact that loses too much: that of a ViT in which one channel is far larger than the rest.

    The same function in float32: a channel before each ``attn.qkv`` is multiplied, and the weights that it meets are divided.
    """
    shutil.rmtree(work / "refused", ignore_errors=True)
    model = load_model(bundle)
    with torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            block.norm1.weight[0] *= OUTLIER
            block.norm1.bias[0] *= OUTLIER
            block.attn.qkv.weight[:, 0] /= OUTLIER
    rescaled = write_bundle(replace(bundle, path=work / "refused" / "bundle", exports={}, files={}), model.state_dict())
    status = satellite("export", str(rescaled.path), "--formats=int8-dynamic", f"--threads={threads}")
    record = read_bundle(rescaled.path).exports["int8-dynamic"]
    left = (rescaled.path / FORMATS["int8-dynamic"].file).exists()
    return {"of": f"vit_tiny with one channel times {OUTLIER:g}", "command": "export BUNDLE --formats=int8-dynamic",
            "exit_status": status, "reason": record["refused"], "file_left": left, "blame": record["blame"][:3]}  # fmt: skip


def prepared(args: argparse.Namespace) -> tuple[dict[str, Bundle], dict[str, Any]]:
    """Bundles and all but their latency; what an earlier command found out of the same artefacts is taken from its file."""
    bundles = {"vit_tiny": trained(args, "vit_tiny", args.vit), "swin_tiny": trained(args, "swin_tiny", args.swin)}
    bundles = {name: exported(bundle, args.threads) for name, bundle in bundles.items()}
    key = {name: bundle.files for name, bundle in bundles.items()}
    file = args.work / "quality.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["of"] == key:
            return bundles, known["found"]
    found = {
        "models": {name: quality(bundle, args.threads) for name, bundle in bundles.items()},
        "refusal": refusal(bundles["vit_tiny"], args.work, args.threads),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"of": key, "found": found}))
    return bundles, found


def latency(bundles: dict[str, Bundle], found: dict[str, Any], args: argparse.Namespace) -> None:
    """Add ``seconds`` to each format of ``found``, and ``latency_ratio`` to those in INT8."""
    calls: dict[str, Callable[[], object]] = {}
    for model, bundle in bundles.items():
        spec = bundle.preprocess
        tiles = np.random.default_rng(0).standard_normal(
            (IMAGES, 1, spec.channels, spec.height, spec.width), np.float32
        )
        for name, row in found["models"][model]["formats"].items():
            if "bytes" in row:
                forward = artefact(bundle, name, args.threads)
                calls[f"{model}/{name}"] = lambda forward=forward, tiles=tiles: [forward(one) for one in tiles]
    for key, timed in interleave(calls, args.repeats).items():
        model, name = key.split("/")
        found["models"][model]["formats"][name]["seconds"] = {
            k: v / IMAGES if k.endswith("_s") else v for k, v in timed.items()
        }
    for model in bundles:
        rows = found["models"][model]["formats"]
        for name in INT8:
            if "seconds" in rows[name]:
                base = rows[FLOAT[FORMATS[name].runtime]]["seconds"]["median_s"]
                rows[name]["latency_ratio"] = round(rows[name]["seconds"]["median_s"] / base, 3)


def show(found: dict[str, Any], console: Console) -> None:
    """One row a format; what misses its target is marked."""
    for model, about in found["models"].items():
        table = Table("format", "MB", "size", "lost, validation", "test accuracy", "lost, test", "ms", "latency",
                      title=f"{model} ({about['parameters_from']}; {about['test_tiles']} test tiles)")  # fmt: skip
        for name, row in about["formats"].items():
            if "refused" in row:
                table.add_row(name, f"refused: {row['refused']}")
                continue
            ms = f"{1e3 * row['seconds']['median_s']:.2f}" if "seconds" in row else ""
            size, lost, lost_test, latency_ratio = (_marked(row, key) for key in TARGETS)
            mb, accuracy = f"{row['bytes'] / 1e6:.1f}", f"{row['test_accuracy']:.4f}"
            table.add_row(name, mb, size, lost, accuracy, lost_test, ms, latency_ratio)
        console.print(table)
    seen = found["refusal"]
    console.print(
        f"{seen['of']}: {seen['command']}: exit status {seen['exit_status']}, {seen['reason'] or 'passed'}",
        highlight=False,
    )


def _marked(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.4g}{'' if row[key] <= TARGETS[key] else ' MISSED'}" if key in row else ""


def main() -> None:
    """Train and export what is missing, measure, print the tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of AID, for training")
    parser.add_argument("--weights", type=Path, help="weights of timm's vit_tiny_patch16_224, for training")
    parser.add_argument("--vit", type=Path, help="bundle of a ViT (default: WORK/vit_tiny/bundle)")
    parser.add_argument("--swin", type=Path, help="bundle of a Swin (default: WORK/swin_tiny/bundle)")
    parser.add_argument("--vit_epochs", type=int, default=5)
    parser.add_argument("--swin_epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (20 or more for a quotable number)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: %(default)s)")
    parser.add_argument("--prepare", action="store_true", help="stop before the latency")
    parser.add_argument("--work", type=Path, default=Path("runs/int8_aid"), help="folder for runs and what was found")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    require("openvino", "nncf")
    console = Console(width=None if sys.stdout.isatty() else 140)
    bundles, found = prepared(args)
    if not args.prepare:
        latency(bundles, found, args)
    show(found, console)
    if not args.prepare:
        payload = {"threads": args.threads, "batch": 1, "image_size": bundles["vit_tiny"].preprocess.height}
        console.print(f"written to {write_result('int8_aid', {**payload, 'promised': TARGETS, **found}, args.out)}")


if __name__ == "__main__":
    restart_with_tuned_allocator()
    main()
