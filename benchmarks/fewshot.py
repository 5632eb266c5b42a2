"""Labels from a few clicks: 1 to 16 a class by each method, with and without the unlabelled tiles, on real tiles.

    python benchmarks/fewshot.py --model FOLDER --data aid=AID --data rsscn7=RSSCN7 [--only NAME,NAME]

``--model`` is what ``align`` wrote (``benchmarks/zeroshot_align.py``), ``--only`` restricts the first set to classes that the
model was not aligned with. For each number of clicks, ten draws; accuracy on all other tiles: mean and 95 % interval of the mean
(Student's t). Beside them zero-shot labels, random-word prompts as the floor, and tiles labelled together. Writes
``benchmarks/results/fewshot.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_result
from scipy.stats import t as student

from vitdomains.core.terminal import console, set_up_logging
from vitdomains.zeroshot.align.data import spoken
from vitdomains.zeroshot.embeddings.sources import labelled_sample
from vitdomains.zeroshot.labels.fewshot import METHODS, compare, tuned
from vitdomains.zeroshot.labels.label import DEFAULT_OPTIONS, embed_tiles, text_classifier
from vitdomains.zeroshot.labels.prompts import make_prompts, random_word_prompts
from vitdomains.zeroshot.labels.transductive import transductive_scores
from vitdomains.zeroshot.models.towers import load_towers

SHOTS = (1, 2, 4, 8, 16)


def main() -> int:
    """All sets, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", action="append", required=True, help="NAME=FOLDER of class folders")
    parser.add_argument("--only", default="", help="folders of the first set to use")
    parser.add_argument("--draws", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--work", default="", help="folder of embeddings")
    args = parser.parse_args()
    set_up_logging()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for i, entry in enumerate(args.data):
            name, folder = entry.split("=", 1)
            only = (
                args.only.split(",")
                if args.only and i == 0
                else sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
            )
            found[name] = measure_set(args.model, Path(folder), only, Path(args.work or scratch) / name, args.draws)
    write_result("fewshot", {"command": "python benchmarks/fewshot.py --model FOLDER --data aid=AID --data rsscn7=RSSCN7",
                             "draws": args.draws, "sets": found})  # fmt: skip
    return 0


def measure_set(model: str, folder: Path, only: list[str], work: Path, draws: int) -> dict[str, Any]:
    """Accuracies by number of clicks and method."""
    prompts = make_prompts({"classes": [{"name": spoken(name), "aliases": [name]} for name in only]})
    towers = load_towers(model)
    plan, targets = labelled_sample(folder, prompts)
    index, keys, _ = embed_tiles(towers, plan, work)
    x, y = index.take(index.find(keys))[0], targets.argmax(axis=1)
    text = text_classifier(towers, prompts, DEFAULT_OPTIONS)
    random = text_classifier(towers, random_word_prompts(prompts), DEFAULT_OPTIONS)
    posterior, nothing = text.probabilities(x), np.full(len(y), -1)
    zero = {
        "text": float((posterior.argmax(axis=1) == y).mean()),
        "random words": float((random.logits(x).argmax(axis=1) == y).mean()),
        "transductive": float((transductive_scores(x, posterior, [nothing])[0].argmax(axis=1) == y).mean()),
    }
    console.print(folder.name, len(only), "classes", len(y), "tiles; zero-shot:", zero)
    out: dict[str, Any] = {"classes": only, "tiles": len(y), "0": zero}
    for shots in SHOTS:
        reached: dict[str, list[float]] = {}
        for draw in range(draws):
            order = np.random.default_rng(1000 * shots + draw).permutation(len(y))
            few = np.concatenate([order[y[order] == k][:shots] for k in range(len(only))])
            rest = np.setdiff1d(np.arange(len(y)), few)
            groups, right = np.arange(len(few)), {}
            best = ("anchored probe", -1.0)
            for name, method in METHODS.items():
                parameters, inner = tuned(method, text, x[few], y[few], groups, draw)
                right[name] = method.fit(text, x[few], y[few], **parameters)(x[rest]).argmax(axis=1) == y[rest]
                best = (name, inner) if inner > best[1] else best
            right["chosen by inner folds"] = right[best[0]]
            truth = nothing.copy()
            truth[few] = y[few]
            right["transductive"] = transductive_scores(x, posterior, [truth])[0][rest].argmax(axis=1) == y[rest]
            for name, hits in right.items():
                reached.setdefault(name, []).append(float(hits.mean()))
        out[str(shots)] = {name: interval(values) for name, values in reached.items()}
        console.print(
            shots, "a class:", {name: f"{v['mean']:.3f} ± {v['half']:.3f}" for name, v in out[str(shots)].items()}
        )
    few = np.concatenate([np.flatnonzero(y == k)[:10] for k in range(len(only))])
    nested = compare(text, x[few], y[few])
    out["nested cross-validation, 10 a class"] = {name: str(value) for name, value in nested.measured.items()}
    return out


def interval(values: list[float]) -> dict[str, float]:
    """Mean over the draws and half of its 95 % interval."""
    half = (
        float(student.ppf(0.975, max(1, len(values) - 1)) * np.std(values, ddof=1) / len(values) ** 0.5)
        if len(values) > 1
        else 0
    )
    return {"mean": float(np.mean(values)), "half": half}


if __name__ == "__main__":
    sys.exit(main())
