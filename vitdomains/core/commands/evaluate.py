"""The command ``evaluate``: a bundle on labelled data, of its own place or another."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from vitdomains.core.config.parse import config_from_dict, parse_config, take_overrides
from vitdomains.core.config.yaml_file import parse_yaml
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import console, parse_args, shown_progress

USAGE = "BUNDLE [--split train|val|test|all] [--class_map FILE_OR_MAP] [--out FOLDER] [--data.root FOLDER] [--data.KEY VALUE ...]"


def evaluate(domain: Domain, argv: list[str]) -> int:
    """Measure a bundle on labelled data: its own held-out images, or those of another place beside them.

    Without --split: the test split of the data that the bundle was made from, all images of other data. The report goes into
    the bundle, by what training did with its images, or to --out. --data.classes chooses classes of the bundle; --class_map
    says what labels of other data mean: '{theirs: ours}', or '{theirs: ours|ours too}' where theirs is coarser, or a YAML file.
    """
    prog = f"python -m vitdomains.{domain.name} evaluate"
    options, own = take_overrides(argv, sections=("data", "run"))
    parser = argparse.ArgumentParser(prog=prog, add_help=False)
    parser.add_argument("bundle")
    parser.add_argument("--split", default="", choices=("train", "val", "test", "all"))
    parser.add_argument("--class_map", default="")
    parser.add_argument("--out", default="")
    if "--help" in options or "-h" in options:
        about = evaluate.__doc__ or ""
        default = domain.default_config()
        parse_config(["--help"], default, f"{prog} {USAGE}", description=about, sections=("data", "run"))
    args = parse_args(parser, own, USAGE)
    class_map = _class_map(args.class_map)
    from vitdomains.core import pipeline
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.evaluation.report import home_table, terminal_table
    from vitdomains.core.evaluation.roles import PHRASES

    bundle = read_bundle(args.bundle, domain=domain.name)
    default = config_from_dict(bundle.provenance["config"], check=False)
    default = replace(default, run=replace(default.run, dir=str(Path(args.bundle).parent)))
    config = parse_config(options, default, prog, sections=("data", "run"))
    with shown_progress() as on_progress:
        measured = pipeline.evaluate(domain, bundle, config, args.split, class_map, on_progress)
    folder = pipeline.write_evaluation(domain, bundle, measured, Path(args.out) if args.out else None)
    report = measured.report
    for table in (terminal_table(report, width=console.width), home_table(report)):
        if table is not None:
            console.print(table)
    for note in report["names"]["notes"]:
        console.print(note, markup=False)
    console.print(f"measured on {PHRASES[measured.rows.role]}")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    return 0


def _class_map(given: str) -> dict[str, str]:
    """Label of the data -> class of the bundle, from a YAML file or as it stands on the command line."""
    if not given:
        return {}
    file = Path(given)
    in_file = not given.lstrip().startswith("{") and file.is_file()
    found = parse_yaml(file.read_text(encoding="utf-8") if in_file else given, given if in_file else "--class_map")
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise ConfigError(
            f"--class_map {given} is no map of names to names, nor a file of one.",
            hint="Write '{theirs: ours}', with quotes around names that YAML takes for numbers or yes and no.",
        )
    return found
