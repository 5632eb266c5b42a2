"""The command ``predict``: files and folders in, a table of probabilities out."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vitdomains.core.config.choices import PRECISIONS, RUNTIMES
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import NoResultError
from vitdomains.core.terminal import console, parse_args, shown_progress

logger = logging.getLogger(__name__)


def predict(domain: Domain, argv: list[str]) -> int:
    """Write one row of probabilities a file; bad files get an error in their row."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} predict", description=predict.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("inputs", nargs="+", help="files and folders; folders are searched to the bottom")
    parser.add_argument("--out", default="predictions.csv", help=".csv or .parquet (default: %(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="most images of a forward pass (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="auto: bf16 where it is fast, else fp32"
    )
    parser.add_argument("--runtime", default="auto", choices=("auto", *RUNTIMES),
                        help="auto: the fastest of those that the bundle was exported for (default: %(default)s)")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="end with status 3 where some files failed")
    args = parse_args(parser, argv, "BUNDLE FILE_OR_FOLDER ... [--out predictions.csv] [--strict]")
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.data.folders import folder_manifest
    from vitdomains.core.inference.predictor import Predictor
    from vitdomains.core.inference.table import write_predictions

    bundle = read_bundle(args.bundle, domain=domain.name)
    records = folder_manifest(args.inputs, domain.extensions, domain.name).table
    reader = domain_reader(domain, bundle.preprocess)
    predictor = Predictor(bundle, reader, precision=args.precision, threads=args.threads, batch_size=args.batch_size,
                          runtime=args.runtime, read_checked=domain.read_checked)  # fmt: skip
    logger.info("%s in %s", predictor.backend.runtime, predictor.backend.precision)
    with shown_progress() as on_progress:
        errors = write_predictions(predictor, list(zip(records["id"], records["path"], strict=True)), Path(args.out),
                                   lambda done, total: on_progress("predict", done, total, "files"))  # fmt: skip
    console.print(f"{len(records)} files, {len(errors)} with an error: {args.out}")
    for error in errors[:5]:
        console.print(f"  {error}", markup=False, highlight=False, soft_wrap=True)
    if errors and len(errors) == len(records):
        raise NoResultError(
            f"All {len(records)} files failed: there is no prediction.",
            hint=f"The column error of {args.out} says why.",
        )
    return 3 if errors and args.strict else 0
