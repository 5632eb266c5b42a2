"""Single encoders as halves of a dual encoder of transformers: DINOv2 under timm's names, and sentence encoders that average."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitdomains.core.errors import WeightsError
from vitdomains.core.models.weights import read_state
from vitdomains.zeroshot.models.towers import Parts, first_line, without_bars

Pooling = Literal["class", "mean"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHARP, _FLAT = 1e4, 1e-2
"""How much the mean outweighs the first token before it is normalised, and how little the pooler's tanh bends."""


def dual_encoder(
    image_tower: str, text_tower: str, *, image_weights: str = "", size: int = 224, pooling: Pooling = "class",
    seed: int = 0,
) -> Parts:  # fmt: skip
    """A VisionTextDualEncoderModel of two pretrained towers; the projections are new, into the space of the texts.

    The text projection starts as the identity, so that what the text tower knows of classes never seen stays.

    Args:
        image_tower: Folder or hub id of an image model of transformers with pooled output; or a DINOv2 of timm by its name.
        text_tower: Folder or hub id of a text model with tokenizer.
        image_weights: State of the timm model, under timm's names; empty: timm's own from the hub.
        size: Side of the images in pixels, for a timm model; a multiple of its patch.
        pooling: What stands for an image, for a timm model: its class token, or the mean of its tokens.
        seed: Of the new image projection: the same call gives the same model, so that a stopped training can go on.

    Raises:
        WeightsError: A tower cannot be had or has no place in a dual encoder.
    """
    import timm
    from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, VisionTextDualEncoderModel

    if not Path(image_tower).is_dir() and timm.is_model(image_tower):
        vision = dinov2_from_timm(_timm_model(image_tower, image_weights, size), pooling)
        processor: Any = BitImageProcessor(
            do_center_crop=False, size={"height": size, "width": size}, image_mean=list(MEAN), image_std=list(STD)
        )
    else:
        vision = _pretrained(AutoModel, image_tower)
        vision = getattr(vision, "vision_model", vision)
        processor = _pretrained(AutoImageProcessor, image_tower)
    text, tokenizer = text_encoder(text_tower)
    model = VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    width = text.config.hidden_size
    model.config.projection_dim = model.projection_dim = width
    model.visual_projection = nn.Linear(vision.config.hidden_size, width, bias=False)
    model.text_projection = nn.Linear(width, width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(model.visual_projection.weight, std=vision.config.hidden_size**-0.5, generator=generator)
    nn.init.eye_(model.text_projection.weight)
    return Parts(model.eval(), tokenizer, processor)


def dinov2_from_timm(vit: Any, pooling: Pooling = "class") -> Any:
    """timm's DINOv2 as transformers' ``Dinov2Model``, whose pooled output is timm's first token after the last norm; or, with
    ``mean``, the mean over all tokens after the last norm, standardised over its channels.

    Raises:
        WeightsError: The model has no layer scale or has registers: it is no plain DINOv2.
    """
    from transformers import Dinov2Config, Dinov2Model

    state = vit.state_dict()
    if "blocks.0.ls1.gamma" not in state or "reg_token" in state or "blocks.0.mlp.fc1.weight" not in state:
        raise WeightsError(
            "The timm model is no plain DINOv2 (layer scale, no registers, GELU).",
            hint="Use vit_small_patch14_dinov2 or its larger ones, or a folder of an image model of transformers.",
        )
    block, (side, _) = vit.blocks[0], vit.patch_embed.img_size
    config = Dinov2Config(
        hidden_size=vit.embed_dim, num_hidden_layers=len(vit.blocks) + (pooling == "mean"),
        num_attention_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features // vit.embed_dim, image_size=side, patch_size=vit.patch_embed.patch_size[0],
    )  # fmt: skip
    mapped = {"embeddings.mask_token": torch.zeros(1, vit.embed_dim)}
    for key, value in state.items():
        mapped |= _dinov2_entries(key, value)
    if pooling == "mean":
        mapped |= _mean_layer(f"encoder.layer.{len(vit.blocks)}.", mapped, block.mlp.fc1.out_features)
    mapped = {
        key: value.detach().clone() for key, value in mapped.items()
    }  # each on its own storage, as saving asks for
    # Names inside the model changed between versions of transformers; from_pretrained knows those of the published files.
    with without_bars():
        model, info = Dinov2Model.from_pretrained(None, config=config, state_dict=mapped, output_loading_info=True)
    wrong = sorted(info["missing_keys"] | info["unexpected_keys"])
    if wrong:
        raise WeightsError(
            f"{len(wrong)} weights of the timm model have no place in Dinov2Model, the first is {wrong[0]}.",
            hint="Use vit_small_patch14_dinov2 or its larger ones, or a folder of an image model of transformers.",
        )
    return model.eval()


_DINOV2 = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    "attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
}  # fmt: skip


def _dinov2_entries(key: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor under timm's name -> one, or three of attention, under the published checkpoint's."""
    place = ""
    if key.startswith("blocks."):
        _, number, key = key.split(".", 2)
        place = f"encoder.layer.{number}."
    if key.startswith("attn.qkv."):
        names = ("query", "key", "value")
        kind = key.rsplit(".", 1)[1]
        return {f"{place}attention.attention.{n}.{kind}": v for n, v in zip(names, value.chunk(3), strict=True)}
    stem, dot, kind = key.rpartition(".")
    if key in _DINOV2:
        return {place + _DINOV2[key]: value}
    return {f"{place}{_DINOV2.get(stem, stem)}{dot}{kind}": value}


def _mean_layer(place: str, state: dict[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """A layer more that puts the mean of the normed tokens in the place of each, and a last norm without weights.

    Queries and keys of 0 look at all tokens alike, values are copies, and the layer scale lifts what comes of it above the
    token that it is added to; the feed-forward adds 0. So the folder is one of a plain DINOv2.
    """
    weight, bias = state["layernorm.weight"], state["layernorm.bias"]
    width = len(weight)
    one, none, copy = torch.ones(width), torch.zeros(width), torch.eye(width)
    layer = {
        "norm1.weight": weight, "norm1.bias": bias, "norm2.weight": one, "norm2.bias": none,
        "layer_scale1.lambda1": _SHARP * one, "layer_scale2.lambda1": none,
        "mlp.fc1.weight": torch.zeros(hidden, width), "mlp.fc1.bias": torch.zeros(hidden),
        "mlp.fc2.weight": torch.zeros(width, hidden), "mlp.fc2.bias": none,
    }  # fmt: skip
    for name, matrix in (("attention.query", 0 * copy), ("attention.key", 0 * copy), ("attention.value", copy)):
        layer |= {f"attention.{name}.weight": matrix, f"attention.{name}.bias": none}
    layer |= {"attention.output.dense.weight": copy, "attention.output.dense.bias": none}
    return {"layernorm.weight": one, "layernorm.bias": none} | {place + key: value for key, value in layer.items()}


def text_encoder(source: str) -> tuple[Any, Any]:
    """A text model with ``pooler_output``, and its tokenizer. A BERT that was trained to average its tokens (sentence
    encoders: ``1_Pooling/config.json``, or no pooler of its own) gets ``with_mean_pooling``.

    Raises:
        WeightsError: It cannot be had, or gives no pooled output.
    """
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = _pretrained(AutoModel, source), _pretrained(AutoTokenizer, source)
    model = getattr(model, "text_model", model)
    if model.config.model_type == "bert" and (Path(source) / "1_Pooling").is_dir():
        model = with_mean_pooling(model)
    with torch.no_grad():
        tried = model(**tokenizer(["a"], return_tensors="pt"))
    if getattr(tried, "pooler_output", None) is None:
        raise WeightsError(
            f"The text model {source} gives no pooled output.", hint="Use a BERT, RoBERTa or CLIP text model."
        )
    return model.eval(), tokenizer


@torch.no_grad()
def with_mean_pooling(bert: Any) -> Any:
    """A BERT with one layer more, whose pooled output is the mean over the tokens, standardised over its channels.

    Transformers' dual encoder knows pooled outputs only. Attention whose queries are 0 looks at all tokens alike: with
    values that are copies it gives their mean, which a large factor lifts above the first token that is added to it; the
    feed-forward adds 0, and the pooler's tanh is nearly linear for small numbers. So the folder is one of a plain BERT.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(**{**bert.config.to_dict(), "num_hidden_layers": bert.config.num_hidden_layers + 1})
    model = BertModel(config)
    kept = {k: v for k, v in bert.state_dict().items() if not k.startswith("pooler.")}
    model.load_state_dict(kept, strict=False)
    layer = model.encoder.layer[-1]
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.weight.zero_()
            module.bias.zero_()
    nn.init.eye_(layer.attention.self.value.weight)
    layer.attention.output.dense.weight.copy_(_SHARP * torch.eye(config.hidden_size))
    model.pooler.dense.weight.copy_(_FLAT * torch.eye(config.hidden_size))
    model.pooler.dense.bias.zero_()
    return model.eval()


def _timm_model(name: str, file: str, size: int) -> Any:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        model: Any = timm.create_model(name, pretrained=not file, num_classes=0, img_size=size)
        if file:
            state = {key: value.float() for key, value in read_state(Path(file)).items()}
            model.load_state_dict(checkpoint_filter_fn(state, model))
    except (OSError, RuntimeError, AssertionError, TypeError) as error:
        raise WeightsError(
            f"{name} with weights {file or 'of timm'} at {size} pixels cannot be had: {first_line(error)}",
            hint="Give --image-weights a safetensors file of that model, and a --size that its patch divides.",
        ) from error
    return model.eval()


def _pretrained(kind: Any, source: str) -> Any:
    try:
        with without_bars():
            return kind.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{source} cannot be had: {first_line(error)}",
            hint="Give a folder of transformers, or fetch it once with `hf download` where the hub can be reached.",
        ) from error
