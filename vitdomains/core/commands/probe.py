"""The command ``probe``: how good a frozen backbone's features are, by a linear probe and a k-NN vote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Table

from vitdomains.core.config.parse import parse_config, take_overrides
from vitdomains.core.config.schema import Config
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import console, parse_args, shown_progress

USAGE = "[--k 20] [--out FILE.json] [--config FILE] [--KEY VALUE ...]"


def probe_command(domain: Domain, argv: list[str]) -> int:
    """Measure a frozen backbone by a linear probe and a k-NN vote on its features."""
    prog = f"python -m vitdomains.{domain.name} probe"
    options, own = take_overrides(argv)
    parser = argparse.ArgumentParser(prog=prog, add_help=False, description=probe_command.__doc__)
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote")
    parser.add_argument("--out", default="", help="JSON file to write; default: probe.json in run.dir")
    args = parse_args(parser, own, USAGE)
    if args.k < 1:
        raise ConfigError(f"--k {args.k} asks for no neighbour.", hint="Give 1 or more, e.g. --k 20.")
    default = Config() if any(option.startswith("--config=") for option in options) else domain.default_config()
    config = parse_config(options, default, f"{prog} {USAGE}", description=probe_command.__doc__ or "")
    from vitdomains.core.domain import task_kind
    from vitdomains.core.evaluation.baselines import METRICS
    from vitdomains.core.files import write_text
    from vitdomains.core.probe import probe

    with shown_progress() as on_progress:
        result, made = probe(domain, config, args.k, on_progress)
    out = Path(args.out or Path(config.run.dir) / "probe.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({**made, "test": result.values}, indent=2) + "\n")
    names = {"linear": f"linear probe, C = {result.strength:g}", "knn": f"{args.k}-NN"}
    kind = task_kind(domain, config.data)
    table = Table(title=f"{config.model.name} at {made['image_size']} px, frozen: {result.features} features")
    table.add_column("probe")
    for name in METRICS[kind]:
        table.add_column(name.replace("_", " "), justify="right")
    for name, reached in result.values.items():
        cells = [f"{v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for v in reached.values()]
        table.add_row(names[name], *cells)
    console.print(table)
    console.print(f"{made['images']['train']} training images, measured on {made['images']['test']}: {out}")
    return 0
