"""Confident learning finds labels that were changed, and says nothing of those that it cannot judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitdomains import satellite
from vitdomains.core.commands.audit import command
from vitdomains.core.errors import ManifestError
from vitdomains.core.evaluation.label_errors import COLUMNS, held_out_scores, label_errors

CLASSES = ("forest", "river", "town")


def clusters(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    return 3 * np.eye(3, 8)[truth] + rng.normal(size=(n, 8)), truth


def test_changed_labels_come_first() -> None:
    x, truth = clusters()
    given = truth.copy()
    given[:15] = (truth[:15] + 1) % 3
    y = np.eye(3)[given]
    ids = [str(i) for i in range(300)]
    queue = label_errors(ids, y, held_out_scores(x, y, "singlelabel"), CLASSES, "singlelabel")
    assert tuple(queue.columns) == COLUMNS and len(queue) == 300
    first = queue.head(15)
    assert first["error"].all() and (first["id"].astype(int) < 15).mean() > 0.85
    hits = first[first["id"].astype(int) < 15]
    assert all(CLASSES[truth[int(i)]] == s for i, s in zip(hits["id"], hits["suggested"], strict=True))
    errors = queue["error"].to_numpy()
    assert not errors[errors.sum() :].any() and queue["quality"].between(0, 1).all()


def test_each_finding_is_checked_where_it_is_known() -> None:
    x, truth = clusters()
    y = np.column_stack([truth == 0, truth > 0, np.zeros(300)]).astype(float)
    y[:10, 0] = 1 - y[:10, 0]
    y[200:, 1] = np.nan
    scores = held_out_scores(x, y, "multilabel")
    queue = label_errors([str(i) for i in range(300)], y, scores, CLASSES, "multilabel")
    assert set(queue["class"]) == {"forest", "river"} and (queue["class"] == "river").sum() == 200
    first = queue[(queue["class"] == "forest") & queue["error"]].head(10)
    assert (first["id"].astype(int) < 10).mean() > 0.6 and (first["given"] != first["suggested"]).all()


def test_no_row_is_judged_by_its_own_group() -> None:
    rng = np.random.default_rng(3)
    x = np.repeat(rng.normal(size=(60, 8)), 5, axis=0)  # five copies of each image under one group, labels of noise
    y = np.eye(3)[np.repeat(rng.integers(0, 3, 60), 5)]
    alone = held_out_scores(x, y, "singlelabel")
    grouped = held_out_scores(x, y, "singlelabel", list(np.repeat(np.arange(60), 5)))
    right = [float((s.argmax(axis=1) == y.argmax(axis=1)).mean()) for s in (alone, grouped)]
    assert right[0] > right[1] + 0.1
    with pytest.raises(ManifestError):
        held_out_scores(x, y, "singlelabel", ["one"] * len(x))


def test_audit_writes_the_queue(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in (("forest", (30, 120, 30)), ("river", (30, 30, 160))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(16):
            shown = (30, 30, 160) if (name, i) == ("forest", 0) else colour
            pixels = np.clip(rng.normal(shown, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    queue = tmp_path / "queue.csv"
    words = ["--pixels", "false", "--labels", str(queue), "--data.root", str(tmp_path / "data"), "--data.image_size", "32",
             "--model.name", "timm:vit_tiny_patch16_224", "--model.weights", "", "--run.dir", str(tmp_path / "run")]  # fmt: skip
    assert command(satellite.DOMAIN, words) == 0
    found = pd.read_csv(queue)
    assert len(found) == 32 and found["id"][0].endswith("forest/0") and found["suggested"][0] == "river"
