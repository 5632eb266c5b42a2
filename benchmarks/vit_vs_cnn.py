"""ViT against CNN: latency of one image and throughput of 32, in every runtime here, against accuracy from the literature.

    python benchmarks/vit_vs_cnn.py                                  # CPU, and the GPU where there is one
    python benchmarks/vit_vs_cnn.py --minutes 9                      # stops in time; the same command goes on
    python benchmarks/vit_vs_cnn.py --models resnet50 --batch_repeats 2 --repeats 2

On a CPU: PyTorch eager in fp32 and with bf16 weights, for CNNs also channels_last, ONNX Runtime fp32, OpenVINO bf16. On a GPU:
fp16 and bf16, eager, as a CUDA graph, compiled, for CNNs also channels_last. All rows of one batch size take turns in one
run. Weights are random, which does not change the speed. Accuracy is not measured here: each value is quoted with its
source below, for weights whose input size is the one measured. Batch 32 takes about a minute a round on two cores.
Writes ``vit_vs_cnn_DEVICE.json``, ``.md`` and ``.png``. Run it alone: on a busy machine the ratios move, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, accuracy_plot, markdown, pivot, write_result
from rich.console import Console

from vitdomains.bench.cases import Case, make_cases, named_subject
from vitdomains.bench.run import BenchOptions, bench
from vitdomains.bench.tables import drawn
from vitdomains.core.evaluation.plots import render
from vitdomains.core.process import physical_cores, restart_with_tuned_allocator
from vitdomains.core.terminal import set_up_logging, shown_progress

TIMM = "timm results/results-imagenet.csv, commit 0173a139"


@dataclass(frozen=True)
class Published:
    """ImageNet-1k top-1 accuracy of published weights, per cent, at the input size that is measured here."""

    kind: str
    size: int
    top1: float
    weights: str
    source: str


PUBLISHED = {
    "resnet50": Published("CNN", 224, 80.85, "resnet50.tv2_in1k", TIMM),
    "convnext_tiny": Published("CNN", 224, 82.1, "ImageNet-1k", "Liu et al. 2022, arXiv:2201.03545, table 1"),
    "efficientnet_b4": Published("CNN", 384, 83.41, "efficientnet_b4.ra2_in1k", TIMM),
    "deit_base_patch16_224": Published("ViT", 224, 81.99, "deit_base_patch16_224.fb_in1k", TIMM),
    "swin_tiny_patch4_window7_224": Published("ViT", 224, 81.38, "swin_tiny_patch4_window7_224.ms_in1k", TIMM),
    "vit_base_patch16_224": Published(
        "ViT", 224, 84.53, "vit_base_patch16_224.augreg_in21k_ft_in1k, pretrained on 21k", TIMM
    ),
}


def cases_of(names: list[str], batch: int, threads: int, device: str) -> list[Case]:
    """Every how of running each model that makes sense for its kind."""
    cases = []
    for name in names:
        subject = [named_subject(name, PUBLISHED[name].size)]
        cnn = PUBLISHED[name].kind == "CNN"
        if device == "cuda":
            columns_ = ["torch", "torch+cudagraph", "torch+compile", "torch+compile+cudagraph"]
            columns_ += ["torch+channels_last", "torch+compile+channels_last"] if cnn else []
            cases += make_cases(subject, columns_, ["fp16", "bf16"], [batch], [threads], device)
            continue
        columns_ = ["torch", *(["torch+channels_last"] if cnn else [])]
        cases += make_cases(subject, columns_, ["fp32", "bf16"], [batch], [threads])
        cases += make_cases(subject, ["onnx"], ["fp32"], [batch], [threads])
        cases += make_cases(subject, ["openvino"], ["bf16"], [batch], [threads])
    return cases


def plot(rows: list[dict[str, Any]], path: Path, where: str) -> None:
    """Accuracy against the latency of each model's fastest how."""
    timed = [row for row in rows if "median_s" in row]
    points = []
    for name in dict.fromkeys(row["model"] for row in timed):
        best = min((row for row in timed if row["model"] == name), key=lambda row: row["median_s"])
        known = PUBLISHED[name]
        points.append(
            (f"{name} ({best['runtime']} {best['precision']})", 1e3 * best["median_s"], known.top1, known.kind)
        )
    note = "Accuracy is quoted: timm results; ConvNeXt: Liu et al. 2022. Only vit_base is pretrained on ImageNet-21k."
    figure = accuracy_plot(points, f"ms, one image, fastest how of each model, {where}", "ImageNet top-1, %", note)
    path.write_bytes(render(figure)[0])


def bench_once(cases: list[Case], out: Path, options: BenchOptions) -> dict[str, Any]:
    """``bench``, or what it wrote when a command that was stopped later got this far."""
    if out.is_file():
        done: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if [row["label"] for row in done["rows"]] == [case.label for case in cases]:
            return done
    with shown_progress() as on_progress:
        return bench(cases, out, options, on_progress)


def measure(args: argparse.Namespace, device: str, console: Console) -> None:
    """One device: batch 1, then batch 32, then the tables and the plot of what is complete."""
    rows, sessions, method, complete = [], {}, "", True
    name = f"vit_vs_cnn_{device}"
    for batch, repeats, warmup in ((1, args.repeats, 2), (args.batch, args.batch_repeats, 1)):
        cases = cases_of(args.models, batch, args.threads, device)
        options = BenchOptions(repeats, warmup, memory=batch == 1, work=args.work, minutes=args.minutes)
        result = bench_once(cases, args.out / f"{name}_batch{batch}.json", options)
        rows += result["rows"]
        sessions[f"batch {batch}"], method, complete = (
            result["sessions"],
            result["method"],
            complete and result["complete"],
        )
        if not complete:
            break
    where = torch.cuda.get_device_name(0) if device == "cuda" else f"{args.threads} threads"
    single, many = ([row for row in rows if row["batch"] == batch] for batch in (1, args.batch))
    grids = [pivot(single, "ms", f"Latency of one image, ms, median ({where})")]
    grids += [pivot(many, "images/s", f"Throughput at batch {args.batch}, images/s, median ({where})")] if many else []
    for grid in grids:
        console.print(drawn(grid))
    if not complete:
        console.print("stopped in time; the same command goes on")
        return
    accuracy = {model: vars(PUBLISHED[model]) for model in args.models}
    payload = {"method": method, "sessions": sessions, "published_accuracy": accuracy, "rows": rows}
    written = write_result(name, payload, args.out)
    for batch in (1, args.batch):  # both stand in the one result now
        (args.out / f"{name}_batch{batch}.json").unlink()
    written.with_suffix(".md").write_text("\n".join(markdown(grid) for grid in grids), encoding="utf-8")
    plot(single, written.with_suffix(".png"), where)
    console.print(f"written to {written}, .md and .png")


def main() -> None:
    """Measure on the devices that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED), metavar="MODEL")
    parser.add_argument(
        "--repeats", type=int, default=20, help="timed rounds of one image (20 or more for a quotable number)"
    )
    parser.add_argument("--batch", type=int, default=32, help="images a pass, for the throughput")
    parser.add_argument("--batch_repeats", type=int, default=20, help="timed rounds of that batch")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one a physical core")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, then the GPU where there is one")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop in time; the same command goes on (0: never)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench"), help="folder for artefacts, which are used again"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    set_up_logging()
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [args.device] if args.device else there:
        measure(args, device, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    restart_with_tuned_allocator()
    main()
