"""The model card and the history of a bundle: how it came to be, what it was measured on, what it must not be used for.

The card follows Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitdomains.core.bundle import Bundle
from vitdomains.core.config.schema import Config
from vitdomains.core.evaluation.evaluate import headline, summary
from vitdomains.core.evaluation.roles import PHRASES

PACKAGES = ("vitdomains", "torch", "timm", "transformers", "numpy", "pydicom", "albumentations", "lightning-fabric")
"""Whose versions a bundle names."""


def provenance(
    config: Config, weights: str, sha256: str, trained: int, total: int, images: Mapping[str, int], **more: Any
) -> dict[str, Any]:
    """How a bundle came to be.

    Args:
        config: The run's.
        weights: File or name of the weights that it started from.
        sha256: Of that file, or another identity of it.
        trained: Parameters that were trained.
        total: Parameters in all.
        images: Images by split.
        more: Further facts.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version(),
        "packages": versions, "seed": config.run.seed, "weights": {"file": Path(weights).name, "sha256": sha256},
        "parameters": {"trained": trained, "total": total}, "config": asdict(config), "images": dict(images),
        "manifest_sha256": "", "groups": 0, **more,
    }  # fmt: skip


def model_card(bundle: Bundle, title: str, notice: str = "", report: Mapping[str, Any] | None = None) -> str:
    """Markdown of the card, from the bundle and the report that goes with it; without a report it says that there is none."""
    history, spec = bundle.provenance, bundle.preprocess
    made = ", ".join(f"{name} {version}" for name, version in history["packages"].items())
    head = history.get("head")
    lines = [
        f"# Model card: {title}",
        *(["", f"**{notice}**"] if notice else []),
        "",
        "## Model",
        "",
        f"- Backbone: `{bundle.model.name}`, head `{bundle.model.head}`",
        f"- Weights at the start: `{history['weights']['file'] or 'random'}` (identity {history['weights']['sha256'] or 'none'})",
        *([f"- Last layer: {head}, not trained on labelled images"] if head else []),
        f"- Input: {spec.height} x {spec.width} px, {spec.resize}, {spec.resample}, {spec.channels} channels",
        f"- Classes: {', '.join(bundle.classes)}",
        f"- Temperature: {', '.join(f'{t:.3f}' for t in bundle.temperature)}; operating points: {bundle.threshold_rule}",
        *([] if head else ["- Temperature and operating points come from the validation split only"]),
        f"- Made {history['created']}, seed {history['seed']}: {made}",
        "",
        *(_prompts(history["prompts"]) if "prompts" in history else _data(bundle)),
        *(_measured(report) if report else ["## Measured", "", "Not yet: run `evaluate` on labelled images of your own."]),
        "",
        "## Limits",
        "",
        "- The figures hold for data like those above. Another hospital, sensor or season needs its own evaluation:",
        "  `evaluate BUNDLE --data.root FOLDER` measures it and sets its figures beside these.",
        *(
            ["- Probabilities of a model that was not calibrated are no frequencies.",
             "- The licence of the checkpoint holds for this bundle; see data_cards/clip_weights.md."]
            if head
            else ["- Probabilities are calibrated to the prevalence of the validation split."]
        ),
        "- A heat map shows where a score came from, not that the score is right.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _prompts(prompts: Mapping[str, Any]) -> list[str]:
    lines = ["## Classes and what the model was asked", ""]
    for entry in prompts["classes"]:
        lines += [f"- **{entry['name']}**" + (" (background)" if entry["background"] else "")]
        lines += [f"    - {text}" for text in entry["prompts"]]
    return [*lines, ""]


def _data(bundle: Bundle) -> list[str]:
    history = bundle.provenance
    images = ", ".join(f"{n} {split}" for split, n in history["images"].items())
    return [
        "## Data",
        "",
        f"- {bundle.data_card or 'unnamed data'} ({images}; {history['groups']} groups)",
        "- The data card of that name says what its labels mean and what its biases are",
        f"- Manifest sha256 `{history['manifest_sha256']}`",
        "",
    ]


def _measured(report: Mapping[str, Any]) -> Sequence[str]:
    metric, _ = headline(report)
    known = [f"{name} {reached[metric]['value']:.3f}" for name, reached in report["baselines"].items()]
    return [
        f"## Measured on {PHRASES[report['rows']['role']]}",
        "",
        f"{report['n']:,} images of {report['groups']:,} groups, split {report['rows']['split']} of {report['rows']['data']}.",
        "",
        "| metric | value | 95 % interval (bootstrap over groups) |",
        "| --- | --- | --- |",
        *(_row(name, value) for name, value in summary(report).items()),
        "",
        f"Baselines on the same images: {f'{metric} of ' + ', '.join(known) if known else 'not measured'}.",
    ]


def _row(name: str, value: Mapping[str, float | None]) -> str:
    if value.get("value") is None:
        return f"| {name} | n/a | |"
    interval = "" if value.get("low") is None else f"{value['low']:.3f} to {value['high']:.3f}"
    return f"| {name} | {value['value']:.3f} | {interval} |"
