"""Small image and text towers with random weights: what the zero-shot demonstration aligns, without a download."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase, digits

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from vitdomains.zeroshot.models.towers import Parts


def word_tokenizer(texts: Sequence[str]) -> BertTokenizer:
    """BERT's WordPiece with the words of these texts whole, and letters for all others; the same in every process."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({*ascii_lowercase, *digits, *"".join(words)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


def small_towers(texts: Sequence[str], side: int = 64, seed: int = 0) -> Parts:
    """A dual encoder for images of ``side`` pixels and for words like those of ``texts``; untrained, it knows nothing."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(texts)
    # Wider than the usual 0.02: with it so small a model stays for a hundred steps where all embeddings are alike.
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
             "initializer_range": 0.1}  # fmt: skip
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**shape, image_size=side, patch_size=8),
        BertConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=32),
        projection_dim=32,
    )
    processor = ViTImageProcessor(size={"height": side, "width": side})
    return Parts(VisionTextDualEncoderModel(config).eval(), tokenizer, processor)
