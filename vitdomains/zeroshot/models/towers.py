"""Two towers under one interface: CLIP, SigLIP, SigLIP 2 and dual encoders of transformers, from a folder or the hub.

The first room of zero-shot: both towers give unit vectors, and logit = scale * image . text + bias with the checkpoint's own
scale and bias. ``load_parts`` and ``make_towers`` are apart, so that training can hold the parts that it saves.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor, nn

from vitdomains.core.data.preprocess import PreprocessSpec, Resample, normalise, prepare
from vitdomains.core.errors import ConfigError, WeightsError
from vitdomains.core.models.image_tower import ImageTower
from vitdomains.zeroshot.embeddings.reader import read_image

logger = logging.getLogger(__name__)

Kind = Literal["softmax", "sigmoid"]

KINDS: dict[str, Kind] = {
    "clip": "softmax",
    "vision-text-dual-encoder": "softmax",
    "siglip": "sigmoid",
    "siglip2": "sigmoid",
}
"""Model types of transformers that are read, and what turns their logits into scores."""

_RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
TEXT_BATCH = 64


class TextTower(nn.Module):
    """N texts -> unit vectors [N,D], float32.

    Args:
        model: Text model of transformers whose output has ``pooler_output`` [N,W].
        projection: [N,W] -> [N,D]; None where the pooled output is the embedding.
        tokenizer: Of the checkpoint.
        full: Pad to the longest text that the model takes, as SigLIP was trained; else to the longest of the batch.
    """

    def __init__(self, model: nn.Module, projection: nn.Module | None, tokenizer: Any, *, full: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.projection = projection
        self.tokenizer = tokenizer
        config: Any = model.config
        # RoBERTa counts positions from behind its padding id.
        reserved = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
        self.longest = int(config.max_position_embeddings) - reserved
        self.full = full

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts that are too long are cut, with a warning. Gradients flow where the caller lets them."""
        padding: dict[str, Any] = (
            {"padding": "max_length", "max_length": self.longest} if self.full else {"padding": True}
        )
        tokens = self.tokenizer(list(texts), return_tensors="pt", **padding)
        if tokens["input_ids"].shape[1] > self.longest:
            long = [t for t in texts if len(self.tokenizer(t)["input_ids"]) > self.longest]
            logger.warning("%d texts are longer than %d tokens and are cut: %s", len(long), self.longest, long[0][:80])
            tokens = self.tokenizer(
                list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.longest
            )
        device = next(self.model.parameters()).device
        pooled = self.model(**tokens.to(device)).pooler_output
        embedding = pooled if self.projection is None else self.projection(pooled)
        return F.normalize(embedding.float(), dim=-1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, bf16: bool = False) -> Tensor:
        """[N,D] on the CPU, in batches of texts of like length, so that few tokens are padding; ``bf16``: products in it."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            parts = [
                self([texts[i] for i in order[at : at + TEXT_BATCH]]).cpu() for at in range(0, len(texts), TEXT_BATCH)
            ]
        out = torch.empty(len(texts), parts[0].shape[1] if parts else 0)
        for position, embedding in zip(order, torch.cat(parts) if parts else [], strict=True):
            out[position] = embedding
        return out


@dataclass(frozen=True)
class Parts:
    """A checkpoint as transformers knows it: model, tokenizer, image processor, and the name it was loaded under."""

    model: Any
    tokenizer: Any
    processor: Any
    source: str = ""

    def save(self, folder: str | Path) -> None:
        """Write a normal transformers folder, which ``load_towers`` and ``from_pretrained`` read."""
        with without_bars():
            for part in (self.model, self.tokenizer, self.processor):
                part.save_pretrained(folder)


@dataclass(frozen=True)
class Towers:
    """Both halves of a model, ready to use.

    ``image`` maps normalised [B,3,H,W] to unit vectors [B,D]; ``text`` maps N strings to unit vectors [N,D] and
    ``text.encode`` does so in batches without gradients. ``kind`` says whether scores are a softmax over the classes or a
    sigmoid each. ``id`` stands for weights, preprocessing and tokenizer.
    """

    image: ImageTower
    text: TextTower
    logit_scale: float
    logit_bias: float
    kind: Kind
    preprocess: PreprocessSpec
    id: str
    source: str = ""

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """[B,D] and [K,D] unit vectors -> [B,K]."""
        return self.logit_scale * images @ texts.T + self.logit_bias

    def scores(self, logits: Tensor) -> Tensor:
        """Logits [B,K] -> probabilities [B,K], as the checkpoint was trained to give them."""
        return logits.softmax(dim=-1) if self.kind == "softmax" else logits.sigmoid()


def load_parts(source: str | Path) -> Parts:
    """Load a checkpoint from a folder, the local hub cache, or the hub, in this order; float32, evaluation mode.

    Raises:
        WeightsError: It cannot be had, is of a type that is not read, or lacks weights.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    source = str(source)
    config, local = _config(source)
    if config.model_type not in KINDS:
        raise WeightsError(
            f"{source} is a {config.model_type}, which has not two towers that are known here.",
            hint=f"Known types: {', '.join(KINDS)}. For open_clip checkpoints: python -m vitdomains.zeroshot convert.",
        )
    try:
        with without_bars():
            model, info = AutoModel.from_pretrained(
                source, config=config, dtype=torch.float32, local_files_only=local, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        processor = AutoImageProcessor.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise _missing(source, first_line(error)) from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise WeightsError(
            f"{source} lacks {len(names)} weights of a {config.model_type}, the first is {names[0]}.",
            hint="Copy the whole checkpoint again; with random weights its labels would mean nothing.",
        )
    return Parts(model.eval(), tokenizer, processor, source)


def make_towers(parts: Parts) -> Towers:
    """The interface around a loaded or trained checkpoint; modules are shared, not copied."""
    model, kind = parts.model, KINDS[parts.model.config.model_type]
    image = ImageTower(model.vision_model, getattr(model, "visual_projection", None))
    full = model.config.model_type.startswith("siglip")
    text = TextTower(model.text_model, getattr(model, "text_projection", None), parts.tokenizer, full=full)
    bias = float(model.logit_bias.detach()) if hasattr(model, "logit_bias") else 0.0
    spec = _preprocess(parts.processor)
    scale = float(model.logit_scale.detach().double().exp())
    return Towers(image, text, scale, bias, kind, spec, _identity(parts, spec), parts.source)


def load_towers(source: str | Path) -> Towers:
    """``make_towers(load_parts(source))``."""
    return make_towers(load_parts(source))


def clip_zero_shot_classification(
    images: Sequence[Any],
    class_descriptions: Sequence[str],
    model: str | Path | Towers = "openai/clip-vit-base-patch32",
    batch_size: int = 32,
) -> np.ndarray:
    """Probabilities [N,K] of N images (files, PIL images, or arrays [H,W,3]: uint8, or float in 0..1) for K texts.

    The texts are taken as they are; ``prompts`` makes ensembles of templates.

    Raises:
        WeightsError: The model cannot be had.
        ImageError: A file cannot be read.
    """
    towers = model if isinstance(model, Towers) else load_towers(model)
    texts = towers.text.encode(class_descriptions)
    scores = []
    spec = towers.preprocess
    for at in range(0, len(images), batch_size):
        arrays = [planes(prepare(_pixels(x), spec), spec) for x in images[at : at + batch_size]]
        batch = torch.from_numpy(np.stack(arrays))
        with torch.inference_mode():
            scores.append(towers.scores(towers.logits(towers.image(normalise(batch, spec)), texts)))
    return torch.cat(scores).numpy() if scores else np.empty((0, len(class_descriptions)), np.float32)


def _pixels(image: Any) -> npt.NDArray[Any]:
    """[H, W, 3] or grey [H, W] of a file, a PIL image (upright, as a file is read) or an array."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if not isinstance(image, np.ndarray):
        if image.mode[0] in "IF":
            raise ConfigError(
                f"An image of mode {image.mode} is not one of 8 bits.", hint="Scale its pixels to 0..255."
            )
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(f"An array of {image.dtype} has no known scale.", hint="Give uint8, or float in 0..1.")
    return image


def planes(prepared: npt.NDArray[Any], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """[C, H, W] of an image that ``prepare`` made, [H, W, C] or grey [H, W], which is repeated."""
    if prepared.ndim == 2:
        return np.broadcast_to(prepared, (spec.channels, *prepared.shape)).copy()
    return np.stack(cv2.split(prepared))  # several times as fast as a strided copy


@contextmanager
def without_bars() -> Iterator[None]:
    """Loading and saving takes a second; transformers' own progress bars would stand between ours."""
    from transformers.utils import logging as their_logging

    shown = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            their_logging.enable_progress_bar()


def _config(source: str) -> tuple[Any, bool]:
    """The checkpoint's configuration, and whether it lies on this machine."""
    from transformers import AutoConfig

    why = ""
    for local in (True,) if Path(source).is_dir() else (True, False):
        try:
            return AutoConfig.from_pretrained(source, local_files_only=local), local
        except (OSError, ValueError) as error:
            why = first_line(error)
    raise _missing(source, why)


def _missing(source: str, why: str) -> WeightsError:
    return WeightsError(
        f"The model {source} cannot be had: {why}",
        hint="Three ways out: (1) --model FOLDER of a model saved by transformers, or made by `convert` or `align`; "
        f"(2) fetch it once with `hf download {source}` where the hub can be reached and copy that cache (HF_HOME) here; "
        "(3) train your own two towers: python -m vitdomains.zeroshot align --help.",
    )


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its advice."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _preprocess(processor: Any) -> PreprocessSpec:
    """What an image processor does, as one of our descriptions."""
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    resample = _RESAMPLE.get(int(processor.resample), "bicubic")
    if hasattr(processor, "max_num_patches"):  # SigLIP 2 NaFlex; a square of tiles keeps its aspect ratio
        side = int(processor.max_num_patches**0.5) * int(processor.patch_size)
        return PreprocessSpec(side, side, "squash", 3, mean, std, resample=resample)
    size = dict(processor.size)
    shortest = size.get("shortest_edge")
    if getattr(processor, "do_center_crop", None):
        height, width = (int(processor.crop_size[key]) for key in ("height", "width"))
        if (shortest or size["height"]) != min(height, width):
            logger.warning(
                "the image processor resizes to %s and cuts %d x %d; here the whole middle is used", size, height, width
            )
        return PreprocessSpec(height, width, "crop", 3, mean, std, resample=resample)
    if shortest:
        return PreprocessSpec(int(shortest), int(shortest), "crop", 3, mean, std, resample=resample)
    return PreprocessSpec(int(size["height"]), int(size["width"]), "squash", 3, mean, std, resample=resample)


def _identity(parts: Parts, spec: PreprocessSpec) -> str:
    config = parts.model.config
    halves = [
        {
            key: value
            for key, value in half.to_dict().items()
            if key not in ("transformers_version", "_name_or_path", "dtype")
        }
        for half in (config.vision_config, config.text_config)
    ]  # the activation, for one, is in no weight
    digest = hashlib.sha256(
        json.dumps([config.model_type, spec.to_dict(), halves], sort_keys=True, default=str).encode()
    )
    digest.update(json.dumps(sorted(parts.tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(parts.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
