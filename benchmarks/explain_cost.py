"""What attention rollout costs beyond a plain forward pass: streaming (vitdomains) beside the usual, naive way.

    python benchmarks/explain_cost.py [--threads 2] [--repeats 5] [--large]

DeiT III B/16 with random weights at 384 pixels, batch 4, fp32 (577 tokens); with ``--large`` also one image of 1024 pixels
(4,097 tokens). Memory: one child process a way, peak resident set beyond what it was before, after a warm-up on one image;
freed blocks go back to the system at once (MALLOC_MMAP_THRESHOLD_), so that the peak is what was in use. Time: the ways in
turn in one process, median.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from harness import interleave, write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vitdomains.core.explain import explain
from vitdomains.core.explain.relevance import rollout

MODEL = "deit3_base_patch16_384"
WAYS = ("forward", "streaming", "whole_batch", "naive")


def naive_rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Every head of every layer is kept, then all matrices are multiplied: [B,h*w]."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        kept.append(out)

    handles = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(keep))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for block in model.blocks:  # type: ignore[union-attr]
            block.attn.fused_attn = True
    identity = torch.eye(kept[0].shape[-1])
    result = identity.expand(len(images), -1, -1)
    for weights in kept:
        layer = (weights.mean(1) + identity) / 2
        result = layer / layer.sum(-1, keepdim=True) @ result
    return result[:, 0, 1:]


def ways(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name."""
    return {
        "forward": lambda: model(images),
        "streaming": lambda: explain(model, images, "rollout"),
        "whole_batch": lambda: explain(model, images, "rollout", chunk=len(images)),
        "naive": lambda: naive_rollout(model, images),
    }


def build(size: int, batch: int) -> tuple[nn.Module, Tensor]:
    """Model and images."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False, img_size=size, num_classes=14).eval()
    return model, torch.randn(batch, 3, size, size)


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_here(way: str, size: int, batch: int) -> dict[str, float]:
    """Peak memory of one way in this process, MB: beyond what it held before, and in all."""
    model, images = build(size, batch)
    with torch.no_grad():
        ways(model, images[:1])[way]()  # kernels and their buffers are loaded once
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        ways(model, images)[way]()
    return {"extra_mb": round(_status("VmHWM") - before, 1), "total_mb": round(_status("VmHWM"), 1)}


def measure_memory(way: str, size: int, batch: int, threads: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--child", way, "--size", str(size)]
    command += ["--batch", str(batch), "--threads", str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def largest_difference(model: nn.Module, images: Tensor) -> float:
    """Between the streaming and the naive rollout on the patch grid, relative to the largest value."""
    slow = naive_rollout(model, images)
    return float((rollout(model, images).flatten(1) - slow).abs().max() / slow.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also one image of 1024 pixels")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        sys.stdout.write(json.dumps(measure_here(args.child, args.size, args.batch)) + "\n")
        return

    memory = {way: measure_memory(way, args.size, args.batch, args.threads) for way in WAYS}
    model, images = build(args.size, args.batch)
    with torch.no_grad():
        seconds = interleave(ways(model, images), repeats=args.repeats, warmup=1)
        difference = largest_difference(model, images)
    result: dict[str, Any] = {
        "model": MODEL,
        "size": args.size,
        "batch": args.batch,
        "threads_torch": args.threads,
        "memory": memory,
        "seconds": seconds,
        "memory_ratio": {way: round(memory[way]["extra_mb"] / memory["forward"]["extra_mb"], 2) for way in WAYS},
        "time_ratio": {way: round(seconds[way]["median_s"] / seconds["forward"]["median_s"], 2) for way in WAYS},
        "largest_difference_to_naive": difference,
    }
    if args.large:
        result["1024px_batch1"] = {way: measure_memory(way, 1024, 1, args.threads) for way in ("forward", "streaming")}
    show(result)
    write_result("explain_cost", result)


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['model']}, {result['size']} px, batch {result['batch']}, {result['threads_torch']} threads"
    )
    for column in ("way", "extra memory, MB", "x forward", "median, s", "x forward "):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way in WAYS:
        table.add_row(
            way,
            f"{result['memory'][way]['extra_mb']:.0f}",
            f"{result['memory_ratio'][way]:.2f}",
            f"{result['seconds'][way]['median_s']:.2f}",
            f"{result['time_ratio'][way]:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"largest difference between streaming and naive: {result['largest_difference_to_naive']:.1e} of the maximum"
    )
    for way, memory in result.get("1024px_batch1", {}).items():
        console.print(
            f"1024 px, one image, {way}: {memory['extra_mb']:.0f} MB extra, {memory['total_mb']:.0f} MB in all"
        )


if __name__ == "__main__":
    main()
