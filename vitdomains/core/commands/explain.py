"""The command ``explain``: heat maps of one image as a picture, a figure or a raster."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitdomains.core.config.choices import FIGURES, HEAT_MAPS
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import console, parse_args


def explain(domain: Domain, argv: list[str]) -> int:
    """Draw heat maps of one image: where the score of a finding comes from."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} explain", description=explain.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("input", help="image file")
    parser.add_argument("--finding", action="append", default=[],
                        help="class to explain, may be repeated; all: every class; default: what the model calls")  # fmt: skip
    parser.add_argument("--method", default="relevance", choices=HEAT_MAPS, help="(default: %(default)s)")
    parser.add_argument("--out", default="overlay.png", help="file to write: .png; .pdf or .svg, a figure for print; .tif, the "
                        "maps on the grid of a georeferenced image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    args = parse_args(parser, argv, "BUNDLE FILE [--finding NAME] [--method rollout] [--out overlay.png]")
    if Path(args.out).suffix.lower() not in FIGURES:
        raise ConfigError(f"--out {args.out} ends in none of {', '.join(FIGURES)}.", hint="Choose another name.")
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.explain.render import explain_file, faithfulness_text, write_explained
    from vitdomains.core.inference.predictor import Predictor

    bundle = read_bundle(args.bundle, domain=domain.name)
    predictor = Predictor(bundle, domain_reader(domain, bundle.preprocess), threads=args.threads)
    findings = bundle.classes if args.finding == ["all"] else args.finding
    explained = explain_file(predictor, args.input, args.method, findings)
    write_explained(explained, bundle.classes, args.method, args.input, args.out)
    for heatmap, finding in zip(explained.maps, explained.findings, strict=True):
        score = explained.scores[bundle.classes.index(finding)]
        console.print(f"{finding}: probability {score:.3f}; {faithfulness_text(heatmap)}")
    console.print(f"written: {args.out}")
    if domain.notice:
        console.print(domain.notice)
    return 0
