"""How good the labels are: accuracy, macro-F1 and confusion on labelled tiles, with the prompt ensemble and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ManifestError
from vitdomains.core.evaluation.evaluate import evaluate
from vitdomains.core.jobs.shards import OnProgress
from vitdomains.zeroshot.embeddings.store import TilePlan
from vitdomains.zeroshot.labels.label import (
    DEFAULT_COMPUTE,
    DEFAULT_OPTIONS,
    Compute,
    Options,
    embed_tiles,
    text_classifier,
)
from vitdomains.zeroshot.labels.prompts import PromptSet, single_prompt
from vitdomains.zeroshot.models.towers import Towers

VARIANTS = ("ensemble", "single prompt")


def assess(
    towers: Towers,
    prompts: PromptSet,
    sample: tuple[TilePlan, npt.NDArray[np.float64]],
    index_folder: str | Path,
    *,
    options: Options = DEFAULT_OPTIONS,
    compute: Compute = DEFAULT_COMPUTE,
    bootstrap: int = 1000,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """Measure zero-shot labels; nothing is calibrated on the sample.

    Args:
        towers: The model.
        prompts: The classes.
        sample: Labelled tiles and their targets [N, K] (``labelled_sample``).
        index_folder: Where embeddings are kept.
        options: ``scores`` and ``threshold`` count.
        compute: With what.
        bootstrap: Replicates behind the intervals.
        on_progress: As in ``label_tiles``.

    Returns:
        For ``ensemble`` (all names, synonyms, descriptions and templates) and ``single prompt`` (the name in the first
        template): the report of ``core.evaluate``, and the predictions behind it.

    Raises:
        ManifestError: No tile could be read.
    """
    plan, targets = sample
    index, keys, _ = embed_tiles(towers, plan, Path(index_folder), compute, on_progress)
    vectors, _ = index.take(index.find(keys))
    known = ~np.isnan(vectors).any(axis=1)
    if not known.any():
        raise ManifestError("None of the labelled tiles could be read.", hint="Check the files.")
    ids = plan.table["tile_id"].to_numpy(dtype=object)[known]
    reports, tables = {}, {}
    for name, variant in zip(VARIANTS, (prompts, single_prompt(prompts)), strict=True):
        classifier = text_classifier(towers, variant, options, Path(index_folder), index.about.precision)
        scores = classifier.probabilities(vectors[known])
        report = evaluate(
            targets[known], scores, ids, prompts.names, classifier.thresholds, classifier.task_kind, bootstrap=bootstrap
        )
        reports[name] = report | {
            "prompts": variant.to_dict(),
            "model_id": towers.id,
            "unreadable": int((~known).sum()),
        }
        table = pd.DataFrame({"id": ids, "group": ids})
        for k, c in enumerate(prompts.names):
            table[f"label:{c}"], table[f"score:{c}"] = targets[known, k], scores[:, k]
        tables[name] = table
    return reports, tables
