"""Fine-tuning against a linear probe on the same frozen backbone, in the same folds of real films.

    python benchmarks/cxr_quality.py --root NIH_SUBSET --weights vit_small_patch14_dinov2.safetensors

The films are split into folds by patient. In each fold the recipe of ``configs/cxr/nih_subset_dinov2.yaml`` trains on all
patients outside the fold, and so does scikit-learn's logistic regression on the backbone's frozen features; both are measured on
the fold. The recipe keeps the last epoch, so nothing is chosen on the fold. The probe's features (class token, or class token and
mean of the patches) and its strength C are tried out, and the best of them on the test folds is what the recipe is held against.
Writes ``benchmarks/results/cxr_quality.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import write_result
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitdomains.core.augment import build_augment
from vitdomains.core.backbones import build_model
from vitdomains.core.bootstrap import grouped_bootstrap
from vitdomains.core.cache import ImageCache
from vitdomains.core.config import Config
from vitdomains.core.configuring import parse_config
from vitdomains.core.dataset import ImageDataset, warm
from vitdomains.core.loading import batches
from vitdomains.core.manifest import Manifest, take
from vitdomains.core.metrics import auroc
from vitdomains.core.preprocess import PreprocessSpec, normalise
from vitdomains.core.splits import grouped_folds
from vitdomains.core.tasks import build_task
from vitdomains.core.terminal import set_up_logging
from vitdomains.core.train import fit
from vitdomains.core.workflow import preprocess_spec
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.film import read_image

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cxr" / "nih_subset_dinov2.yaml"
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


@torch.inference_mode()
def frozen_features(images: ImageDataset, config: Config) -> dict[str, np.ndarray]:
    """Features of the frozen backbone for every film: [N, D] of the class token, [N, 2 D] with the mean of the patches."""
    model = build_model(replace(config.model, options={"pool": "token"}), 1, image_size=images.spec.height).eval()
    rows = []
    for batch, _, _ in batches(images, 8, shuffle=False, seed=0, epoch=0):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.forward_features(normalise(batch, images.spec)).float()
        rows.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).numpy())
    both = np.concatenate(rows)
    return {"class token": both[:, : both.shape[1] // 2], "class token and patch mean": both}


def probe(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities [M, K] of one logistic regression a finding, on standardised features."""
    scores = []
    for k in range(y.shape[1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        scores.append(model.fit(x[train], y[train, k]).predict_proba(x[test])[:, 1])
    return np.stack(scores, axis=1)


def tune(
    manifest: Manifest, cache: ImageCache, spec: PreprocessSpec, config: Config, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Probabilities [M, K] of the fine-tuned model on the test rows."""
    augment = build_augment(config.recipe, spec.storage)
    learn = ImageDataset(take(manifest, train), read_image, spec, cache=cache, augment=augment, seed=config.run.seed)
    # ``fit`` wants validation images for its log; the last epoch is kept, so these, which it trains on, choose nothing.
    seen = ImageDataset(take(manifest, train[:32]), read_image, spec, cache=cache)
    task = build_task("multilabel", manifest.classes, config.recipe, learn.targets)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    fit(model, task, learn, seen, spec, config)
    held_out = ImageDataset(take(manifest, test), read_image, spec, cache=cache)
    logits = []
    with torch.inference_mode():
        for batch, _, _ in batches(held_out, 8, shuffle=False, seed=0, epoch=0):
            with torch.autocast("cpu", torch.bfloat16):
                logits.append(model(normalise(batch, spec)).float().numpy())
    return task.scores(np.concatenate(logits))


def fold_mean(y: np.ndarray, scores: np.ndarray, folds: Sequence[np.ndarray]) -> np.ndarray:
    """AUROC of each finding, the mean over the folds, [K]."""
    return np.nanmean([[auroc(y[rows, k], scores[rows, k]) for k in range(y.shape[1])] for rows in folds], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with Data_Entry_2017_subset.csv and images/")
    parser.add_argument("--weights", required=True, help="DINOv2 ViT-S/14, safetensors")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="", help="keep decoded films and frozen tokens here")
    words, overrides = parser.parse_known_args()
    set_up_logging()
    torch.set_num_threads(words.threads)
    base = ["--config", words.config, "--data.root", words.root, "--model.weights", words.weights]
    config = parse_config([*base, *overrides], DOMAIN.default_config(), "cxr_quality")
    manifest = DOMAIN.build_manifest(config.data)
    spec, groups = preprocess_spec(config, DOMAIN), manifest.table["group"]
    y = manifest.table[list(manifest.classes)].to_numpy(float)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = words.cache or scratch
        cache = ImageCache(spec, folder)
        warm(everything := ImageDataset(manifest, read_image, spec, cache=cache))
        folds = grouped_folds(manifest, words.folds, seed=0)
        tuned, probes = np.full(y.shape, np.nan), {}
        features = frozen_features(everything, config)
        for number, test in enumerate(folds):
            train = np.setdiff1d(np.arange(len(y)), test)
            for name, x in features.items():
                for strength in STRENGTHS:
                    probes.setdefault((name, strength), np.full(y.shape, np.nan))[test] = probe(
                        x, y, train, test, strength
                    )
            run = replace(config.run, dir=f"{scratch}/fold{number}")
            own = replace(config, data=replace(config.data, cache_dir=folder), run=run)
            tuned[test] = tune(manifest, cache, spec, own, train, test)
            done = [auroc(y[test], tuned[test]), max(auroc(y[test], p[test]) for p in probes.values())]
            Console().print(
                f"fold {number + 1}/{words.folds}: recipe {done[0]:.3f}, best probe of this fold {done[1]:.3f}"
            )
    by_probe = {key: fold_mean(y, scores, folds) for key, scores in probes.items()}
    best = max(by_probe, key=lambda key: by_probe[key].mean())
    mine = fold_mean(y, tuned, folds)
    report(manifest.classes, y, tuned, probes[best], mine, by_probe[best], best, groups.to_numpy(), words, overrides, by_probe,
           time.monotonic() - started)  # fmt: skip


def report(classes, y, tuned, probed, mine, theirs, best, groups, words, overrides, by_probe, seconds) -> None:  # type: ignore[no-untyped-def]
    table = Table(
        title=f"AUROC, mean over {words.folds} folds by patient, {len(y)} films, {len(np.unique(groups))} patients"
    )
    for name in ("finding", "positives", "recipe", "linear probe", "difference"):
        table.add_column(name, justify="left" if name == "finding" else "right")
    for k, name in enumerate(classes):
        table.add_row(
            name, str(int(y[:, k].sum())), f"{mine[k]:.3f}", f"{theirs[k]:.3f}", f"{mine[k] - theirs[k]:+.3f}"
        )
    table.add_row(
        "macro", "", f"{mine.mean():.3f}", f"{theirs.mean():.3f}", f"{mine.mean() - theirs.mean():+.3f}", style="bold"
    )
    Console().print(table)
    pooled = {
        name: grouped_bootstrap(auroc, y, scores, groups) for name, scores in (("recipe", tuned), ("probe", probed))
    }
    Console().print(f"best probe: {best[0]}, C = {best[1]:g}; whole run {seconds / 60:.1f} min")
    Console().print({name: tuple(round(v, 3) for v in values) for name, values in pooled.items()})
    write_result("cxr_quality", {
        "arguments": {"folds": words.folds, "threads": words.threads, "config": Path(words.config).name, "overrides": overrides},
        "seconds": seconds, "classes": list(classes), "positives": y.sum(axis=0).tolist(),
        "recipe": mine.tolist(), "probe": theirs.tolist(), "probe_choice": list(best),
        "macro": {"recipe": mine.mean(), "probe": theirs.mean(), "difference": mine.mean() - theirs.mean()},
        "pooled_macro_with_interval": {name: list(values) for name, values in pooled.items()},
        "probes": {f"{name}, C={c:g}": values.mean() for (name, c), values in by_probe.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
