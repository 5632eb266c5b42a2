"""What a run is made of: four frozen dataclasses, one YAML file, dotted overrides.

The dataclasses are the only place where a key, its default, its unit and its meaning stand; the command line, its help
and ``--print_config`` are made from them by jsonargparse. Checks that need more than a type stand in ``validate``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Source:
    """One data set in its publisher's own layout."""

    name: str = "csv"
    """Name of the reader, one of the domain's sources (for chest films: phantoms, nih, chexpert, padchest, vindr, mimic, csv)."""
    root: str = ""
    """Folder of the data set; empty: ``data.root``. A relative path is taken from ``data.root``."""
    csv: str = ""
    """Label table, relative to the root; empty: the name under which the publisher ships it."""
    images: str = ""
    """Folder of the images, relative to the root; empty: the publisher's layout."""
    columns: dict[str, str] = field(default_factory=dict)
    """For ``csv``: which column holds what, e.g. {id: image, path: file, group: patient, labels: findings, sex: Sex}."""
    separator: str = "|"
    """For ``csv`` with a ``labels`` column: what stands between two labels of one image."""
    uncertain: str | dict[str, str] = "ignore"
    """Uncertain labels (-1): ignore (unknown), zeros or ones; for all findings, or a mapping from finding to policy."""
    blank: Literal["unknown", "negative"] = "unknown"
    """What an empty label cell means."""
    keep: dict[str, list[str]] = field(default_factory=dict)
    """Keep only the rows whose column has one of the values, e.g. {view: [PA, AP]}."""
    limit: int = 0
    """Use at most this many images, whole groups, the first in order of a seeded shuffle; 0: all."""


@dataclass(frozen=True)
class Data:
    """Where images come from, how they are split, sized and cached."""

    root: str = ""
    """Base folder; the roots of the sources are relative to it."""
    sources: list[Source] = field(default_factory=list)
    """Data sets to merge into one manifest; empty: the domain's default."""
    classes: list[str] = field(default_factory=list)
    """Classes to learn, in this order; empty: all that the sources label with at least ``min_positives`` positives."""
    min_positives: int = 1
    """Drop a class with fewer positives than this in the training split (only where ``classes`` is empty); 0: keep all."""
    max_lost: float = 0.5
    """Largest share of the images found that may be left out for want of a label, a path or a readable format, 0..1; more is an error."""
    task: Literal["", "singlelabel", "multilabel"] = ""
    """Whether an image has one class or any number of them; empty: the domain's default."""
    sensor: str = ""
    """Tiles: the sensor that gives bands their order, scale and statistics, e.g. sentinel2_l2a; empty: files as they are."""
    bands: list[str] = field(default_factory=list)
    """Tiles: bands to read, by name, in the order of the model's channels; empty: all of the file."""
    baseline: str = ""
    """Tiles: Sentinel-2's processing baseline where files do not say it, e.g. 05.09, or harmonized; empty: those are refused."""
    units: Literal["", "stored", "physical"] = ""
    """Tiles: whether numbers are the sensor's stored ones or in its unit already, where files leave it in doubt."""
    mean: list[float] = field(default_factory=list)
    """Mean per channel that is subtracted, in units of the image as read; empty: that of the weights or the sensor."""
    std: list[float] = field(default_factory=list)
    """Standard deviation per channel that is divided by, in the same units; empty: that of the weights or the sensor."""
    split: Literal["auto", "official", "grouped", "column", "spatial", "longitude"] = "auto"
    """official: the publisher's lists; grouped: by group (patient, scene), stratified; column: as the table says; spatial: tiles by block of ``block_size``; longitude: tiles from west to east; auto: the first of column, official, grouped that the source has."""
    block_size: float = 0.0
    """For ``split: spatial``: side of a block, metres; 0: an eighth of the longer side of the area."""
    block_buffer: float = 0.0
    """For ``split: spatial`` and ``longitude``: leave out training and validation tiles nearer than this to a held-out one, centre to centre, metres."""
    val_fraction: float = 0.15
    """Share of the groups held out for calibration and early stopping, where the split does not say, 0..1."""
    test_fraction: float = 0.2
    """Share of the groups held out for the report, where the split does not say, 0..1."""
    split_seed: int = 0
    """Seed of the grouped split."""
    image_size: int = 384
    """Height and width of the model's input, pixels."""
    resize: Literal["letterbox", "crop", "squash"] = "letterbox"
    """letterbox: whole image, padded to a square; crop: centre square; squash: aspect ratio not kept."""
    cache: Literal["memory", "disk", "none"] = "disk"
    """Where decoded and resized images are kept between epochs; disk: one memory-mapped file in ``cache_dir``."""
    cache_dir: str = ""
    """Folder of the cache, which several runs may share; empty: ``cache`` in the run folder."""


@dataclass(frozen=True)
class Model:
    """A backbone, its weights and its head."""

    name: str = "vit:Ti/16"
    """``vit:SIZE/PATCH`` (from scratch here), ``timm:NAME`` or ``hf:NAME`` (transformers)."""
    weights: str = ""
    """Empty: random start; ``pretrained``: the published weights of ``name``; else a file (.safetensors, .pt, .npz) or a hub id."""
    allow_partial: bool = False
    """Accept weights that fill less than 90 % of the parameters."""
    image_size: int = 0
    """Input height and width, pixels; 0: ``data.image_size``."""
    channels: int = 3
    """Input channels."""
    head: Literal["linear", "mlp"] = "linear"
    """linear: one layer; mlp: LayerNorm-Dropout-Linear-GELU-Dropout-Linear."""
    head_hidden: int = 512
    """Width of the mlp head."""
    drop_rate: float = 0.0
    """Dropout in the head, 0..1."""
    drop_path_rate: float = 0.0
    """Stochastic depth at the last block, 0..1, rising linearly from the first."""
    freeze: str = "none"
    """none; backbone (all but the head); a count of blocks (``6``); a share of the blocks (``0.5``); ``stage:2`` for the first stages of a hierarchical model."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the backbone, e.g. {stem: conv, pool: avg, register_tokens: 4}."""


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 32
    """Images per step and device."""
    accumulate: int = 1
    """Batches per optimiser step; the effective batch is batch_size x accumulate x devices."""
    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not on bias, norm, class-token and position parameters."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one below it, 0..1; 1: off."""
    head_lr_scale: float = 1.0
    """Factor on the learning rate of the head."""
    head_init: Literal["random", "probe"] = "random"
    """probe: a linear head starts as logistic regression on the untrained features of the first epoch (Kumar et al. 2022)."""
    head_init_c: float = 0.01
    """Inverse strength of the L2 penalty of that regression, on standardised features."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    warmup_epochs: float = 2.0
    """Epochs over which the learning rate rises linearly from zero."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor has it, else fp16 with loss scaling on GPUs, else fp32."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights that is validated and kept, 0..1; 0: off."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights the run ends with: best on ``monitor``, or the last (a validation split of a few images picks by chance)."""
    early_stopping: int = 0
    """Stop after this many epochs without a better ``monitor``; 0: off."""
    monitor: str = ""
    """Validation metric that picks the best epoch; empty: the task's own (auroc or accuracy)."""
    loss: Literal["auto", "bce", "asymmetric", "cross_entropy"] = "auto"
    """auto: bce for multi-label, cross_entropy for single-label tasks."""
    positive_weight: float = 1.0
    """Upper bound of the weight of positives in BCE, n_negative / n_positive clipped to it; 1: no weighting."""
    label_smoothing: float = 0.0
    """Share of the target moved to the other outcome, 0..1."""
    augment: str = "none"
    """Name of an augmentation policy: none, imagenet, cxr, overhead, multispectral."""
    randaugment_magnitude: int = 0
    """Magnitude of RandAugment on top of the policy, 0..10; 0: off."""
    erasing: float = 0.0
    """Probability of random erasing, 0..1."""
    mixup: float = 0.0
    """Alpha of MixUp; 0: off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    mix_off_epochs: int = 0
    """MixUp and CutMix are off for this many last epochs."""
    repeated_augmentation: int = 1
    """Augmented copies of an image in one batch (Hoffer et al. 2020)."""
    progressive_sizes: list[tuple[float, int]] = field(default_factory=list)
    """Input size by share of the training, e.g. [[0.6, 224], [1.0, 384]]: 224 px up to 60 %, then 384 px; empty: one size."""
    frozen_cache_views: int = 0
    """With frozen lower blocks: compute their output once for this many augmented views of each image and train the rest on it; 0: off."""
    teacher: str = ""
    """Bundle folder or model name to distil from; empty: no distillation."""
    teacher_weights: str = ""
    """Weights of a teacher given by model name."""
    distillation: Literal["hard", "soft"] = "hard"
    """Hard or soft labels of the teacher (DeiT)."""
    distillation_alpha: float = 0.5
    """Share of the distillation loss, 0..1."""
    distillation_tau: float = 3.0
    """Temperature of soft distillation."""
    sam_rho: float = 0.0
    """Radius of sharpness-aware minimisation (two passes a step); 0: off."""
    compile: bool = False
    """torch.compile the model."""
    region_weight: float = 0.0
    """Weight of the loss on where findings lie, for images with a mask in the manifest (Li et al. 2018); needs model.options pool: lse. 0: off."""
    region_grid: int = 12
    """Cells along each side of the image in which findings are looked for."""
    threshold_rule: Literal["youden", "sensitivity", "specificity", "f1"] = "youden"
    """How the operating point of each class is chosen on the validation split."""
    threshold_target: float = 0.9
    """Sensitivity or specificity to reach, for those two rules, 0..1."""


@dataclass(frozen=True)
class Run:
    """Where results go and on what it runs."""

    dir: str = "runs/latest"
    """Folder of logs, checkpoints and the bundle."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    resume: bool = False
    """Go on from the last step saved in ``dir``."""
    overwrite: bool = False
    """Start anew in a folder that holds another run."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Devices per machine (more than one: start under torchrun or SLURM, or let Fabric launch)."""
    num_nodes: int = 1
    """Machines."""
    threads: int = 0
    """Compute threads; 0: one per physical core."""
    workers: int = 0
    """Decoding processes; 0: decode in a thread of the training process."""
    save_seconds: float = 60.0
    """Time between two saved states, seconds."""
    log_every: int = 10
    """Steps between two log rows."""
    bootstrap: int = 1000
    """Bootstrap replicates behind every confidence interval."""
    subgroups: list[str] = field(default_factory=lambda: ["sex", "age_band", "view"])
    """Columns of the manifest by which the report is broken down, where present."""
    mlflow: bool = False
    """Log to MLflow as well (its usual environment variables apply)."""
    dry_run: bool = False
    """Estimate the memory, check the data, train nothing."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    recipe: Recipe = field(default_factory=Recipe)
    run: Run = field(default_factory=Run)
