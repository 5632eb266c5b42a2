"""From open_clip's format to a transformers folder: the checkpoints of RemoteCLIP, GeoRSCLIP, SkyCLIP and LAION.

A checkpoint holds weights under open_clip's names and nothing else: neither how many heads its attention has nor which GELU
it was trained with. Both follow from the architecture's name, or from open_clip's own JSON beside it, and are written down.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vitdomains.core.errors import WeightsError
from vitdomains.core.files import file_sha256, write_text
from vitdomains.core.models.weights import read_state
from vitdomains.zeroshot.models.towers import Parts, first_line, load_parts

logger = logging.getLogger(__name__)

Activation = Literal["gelu", "quick_gelu"]
State = dict[str, Tensor]

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
HUB = "openai/clip-vit-base-patch32"
TEXT_HEAD = 64
"""Width of a head of every open_clip text tower."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Architecture:
    """An open_clip architecture: width, layers and patch of the image tower, width of its heads, and the activation."""

    width: int
    layers: int
    patch: int
    head: int = 64
    activation: Activation = "gelu"


ARCHITECTURES = {
    "ViT-B-32": Architecture(768, 12, 32),
    "ViT-B-16": Architecture(768, 12, 16),
    "ViT-L-14": Architecture(1024, 24, 14),
    "ViT-H-14": Architecture(1280, 32, 14, head=80),
    "ViT-g-14": Architecture(1408, 40, 14, head=88),
    "ViT-bigG-14": Architecture(1664, 48, 14, head=104),
}
"""open_clip's model_configs; ``-quickgelu`` behind a name changes the activation, ``-336`` only the number of positions."""

TRAINED_WITH: tuple[tuple[str, Activation, str], ...] = (
    ("RS5M_ViT-B-32", "quick_gelu", "GeoRSCLIP's inference.py puts its weights on open_clip's 'openai' ViT-B/32"),
    ("RS5M_ViT-H-14", "gelu", "GeoRSCLIP's inference.py puts its weights on open_clip's laion2b_s32b_b79k ViT-H/14"),
    ("SkyCLIP_ViT_L14", "quick_gelu", "SkyCLIP's README: ViT-L-14 was trained on from the weights of OpenAI"),
    ("SkyCLIP_ViT_B32", "gelu", "SkyCLIP's README: ViT-B-32 was trained on from laion2b_e16"),
    ("RemoteCLIP", "gelu", "RemoteCLIP's README loads its weights into open_clip's architectures without -quickgelu"),
)
"""Files (a part of the name) whose activation their publishers tell, and where they do."""


def convert(
    checkpoint: str | Path, architecture: str, out: str | Path, *, activation: str = "auto", tokenizer: str = ""
) -> Path:
    """Write the transformers folder of an open_clip checkpoint; it holds ``conversion.json`` on what was decided and why.

    Args:
        checkpoint: .pt or .safetensors file with a state dictionary; or one on the hub, OWNER/NAME/FILE.
        architecture: Name in open_clip (ViT-B-32, ViT-L-14-quickgelu, ...) or its JSON file (open_clip_config.json).
        out: Folder to write.
        activation: gelu, quick_gelu, or auto.
        tokenizer: Folder or hub id of CLIP's tokenizer, or the merges file ``bpe_simple_vocab_16e6.txt.gz``; empty: that file
            of an installed open_clip, else the hub.

    Raises:
        WeightsError: The file cannot be had or does not fit the architecture, or its publisher tells another activation.
    """
    file = _find(str(checkpoint))
    shape = read_architecture(architecture)
    chosen, why = _activation(shape, file.name, architecture, activation)
    state = _native(read_state(file))
    parts = Parts(_model(state, shape, chosen), clip_tokenizer(tokenizer), _processor(state, shape))
    folder = Path(out)
    parts.save(folder)
    about = {
        "checkpoint": file.name, "sha256": file_sha256(file), "architecture": architecture, "activation": chosen,
        "activation_because": why,
    }  # fmt: skip
    write_text(folder / "conversion.json", json.dumps(about, indent=1) + "\n")
    load_parts(folder)
    return folder


def _find(checkpoint: str) -> Path:
    file = Path(checkpoint).expanduser()
    if file.is_file():
        return file
    why = "there is no such file"
    owner, name, path = (*checkpoint.split("/", 2), "", "")[:3]
    if path and owner not in ("", ".", "..", "~"):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(f"{owner}/{name}", path))
        except (OSError, ValueError) as error:
            why = first_line(error)
    raise WeightsError(
        f"The checkpoint {checkpoint} cannot be had: {why}",
        hint="Download it where its hub or page can be reached and give the file; data_cards/clip_weights.md says where it is.",
    )


def read_architecture(name: str) -> Architecture:
    """An architecture by its name in open_clip, or from open_clip's JSON.

    Raises:
        WeightsError: Neither is known.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw = raw.get("model_cfg", raw)
            vision = raw["vision_cfg"]
            return Architecture(
                vision["width"], vision["layers"], vision["patch_size"], vision.get("head_width", 64),
                "quick_gelu" if raw.get("quick_gelu") else "gelu",
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{path} is no configuration of an open_clip ViT: {error}.", hint="Give a name."
            ) from error
    bare = re.sub(r"(-336|-quickgelu)", "", name)
    if bare not in ARCHITECTURES:
        raise WeightsError(
            f"The architecture {name!r} is not known.",
            hint=f"Use one of {', '.join(ARCHITECTURES)}, with -quickgelu where it has it, or open_clip's JSON file.",
        )
    known = ARCHITECTURES[bare]
    quick = "-quickgelu" in name
    return Architecture(known.width, known.layers, known.patch, known.head, "quick_gelu" if quick else known.activation)


def _activation(shape: Architecture, file: str, architecture: str, wanted: str) -> tuple[Activation, str]:
    if wanted in ("gelu", "quick_gelu"):
        return wanted, "asked for"  # type: ignore[return-value]
    if wanted != "auto":
        raise WeightsError(f"The activation {wanted!r} is not known.", hint="Use auto, gelu or quick_gelu.")
    published = next(((a, why) for part, a, why in TRAINED_WITH if part.lower() in file.lower()), None)
    if published is None:
        logger.warning(
            "%s does not say which GELU it was trained with; %s has %s. Weights that go back to OpenAI's need quick_gelu: the "
            "wrong one costs accuracy without an error. Measure both with `evaluate`.", file, architecture, shape.activation,
        )  # fmt: skip
        return shape.activation, f"the architecture {architecture} has it; the file says nothing"
    activation, why = published
    if activation != shape.activation and (architecture.endswith(".json") or "-quickgelu" in architecture):
        raise WeightsError(
            f"QuickGELU mismatch: {architecture} has {shape.activation}, but {why}, which is {activation}.",
            hint=f"Leave `-quickgelu` to us, or decide with --activation {activation}.",
        )
    if activation != shape.activation:
        logger.warning(
            "%s is converted with %s, not with the %s of its architecture: %s", file, activation, shape.activation, why
        )
    return activation, why


def _native(state: State) -> State:
    """The names of open_clip's CLIP class; DataParallel's prefix and that of its CustomTextCLIP go."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    inside = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = {
        name.removeprefix("text.") if name.startswith(tuple(f"text.{n}" for n in inside)) else name: value
        for name, value in state.items()
    }
    absent = [n for n in ("visual.conv1.weight", "visual.proj", "text_projection", "logit_scale") if n not in state]
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        raise WeightsError(
            f"The file holds weights under the names of transformers ({next(iter(state))}), not of open_clip.",
            hint="Nothing is to be converted: give the folder that it came in, with config.json and the tokenizer, to --model.",
        )
    if absent:
        raise WeightsError(
            f"The file has no {', '.join(absent)}; it begins with {', '.join(list(state)[:3])}.",
            hint="Only CLIP with a ViT image tower is converted: not ResNets, not SigLIP (which is on the hub for transformers).",
        )
    return state


def _model(state: State, shape: Architecture, activation: Activation) -> Any:
    from transformers import CLIPConfig, CLIPModel

    conv, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    layers = {prefix: _depth(state, prefix) for prefix in ("visual.transformer", "transformer")}
    found = (conv.shape[0], layers["visual.transformer"], conv.shape[-1])
    if found != (shape.width, shape.layers, shape.patch):
        raise WeightsError(
            f"The file holds an image tower of width {found[0]} with {found[1]} layers and patches of {found[2]} pixels, "
            f"the architecture says {shape.width}, {shape.layers}, {shape.patch}.",
            hint="Give the --architecture that the checkpoint's publisher names.",
        )
    vocabulary, text_width = state["token_embedding.weight"].shape
    grid = round((len(positions) - 1) ** 0.5)
    common = {"hidden_act": activation, "attention_dropout": 0.0}
    config = CLIPConfig(
        vision_config={
            **common, "hidden_size": shape.width, "num_hidden_layers": shape.layers, "patch_size": shape.patch,
            "num_attention_heads": shape.width // shape.head, "image_size": grid * shape.patch,
            "intermediate_size": len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        },
        text_config={
            **common, "hidden_size": text_width, "num_hidden_layers": layers["transformer"],
            "num_attention_heads": max(1, text_width // TEXT_HEAD), "vocab_size": vocabulary,
            "max_position_embeddings": len(state["positional_embedding"]),
            "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
        },
        projection_dim=state["visual.proj"].shape[1],
    )  # fmt: skip
    model = CLIPModel(config)
    try:
        model.load_state_dict({name: value.float() for name, value in renamed(state).items()})
    except RuntimeError as error:
        raise WeightsError(
            f"The file is no CLIP with a ViT: {str(error).splitlines()[1].strip()[:200]}",
            hint="CoCa, ResNet and EVA checkpoints are not converted.",
        ) from error
    return model.eval()


def _depth(state: State, prefix: str) -> int:
    numbers = [int(n.split(".")[prefix.count(".") + 2]) for n in state if n.startswith(f"{prefix}.resblocks.")]
    return 1 + max(numbers, default=-1)


_PLAIN = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def renamed(state: State) -> State:
    """open_clip's names and layouts to transformers': projections transposed, query, key and value apart."""
    out: State = {}
    for name, value in state.items():
        if name in _PLAIN:
            out[_PLAIN[name]] = value
        elif name == "visual.proj":
            out["visual_projection.weight"] = value.T
        elif name == "text_projection":
            out["text_projection.weight"] = value.T
        elif ".resblocks." in name:
            before, after = name.split("resblocks.")
            number, rest = after.split(".", 1)
            tower = "vision_model" if before.startswith("visual.") else "text_model"
            base = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    out[f"{base}.self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = piece.contiguous()
            else:
                module, kind = rest.rsplit(".", 1)
                out[f"{base}.{_BLOCK.get(module, module)}.{kind}"] = value
        elif name not in ("attn_mask", "logit_bias"):
            out[name] = value  # unknown: loading names it
    return {name: value.contiguous() for name, value in out.items()}


def _processor(state: State, shape: Architecture) -> Any:
    from transformers import CLIPImageProcessor

    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5) * shape.patch
    crop = {"height": side, "width": side}
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop, image_mean=MEAN, image_std=STD)


def clip_tokenizer(wanted: str = "") -> Any:
    """The tokenizer of CLIP, open_clip and what was trained on from them.

    Args:
        wanted: Folder or hub id, or the merges file; empty: that file of an installed open_clip, else the hub.

    Raises:
        WeightsError: It cannot be had.
    """
    from transformers import AutoTokenizer

    installed = importlib.util.find_spec("open_clip")
    if not wanted and installed and installed.origin:
        wanted = str(Path(installed.origin).with_name(BPE_FILE))
    try:
        if wanted.endswith(".txt.gz"):
            return tokenizer_from_merges(Path(wanted))
        return AutoTokenizer.from_pretrained(wanted or HUB)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"CLIP's tokenizer {wanted or HUB} cannot be had: {first_line(error)}",
            hint=f"Give --tokenizer a folder that has it, or the file {BPE_FILE} that comes with open_clip.",
        ) from error


def tokenizer_from_merges(path: Path) -> Any:
    """The tokenizer from its published merges: 256 bytes, the same at the end of a word, 48,894 merges, two marks."""
    from transformers import CLIPTokenizer

    with gzip.open(path, "rt", encoding="utf-8") as handle:
        merges = [tuple(line.split()) for line in handle.read().split("\n")[1 : 1 + MERGES]]
    # The order of the bytes is that of GPT-2's table: printable ones first, the others as characters above 255.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
