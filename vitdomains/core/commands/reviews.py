"""The command ``reviews``: verify, export and compare the decisions of a store, without an app."""

from __future__ import annotations

import argparse
import getpass
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from vitdomains.core.domain import Domain
from vitdomains.core.files import file_sha256
from vitdomains.core.terminal import console, parse_args, shown_progress

if TYPE_CHECKING:
    from vitdomains.core.review.store import ReviewStore


def reviews(domain: Domain, argv: list[str]) -> int:
    """Check, export and compare the decisions of reviewers, and make labels of them."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} reviews", description=reviews.__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[ReviewStore, argparse.Namespace], None], name: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        made.add_argument("--store", default="sqlite:///reviews.db", help="database URL (default: %(default)s)")
        made.set_defaults(run=run)
        return made

    verify = command(_verify, "verify")
    verify.add_argument("--head", action="append", default=[], metavar="CHAIN=SEQ:HASH",
                        help="a head that an earlier verify printed and that was kept elsewhere; may be repeated")  # fmt: skip
    command(_export, "export").add_argument(
        "--out", default="reviews.csv", help=".csv or .parquet (default: %(default)s)"
    )
    command(_agreement, "agreement").add_argument("--blinded", action="store_true", help="blinded decisions alone")
    labels = command(_labels, "labels")
    labels.add_argument("manifest", help="the records that were reviewed, .csv or .parquet")
    labels.add_argument("--out", default="reviewed.csv", help="manifest to write (default: %(default)s)")
    labels.add_argument("--rule", default="unanimous", choices=("unanimous", "majority"), help="(default: %(default)s)")
    labels.add_argument(
        "--unreviewed", default="drop", choices=("drop", "keep"), help="other labels (default: %(default)s)"
    )
    grant = command(_grant, "grant")
    grant.add_argument("reviewer", help="as the login or the proxy names them")
    grant.add_argument("role", choices=("reader", "adjudicator", "admin"))
    grant.add_argument("--revoke", action="store_true", help="take the role back")
    args = parse_args(parser, argv, "verify|export|agreement|labels|grant [--store URL]")
    from vitdomains.core.review.store import ReviewStore

    with ReviewStore(args.store, make=args.run is _grant) as store:
        args.run(store, args)
    return 0


def _verify(store: ReviewStore, args: argparse.Namespace) -> None:
    """Walk the chain of every table and find any row that was changed, removed, inserted or moved."""
    from vitdomains.core.review.store import Head

    known = {name: Head.parse(head) for name, _, head in (entry.partition("=") for entry in args.head)}
    with shown_progress() as on_progress:
        heads = store.verify(known, lambda chain, done, total: on_progress(f"verify {chain}", done, total, "rows"))
    console.print(
        f"{store.name}: intact. Keep these heads elsewhere; with --head a later verify holds the store against them:"
    )
    for name, head in heads.items():
        console.print(f"  {name}={head}", soft_wrap=True, highlight=False)


def _export(store: ReviewStore, args: argparse.Namespace) -> None:
    """Write one row a decision as CSV or Parquet."""
    from vitdomains.core.review.export import export

    console.print(f"{export(store, args.out)} decisions: {args.out}")


def _agreement(store: ReviewStore, args: argparse.Namespace) -> None:
    """Show how far readers agree beyond chance, and with the model."""
    from vitdomains.core.review.agreement import agreement, disagreements, readings

    read = readings(store.table(), blinded_only=args.blinded)
    table = Table(title="Agreement of readers", title_justify="left")
    for column in ("subject", "items", "readers", "same", "Fleiss' kappa (95 %)", "Cohen's kappa", "with the model"):
        table.add_column(column, justify="left" if column == "subject" else "right")
    for row in agreement(read):
        pairs = ", ".join(f"{a}-{b} {_number(k)}" for (a, b), k in row.cohen.items())
        kappa = f"{_number(row.fleiss)} ({_number(row.low)} to {_number(row.high)})"
        table.add_row(
            row.subject, str(row.items), str(row.readers), _number(row.percent), kappa, pairs, _number(row.with_model)
        )
    console.print(table)
    console.print(f"{len(disagreements(read))} items wait for an adjudicator.")


def _labels(store: ReviewStore, args: argparse.Namespace) -> None:
    """Write the labels that reviewers settled as a manifest for training."""
    from vitdomains.core.data.manifest import read_manifest, write_manifest
    from vitdomains.core.review.export import REVIEWED, training_manifest

    base = read_manifest(args.manifest)
    items = {}
    with shown_progress() as on_progress:
        for i, (identity, path) in enumerate(zip(base.table["id"], base.table["path"], strict=True)):
            if Path(path).is_file():
                items[str(identity)] = file_sha256(Path(path))
            on_progress("hashing files", i + 1, len(base), "files")
    made = training_manifest(store, base, items, rule=args.rule, unreviewed=args.unreviewed)
    count = "some" if REVIEWED in made.classes else str(int(made.table[REVIEWED].sum()))
    console.print(f"{len(made)} records with labels, {count} reviewed: {args.out}")
    write_manifest(made, args.out)


def _grant(store: ReviewStore, args: argparse.Namespace) -> None:
    """Give a reviewer a role, or take it back."""
    store.grant(args.reviewer, args.role, by=getpass.getuser(), active=not args.revoke)
    console.print(f"{args.reviewer}: {', '.join(sorted(store.roles().get(args.reviewer, ()))) or 'no role'}")


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"
