"""The image half of a CLIP-like model, and the classifier that it becomes once text embeddings are its last layer.

Zero-shot makes no training: a prompt's embedding is a row of a linear layer. What comes out is a model like any other,
rebuilt from its description and its own weights, without the text half, the tokenizer or the hub.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.models import weights
from vitdomains.core.models.load import load_into

PREFIX = "tower"
"""Family of the model's name in a bundle: ``tower:clip_vision_model``."""

_FIXED_POSITIONS = ("clip_vision_model", "siglip_vision_model", "vit", "deit")

_NOT_SHAPE = ("model_type", "transformers_version", "architectures", "id2label", "label2id", "dtype", "torch_dtype")


class ImageTower(nn.Module):
    """[B,3,height,width] -> unit vectors [B,D], float32: a vision model of transformers, its pooling, and a projection.

    Args:
        vision: A model whose output has ``pooler_output`` [B,W]: CLIP, SigLIP, SigLIP 2, ViT, DINOv2, Swin, ...
        projection: [B,W] -> [B,D], without bias; None where the pooled output is the embedding (SigLIP).
    """

    def __init__(self, vision: nn.Module, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.vision: Any = vision
        self.projection = projection
        self.patched = vision.config.model_type == "siglip2_vision_model"  # type: ignore[union-attr]

    @property
    def width(self) -> int:
        """D."""
        return self.projection.out_features if self.projection is not None else int(self.vision.config.hidden_size)

    def _outputs(self, x: Tensor) -> Any:
        x = x.to(next(self.vision.parameters()).dtype)
        if not self.patched:
            config = self.vision.config
            # These resample their positions only when asked to; DINOv2 and Swin do by themselves.
            asked = config.model_type in _FIXED_POSITIONS and config.image_size != x.shape[-1]
            return self.vision(pixel_values=x, **({"interpolate_pos_encoding": True} if asked else {}))
        # SigLIP 2 NaFlex takes patches, a mask and the shape of the grid, for images of any aspect ratio.
        side = int(self.vision.config.patch_size)
        h, w = x.shape[2] // side, x.shape[3] // side
        patches = x.unflatten(3, (w, side)).unflatten(2, (h, side)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=x.device)
        shapes = torch.tensor([[h, w]] * len(x), device=x.device)
        return self.vision(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self._outputs(x).pooler_output
        embedding = pooled if self.projection is None else self.projection(pooled)
        return F.normalize(embedding.float(), dim=-1)

    def tokens(self, x: Tensor) -> Tensor:
        """[B,3,height,width] -> last hidden state [B,N,W]."""
        return self._outputs(x).last_hidden_state  # type: ignore[no-any-return]

    def spec(self) -> Model:
        """The description from which ``build_tower`` makes the same modules again."""
        config = self.vision.config
        vision = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_SHAPE}
        width = None if self.projection is None else self.projection.out_features
        return Model(name=f"{PREFIX}:{config.model_type}", options={"vision": vision, "projection": width})


class FloatLinear(nn.Linear):
    """A linear layer that computes in float32 whatever its weights are kept in: in bfloat16 a logit of 30 has steps of 1/8."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float(), self.bias.float())


class TowerClassifier(nn.Module):
    """[B,3,height,width] -> logits [B,K]: an image tower and one linear layer on its unit vectors.

    For text embeddings t_k of unit length, logit scale s and bias b (Radford et al. 2021, figure 3; Zhai et al. 2023,
    algorithm 1) the layer's weight is s t_k and its bias b, so that its output is the model's own logit.
    """

    def __init__(self, tower: ImageTower, n_classes: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = FloatLinear(tower.width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """[B,3,height,width] -> embedding [B,D]."""
        return self.tower(x)  # type: ignore[no-any-return]

    def forward_head(self, embedding: Tensor) -> Tensor:
        """Embedding [B,D] -> logits [B,K]."""
        return self.head(embedding)  # type: ignore[no-any-return]

    def head_prefixes(self) -> list[str]:
        """Module paths of the head, with a trailing dot."""
        return ["head."]


def text_head(tower: ImageTower, weight: npt.ArrayLike, bias: npt.ArrayLike = 0.0) -> TowerClassifier:
    """A classifier on ``tower`` (shared, not copied) with a last layer of weight [K,D] and bias [K] or one for all."""
    rows = torch.as_tensor(np.asarray(weight, dtype=np.float32))
    model = TowerClassifier(tower, len(rows))
    with torch.no_grad():
        model.head.weight.copy_(rows)
        model.head.bias.copy_(torch.as_tensor(np.asarray(bias, dtype=np.float32)))
    return model.eval()


def build_tower(
    name: str, spec: Model, n_classes: int, size: int | None, file: weights.WeightsFile | None
) -> TowerClassifier:
    """The modules of a description that ``ImageTower.spec`` made.

    Raises:
        ConfigError: The description is none of a tower.
    """
    from transformers import AutoConfig, AutoModel

    try:
        options = {**spec.options["vision"], "num_channels": spec.channels}
        config = AutoConfig.for_model(name, **options)
        vision = AutoModel.from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{spec.name} with options {spec.options} is no image tower: {error}.",
            hint="Towers come out of python -m vitdomains.zeroshot; for other models write vit:, timm: or hf:.",
        ) from error
    width = spec.options.get("projection")
    projection = nn.Linear(config.hidden_size, width, bias=False) if width else None
    model = TowerClassifier(ImageTower(vision, projection), n_classes)
    if file:
        load_into(model, weights.read_state(file.path), spec, file)
    return model
