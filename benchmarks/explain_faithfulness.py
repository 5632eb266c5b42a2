"""Do the heat maps point at the lesions, and at what the model uses? Every method beside a random map and a centre blob.

    python benchmarks/explain_faithfulness.py --bundle runs/phantoms/bundle --phantoms phantoms \\
        [--methods rollout,relevance,gradcam] [--findings Nodule,Mass,Consolidation,Pneumothorax] [--cases 60] [--threads 2]

Films are those of the phantoms' test split, lesions their drawn masks. Per finding: pointing game and IoU; over all: areas under
deletion and insertion, parameter-randomisation check (SSIM), class sensitivity. Targets: the best class-specific method hits
at least twice as often as the centre blob and four times as often as random; SSIM under 0.5.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from explain_assess import BASELINES, Case, assess, mask_on_grid
from harness import write_result
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vitdomains.core.bundle import Bundle, load_model, read_bundle
from vitdomains.core.data.manifest import read_manifest, subset
from vitdomains.core.data.preprocess import geometry, normalise, prepare
from vitdomains.core.explain import CLASS_AGNOSTIC, METHODS, explain
from vitdomains.core.explain.overlay import panel, to_original
from vitdomains.core.explain.render import write_png
from vitdomains.cxr.film.film import read_image
from vitdomains.cxr.phantoms.make import read_masks

FOCAL = ("Nodule", "Mass", "Consolidation", "Pneumothorax")


def load_input(path: str, bundle: Bundle) -> tuple[Tensor, np.ndarray]:
    """A film as the model takes it [C,h,w], and as it was read [H,W]."""
    film = read_image(path)
    prepared = prepare(film, bundle.preprocess)
    stored = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(prepared).transpose(2, 0, 1)))
    return normalise(stored[None], bundle.preprocess)[0], film


def collect(bundle: Bundle, root: Path, findings: Sequence[str], split: str, limit: int) -> list[Case]:
    """One case for each finding of each film of the split, at most ``limit`` a finding."""
    table = subset(read_manifest(root / "manifest.csv"), split).table
    left = {finding: limit for finding in findings if finding in bundle.classes}
    cases = []
    for row in track(list(table.itertuples()), "reading films"):
        masks = {f: m for f, m in read_masks(root, str(row.id)).items() if left.get(f, 0) > 0}
        if not masks:
            continue
        image, film = load_input(str(row.path), bundle)
        affine = geometry(bundle.preprocess, (film.shape[0], film.shape[1]))
        for finding, mask in masks.items():
            on_grid = mask_on_grid(mask, affine, (image.shape[1], image.shape[2]))
            if on_grid.any():
                left[finding] -= 1
                cases.append(Case(image, bundle.classes.index(finding), on_grid))
    return cases


def macro_auroc(model: torch.nn.Module, bundle: Bundle, root: Path, split: str) -> float:
    """Of the bundle's classes that the split has, so that a weak model is not mistaken for a weak method."""
    table = subset(read_manifest(root / "manifest.csv"), split).table
    images = (load_input(str(path), bundle)[0][None] for path in track(list(table["path"]), "scoring films"))
    with torch.no_grad():
        logits = torch.cat([model(image) for image in images]).float().numpy()
    targets = table.reindex(columns=list(bundle.classes)).to_numpy(dtype=np.float32)
    return bundle.task.monitored(targets, logits)["auroc"]


def example_page(model: torch.nn.Module, bundle: Bundle, root: Path, method: str, split: str, out: Path) -> None:
    """Overlays of the findings that four films have, one panel a film."""
    table = subset(read_manifest(root / "manifest.csv"), split).table
    made = 0
    for row in table.itertuples():
        present = [f for f in read_masks(root, str(row.id)) if f in FOCAL and f in bundle.classes]
        if not present:
            continue
        image, film = load_input(str(row.path), bundle)
        ks = [bundle.classes.index(f) for f in present]
        with torch.no_grad():
            probability = bundle.task.scores(model(image[None]).float().numpy(), bundle.temperature)[0]
        heats = explain(model, image[None], method, ks)[0]
        affine = geometry(bundle.preprocess, (film.shape[0], film.shape[1]))
        warm = [to_original(h.numpy(), affine, (film.shape[0], film.shape[1])) for h in heats]
        names = present if method not in CLASS_AGNOSTIC else [", ".join(present)]
        shown = [float(probability[k]) for k in ks][: len(names)]
        write_png(panel(film, warm, names, shown, method=f"{row.id}: {method}"), out / f"explain_example_{made}.png")
        made += 1
        if made == 4:
            return


def show(rows: list[dict[str, Any]], classes: Sequence[str], console: Console) -> None:
    ks = sorted({k for row in rows for k in row["pointing_by_class"]})
    table = Table(title=f"{rows[0]['cases']} findings; pointing: share of maxima within the lesion")
    table.add_column("method")
    columns = ["pointing", *[classes[k] for k in ks], "IoU", "deletion", "insertion", "sanity SSIM", "class sens."]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        values = [row["pointing"], *[row["pointing_by_class"].get(k) for k in ks]]
        values += [row[key] for key in ("iou", "deletion", "insertion", "sanity_ssim", "class_sensitivity")]
        table.add_row(row["method"], *["-" if v is None else f"{v:.3f}" for v in values])
    console.print(table)


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best class-specific method against the baselines."""
    by_name = {row["method"]: row for row in rows}
    specific = [row for row in rows if row["method"] not in (*CLASS_AGNOSTIC, *BASELINES)]
    best = max(specific, key=lambda row: row["pointing"])
    blob, random = by_name["centre_blob"]["pointing"], by_name["random"]["pointing"]
    ssim = best["sanity_ssim"]  # None: not asked for
    return {
        "best": best["method"],
        "pointing": best["pointing"],
        "times_centre_blob": best["pointing"] / blob if blob else None,  # None: the blob never hits
        "times_random": best["pointing"] / random if random else None,
        "sanity_ssim": ssim,
        "reached": best["pointing"] > max(2 * blob, 4 * random) and (ssim is None or ssim < 0.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Heat maps against known lesions, beside a random map and a centre blob."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--phantoms", type=Path, required=True, help="folder made by make_phantoms")
    parser.add_argument(
        "--methods", default="rollout,gradient_rollout,relevance,gradcam", help=f"of {', '.join(METHODS)}"
    )
    parser.add_argument("--findings", default=",".join(FOCAL))
    parser.add_argument("--split", default="test")
    parser.add_argument("--cases", type=int, default=60, help="at most, per finding")
    parser.add_argument("--curves", type=int, default=24, help="cases with deletion and insertion curves")
    parser.add_argument("--sanity", type=int, default=8, help="cases in the parameter-randomisation check")
    parser.add_argument("--mode", choices=("blur", "tokens"), default="blur")
    parser.add_argument("--tolerance", type=float, default=0.0, help="pixels of the input grid around the lesion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=Path, help="folder for pictures of four films")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()

    bundle = read_bundle(args.bundle)
    model = load_model(bundle).eval()
    cases = collect(bundle, args.phantoms, args.findings.split(","), args.split, args.cases)
    # The curves and the check take the first cases: they should hold every finding.
    np.random.default_rng(0).shuffle(cases)
    rows = assess(
        model,
        cases,
        args.methods.split(","),
        mode=args.mode,
        tolerance=args.tolerance,
        curves=args.curves,
        sanity=args.sanity,
        kind=bundle.task_kind,
        progress=lambda method, done, total: console.print(f"{method}: {total} maps") if done == total else None,
    )
    result = {
        "model": bundle.model.name,
        "bundle": bundle.id,
        "macro_auroc": macro_auroc(model, bundle, args.phantoms, args.split),
        "tolerance_px": args.tolerance,
        "mode": args.mode,
        "classes": list(bundle.classes),
        "rows": rows,
        "verdict": verdict(rows),
    }
    show(rows, bundle.classes, console)
    console.print(f"macro AUROC of the model on these films: {result['macro_auroc']:.3f}")
    console.print(result["verdict"])
    if args.examples:
        example_page(model, bundle, args.phantoms, str(result["verdict"]["best"]), args.split, args.examples)
    console.print(f"written to {write_result('explain_faithfulness', result)}")


if __name__ == "__main__":
    main()
