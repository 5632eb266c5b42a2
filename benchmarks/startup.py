"""Processor time until each command has done its least, beside ``import torch`` and ``import timm``, and what it imports.

    python benchmarks/startup.py                 # a film, a tile and models with random weights are made in a temporary folder
    python benchmarks/startup.py --repeats 3 --only help

Processor time of the process and of what it starts (user and system), which other work on the machine moves less than the time
that passes. All commands take turns. Promised: help, version and a usage error in at most 0.7 s on two cores, without PyTorch.
Writes ``benchmarks/results/startup.json``. Needs nothing but this package; run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import write_result
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "timm", "transformers", "sklearn", "scipy", "pandas", "monai", "matplotlib", "cv2", "torch._dynamo")
LIGHT = 0.7
"""Seconds that a command may take which computes nothing."""


def commands(folder: Path) -> dict[str, list[str]]:
    """Name to the arguments of ``python``; those of one word after the colon compute nothing."""
    cxr, zeroshot = ["-m", "vitdomains.cxr"], ["-m", "vitdomains.zeroshot"]
    bundle, film, out = str(folder / "bundle"), str(folder / "film.png"), str(folder / "out")
    found = {"import torch": ["-c", "import torch"], "import timm": ["-c", "import timm"]}
    if importlib.util.find_spec("vitdomains.__main__"):
        one = ["-m", "vitdomains"]
        found |= {"vitdomains: help": [*one, "--help"], "vitdomains: version": [*one, "--version"]}
        found |= {"vitdomains: usage": [*one, "cxr", "predict"]}
    for domain in ("cxr", "satellite", "zeroshot"):
        found[f"{domain}: help"] = ["-m", f"vitdomains.{domain}", "--help"]
    found |= {
        "cxr: usage": [*cxr, "predict"],
        "cxr: misspelt": [*cxr, "perdict"],
        "cxr train: help": [*cxr, "train", "--help"],
        "cxr predict": [*cxr, "predict", bundle, film, "--out", f"{out}.csv", "--runtime", "torch"],
        "cxr explain": [*cxr, "explain", bundle, film, "--out", f"{out}.png"],
        "zeroshot label": [*zeroshot, "label", str(folder / "tiles"), "--classes", "forest,water", "--model",
                           str(folder / "clip"), "--out", out],
    }  # fmt: skip
    return found


def make_inputs(folder: Path) -> None:
    """A bundle of a small ViT and a CLIP, both with random weights, a film and a tile."""
    import numpy as np
    from PIL import Image

    from tests.zeroshot import tiny
    from vitdomains.core.bundle import Bundle, write_bundle
    from vitdomains.core.config.schema import Model
    from vitdomains.core.data.preprocess import PreprocessSpec
    from vitdomains.core.models.build import build_model

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    (folder / "tiles").mkdir()
    Image.fromarray(pixels).save(folder / "tiles" / "tile.png")
    Image.fromarray(pixels[:, :, 0]).save(folder / "film.png")
    tiny.clip().save(folder / "clip")
    spec, model = PreprocessSpec(224, 224, "letterbox", 1, (0.5,), (0.25,)), Model(name="vit:Ti/16", channels=1)
    bundle = Bundle(
        path=folder / "bundle", domain="cxr", task_kind="multilabel", classes=("Effusion", "Mass"), model=model, preprocess=spec,
        temperature=(1.0,), thresholds=(0.5, 0.5), threshold_rule="", metrics={}, data_card="", provenance={}, exports={},
        files={},
    )  # fmt: skip
    write_bundle(bundle, build_model(model, 2, image_size=224).state_dict())


def processor_seconds(args: list[str], folder: Path) -> float:
    """User and system time of ``python ARGS`` and of what it waits for."""
    for old in (folder / "out.csv", folder / ".out.csv.journal"):
        old.unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        said = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise SystemExit(f"python {' '.join(args)} failed:\n{said.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def heavy_imports(args: list[str], folder: Path) -> list[str]:
    """Which of ``HEAVY`` a command imports."""
    (folder / "out.csv").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in modules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the first one more is not counted (default: 5)")
    parser.add_argument("--only", default="", help="commands whose name holds this word")
    args = parser.parse_args()
    draw, seconds = random.Random(0), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, __file__, "--inputs", temporary], check=True, cwd=ROOT)
        chosen = {name: own for name, own in commands(folder).items() if args.only in name or name.startswith("import")}
        for turn in range(args.repeats + 1):
            for name in draw.sample(list(chosen), len(chosen)):
                taken = processor_seconds(chosen[name], folder)
                if turn:
                    seconds.setdefault(name, []).append(taken)
        imported = {name: heavy_imports(own, folder) for name, own in chosen.items()}
    table = Table("command", "processor time, s", "of import torch", "imports", "promised")
    rows: dict[str, dict[str, Any]] = {}
    base = statistics.median(seconds["import torch"])
    for name in chosen:
        median = statistics.median(seconds[name])
        light = name.rpartition(": ")[2] in ("help", "version", "usage", "misspelt")
        met = "" if not light else "met" if median <= LIGHT and "torch" not in imported[name] else "MISSED"
        rows[name] = {
            "seconds": seconds[name],
            "median_s": median,
            "of_import_torch": median / base,
            "imports": imported[name],
        }
        rows[name] |= {"promised_s": LIGHT, "met": met == "met"} if light else {}
        table.add_row(name, f"{median:.2f}", f"{median / base:.2f}", ", ".join(imported[name]), met)
    Console().print(table)
    sys.stdout.write(f"written: {write_result('startup', {'repeats': args.repeats, 'commands': rows})}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inputs"]:
        sys.path.insert(0, str(ROOT))
        make_inputs(Path(sys.argv[2]))
    else:
        main()
