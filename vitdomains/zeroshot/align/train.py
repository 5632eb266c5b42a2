"""Contrastive alignment of two pretrained towers: projections, LoRA or whole towers, from captions or class names.

Image and text embeddings are contrasted over large batches (Radford et al. 2021, "Learning Transferable Visual Models From
Natural Language Supervision", arXiv:2103.00020) in the core's training loop. The image tower is locked unless asked otherwise
(LiT: Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning", arXiv:2111.07991), adapters are those of Hu et
al. 2022 ("LoRA", arXiv:2106.09685), and the embeddings of a locked tower are computed once. The result is a dual encoder of
transformers that ``label`` takes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.config.schema import Config, Recipe, Run
from vitdomains.core.data.dataset import Batch
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.files import write_atomically
from vitdomains.core.models.image_tower import ImageTower
from vitdomains.core.terminal import OnProgress
from vitdomains.core.training.batches import Batches
from vitdomains.core.training.loop import run_epochs
from vitdomains.core.training.setup import Backward, Training, launch, start
from vitdomains.zeroshot.align.data import Pairs
from vitdomains.zeroshot.embeddings.reader import read_image
from vitdomains.zeroshot.labels.prompts import PromptSet, class_embeddings, single_prompt
from vitdomains.zeroshot.models.towers import Parts, TextTower, Towers, make_towers

Loss = Literal["infonce", "sigmoid"]
Encode = Callable[[Tensor], Tensor]
"""Row numbers [n] -> unit vectors [n, D], with gradients where enabled."""


def info_nce(images: Tensor, texts: Tensor, groups: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Softmax over the texts of each image and over the images of each text (Radford et al. 2021, figure 3).

    Pairs of one group are positives of each other, with equal shares (UniCL, Yang et al. 2022): a class name is the caption of
    many images, and would else be its own negative. Where all groups differ this is CLIP's loss.

    Args:
        images: Unit vectors [N, D].
        texts: Unit vectors [N, D]; row i belongs to image i.
        groups: [N], equal where captions mean the same.
        log_scale: Logarithm of the logit scale.
        bias: Not used here; softmax does not feel it.
    """
    logits = log_scale.exp() * images @ texts.T
    same = (groups[:, None] == groups[None, :]).to(logits.dtype)
    shares = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, groups: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Each pair by itself is right or wrong (Zhai et al. 2023, algorithm 1). Arguments as ``info_nce``."""
    logits = log_scale.exp() * images @ texts.T + bias
    signs = torch.where(groups[:, None] == groups[None, :], 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() / len(images)


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "infonce": info_nce,
    "sigmoid": sigmoid_loss,
}


def backward(
    encoders: tuple[Encode, Encode],
    rows: tuple[Tensor, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    chunk: int,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    differentiate: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Add the gradients of a batch to the parameters, ``chunk`` rows in memory at a time.

    GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv:2101.06983):
    the embeddings of the whole batch are computed without a graph; the loss gives their gradients; each chunk is then computed
    again with the same random numbers (dropout) and takes its share back to the parameters.

    Args:
        encoders: Of images and of texts.
        rows: Row numbers [N] for each.
        loss: Of image and text embeddings [N, D], float32; its own parameters get their gradients too.
        chunk: Rows; the result does not depend on it.
        autocast: Context of the encoders.
        differentiate: Backward pass of the loss, which may scale it (fp16).

    Returns:
        The loss.
    """
    parts = [(encode, part) for encode, own in zip(encoders, rows, strict=True) for part in own.split(chunk)]
    states, embedded = [], []
    with torch.no_grad(), autocast():
        for encode, part in parts:
            states.append(_random_state())
            embedded.append(encode(part))
    leaves = [(e.float() if e.dtype.itemsize < 4 else e).detach().requires_grad_() for e in embedded]
    n_images = len(rows[0].split(chunk))
    value = loss(torch.cat(leaves[:n_images]), torch.cat(leaves[n_images:]))
    differentiate(value)
    after = _random_state()
    for (encode, part), state, leaf in zip(parts, states, leaves, strict=True):
        _set_random_state(state)
        with autocast():
            again = encode(part)
        if again.requires_grad and leaf.grad is not None:
            again.backward(leaf.grad.to(again.dtype))
    _set_random_state(after)
    return value.detach()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


Trained = Literal["projection", "lora", "full"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
LARGEST_SCALE = math.log(100.0)
"""Upper bound of the logarithm of the logit scale (Radford et al. 2021, section 2.5)."""
_FORWARD = 32


@dataclass(frozen=True)
class Alignment:
    """How to align. ``lora`` and ``full`` are of the text tower, and of the image tower too if ``unlock_image``.

    ``batch_size`` pairs are contrasted with each other, ``chunk`` of them are in memory with a graph. ``text_rate`` scales
    the learning rate of the text projection, which starts as the identity. Precision, accelerator and ``save_seconds`` are
    those of ``recipe`` and ``run``.
    """

    trained: Trained = "projection"
    unlock_image: bool = False
    loss: Loss = "infonce"
    steps: int = 500
    batch_size: int = 512
    chunk: int = 64
    lr: float = 1e-3
    text_rate: float = 0.0
    weight_decay: float = 0.1
    lora_rank: int = 8
    precision: Precision = "fp32"
    accelerator: Accelerator = "auto"
    save_seconds: float = 60.0
    seed: int = 0


def align(
    parts: Parts, pairs: Pairs, work: Path, how: Alignment, *, memory: Path | None = None,
    on_progress: OnProgress = lambda p, d, t, x: None,
) -> Parts:  # fmt: skip
    """Train, and return the parts with LoRA merged in; the modules of ``parts`` are changed.

    Args:
        parts: A VisionTextDualEncoderModel with its tokenizer and image processor.
        pairs: Images and captions.
        work: Folder for the state of training. The same call goes on where it was stopped.
        how: Settings.
        memory: Folder of image features, which runs of other settings may share; None: ``work``.
        on_progress: Called with (phase, done, total, text).

    Raises:
        TrainingError: ``work`` holds the state of other settings or data.
    """
    recipe = Recipe(epochs=1, lr=how.lr, min_lr=0.0, warmup_epochs=0.1, clip_norm=0.0, precision=how.precision)
    run = Run(dir=str(work), seed=how.seed, resume=True, accelerator=how.accelerator, save_seconds=how.save_seconds)
    config = Config(recipe=recipe, run=run)
    towers = make_towers(parts)
    harmless = ("save_seconds", "accelerator", "chunk")
    identity = {key: value for key, value in asdict(how).items() if key not in harmless}
    identity |= {"the towers": towers.id, "the pairs": _pairs_hash(pairs)}
    fabric = launch(config)
    dual = parts.model.to(fabric.device)
    adapters = _unlock(parts, how)
    model = _Trained(dual, -10.0 if how.loss == "sigmoid" else 0.0).to(fabric.device)
    texts = [text for group in pairs.captions for text in group]
    encoders = (
        _image_encoder(parts, pairs.paths, towers.preprocess, memory or work, how, on_progress),
        _text_encoder(parts, texts, how),
    )

    def objective(training: Training, batch: Batch, epoch: int, step: int) -> Backward:
        rows, groups, _ = batch
        loss = partial(_loss, how, groups.to(fabric.device), dual.logit_scale, model.bias)

        def contrast(share: int) -> Tensor:
            with torch.no_grad():
                dual.logit_scale.clamp_(0.0, LARGEST_SCALE)
            return backward(
                encoders, (rows[:, 0], rows[:, 1]), loss, how.chunk,
                autocast=fabric.autocast, differentiate=lambda value: fabric.backward(value / share),
            )  # fmt: skip

        return contrast

    training = start(
        model, _groups(model, how), lambda: _batches(pairs, how), objective, config, fabric, identity,
        hint=f"Choose another --out, or delete {work / 'checkpoint'} to start anew.",
        remedy="Lower --lr, or use --precision fp32.",
        on_step=lambda done, total, text: on_progress("align", done, total, ""),
    )  # fmt: skip
    run_epochs(training)
    dual.to("cpu")
    with torch.no_grad():
        dual.logit_scale.clamp_(0.0, LARGEST_SCALE)
    for name, adapter in adapters.items():
        setattr(dual, name, adapter.merge_and_unload())
    return Parts(dual.eval(), parts.tokenizer, parts.processor)


class _Trained(nn.Module):
    """The dual encoder and the bias of the sigmoid loss, which is no part of it."""

    def __init__(self, dual: Any, bias: float) -> None:
        super().__init__()
        self.dual: Any = dual
        self.bias = nn.Parameter(torch.tensor(bias))


def _groups(model: _Trained, how: Alignment) -> list[dict[str, Any]]:
    """AdamW groups with their ``lr_scale``: the logit scale, the bias and the text projection do not decay."""
    dual = model.dual
    tower = [p for m in _unlocked(dual, how) for p in m.parameters() if p.requires_grad]
    groups = [
        {"params": [dual.visual_projection.weight], "lr_scale": 1.0, "weight_decay": how.weight_decay},
        {"params": tower, "lr_scale": 1.0, "weight_decay": how.weight_decay},
        {"params": [dual.text_projection.weight], "lr_scale": how.text_rate, "weight_decay": 0.0},
        {"params": [dual.logit_scale, model.bias], "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"] and group["lr_scale"]]


def _batches(pairs: Pairs, how: Alignment) -> Batches:
    """Row numbers [B, 2] of images and of one caption each, drawn at random, and groups [B]; one epoch of all steps."""
    firsts = np.cumsum([0, *(len(group) for group in pairs.captions)])

    def train(epoch: int, size: int, start: int) -> Iterator[Batch]:
        for step in range(start, how.steps):
            rng = np.random.default_rng([how.seed, step])  # of the step, so that a resumed run draws the same
            rows = rng.permutation(len(pairs.paths))[: how.batch_size]
            own = pairs.groups[rows]
            captions = firsts[own] + (rng.random(len(rows)) * (firsts[own + 1] - firsts[own])).astype(np.int64)
            chosen = torch.from_numpy(np.stack([rows, captions], axis=1))
            yield chosen, torch.from_numpy(own), [pairs.paths[i] for i in rows]

    return Batches(train, lambda size: iter(()), lambda module: module, how.steps)


def _pairs_hash(pairs: Pairs) -> str:
    return hashlib.sha256(json.dumps([pairs.paths, pairs.captions]).encode()).hexdigest()


def _loss(how: Alignment, groups: Tensor, scale: Tensor, bias: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    return LOSSES[how.loss](images, texts, groups, scale, bias)


def _unlocked(model: Any, how: Alignment) -> list[nn.Module]:
    if how.trained == "projection":
        return []
    return [model.text_model, model.vision_model] if how.unlock_image else [model.text_model]


def _unlock(parts: Parts, how: Alignment) -> dict[str, Any]:
    """Lock what is locked, put adapters into what is not; the adapters by the name of their tower."""
    parts.model.requires_grad_(False)
    parts.model.visual_projection.requires_grad_(True)
    parts.model.text_projection.requires_grad_(how.text_rate > 0)
    parts.model.logit_scale.requires_grad_(True)
    adapters = {}
    for tower in _unlocked(parts.model, how):
        if how.trained == "full":
            tower.requires_grad_(True)
        else:
            from peft import LoraConfig, get_peft_model

            name = "text_model" if tower is parts.model.text_model else "vision_model"
            config = LoraConfig(
                r=how.lora_rank, lora_alpha=2 * how.lora_rank, target_modules=r".*\.(query|value|q_proj|v_proj)"
            )
            adapters[name] = get_peft_model(tower, config)
        tower.train()
    return adapters


def _image_encoder(
    parts: Parts, paths: Sequence[str], spec: PreprocessSpec, memory: Path, how: Alignment, on_progress: OnProgress
) -> Encode:
    model = parts.model
    device = model.visual_projection.weight.device
    if how.trained != "projection" and how.unlock_image:
        tower = ImageTower(model.vision_model)
        return lambda rows: _project(
            tower(load_batch([paths[i] for i in rows], spec).to(device)), model.visual_projection
        )
    features = torch.from_numpy(image_features(parts, paths, memory, on_progress)).to(device)
    return lambda rows: _project(features[rows], model.visual_projection)


def _text_encoder(parts: Parts, texts: Sequence[str], how: Alignment) -> Encode:
    model = parts.model
    tower = TextTower(model.text_model, None, parts.tokenizer, full=False)
    if how.trained != "projection":
        return lambda rows: _project(tower([texts[i] for i in rows]), model.text_projection)
    features = tower.encode(texts).to(model.text_projection.weight.device)
    return lambda rows: _project(features[rows], model.text_projection)


def _project(features: Tensor, projection: nn.Module) -> Tensor:
    """A projection without bias does not feel the length of what it is given: unit features lose nothing."""
    return F.normalize(projection(features), dim=-1)


def load_batch(paths: Sequence[str], spec: PreprocessSpec) -> Tensor:
    """Image files -> normalised [B,3,H,W]."""
    arrays = [prepare(read_image(path), spec).transpose(2, 0, 1) for path in paths]
    return normalise(torch.from_numpy(np.stack(arrays)), spec)


@torch.no_grad()
def image_features(
    parts: Parts, paths: Sequence[str], memory: Path, on_progress: OnProgress = lambda p, d, t, x: None
) -> npt.NDArray[np.float32]:
    """[N,W] unit features of an image tower before its projection; those that ``memory`` holds are not computed again.

    A file in that folder belongs to one tower and preprocessing; its rows to path, size and time of image files.
    """
    spec = make_towers(parts).preprocess
    digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(parts.model.vision_model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    file = memory / f"features-{digest.hexdigest()[:16]}.npz"
    stamps = [f"{path} {(info := Path(path).stat()).st_size} {info.st_mtime_ns}" for path in paths]
    known: dict[str, npt.NDArray[np.float32]] = {}
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            known = dict(zip(stored["files"].tolist(), stored["features"], strict=True))
    new = [i for i, stamp in enumerate(stamps) if stamp not in known]
    tower = ImageTower(parts.model.vision_model.eval())
    device = parts.model.visual_projection.weight.device
    for at in range(0, len(new), _FORWARD):
        rows = new[at : at + _FORWARD]
        found = tower(load_batch([paths[i] for i in rows], spec).to(device)).cpu().numpy()
        known |= dict(zip((stamps[i] for i in rows), found, strict=True))
        on_progress("image features", at + len(rows), len(new), "")
    if new:
        write_atomically(file, partial(_save_features, known))
    return np.stack([known[stamp] for stamp in stamps])


def _save_features(known: dict[str, npt.NDArray[np.float32]], path: Path) -> None:
    with path.open("wb") as handle:
        np.savez(handle, files=np.array(list(known)), features=np.stack(list(known.values())))


def top_one(
    parts: Parts, towers: Towers, prompts: PromptSet, paths: Sequence[str], truth: npt.NDArray[np.int64], memory: Path,
    on_progress: OnProgress = lambda p, d, t, x: None,
) -> dict[str, float]:  # fmt: skip
    """Share of images whose class is found among ``prompts``, for the ensemble and for the name in one template."""
    features = torch.from_numpy(image_features(parts, paths, memory, on_progress))
    with torch.no_grad():
        images = _project(features, parts.model.visual_projection).numpy()
    scores = {}
    for name, asked in (("ensemble", prompts), ("single prompt", single_prompt(prompts))):
        texts = class_embeddings(asked, lambda t: towers.text.encode(t).numpy())
        scores[name] = float(((images @ texts.T).argmax(axis=1) == truth).mean())
    return scores
