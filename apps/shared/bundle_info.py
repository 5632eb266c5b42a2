"""What an app has to know of a bundle before its model is loaded: read from its description alone, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitdomains.core.bundle import read_header
from vitdomains.core.errors import BundleError


@dataclass(frozen=True)
class BundleInfo:
    """Classes, thresholds and identity of a bundle; its files are checked against their hashes when the model is loaded."""

    path: Path
    id: str
    domain: str
    task_kind: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    threshold_rule: str
    model: str
    bands: tuple[str, ...] = ()
    """Bands of a scene that the model takes; empty: pictures as they are."""
    sensor: str = ""

    def calls(self, probabilities: dict[str, float]) -> dict[str, str]:
        """What the model calls: of a finding ``present`` or ``absent``; findings without a probability are left out."""
        pairs = zip(self.classes, self.thresholds, strict=True)
        return {
            c: "present" if probabilities[c] >= t else "absent"
            for c, t in pairs
            if probabilities[c] == probabilities[c]
        }


def read_bundle_info(
    bundle: Path, domain: str | tuple[str, ...], kinds: tuple[str, ...] = ("multilabel",)
) -> BundleInfo:
    """Read a bundle's description.

    Args:
        bundle: Its folder.
        domain: The domains that the app takes.
        kinds: The kinds of task that the app takes.

    Raises:
        BundleError: It is not there, cannot be read, or belongs to another domain.
    """
    raw = read_header(bundle)
    try:
        info = BundleInfo(
            path=bundle,
            id=raw["id"],
            domain=raw["domain"],
            task_kind=raw["task_kind"],
            classes=tuple(raw["classes"]),
            thresholds=tuple(float(t) for t in raw["thresholds"]),
            threshold_rule=raw["threshold_rule"],
            model=raw["model"]["name"],
            bands=tuple(raw["preprocess"].get("bands") or ()),
            sensor=str(raw["preprocess"].get("sensor") or ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle / 'bundle.json'} cannot be read: {error}.", hint="Write the bundle again with train."
        ) from error
    domains = (domain,) if isinstance(domain, str) else domain
    if info.domain not in domains or info.task_kind not in kinds:
        wanted = " or ".join(kind.replace("label", "-label") for kind in kinds)
        raise BundleError(
            f"{bundle} is a {info.task_kind} bundle of {info.domain}.",
            hint=f"Give a {wanted} bundle of {' or '.join(domains)}.",
        )
    return info
