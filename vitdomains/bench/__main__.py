"""``python -m vitdomains.bench``: how fast models run here, in which runtime, at what size and memory.

Three commands: ``models`` measures models by name, ``bundle`` one that was trained, ``compare`` reads a result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vitdomains.bench import tables
from vitdomains.bench.cases import (
    DEVICES,
    PRECISIONS,
    RUNTIMES,
    TORCH_OPTIONS,
    Subject,
    bundle_subject,
    make_cases,
    named_subject,
)
from vitdomains.bench.run import BenchOptions, bench
from vitdomains.core import terminal
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.core.terminal import console, parse_args, shown_progress


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status: 0, 2 for an error, 130 for Ctrl-C."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name in ("-h", "--help"):
        console.print("python -m vitdomains.bench COMMAND")
        for command, function in COMMANDS.items():
            console.print(f"  {command:<9}{(function.__doc__ or '').splitlines()[0]}", highlight=False)
        return 0
    try:
        if name not in COMMANDS:
            raise ConfigError(f"{name!r} is no command of vitdomains.bench.", hint=f"Use one of {', '.join(COMMANDS)}.")
        terminal.set_up_logging()
        return COMMANDS[name](rest)
    except VitDomainsError as error:
        terminal.show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        terminal.messages.print("stopped; the same command goes on from the last round")
        return 130


def models(argv: list[str]) -> int:
    """Measure models by name, with random weights."""
    parser = _parser("models", models.__doc__, "bench.json")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="resnet50 (timm), vit:Ti/16, hf:NAME")
    parser.add_argument("--image_size", type=int, default=0, help="height and width, pixels; 0: each model's own")
    args = parse_args(parser, argv, "MODEL ... [--runtimes torch,onnx] [--precisions fp32,bf16] [--batch 1 32]")
    return _measure([named_subject(name, args.image_size) for name in args.models], args)


def bundle(argv: list[str]) -> int:
    """Measure the model of a bundle at the bundle's input size."""
    parser = _parser("bundle", bundle.__doc__, "bench.json")
    parser.add_argument("bundle", help="folder that train wrote")
    args = parse_args(parser, argv, "BUNDLE [--runtimes torch,onnx,openvino] [--precisions fp32,bf16,int8]")
    return _measure([bundle_subject(args.bundle)], args)


def compare(argv: list[str]) -> int:
    """Show how many times as fast as one of them the rows of one result are."""
    parser = argparse.ArgumentParser(prog="python -m vitdomains.bench compare", description=compare.__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULT", help="JSON file that models or bundle wrote")
    parser.add_argument("--to", default="", help="row to compare with: its label, or words of it; default: the first")
    args = parse_args(parser, argv, "RESULT.json [--to 'resnet50, torch, fp32']")
    if len(args.results) > 1:
        raise ConfigError(
            f"{len(args.results)} results: times of different runs are not comparable, the machine was in another state.",
            hint="Measure all models in one run: python -m vitdomains.bench models A B.",
        )
    path = Path(args.results[0])
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        console.print(tables.comparison(rows, args.to))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no result of a benchmark: {error}.", hint="Give the file that --out named."
        ) from error
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"models": models, "bundle": bundle, "compare": compare}


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """The options that every measuring command has."""
    parser.add_argument("--runtimes", type=_words, default=list(RUNTIMES), metavar="A,B",
                        help=f"of {', '.join(RUNTIMES)}; torch takes options, e.g. torch+{'+'.join(TORCH_OPTIONS[1:2])}, "
                             f"of {', '.join(TORCH_OPTIONS)} (default: {','.join(RUNTIMES)})")  # fmt: skip
    parser.add_argument("--precisions", type=_words, default=["fp32", "bf16", "int8"], metavar="A,B",
                        help=f"of {', '.join(PRECISIONS)} (default: fp32,bf16,int8)")  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images a pass (default: 1)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="compute threads (default: 1)")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop in time; the same command goes on (0: never)")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench"), help="folder for artefacts (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="result to write (default: %(default)s)")


def options_of(args: argparse.Namespace) -> BenchOptions:
    """How to measure, from what ``add_options`` parsed."""
    return BenchOptions(repeats=args.repeats, memory=not args.no_memory, work=args.work, minutes=args.minutes)


def _measure(subjects: list[Subject], args: argparse.Namespace) -> int:
    cases = make_cases(subjects, args.runtimes, args.precisions, args.batch, args.threads, args.device)
    with shown_progress() as on_progress:
        result = bench(cases, args.out, options_of(args), on_progress)
    for grid in tables.details(result["rows"]):
        console.print(tables.drawn(grid))
    console.print(f"result: {args.out}" if result["complete"] else "stopped in time; the same command goes on")
    return 0


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _parser(command: str, about: str | None, out: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.bench {command}", description=about)
    add_options(parser, out)
    return parser


if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv):
        restart_with_tuned_allocator()
    sys.exit(main(sys.argv[1:]))
