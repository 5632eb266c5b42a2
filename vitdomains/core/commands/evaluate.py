"""The command ``evaluate``: a bundle measured on labelled data."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from vitdomains.core.config.parse import config_from_dict, parse_config, take_overrides
from vitdomains.core.domain import Domain
from vitdomains.core.terminal import console, parse_args, shown_progress


def evaluate(domain: Domain, argv: list[str]) -> int:
    """Measure a bundle on labelled data; the report goes into the bundle, or to --out."""
    prog = f"python -m vitdomains.{domain.name} evaluate"
    options, own = take_overrides(argv, sections=("data", "run"))
    parser = argparse.ArgumentParser(prog=prog, add_help=False)
    parser.add_argument("bundle")
    parser.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    parser.add_argument("--out", default="")
    usage = "BUNDLE [--split train|val|test|all] [--out FOLDER] [--data.KEY VALUE ...]"
    if "--help" in options or "-h" in options:
        parse_config(
            ["--help"],
            domain.default_config(),
            f"{prog} {usage}",
            description=(evaluate.__doc__ or ""),
            sections=("data", "run"),
        )
    args = parse_args(parser, own, usage)
    from vitdomains.core import pipeline
    from vitdomains.core.bundle import read_bundle, update_bundle
    from vitdomains.core.evaluation.evaluate import summary
    from vitdomains.core.evaluation.report import terminal_table, write_report

    bundle = read_bundle(args.bundle, domain=domain.name)
    default = config_from_dict(bundle.provenance["config"], check=False)
    config = parse_config(
        options,
        replace(default, run=replace(default.run, dir=str(Path(args.bundle).parent))),
        prog,
        sections=("data", "run"),
    )
    with shown_progress() as on_progress:
        report, predictions, pictures = pipeline.assess(domain, bundle, config.data, args.split, config, on_progress)
    title = f"{domain.title}: {args.split} split"
    if args.out:
        where = Path(args.out)
        write_report(report, predictions, where, title=title, notice=domain.notice, pictures=pictures)
    else:
        where = bundle.path / "report"
        update_bundle(
            bundle,
            lambda folder: write_report(
                report, predictions, folder / "report", title=title, notice=domain.notice, pictures=pictures
            ),
            metrics=summary(report),
        )
    console.print(terminal_table(report, width=console.width))
    console.print(f"report: {where / 'report.html'}")
    return 0
