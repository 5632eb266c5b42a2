"""Tiny models with random weights and real tokenizers, made offline and saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from apps.demo.towers import word_tokenizer
from vitdomains.zeroshot.models.towers import Parts

CORPUS = [
    "a satellite photo of a dense forest with many trees.", "aerial imagery of a river or lake with blue water.",
    "a centered satellite photo of residential buildings.", "a photo of a parking lot full of cars.",
    "industrial area, grass field, desert, beach and sea; this is a photo of clouds.",
]  # fmt: skip
SIZE = 32


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE as CLIP's, trained on a few sentences."""
    byte_level = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", show_progress=False,
                                  initial_alphabet=byte_level)  # fmt: skip
    bpe.train_from_iterator(CORPUS, trainer)
    import json

    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*byte_level, *(c + "</w>" for c in byte_level), *("".join(m) for m in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)


def sentence_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """A unigram tokenizer that ends every text with </s> and pads with it, as SigLIP's."""
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Lowercase()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>",
                                      show_progress=False)  # fmt: skip
    unigram.train_from_iterator(CORPUS, trainer)
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=longest,
        model_input_names=["input_ids"],
    )  # fmt: skip


def bert_tokenizer() -> BertTokenizer:
    return word_tokenizer(CORPUS)


def _vision(width: int = 32) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": SIZE, "patch_size": 8}  # fmt: skip


def _text(vocab: int, width: int = 24, longest: int = 32) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": vocab, "max_position_embeddings": longest}  # fmt: skip


def _louder(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights whose embeddings differ between inputs more than those of a fresh start do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5 * 1.5)
    return model.eval()


def clip(seed: int = 0, activation: str = "quick_gelu") -> Parts:
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    config = CLIPConfig(
        text_config={**_text(len(tokenizer)), **ends, "hidden_act": activation},
        vision_config={**_vision(), "hidden_act": activation}, projection_dim=16,
    )  # fmt: skip
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return Parts(_louder(CLIPModel(config)), tokenizer, processor)


def siglip(seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    tokenizer = sentence_tokenizer(64)
    config = SiglipConfig(text_config={**_text(len(tokenizer), 32, 64), "projection_size": 32}, vision_config=_vision())
    model = _louder(SiglipModel(config))
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-1.0)
    return Parts(model, tokenizer, SiglipImageProcessor(size={"height": SIZE, "width": SIZE}))


def siglip2(seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    tokenizer = sentence_tokenizer(64)
    vision = {**_vision(), "num_patches": 16}
    del vision["image_size"]
    config = Siglip2Config(text_config={**_text(len(tokenizer), 32, 64), "projection_size": 32}, vision_config=vision)
    model = _louder(Siglip2Model(config))
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-1.0)
    return Parts(model, tokenizer, Siglip2ImageProcessor(patch_size=8, max_num_patches=16))


def dual(seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    tokenizer = bert_tokenizer()
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**_vision()), BertConfig(**_text(len(tokenizer))), projection_dim=16
    )
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    return Parts(_louder(VisionTextDualEncoderModel(config)), tokenizer, processor)


MAKERS = {"clip": clip, "siglip": siglip, "siglip2": siglip2, "dual": dual}


def write_tiles(root: Path, n: int = 12, size: int = 48, seed: int = 0) -> Path:
    """Pictures of smooth noise, each with a colour of its own."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) // 2
        picture = picture + (rng.integers(0, 128, 3)).astype(np.uint8)
        cv2.imwrite(str(root / f"tile_{i:05d}.png"), picture)
    return root
