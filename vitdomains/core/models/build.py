"""From a model's description to a model: the ViT written here, timm's and transformers' under one function.

What comes back maps images [B,C,height,width] to logits [B,K], and has ``forward_features`` and ``forward_head``. timm's models
come back as they are; transformers' in ``TransformersClassifier``, because they answer with objects.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.models import weights
from vitdomains.core.models.image_tower import PREFIX, build_tower
from vitdomains.core.models.introspect import (
    features,
    freeze,
    layer_ids,
    mlp_head,
    no_decay_names,
    quarters,
    split_frozen,
    trainable,
)
from vitdomains.core.models.load import load_into, load_transformers
from vitdomains.core.models.state_dicts import canonical, implied_options
from vitdomains.core.models.vit import VisionTransformer, vit

__all__ = [
    "ModelInfo",
    "TransformersClassifier",
    "build_model",
    "default_mean_std",
    "describe",
    "features",
    "freeze",
    "layer_ids",
    "no_decay_names",
    "portable_spec",
    "split_frozen",
]

_log = logging.getLogger(__name__)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, in numbers: parameters, and where its weights came from (file and sha256, or nothing)."""

    name: str
    trainable: int
    total: int
    weights: str
    sha256: str


def build_model(spec: Model, n_classes: int, *, image_size: int | None = None) -> nn.Module:
    """Build a backbone with a head, load its weights, freeze what is to be frozen.

    Args:
        spec: Name, weights, head, rates, freezing; ``spec.options`` go to the backbone as they are.
        n_classes: K, the width of the logits.
        image_size: Height and width of the input, pixels, where ``spec.image_size`` is 0; None: the backbone's own.

    Returns:
        A module in training mode: [B,C,height,width] -> logits [B,K].

    Raises:
        ConfigError: An unknown name, or an option that the backbone does not take.
        WeightsError: Weights that cannot be found or do not fit; never a silent random start.
    """
    family, _, name = spec.name.partition(":")
    if family not in _FAMILIES or not name:
        raise ConfigError(f"Unknown model {spec.name!r}.", hint="Write vit:SIZE/PATCH, timm:NAME or hf:NAME.")
    size = spec.image_size or image_size
    file = weights.resolve(spec) if spec.weights else None
    model = _FAMILIES[family](name, spec, n_classes, size, file)
    if spec.grad_checkpointing:
        _checkpoint_activations(model, spec.name)
    freeze(model, spec.freeze)
    model.weights_file = file  # type: ignore[assignment]
    model.spec_name = spec.name  # type: ignore[assignment]
    info = describe(model)
    _log.info("%s: %s of %s parameters are trained", spec.name, f"{info.trainable:,}", f"{info.total:,}")
    return model


def describe(model: nn.Module) -> ModelInfo:
    """Parameter counts and origin of a model from ``build_model``."""
    file = getattr(model, "weights_file", None)
    name = str(getattr(model, "spec_name", type(model).__name__))
    path, sha256 = (str(file.path), file.sha256) if file else ("", "")
    return ModelInfo(name, *trainable(model), path, sha256)


def _build_vit(name: str, spec: Model, n_classes: int, size: int | None, file: weights.WeightsFile | None) -> nn.Module:
    state = canonical(weights.read_state(file.path)) if file else {}
    implied = implied_options(state)
    options: dict[str, Any] = {**implied, **spec.options}
    if size:
        options["image_size"] = size
    rates = {"drop_rate": spec.drop_rate, "drop_path_rate": spec.drop_path_rate}
    model = vit(name, n_classes, in_channels=spec.channels, **{**rates, **options})
    if spec.head == "mlp":
        model.head_drop = nn.Dropout(0.0)
        model.head = mlp_head(model.num_features, spec.head_hidden, n_classes, spec.drop_rate)
        if model.head_dist is not None:
            model.head_dist = mlp_head(model.num_features, spec.head_hidden, n_classes, spec.drop_rate)
    if file:
        load_into(model, state, spec, file)
    model.implied_options = implied
    return model


def _build_timm(
    name: str, spec: Model, n_classes: int, size: int | None, file: weights.WeightsFile | None
) -> nn.Module:
    options: dict[str, Any] = {"in_chans": spec.channels, "num_classes": n_classes}
    if spec.head == "linear" and spec.drop_rate:
        options["drop_rate"] = spec.drop_rate
    if spec.drop_path_rate:
        options["drop_path_rate"] = spec.drop_path_rate
    options |= spec.options
    current = weights.current_timm_name(name)
    import timm  # with it come torchvision and PyTorch's compiler: seconds that a model of our own does not need

    published: Any = timm.get_pretrained_cfg(current)
    if size and published and published.fixed_input_size:
        options.setdefault("img_size", size)
    model: Any = _create_timm(current, options)
    if spec.head == "mlp":
        classifiers = model.get_classifier()
        for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
            path = next(path for path, module in model.named_modules() if module is classifier)
            model.set_submodule(path, mlp_head(classifier.in_features, spec.head_hidden, n_classes, spec.drop_rate))
    if file:
        load_into(model, weights.read_state(file.path), spec, file)
    return model  # type: ignore[no-any-return]


def _create_timm(name: str, options: dict[str, Any]) -> nn.Module:
    """``timm.create_model``, with positions that follow the input size in the families that can."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            if "img_size" in options and "dynamic_img_size" not in options:
                try:
                    return timm.create_model(name, dynamic_img_size=True, **options)  # type: ignore[no-any-return]
                except TypeError as error:
                    if "dynamic_img_size" not in str(error):
                        raise
            return timm.create_model(name, **options)  # type: ignore[no-any-return]
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"timm:{name} cannot be built with {options}: {error}.", hint="Check model.options and the image size."
            ) from error


def _build_transformers(
    name: str, spec: Model, n_classes: int, size: int | None, file: weights.WeightsFile | None
) -> nn.Module:
    from transformers import AutoModelForImageClassification

    config = weights.transformers_config(name)
    changes: dict[str, Any] = {"num_labels": n_classes, "num_channels": spec.channels}
    if size:
        changes["image_size"] = size
    if spec.drop_path_rate:
        changes["drop_path_rate"] = spec.drop_path_rate
    for key, value in {**changes, **spec.options}.items():
        if key != "num_labels" and not hasattr(config, key):
            raise ConfigError(
                f"hf:{name} has no option {key!r}.", hint=f"See the documentation of {type(config).__name__}."
            )
        setattr(config, key, value)
    if (
        config.model_type == "deit" and not config.architectures
    ):  # of DeiT there are two classes, one of them with two heads
        config.architectures = ["DeiTForImageClassification"]
    model = AutoModelForImageClassification.from_config(config)
    if file:
        model = load_transformers(model, weights.read_state(file.path), spec, file)
    wrapped = TransformersClassifier(model)
    for prefix in wrapped.head_prefixes():
        path = prefix.rstrip(".")
        linear = wrapped.get_submodule(path)
        if spec.head == "mlp" and isinstance(linear, nn.Linear):
            wrapped.set_submodule(path, mlp_head(linear.in_features, spec.head_hidden, n_classes, spec.drop_rate))
        elif spec.drop_rate:
            wrapped.set_submodule(path, nn.Sequential(nn.Dropout(spec.drop_rate), linear))
    return wrapped


_FAMILIES = {"vit": _build_vit, "timm": _build_timm, "hf": _build_transformers, PREFIX: build_tower}


class TransformersClassifier(nn.Module):
    """An image classifier of transformers that maps [B,C,height,width] to logits [B,K], a tensor."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone

    def _resampling(self, x: Tensor) -> dict[str, bool]:
        # These three learn absolute positions and resample them only when asked to; DINOv2 and Swin adapt by themselves.
        config = self.backbone.config
        native = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
        asked = config.model_type in ("vit", "deit", "ijepa") and tuple(x.shape[-2:]) != tuple(native)
        return {"interpolate_pos_encoding": True} if asked else {}

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x, **self._resampling(x)).logits  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """[B,C,height,width] -> last hidden state, [B,N,D]."""
        return self.backbone.base_model(x, **self._resampling(x)).last_hidden_state  # type: ignore[no-any-return]

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Last hidden state [B,N,D] -> logits [B,K], pooled as the model type pools."""
        kind = self.backbone.config.model_type
        if hasattr(self.backbone, "distillation_classifier"):
            cls, dist = self.backbone.cls_classifier(tokens[:, 0]), self.backbone.distillation_classifier(tokens[:, 1])
            return (cls + dist) / 2  # type: ignore[no-any-return]
        if kind in ("vit", "deit"):
            pooled = tokens[:, 0]
        elif kind == "dinov2":
            pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        elif kind in ("swin", "swinv2"):
            pooled = tokens.mean(dim=1)
        else:
            raise ConfigError(f"How a {kind} pools its tokens is not known here.", hint="Call the model on the image.")
        return self.backbone.classifier(pooled)  # type: ignore[no-any-return]

    def head_prefixes(self) -> list[str]:
        """Module paths of the head, with a trailing dot: all of the model but its base."""
        base = self.backbone.base_model_prefix
        return [
            f"backbone.{name}."
            for name, child in self.backbone.named_children()
            if name != base and any(True for _ in child.parameters())
        ]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Four maps [B,D_i,h_i,w_i]: the stages of a hierarchical model, or four evenly spaced blocks of a plain one."""
        out = self.backbone(x, output_hidden_states=True, **self._resampling(x))
        if getattr(out, "reshaped_hidden_states", None) is not None:
            # The first is the patch embedding, the others follow the patch merging: stage i ends where stage i + 1 begins.
            return list(out.reshaped_hidden_states[:4])
        patch = self.backbone.config.patch_size
        h, w = x.shape[-2] // patch, x.shape[-1] // patch
        states = [out.hidden_states[index + 1] for index in quarters(len(out.hidden_states) - 1)]
        return [tokens[:, -h * w :].transpose(1, 2).reshape(len(x), -1, h, w) for tokens in states]


def _checkpoint_activations(model: nn.Module, name: str) -> None:
    if isinstance(model, VisionTransformer):
        model.grad_checkpointing = True
        return
    try:
        if isinstance(model, TransformersClassifier):
            backbone = model.backbone  # transformers 5.23 gave the method another name
            enable = (
                getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        else:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"{name} has no gradient checkpointing.", hint="Set model.grad_checkpointing to false."
        ) from error


def default_mean_std(spec: Model) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of values in 0..1, that the weights were trained with.

    The published weights' own; for a file, those of the timm model that its name begins with; else ImageNet's. For other
    than three channels: their mean for one, repeated in turn for more.
    """
    mean, std = weights.trained_mean_std(spec) or IMAGENET
    if spec.channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return tuple(mean[i % len(mean)] for i in range(spec.channels)), tuple(
        std[i % len(std)] for i in range(spec.channels)
    )


def portable_spec(spec: Model, model: nn.Module) -> Model:
    """The description from which ``model`` can be built again without its weights file and without the hub.

    Its ``state_dict`` goes beside it: a transformers model carries its configuration in the options, the ViT written here
    what its weights implied.
    """
    options = dict(spec.options)
    if isinstance(model, VisionTransformer):
        options = {**model.implied_options, **options}
    if isinstance(model, TransformersClassifier):
        config = model.backbone.config
        known = config.to_diff_dict()
        dropped = (
            "model_type",
            "transformers_version",
            "architectures",
            "id2label",
            "label2id",
            "dtype",
            "torch_dtype",
        )
        options = {**{key: value for key, value in known.items() if key not in dropped}, **options}
        return replace(spec, name=f"hf:{config.model_type}", weights="", options=options)
    return replace(spec, weights="", options=options)
