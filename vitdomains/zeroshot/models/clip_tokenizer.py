"""CLIP's tokenizer for checkpoints that come without one: from a folder, the hub, or the merges that open_clip carries."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from vitdomains.core.errors import WeightsError
from vitdomains.zeroshot.models.towers import first_line

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
HUB = "openai/clip-vit-base-patch32"


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
