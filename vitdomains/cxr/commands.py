"""The commands of chest films that no other domain has: arguments in, calls of the package out."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitdomains.core.config.choices import HEAT_MAPS
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ImageError
from vitdomains.core.terminal import console, parse_args, shown_progress


def phantoms(domain: Domain, argv: list[str]) -> int:
    """Draw phantom films with known findings, boxes and masks."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} phantoms", description=phantoms.__doc__)
    parser.add_argument("root", type=Path, help="folder to write")
    parser.add_argument("--films", type=int, default=600, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same films (default: %(default)s)")
    parser.add_argument("--size", type=int, default=448, help="height and width, pixels (default: %(default)s)")
    args = parse_args(parser, argv, "FOLDER [--films 600] [--seed 0] [--size 448]")
    from vitdomains.cxr.phantoms.make import make_phantoms

    with shown_progress() as on_progress:
        made = make_phantoms(args.root, args.films, args.seed, args.size,
                             progress=lambda done, total: on_progress("drawing phantoms", done, total, "films"))  # fmt: skip
    console.print(f"{args.films} films: {made}")
    return 0


def report(domain: Domain, argv: list[str]) -> int:
    """Write the report of one film: HTML, PDF or DICOM SR."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} report", description=report.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("film", help="DICOM, PNG or JPEG file")
    parser.add_argument("--out", action="append", default=[],
                        help=".html, .pdf or .dcm (DICOM SR); may be repeated (default: report.html)")  # fmt: skip
    parser.add_argument("--store", default="", help="database URL of the reviews, to include the readers' decisions")
    parser.add_argument("--finding", action="append", default=[], help="draw the heat map of it; may be repeated")
    parser.add_argument("--method", default="", choices=("", *HEAT_MAPS), help="of the heat maps (default: by model)")
    parser.add_argument("--with_patient", action="store_true", help="copy name, identifiers and dates of the patient")
    args = parse_args(parser, argv, "BUNDLE FILM [--out report.html] [--finding NAME] [--store URL]")
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.files import file_sha256
    from vitdomains.core.inference.predictor import Predictor
    from vitdomains.core.review.store import Decision, ReviewStore
    from vitdomains.cxr.report.report import make_report, write_report

    predictor = Predictor(read_bundle(args.bundle, domain=domain.name), domain.read_image)
    decisions: list[Decision] = []
    if not Path(args.film).is_file():
        raise ImageError(args.film, "is not there", tag="file", value="absent", hint="Check the path.")
    if args.store:
        with ReviewStore(args.store) as store:
            decisions = store.decisions(item=file_sha256(Path(args.film)))
    made = make_report(
        predictor, args.film, notice=domain.notice, decisions=decisions, findings=args.finding, method=args.method,
        with_patient=args.with_patient,
    )  # fmt: skip
    for out in args.out or ["report.html"]:
        console.print(f"report: {write_report(made, out)}")
    for line in sorted(made.findings, key=lambda f: -f.probability):
        mark = "called" if line.called else ""
        console.print(
            f"  {line.name:<22}{line.probability:6.3f}  threshold {line.threshold:.3f}  {mark}", highlight=False
        )
    console.print(domain.notice)
    return 0


def deidentify(domain: Domain, argv: list[str]) -> int:
    """Write DICOM films without what names their patients."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} deidentify", description=deidentify.__doc__
    )
    parser.add_argument("films", nargs="+", type=Path, help="DICOM files, or folders, searched to the bottom")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the films and films.csv into")
    parser.add_argument("--key", type=Path, default=None,
                        help="secret file: a patient gets the same new identity each time; made where absent")  # fmt: skip
    args = parse_args(parser, argv, "FILE_OR_FOLDER ... --out FOLDER [--key FILE]")
    from dataclasses import asdict

    import pandas as pd

    from vitdomains.core.files import write_atomically
    from vitdomains.cxr.deidentify import deidentify as run
    from vitdomains.cxr.deidentify import read_key

    paths = [p for given in args.films for p in (sorted(given.rglob("*")) if given.is_dir() else [given])]
    paths = [path for path in paths if path.is_file() or path in args.films]
    with shown_progress() as on_progress:
        results = run(paths, args.out, read_key(args.key) if args.key else b"",
                      lambda done: on_progress("de-identified", done, len(paths), "films"))  # fmt: skip
    table = pd.DataFrame([asdict(r) for r in results], columns=["file", "burned_in", "error"])
    write_atomically(args.out / "films.csv", lambda part: table.to_csv(part, index=False))
    failed, flagged = int((table["error"] != "").sum()), int(table["burned_in"].isin(["yes", "not said"]).sum())
    console.print(f"{len(results) - failed} films in {args.out}, {failed} failed (films.csv says why).")
    console.print(f"Text may be burned into {flagged} of them: look at them before you pass them on.")
    return 4 if failed == len(results) else 0
