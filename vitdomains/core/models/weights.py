"""Where pretrained weights come from.

Order: an explicit file, the local hub cache, the hub. The sha256 of the file is recorded. What cannot be had is an error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError, WeightsError
from vitdomains.core.files import file_sha256, write_atomically
from vitdomains.core.models import state_dicts
from vitdomains.core.models.state_dicts import State


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors; each tensor on its own storage, on the CPU."""
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
    write_atomically(path, lambda part: save_file(own, part))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights written by ``save_weights``."""
    return load_file(path)


_log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
PUBLISHED = {  # what ``pretrained`` means for the ViT written here: the AugReg weights (Steiner et al. 2022) where they exist
    "Ti/16": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "S/14": "vit_small_patch14_dinov2.lvd142m",
    "S/16": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "S/32": "vit_small_patch32_224.augreg_in21k_ft_in1k",
    "B/8": "vit_base_patch8_224.augreg_in21k_ft_in1k",
    "B/14": "vit_base_patch14_dinov2.lvd142m",
    "B/16": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "B/32": "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "L/14": "vit_large_patch14_dinov2.lvd142m",
    "L/16": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "L/32": "vit_large_patch32_224.orig_in21k",
    "H/14": "vit_huge_patch14_224.orig_in21k",
}


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on this machine, its sha256, and whether it was given (``path``), cached or fetched (``hub``)."""

    path: Path
    sha256: str
    source: str


def resolve(spec: Model) -> WeightsFile:
    """Find the weights that ``spec.weights`` names.

    Raises:
        WeightsError: They are neither a file, nor in the cache, nor to be had from the hub; the hint has the ways out.
    """
    wanted = spec.weights
    path = Path(wanted).expanduser()
    if path.is_dir():
        path = next((path / name for name in HUB_FILES if (path / name).is_file()), path / HUB_FILES[0])
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise missing(str(path), "there is no such file")
        return WeightsFile(path, file_sha256(path), "path")
    repository, filename, url = (wanted, "", "") if wanted != "pretrained" else _published(spec)
    if not repository and url:
        return _from_url(url)
    return _from_hub(repository, (filename,) if filename else HUB_FILES)


def missing(what: str, why: str) -> WeightsError:
    """The error for weights that cannot be had, with the three ways out."""
    return WeightsError(
        f"Weights {what} cannot be had: {why}.",
        hint="Three ways out: (1) set model.weights to a file that you have (.safetensors, .pt, .npz); "
        f"(2) fetch them once with `hf download {what}` where the hub can be reached and copy that cache (HF_HOME) here; "
        "(3) set model.weights to '' to start from random weights.",
    )


def _published(spec: Model) -> tuple[str, str, str]:
    """Hub id, file name in it ('' for the usual ones) and URL of the published weights of a model name."""
    family, _, name = spec.name.partition(":")
    if family == "hf":
        return name, "", ""
    if family == "vit":
        if name not in PUBLISHED:
            raise WeightsError(
                f"There are no published weights for vit:{name}.",
                hint=f"Published: {', '.join(PUBLISHED)}; else give a file or hub id, or set model.weights to ''.",
            )
        name = PUBLISHED[name]
    pretrained: Any = timm.get_pretrained_cfg(current_timm_name(name))
    if not pretrained or not (pretrained.hf_hub_id or pretrained.url):
        raise WeightsError(
            f"timm has no published weights for {name}.", hint="Pick a tag from timm.list_pretrained, or give a file."
        )
    hub_id = pretrained.hf_hub_id or ""
    if hub_id.endswith("/"):
        hub_id += f"{pretrained.architecture}.{pretrained.tag}" if pretrained.tag else pretrained.architecture
    return hub_id, pretrained.hf_hub_filename or "", pretrained.url or ""


def current_timm_name(name: str) -> str:
    """timm's present name of a model; a deprecated one is said so in the log.

    Raises:
        ConfigError: timm knows no such model.
    """
    from timm.models._registry import _deprecated_models, is_model, split_model_name_tag

    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        close = timm.list_models(f"*{architecture.split('_')[0]}*")[:8]
        raise ConfigError(
            f"timm knows no model {name!r}.", hint=f"Similar: {', '.join(close) or 'see timm.list_models()'}."
        )
    current = _deprecated_models.get(architecture)
    if not current:
        return name
    _log.warning("timm:%s is a deprecated name; it is now timm:%s", name, current)
    return current if not tag or "." in current else f"{current}.{tag}"


def _from_hub(repository: str, filenames: tuple[str, ...]) -> WeightsFile:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise missing(repository, f"it is neither a file ({', '.join(SUFFIXES)}) nor a hub id (owner/name)")
    for filename in filenames:
        cached = try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return WeightsFile(Path(cached), file_sha256(cached), "cache")
    why = f"the repository holds none of {', '.join(filenames)}"
    for filename in filenames:
        try:
            fetched = Path(hf_hub_download(repository, filename))
            return WeightsFile(fetched, file_sha256(fetched), "hub")
        except LocalEntryNotFoundError:
            raise missing(repository, "they are not in the local cache, and the hub does not answer") from None
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            why = str(error).splitlines()[0][:200] or type(error).__name__
    raise missing(repository, why)


def _from_url(url: str) -> WeightsFile:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return WeightsFile(path, file_sha256(path), "cache")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise missing(url, str(error)) from error
    return WeightsFile(path, file_sha256(path), "hub")


def read_state(path: Path) -> State:
    """Tensors of a file under the names that it gives them; a JAX ``.npz`` in the common names of ``checkpoints``.

    Raises:
        WeightsError: The file is damaged, of a kind that is not read, or holds pickled code.
    """
    try:
        if path.suffix == ".safetensors":
            return state_dicts.unwrap(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return state_dicts.from_flax(dict(arrays))
        return state_dicts.unwrap(torch.load(path, map_location="cpu", weights_only=True))
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        RuntimeError,
        BadZipFile,
        UnpicklingError,
        SafetensorError,
    ) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights: {first}.",
            hint="Pickled code is never loaded: save a state dictionary, best as .safetensors, and check the download.",
        ) from error


def transformers_config(name: str) -> Any:
    """Configuration of a transformers model: a folder, a hub id (cache first), or a bare model type such as ``vit``.

    Raises:
        ConfigError: The model type is not known.
        WeightsError: The configuration is neither in the cache nor to be had from the hub.
    """
    from transformers import AutoConfig

    if "/" not in name and not Path(name).is_dir():
        try:
            return AutoConfig.for_model(name)
        except ValueError as error:
            raise ConfigError(
                f"transformers knows no model type {name!r}.",
                hint="Write hf:OWNER/NAME, hf:FOLDER, or a type such as hf:vit.",
            ) from error
    for local_only in (True, False):
        try:
            return AutoConfig.from_pretrained(name, local_files_only=local_only)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0][:200]
    raise missing(name, why)


def trained_mean_std(spec: Model) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that the weights of ``spec`` were trained with, where they can be told."""
    family, _, name = spec.name.partition(":")
    if family == "hf":
        return _preprocessor_mean_std(spec.weights if "/" in spec.weights else name)
    candidates = [Path(spec.weights).name.split(".")[0]]
    if spec.weights == "pretrained":
        candidates = [PUBLISHED.get(name, name)]
    elif family == "timm":
        candidates.append(name)
    for candidate in candidates:
        if candidate and timm.is_model(candidate.split(".")[0]):
            config: Any = timm.get_pretrained_cfg(current_timm_name(candidate))
            return tuple(config.mean), tuple(config.std)
    return None


def _preprocessor_mean_std(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "preprocessor_config.json") if name.count("/") == 1 else None
    file = Path(cached) if isinstance(cached, str) else Path(name) / "preprocessor_config.json"
    if file.is_file():
        stored = json.loads(file.read_text())
        if "image_mean" in stored and "image_std" in stored:
            return tuple(stored["image_mean"]), tuple(stored["image_std"])
    return ((0.5,) * 3, (0.5,) * 3) if re.search(r"(^|/)vit(-|$)", name) else None
