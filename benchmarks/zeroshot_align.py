"""Align DINOv2-S with a sentence encoder on AID, and measure zero-shot labels on classes never seen and on RSSCN7.

    python benchmarks/zeroshot_align.py --data AID --evaluate RSSCN7 --image-weights FILE --text-tower FOLDER --out FOLDER

One training for each of some draws of classes that are held out, and one with all classes, whose folder ``OUT/all`` is a model
for ``label``. Any option of ``align`` is handed through. Settings are chosen by the held-out classes; the labels of RSSCN7 serve
only for the last figure. Image features are kept in ``OUT/features``, so that another try costs seconds. Writes
``benchmarks/results/zeroshot_align.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_result

from vitdomains.core.terminal import console, set_up_logging
from vitdomains.zeroshot import DOMAIN
from vitdomains.zeroshot.align.command import align_command

CLASSES = Path(__file__).parents[1] / "configs" / "zeroshot" / "rsscn7.yaml"
PATHS = ("data", "evaluate", "image_weights", "text_tower", "out", "evaluate_classes", "features")


def main() -> int:
    """The draws, then all classes, then the means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--evaluate", "--image-weights", "--text-tower", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--image-tower", default="vit_small_patch14_dinov2", help="(%(default)s)")
    parser.add_argument("--evaluate_classes", default=str(CLASSES), help="(configs/zeroshot/rsscn7.yaml)")
    parser.add_argument("--size", default="154", help="(%(default)s)")
    parser.add_argument("--pooling", default="mean", help="(%(default)s)")
    parser.add_argument("--hold_out", default="6", help="classes a draw (%(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--no_result", action="store_true", help="a try: write no result")
    words, rest = parser.parse_known_args()
    set_up_logging()
    runs = {
        f"draw {seed}": align_once(words, [*rest, "--seed", str(seed)], f"draw-{seed}") for seed in range(words.draws)
    }
    words.hold_out = "0"
    runs["all classes"] = align_once(words, rest, "all")
    means: dict[str, dict[str, float]] = {}
    drawn = [run["top1"] for name, run in runs.items() if name != "all classes"]
    for name in drawn[0] if drawn else ():
        for prompts in ("ensemble", "single prompt"):
            means.setdefault(name, {})[prompts] = float(np.mean([top1[name]["scores"][prompts] for top1 in drawn]))
    console.print("mean over the draws:", means)
    if not words.no_result:
        settings = {key: value for key, value in runs["all classes"]["settings"].items() if key not in PATHS}
        command = "python benchmarks/zeroshot_align.py --data AID --evaluate RSSCN7 --image-weights FILE"
        command = " ".join([command, "--text-tower FOLDER --out FOLDER", *rest])
        figures = {name: {key: run[key] for key in ("held_out", "top1") if key in run} for name, run in runs.items()}
        written = write_result(
            "zeroshot_align", {"command": command, "settings": settings, "mean over draws": means, "runs": figures}
        )
        console.print(f"written: {written.name}")
    return 0


def align_once(args: argparse.Namespace, rest: list[str], name: str) -> dict[str, Any]:
    """One run of `align`: its report."""
    out = Path(args.out) / name
    argv = [
        "--image-tower",
        args.image_tower,
        "--image-weights",
        args.image_weights,
        "--text-tower",
        args.text_tower,
    ]
    argv += ["--data", args.data, "--evaluate", args.evaluate, "--evaluate_classes", args.evaluate_classes]
    argv += ["--size", args.size, "--pooling", args.pooling, "--hold_out", args.hold_out]
    align_command(DOMAIN, [*argv, "--features", str(Path(args.out) / "features"), "--out", str(out), *rest])
    report: dict[str, Any] = json.loads((out / "align.json").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    sys.exit(main())
