"""The bundle on disk: a folder with weights, thresholds, preprocessing and their history, and nothing that runs.

``bundle.json`` describes the rest and carries the sha256 of every other file; a file whose
hash differs is refused. The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import BundleError
from vitdomains.core.files import file_sha256, is_inside, new_folder, write_text

if TYPE_CHECKING:  # an app and a list of bundles read descriptions without PyTorch
    from torch import Tensor, nn

    from vitdomains.core.data.preprocess import PreprocessSpec
    from vitdomains.core.tasks import Kind, Task

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A trained model and all that is needed to use it.

    ``temperature`` has one value, or one a class; ``thresholds`` are probabilities after temperature. ``files`` maps each file's
    name in the folder to its sha256. ``report`` files may be rewritten by a later evaluation and are listed like the others.
    """

    path: Path
    domain: str
    task_kind: Kind
    classes: tuple[str, ...]
    model: Model
    preprocess: PreprocessSpec
    temperature: tuple[float, ...]
    thresholds: tuple[float, ...]
    threshold_rule: str
    metrics: dict[str, Any]
    data_card: str
    provenance: dict[str, Any]
    exports: dict[str, Any]
    files: dict[str, str]

    @property
    def id(self) -> str:
        """Sixteen hex digits that stand for the model as it predicts: weights, classes, preprocessing, calibration."""
        predicts = [
            self.files.get(WEIGHTS),
            self.classes,
            asdict(self.model),
            self.preprocess.to_dict(),
            self.temperature,
            self.thresholds,
        ]
        return hashlib.sha256(json.dumps(predicts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def task(self) -> Task:
        """The task, without its loss settings."""
        from vitdomains.core.tasks import build_task

        return build_task(self.task_kind, self.classes)


def write_bundle(
    bundle: Bundle, weights: Mapping[str, Tensor], fill: Callable[[Path], object] = lambda folder: None
) -> Bundle:
    """Write ``bundle`` to ``bundle.path``, in the place of one that is there.

    Args:
        bundle: Its ``files`` are ignored; they are listed from what was written.
        weights: The model's state dict.
        fill: Adds further files (model card, report) to the folder it is given, before the hashes are taken.

    Returns:
        The bundle as it is on disk.
    """
    from vitdomains.core.models.weights import save_weights

    with new_folder(bundle.path) as part:
        save_weights(part / WEIGHTS, weights)
        fill(part)
        written = _seal(replace(bundle, path=part))
    return replace(written, path=bundle.path)


def update_bundle(bundle: Bundle, fill: Callable[[Path], object] = lambda folder: None, **changes: Any) -> Bundle:
    """Add files to a bundle on disk or change fields of its description; the folder is replaced as a whole."""
    with new_folder(bundle.path) as part:
        shutil.copytree(bundle.path, part, dirs_exist_ok=True)
        fill(part)
        written = _seal(replace(bundle, path=part, **changes))
    return replace(written, path=bundle.path)


def read_header(path: str | Path) -> dict[str, Any]:
    """What ``bundle.json`` says, as it stands there; nothing else of the folder is looked at.

    Raises:
        BundleError: It is not there, is no description of a bundle, or was written by a newer version.
    """
    folder = Path(path)
    file = folder / "bundle.json"
    if not file.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no bundle.json.",
            hint="Give the folder that train wrote, e.g. runs/demo/bundle.",
        )
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = raw["format_version"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{file} cannot be read: {error}.", hint="Write the bundle again with train.") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {version}, this version reads {FORMAT_VERSION}.",
            hint="Install the vitdomains version that wrote it.",
        )
    return raw


def read_bundle(path: str | Path, *, verify: bool = True, domain: str = "") -> Bundle:
    """Read and check a bundle.

    Args:
        path: Its folder.
        verify: Whether to compare the hash of every file.
        domain: The domain that it has to be of; empty: any.

    Raises:
        BundleError: It is not there, was written by a newer version, lacks a file, a file was changed since, or it is of
            another domain.
    """
    folder = Path(path)
    try:
        bundle = _from_json(folder, read_header(folder))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{folder / 'bundle.json'} does not describe a bundle: {error}.", hint="Write the bundle again with train."
        ) from error
    if domain and bundle.domain != domain:
        raise BundleError(f"{path} is a bundle of {bundle.domain}.", hint=f"Use python -m vitdomains.{bundle.domain}.")
    if verify:
        _verify(bundle)
    return bundle


def load_model(bundle: Bundle) -> nn.Module:
    """The model of a bundle with its weights, in evaluation mode. No weights are looked up anywhere else."""
    from vitdomains.core.models.build import build_model
    from vitdomains.core.models.weights import load_weights

    model = build_model(
        replace(bundle.model, weights="", freeze="none"), len(bundle.classes), image_size=bundle.preprocess.height
    )
    try:
        model.load_state_dict(load_weights(bundle.path / WEIGHTS))
    except (RuntimeError, OSError) as error:
        raise BundleError(
            f"{bundle.path / WEIGHTS} does not fit {bundle.model.name}: {error}",
            hint="Write the bundle again with train.",
        ) from error
    return model.eval()


def _seal(bundle: Bundle) -> Bundle:
    """Hash every file of the folder and write ``bundle.json`` last."""
    files = sorted(p for p in bundle.path.rglob("*") if p.is_file() and p.name != "bundle.json")
    sealed = replace(bundle, files={p.relative_to(bundle.path).as_posix(): file_sha256(p) for p in files})
    raw = {f.name: getattr(sealed, f.name) for f in fields(sealed) if f.name not in ("path", "model", "preprocess")}
    raw |= {
        "format_version": FORMAT_VERSION,
        "id": sealed.id,
        "model": asdict(sealed.model),
        "preprocess": sealed.preprocess.to_dict(),
    }
    write_text(bundle.path / "bundle.json", json.dumps(raw, indent=2, sort_keys=True, allow_nan=False) + "\n")
    return sealed


def _from_json(folder: Path, raw: dict[str, Any]) -> Bundle:
    from vitdomains.core.data.preprocess import PreprocessSpec

    for name in ("id", "format_version"):
        raw.pop(name, None)
    raw["model"] = Model(**raw["model"])
    raw["preprocess"] = PreprocessSpec.from_dict(raw["preprocess"])
    for name in ("classes", "temperature", "thresholds"):
        raw[name] = tuple(raw[name])
    bundle = Bundle(path=folder, **raw)
    if len(bundle.thresholds) != len(bundle.classes) or len(bundle.temperature) not in (1, len(bundle.classes)):
        raise ValueError(
            f"{len(bundle.classes)} classes, {len(bundle.thresholds)} thresholds, {len(bundle.temperature)} temperatures"
        )
    return bundle


def _verify(bundle: Bundle) -> None:
    for name, expected in bundle.files.items():
        file = bundle.path / name
        if not is_inside(name):
            raise BundleError(
                f"{bundle.path}: bundle.json names a file outside the bundle ({name}).", hint="Do not use this bundle."
            )
        if not file.is_file():
            raise BundleError(f"{bundle.path} lacks {name}.", hint="Copy the whole folder again.")
        if file_sha256(file) != expected:
            raise BundleError(
                f"{file} is not the file that was written with the bundle (sha256 differs).",
                hint="Copy the whole folder again, or write it anew with train.",
            )
    if WEIGHTS not in bundle.files:
        raise BundleError(f"{bundle.path}: bundle.json lists no {WEIGHTS}.", hint="Write the bundle again with train.")
