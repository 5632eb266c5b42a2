"""Small models in every runtime: parameters, size on disk, latency of one image on one thread, peak memory.

    python benchmarks/edge_table.py                                  # the whole table; about ten minutes on an idle machine
    python benchmarks/edge_table.py --minutes 8                      # stops in time; the same command goes on
    python benchmarks/edge_table.py --models mobilenetv3_large_100 --repeats 2

fp32, bf16 and INT8 in PyTorch (eager; traced and frozen; ``--compile`` adds torch.compile, minutes a model), ONNX Runtime and
OpenVINO. Weights are random, which changes neither speed nor size; INT8 is calibrated on drawn textures and says nothing about
accuracy here. Whether the ONNX files suit a Raspberry Pi (one file, standard operators, plain types) is checked and recorded.
Writes ``edge_table.json`` and ``edge_table.md``. Run it alone: on a busy machine the ratios move, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import RESULTS, markdown, pivot, write_result
from portable import check_portable
from rich.console import Console

from vitdomains.bench.cases import Subject, make_cases, named_subject
from vitdomains.bench.processes import work_folder
from vitdomains.bench.run import BenchOptions, bench
from vitdomains.bench.tables import drawn
from vitdomains.core.errors import ExportError
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.core.terminal import set_up_logging, shown_progress

MODELS = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mobilevit_s", "efficientvit_m0", "fastvit_t8", "mobilenetv3_large_100",
    "efficientnet_lite0",
)  # fmt: skip
SHOWN = {
    "ms": "Latency of one image, ms, median",
    "MB on disk": "Size on disk, MB",
    "peak MiB": "Peak memory of a process that serves the model, MiB",
}


def portable(subject: Subject, work: Path) -> dict[str, str]:
    """ONNX file -> why it may not run on another processor, or nothing."""
    found = {}
    for file in sorted(work_folder(work, subject).glob("*.onnx")):
        try:
            check_portable(file)
            found[file.name] = ""
        except ExportError as error:
            found[file.name] = error.message
    return found


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (20 or more for a quotable number)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop in time; the same command goes on (0: never)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench"), help="folder for artefacts, which are used again"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    set_up_logging()
    runtimes = ["torch", "torch+jit", *(["torch+compile"] if args.compile else []), "onnx", "openvino"]
    subjects = [named_subject(name) for name in args.models]
    cases = make_cases(subjects, runtimes, ["fp32", "bf16", "int8"], [1], [args.threads])
    options = BenchOptions(repeats=args.repeats, memory=not args.no_memory, work=args.work, minutes=args.minutes)
    with shown_progress() as on_progress:
        result = bench(cases, args.out / "edge_table.json", options, on_progress)
    thread = "one thread" if args.threads == 1 else f"{args.threads} threads"
    grids = [pivot(result["rows"], what, f"{title} ({thread})") for what, title in SHOWN.items()]
    console = Console(width=None if sys.stdout.isatty() else 140)
    for grid in grids:
        console.print(drawn(grid))
    if not result["complete"]:
        console.print("stopped in time; the same command goes on")
    else:
        files = {subject.name: portable(subject, args.work) for subject in subjects}
        written = write_result("edge_table", {**result, "onnx_not_portable": files}, args.out)
        written.with_suffix(".md").write_text("\n".join(markdown(grid) for grid in grids), encoding="utf-8")
        console.print(f"written to {written}")


if __name__ == "__main__":
    restart_with_tuned_allocator()
    main()
