"""The model card: what a bundle is for, what it was measured on, and what it must not be used for (Mitchell et al. 2019)."""

from __future__ import annotations

from typing import Any

from vitdomains.core.bundle import Bundle
from vitdomains.core.domain import Domain
from vitdomains.core.evaluation.evaluate import headline, summary


def model_card(bundle: Bundle, domain: Domain, report: dict[str, Any]) -> str:
    """Markdown of the card, from the bundle and the report that goes with it."""
    history, spec = bundle.provenance, bundle.preprocess
    images = ", ".join(f"{n} {split}" for split, n in history["images"].items())
    lines = [
        f"# Model card: {domain.title}",
        "",
        f"**{domain.notice}**" if domain.notice else "",
        "",
        "## Model",
        "",
        f"- Backbone: `{bundle.model.name}`, head `{bundle.model.head}`",
        f"- Weights at the start: `{history['config']['model']['weights'] or 'random'}`",
        f"- Input: {spec.height} x {spec.width} px, {spec.resize}, {spec.channels} channels",
        f"- Classes: {', '.join(bundle.classes)}",
        f"- Temperature: {', '.join(f'{t:.3f}' for t in bundle.temperature)}; operating points: {bundle.threshold_rule}",
        "- Temperature and operating points come from the validation split only",
        f"- Made {history['created']}, seed {history['seed']}: {', '.join(f'{k} {v}' for k, v in history['packages'].items())}",
        "",
        "## Data",
        "",
        f"- {bundle.data_card or 'unnamed data'} ({images}; {history['groups']} groups)",
        "- The data card of that name says what its labels mean and what its biases are",
        f"- Manifest sha256 `{history['manifest_sha256']}`",
        "",
        "## Measured on held-out groups",
        "",
        "| metric | value | 95 % interval (bootstrap over groups) |",
        "| --- | --- | --- |",
        *(_row(name, value) for name, value in summary(report).items()),
        "",
        "Floors on the same images: " + _floors(report),
        "",
        "## Limits",
        "",
        "- The figures hold for data like the test split above. Another hospital, sensor or season needs its own evaluation.",
        "- Probabilities are calibrated to the prevalence of the validation split.",
        "- A heat map shows where a score came from, not that the score is right.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, value: dict[str, float | None]) -> str:
    if value.get("value") is None:
        return f"| {name} | n/a | |"
    interval = "" if value.get("low") is None else f"{value['low']:.3f} to {value['high']:.3f}"
    return f"| {name} | {value['value']:.3f} | {interval} |"


def _floors(report: dict[str, Any]) -> str:
    metric, _ = headline(report)
    known = [f"{name} {reached[metric]['value']:.3f}" for name, reached in report.get("floors", {}).items()]
    return f"{metric} of " + ", ".join(known) + "." if known else "not measured."
