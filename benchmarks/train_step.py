"""A training step of the ViT written here against timm's: images/s and peak memory, same sizes, same batch, in one run.

    python benchmarks/train_step.py                       # Ti, S and B at 384 px, batch 8, bf16 autocast, two threads
    python benchmarks/train_step.py --sizes Ti --repeats 20

A step is forward, binary cross-entropy, backward and AdamW. The two models take turns in one process for the time. The peak
memory is the largest resident set of a process of its own for each, over three steps, the median of three such processes;
freed blocks go back to the system at once (MALLOC_MMAP_THRESHOLD_), so that the peak is what was in use.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from harness import interleave, write_result
from torch import nn

from vitdomains.core.models.vit import vit

_log = logging.getLogger("train_step")
TIMM = {"Ti": "vit_tiny_patch16_384", "S": "vit_small_patch16_384", "B": "vit_base_patch16_384"}
CLASSES = 14


def build(library: str, size: str, pixels: int) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(TIMM[size], img_size=pixels, num_classes=CLASSES)  # type: ignore[no-any-return]
    return vit(f"{size}/16", CLASSES, image_size=pixels)


def step_of(model: nn.Module, batch: int, pixels: int, precision: str) -> Callable[[], float]:
    """One training step on a fixed batch, as a call without arguments that gives the loss."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, pixels, pixels, generator=generator)
    targets = torch.randint(0, 2, (batch, CLASSES), generator=generator).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def peak_memory(library: str, size: str, options: argparse.Namespace) -> float:
    """Largest resident set of a fresh process that makes three steps, MiB: the median of three processes."""
    command = [sys.executable, __file__, "--measure", f"{library}:{size}", "--batch", str(options.batch)]
    command += ["--pixels", str(options.pixels), "--threads", str(options.threads), "--precision", options.precision]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    runs = [subprocess.run(command, check=True, capture_output=True, text=True, env=environment) for _ in range(3)]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def measure(options: argparse.Namespace) -> None:
    library, size = options.measure.split(":")
    step = step_of(build(library, size, options.pixels), options.batch, options.pixels, options.precision)
    for _ in range(3):
        step()
    # Not getrusage: that counts the parent, too, as it was when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sys.stdout.write(f"{int(status['VmHWM'].split()[0]) / 1024:.1f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(TIMM), choices=list(TIMM))
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--pixels", type=int, default=384, help="height and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each model")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--out", type=Path, help="folder of the result; default: benchmarks/results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        measure(options)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = {}
    for size in options.sizes:
        memory = {library: peak_memory(library, size, options) for library in ("vitdomains", "timm")}
        steps = {
            library: step_of(build(library, size, options.pixels), options.batch, options.pixels, options.precision)
            for library in memory
        }
        times = interleave(steps, repeats=options.repeats)
        rate = {library: options.batch / row["median_s"] for library, row in times.items()}
        rows[size] = {
            "images_per_second": rate,
            "speed_ratio": rate["vitdomains"] / rate["timm"],
            "peak_memory_mib": memory,
            "memory_ratio": memory["vitdomains"] / memory["timm"],
            "seconds": times,
        }
        _log.info(
            "%-2s  ours %.2f images/s, timm %.2f (x %.2f); peak %.0f MiB against %.0f (x %.2f)",
            size, rate["vitdomains"], rate["timm"], rows[size]["speed_ratio"],
            memory["vitdomains"], memory["timm"], rows[size]["memory_ratio"],
        )  # fmt: skip
    payload = {
        "batch": options.batch,
        "pixels": options.pixels,
        "precision": options.precision,
        "threads": options.threads,
    }
    path = write_result("train_step", {**payload, "sizes": rows}, **({"folder": options.out} if options.out else {}))
    _log.info("written to %s", path)


if __name__ == "__main__":
    main()
