"""Label errors found: 5 and 10 % of the labels of real tiles are changed; how many of the queue's first rows are among them?

    python benchmarks/label_errors.py --weights vit_small_patch14_dinov2.safetensors --data AID

Features are those of the frozen backbone, as for ``audit --labels``; ten draws of the changed labels. Precision of the first n
rows, n the number of changed labels (so that it is the recall as well), of the first half of them, and precision and recall of
all rows that are called errors; mean and 95 % interval of the mean. Chance is the share that was changed. Writes
``benchmarks/results/label_errors.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from fewshot import interval
from harness import write_result

from vitdomains import satellite
from vitdomains.core.data.manifest import labels
from vitdomains.core.evaluation.label_errors import held_out_scores, label_errors
from vitdomains.core.probe import backbone_features
from vitdomains.core.terminal import console, set_up_logging, shown_progress


def main() -> int:
    """Features once, then the draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder of class folders")
    parser.add_argument("--model", default="timm:vit_small_patch14_dinov2", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=154, help="(%(default)s)")
    parser.add_argument("--draws", type=int, default=10, help="(%(default)s)")
    args = parser.parse_args()
    set_up_logging()
    default = satellite.DOMAIN.default_config()
    config = replace(
        default, data=replace(default.data, root=args.data, image_size=args.size),
        model=replace(default.model, name=args.model, weights=args.weights),
    )  # fmt: skip
    manifest = satellite.DOMAIN.build_manifest(config.data)
    with shown_progress() as on_progress:
        x = backbone_features(satellite.DOMAIN, config, manifest, on_progress)
    folders, truth = manifest.classes, labels(manifest).argmax(axis=1)
    ids = [str(i) for i in range(len(x))]
    found: dict[str, Any] = {"tiles": len(x), "classes": len(folders)}
    for share in (0.05, 0.1):
        reached: dict[str, list[float]] = {}
        for draw in range(args.draws):
            rng = np.random.default_rng(draw)
            changed = rng.permutation(len(x))[: round(share * len(x))]
            given = truth.copy()
            given[changed] = (truth[changed] + rng.integers(1, len(folders), len(changed))) % len(folders)
            y = np.eye(len(folders))[given]
            queue = label_errors(ids, y, held_out_scores(x, y, "singlelabel", seed=draw), folders, "singlelabel")
            hit = np.isin(queue["id"].astype(int), changed)
            called, n = int(queue["error"].sum()), len(changed)
            for name, value in {
                "precision of the first n/2": hit[: n // 2].mean(), "precision of the first n": hit[:n].mean(),
                "precision of those called": hit[:called].mean(), "recall of those called": hit[:called].sum() / n,
            }.items():  # fmt: skip
                reached.setdefault(name, []).append(float(value))
        found[f"{share:.0%} changed"] = {name: interval(values) for name, values in reached.items()}
        shown = {name: f"{v['mean']:.3f} ± {v['half']:.3f}" for name, v in found[f"{share:.0%} changed"].items()}
        console.print(f"{share:.0%} changed:", shown)
    command = "python benchmarks/label_errors.py --weights FILE --data AID"
    write_result("label_errors", {"command": command, "draws": args.draws, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
