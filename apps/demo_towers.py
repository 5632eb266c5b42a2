"""Small image and text towers with random weights: what the zero-shot demonstration aligns, without a download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from vitdomains.zeroshot.towers import Parts


def word_tokenizer(texts: Sequence[str], size: int = 200) -> BertTokenizer:
    """BERT's WordPiece with at most so many pieces, trained on these texts."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=pieces.get_vocab())


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
