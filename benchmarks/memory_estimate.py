"""The memory estimate of ``--dry_run`` against the measured peak of real training steps, each in a process of its own.

    python benchmarks/memory_estimate.py                       # ViT-Ti/S, ResNet-50, Swin-T; sizes, precisions, checkpointing
    python benchmarks/memory_estimate.py --only resnet50

The peak is the growth of the resident set over a process that has loaded the libraries, so what PyTorch itself occupies
(about 700 MiB) does not flatter the ratio. Writes ``benchmarks/results/memory_estimate.json``.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from harness import write_result

from vitdomains.core.config.schema import Config, Model, Recipe, Run
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.models.build import build_model
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.core.training.memory import measured_memory, training_memory

_log = logging.getLogger("memory_estimate")
CLASSES = 30
SWIN = "timm:swin_tiny_patch4_window7_224"
CASES: list[tuple[str, int, int, str, bool]] = [  # model, pixels, batch, precision, gradient checkpointing
    ("vit:Ti/16", 224, 8, "fp32", False),
    ("vit:Ti/16", 224, 16, "bf16", False),
    ("vit:Ti/16", 384, 8, "bf16", False),
    ("vit:Ti/16", 384, 8, "bf16", True),
    ("vit:S/16", 224, 8, "fp32", False),
    ("vit:S/16", 224, 16, "bf16", False),
    ("vit:S/16", 384, 8, "bf16", False),
    ("vit:S/16", 384, 8, "bf16", True),
    ("timm:resnet50", 160, 8, "fp32", False),
    ("timm:resnet50", 224, 8, "bf16", False),
    ("timm:resnet50", 224, 16, "fp32", False),
    (SWIN, 224, 8, "fp32", False),
    (SWIN, 224, 8, "bf16", False),
    (SWIN, 224, 16, "bf16", True),
]


def compare(model: str, pixels: int, batch: int, precision: str, checkpointing: bool, threads: int) -> dict[str, Any]:
    """Estimate and measured peak, bytes."""
    config = Config(
        model=Model(name=model, grad_checkpointing=checkpointing),
        recipe=Recipe(batch_size=batch, precision=precision),  # type: ignore[arg-type]
        run=Run(threads=threads, accelerator="cpu"),
    )
    spec = PreprocessSpec(pixels, pixels, "squash", 3, (0.5,), (0.5,))
    started = time.monotonic()
    parts = training_memory(build_model(config.model, CLASSES, image_size=pixels), spec, config)
    seconds = time.monotonic() - started
    measured = measured_memory(config, spec, CLASSES)
    return {
        "model": model, "pixels": pixels, "batch": batch, "precision": precision, "checkpointing": checkpointing,
        "parts": parts, "estimate": sum(parts.values()), "measured": measured,
        "ratio": sum(parts.values()) / measured if measured else None, "estimate_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose model's name has this in it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder of the result; default: benchmarks/results")
    options = parser.parse_args()
    restart_with_tuned_allocator()  # as the command does
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _log.setLevel(logging.INFO)
    rows = []
    for case in CASES:
        if options.only not in case[0]:
            continue
        rows.append(row := compare(*case, options.threads))
        _log.info(
            "%-34s %d px, batch %2d, %s%s  estimate %5.0f MiB, measured %5.0f, ratio %.2f",
            *case[:4], ", checkpointing" if case[4] else "", row["estimate"] / 2**20, row["measured"] / 2**20, row["ratio"],
        )  # fmt: skip
    worst = max(abs(row["ratio"] - 1) for row in rows)
    _log.info("largest difference: %.0f %%", 100 * worst)
    kept = {"folder": options.out} if options.out else {}
    path = write_result("memory_estimate", {"threads": options.threads, "worst": worst, "cases": rows}, **kept)
    _log.info("written to %s", path)


if __name__ == "__main__":
    main()
