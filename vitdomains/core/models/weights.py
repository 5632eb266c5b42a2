"""Files of pretrained weights: an explicit file, the local hub cache, the hub, in this order; their sha256; reading them."""

from __future__ import annotations

import hashlib
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
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError, WeightsError
from vitdomains.core.files import file_sha256, is_plain_name, write_atomically
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
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".npz", ".index.json")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", *SHARDED)
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
    """A file of weights on this machine, its sha256, and whether it was given (``path``), cached or fetched (``hub``).

    Of weights in shards it is their index; the sha256 is that of the shards' sha256, in order.
    """

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
        shards = sorted(path.glob("*-of-*.safetensors"))
        found = [path / name for name in HUB_FILES if (path / name).is_file()] + shards
        path = found[0] if found else path / HUB_FILES[0]
    if path.is_file() and wanted != "pretrained":
        return _file(path, "path")
    if path.name.endswith(SUFFIXES):
        raise missing(str(path), "there is no such file")
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
    import timm

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
    import timm
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
            return _file(Path(cached), "cache")
    why = f"the repository holds none of {', '.join(filenames)}"
    for filename in filenames:
        try:
            fetched = Path(hf_hub_download(repository, filename))
            if filename in SHARDED:
                for shard in _shard_names(fetched):
                    hf_hub_download(repository, shard)
            return _file(fetched, "hub")
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
        return _file(path, "cache")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise missing(url, str(error)) from error
    return _file(path, "hub")


def _file(path: Path, source: str) -> WeightsFile:
    files = _parts(path)
    hashes = [file_sha256(file) for file in files]
    if len(hashes) == 1:
        return WeightsFile(path, hashes[0], source)
    return WeightsFile(path, hashlib.sha256("".join(hashes).encode()).hexdigest(), source)


def _parts(path: Path) -> list[Path]:
    """The file itself, or all shards that an index, or the name of one of them (``NAME-00001-of-00003``), stands for.

    Raises:
        WeightsError: A shard is not there.
    """
    names = [path.name]
    if path.name.endswith(".index.json"):
        names = _shard_names(path)
    elif match := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", path.name):
        stem, count, suffix = match.groups()
        names = [f"{stem}-{i + 1:05d}-of-{count}{suffix}" for i in range(int(count))]
    absent = [name for name in names if not (path.parent / name).is_file()]
    if absent:
        raise WeightsError(
            f"{path} is one of {len(names)} shards; missing: {state_dicts.listed(absent)}.",
            hint="Put all shards into one folder.",
        )
    return [path.parent / name for name in names]


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is no index of shards.", hint="Download it again, or give a file.") from error
    if not all(isinstance(name, str) and is_plain_name(name) for name in names):
        raise WeightsError(f"{index} names files outside its folder.", hint="Download it again, or give a file.")
    return names


def read_state(path: Path) -> State:
    """Tensors of a file, or of all its shards, under the names that it gives them; a JAX ``.npz`` in the common names.

    What kind of file it is says its content, not its suffix.

    Raises:
        WeightsError: The file is damaged, of a kind that is not read, holds pickled code, or no tensors.
    """
    state: State = {}
    for part in _parts(path):
        state |= _read_file(part)
    if not state:
        raise WeightsError(
            f"{path} holds no tensors under names.", hint="Save the model's state_dict, best as .safetensors."
        )
    return state


def _read_file(path: Path) -> State:
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise ValueError("it is a pointer of Git LFS in place of the file; fetch it with git lfs pull")
        if start.lstrip()[:1] == b"<":
            raise ValueError("it is a web page")
        if start[8:9] == b"{":
            return state_dicts.unwrap(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return state_dicts.from_flax(dict(arrays))
        with path.open("rb") as file:  # by its path torch would go by the suffix
            return state_dicts.unwrap(torch.load(file, map_location="cpu", weights_only=True))
    except UnpicklingError as error:
        raise _pickled(path, str(error)) from error
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, BadZipFile, SafetensorError) as error:
        text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
        first = text.splitlines()[0][:200] if text else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights: {first}.",
            hint="Save a state dictionary, best as .safetensors, and check the download.",
        ) from error


def _pickled(path: Path, message: str) -> WeightsError:
    """The error for a file whose pickle asks for more than tensors and plain values: what, and how to leave it out."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, UnpicklingError):  # it looks into zip files only
        names = re.findall(r"GLOBAL ([\w.]+)", message)
    if not names:
        text = re.sub(r"\x1b\[[\d;]*m", "", message).split(". ")[0].splitlines()
        return WeightsError(f"{path} cannot be read as weights: {text[0][:200]}.", hint="Check the download.")
    name, out = path.name, f"{path.name.split('.')[0]}-weights.pth"
    return WeightsError(
        f"{path} holds pickled objects beside the weights, which are never loaded: {state_dicts.listed(sorted(names))}.",
        hint='Where you trust the file, save its weights alone: python -c "import torch; '
        f"c = torch.load('{name}', map_location='cpu', weights_only=False); "
        "c = c.state_dict() if hasattr(c, 'state_dict') else c; "
        f"torch.save(next((c[k] for k in ('state_dict', 'model', 'teacher') if k in c), c), '{out}')\"",
    )


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
    if not any(candidates):
        return None
    import timm

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
